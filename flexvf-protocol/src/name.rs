//! Names of virtual machines.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// A VM's name: 1 to 64 of `a-z A-Z 0-9 . _ -`, the first one a letter or digit.
///
/// It becomes a file name, a log field and a table cell, so nothing that any of them would have to
/// escape is let in. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct VmName(Arc<str>);

/// Why a text is no VM name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a VM name; use 1 to 64 letters, digits, '.', '_' or '-', beginning with a letter or digit"
)]
pub struct ParseVmNameError(String);

const MAX_LEN: usize = 64;

impl VmName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for VmName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for VmName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for VmName {
    type Err = ParseVmNameError;

    fn from_str(text: &str) -> Result<Self, ParseVmNameError> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        let starts_well = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
        if starts_well && text.len() <= MAX_LEN && text.bytes().all(allowed) {
            Ok(Self(text.into()))
        } else {
            Err(ParseVmNameError(text.chars().take(MAX_LEN).collect()))
        }
    }
}

impl From<VmName> for String {
    fn from(name: VmName) -> Self {
        name.0.to_string()
    }
}

impl TryFrom<String> for VmName {
    type Error = ParseVmNameError;

    fn try_from(text: String) -> Result<Self, ParseVmNameError> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_could_leave_its_folder_is_refused() {
        for text in ["", ".", "..", "../x", "a/b", "-rf", "a b", "ä", "a\u{1b}[2J", &"x".repeat(65)]
        {
            assert!(text.parse::<VmName>().is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn ordinary_names_are_taken() {
        for text in ["a", "web-1", "db_2.example", "7"] {
            assert_eq!(text.parse::<VmName>().map(String::from).as_deref(), Ok(text));
        }
    }
}
