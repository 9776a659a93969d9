//! Foreign text, made fit for a log line.

/// Control characters replaced, cut at `max_chars`.
pub(crate) fn sanitized(text: &str, max_chars: usize) -> String {
    let replace = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    text.chars().take(max_chars).map(replace).collect()
}

/// The most that is shown of another program's message.
pub(crate) const MAX_MESSAGE_CHARS: usize = 200;
