//! Which guest, and which start of the agent: what does not change while the agent runs.
//!
//! `/etc/os-release` is read once, at the start. A request opens no file.

use serde::Serialize;

/// See the module's text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Identity {
    /// Changes at each boot of the guest.
    pub boot_id: String,
    /// When the agent started: CLOCK_BOOTTIME, nanoseconds.
    pub started_ns: u64,
    /// The answer of `guest-get-osinfo`.
    pub os: OsInfo,
}

impl Identity {
    /// The epoch to begin with: milliseconds, because no host begins a thousand switches a second.
    pub const fn first_epoch(&self) -> u64 {
        self.started_ns / 1_000_000
    }
}

/// `guest-get-osinfo`'s answer in qemu-ga's schema. What the system does not say is left out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct OsInfo {
    /// `uname -r`.
    pub kernel_release: String,
    /// `uname -v`.
    pub kernel_version: String,
    /// `uname -m`.
    pub machine: String,
    #[serde(flatten)]
    release: Release,
}

/// Of os-release(5).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Release {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pretty_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    variant: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    variant_id: Option<String>,
}

impl OsInfo {
    /// Takes over what the text of an os-release file says. Of two lines with one name the last counts,
    /// as in a shell.
    pub fn with_release(mut self, text: &str) -> Self {
        let release = &mut self.release;
        for line in text.lines() {
            let Some((name, value)) = line.trim().split_once('=') else { continue };
            let place = match name {
                "ID" => &mut release.id,
                "NAME" => &mut release.name,
                "PRETTY_NAME" => &mut release.pretty_name,
                "VERSION" => &mut release.version,
                "VERSION_ID" => &mut release.version_id,
                "VARIANT" => &mut release.variant,
                "VARIANT_ID" => &mut release.variant_id,
                _ => continue,
            };
            *place = Some(unquoted(value));
        }
        self
    }
}

/// A value as a shell would take it: quotes of either kind around it, escapes within double ones.
fn unquoted(value: &str) -> String {
    let within = |quote: char| value.strip_prefix(quote)?.strip_suffix(quote);
    if let Some(literal) = within('\'') {
        return literal.to_owned();
    }
    let mut text = String::new();
    let mut characters = within('"').unwrap_or(value).chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => text.extend(characters.next()),
            other => text.push(other),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn debians_file_becomes_qemu_gas_answer() {
        let text = "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nNAME='Debian GNU/Linux'\n\
                    # NAME=no\nVERSION_ID=\"12\"\nID=debian\nHOME_URL=\"https://www.debian.org/\"\n";
        let os = OsInfo {
            kernel_release: "6.12".into(),
            kernel_version: "#1 SMP".into(),
            machine: "x86_64".into(),
            ..OsInfo::default()
        };
        let expected = json!({
            "kernel-release": "6.12",
            "kernel-version": "#1 SMP",
            "machine": "x86_64",
            "id": "debian",
            "name": "Debian GNU/Linux",
            "pretty-name": "Debian GNU/Linux 12 (bookworm)",
            "version-id": "12",
        });
        assert_eq!(serde_json::to_value(os.with_release(text)).unwrap(), expected);
    }

    #[test]
    fn escapes_are_taken_off() {
        assert_eq!(unquoted(r#""a \"b\" \$c""#), r#"a "b" $c"#);
        assert_eq!(unquoted(r"'a\b'"), r"a\b");
        assert_eq!(unquoted("\""), "\"");
        assert_eq!(unquoted("\\"), "");
    }

    #[test]
    fn an_agent_that_starts_later_begins_with_a_larger_epoch_than_was_reached() {
        let started = |started_ns| Identity { started_ns, ..Identity::default() };
        let reached = started(5_000_000_000).first_epoch() + 900;
        assert!(started(6_000_000_000).first_epoch() > reached);
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text: String) {
            OsInfo::default().with_release(&text);
        }
    }
}
