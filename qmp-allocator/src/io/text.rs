//! Foreign text, made fit for a log line and a terminal.

/// What could move a cursor or turn the reading direction replaced, cut at `max_chars`.
pub(crate) fn sanitized(text: &str, max_chars: usize) -> String {
    let harmful = |c: char| {
        c.is_control()
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    let replace = |c| if harmful(c) { '\u{fffd}' } else { c };
    text.chars().take(max_chars).map(replace).collect()
}

/// The most that is shown of another program's message.
pub(crate) const MAX_MESSAGE_CHARS: usize = 200;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_line_breaks_and_turned_text_are_replaced() {
        let text = "a\u{1b}[2J\r\n\u{9b}1m\u{202e}b\u{2028}ü";
        let expected = "a\u{fffd}[2J\u{fffd}\u{fffd}\u{fffd}1m\u{fffd}b\u{fffd}ü";
        assert_eq!(sanitized(text, 100), expected);
        assert_eq!(sanitized("üüü", 2), "üü");
    }
}
