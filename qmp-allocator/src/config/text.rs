//! From a file's text to checked values, with errors that name file and line.

use std::fmt;
use std::fs::OpenOptions;
use std::io::Read;
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use serde::de::DeserializeOwned;
use toml::Spanned;

/// Why a file is refused, on one line: `FILE:LINE: what is wrong; what to do`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// The file.
    pub file: PathBuf,
    /// The line, counted from 1, where one can be told.
    pub line: Option<usize>,
    /// What is wrong.
    pub what: String,
    /// What to do about it.
    pub remedy: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, "{line}:")?;
        }
        write!(f, " {}; {}", self.what, self.remedy)
    }
}

impl std::error::Error for ConfigError {}

/// The longest file taken; a pool of 4,096 VFs written out has 64 KiB.
pub(super) const MAX_FILE_BYTES: usize = 64 * 1024;

/// A file's text, for errors to point into.
pub(super) struct Text {
    file: PathBuf,
    text: String,
}

impl Text {
    pub(super) fn read(file: &Path) -> Result<Self, ConfigError> {
        let whole = |what: String, remedy: &str| ConfigError {
            file: file.into(),
            line: None,
            what,
            remedy: remedy.into(),
        };
        let mut bytes = Vec::new();
        // Without blocking: the open of a FIFO waits for its writer.
        let options =
            OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(file);
        options
            .and_then(|open| {
                if !open.metadata()?.is_file() {
                    return Err(std::io::Error::other("not a regular file"));
                }
                open.take(MAX_FILE_BYTES as u64 + 1).read_to_end(&mut bytes)
            })
            .map_err(|cause| whole(cause.to_string(), "give a file that can be read"))?;
        if bytes.len() > MAX_FILE_BYTES {
            let what = format!("more than {} KiB", MAX_FILE_BYTES / 1024);
            return Err(whole(what, "shorten it"));
        }
        let text = String::from_utf8(bytes).map_err(|error| {
            let at = error.utf8_error().valid_up_to();
            let before = error.as_bytes().get(..at).unwrap_or(&[]);
            let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
            ConfigError { line: Some(line), ..whole("not UTF-8".into(), "save the file as UTF-8") }
        })?;
        Ok(Self { file: file.into(), text })
    }

    pub(super) fn parse<T: DeserializeOwned>(&self) -> Result<T, ConfigError> {
        toml::from_str(&self.text).map_err(|error| {
            let message = error.message().replace(char::is_control, " ");
            let (what, remedy) = match message.split_once("; ") {
                // The types of flexvf-protocol say what to do.
                Some((what, remedy)) => (what.to_owned(), remedy.to_owned()),
                None if message.starts_with("unknown field") => {
                    (message, "correct or remove the key".to_owned())
                }
                None if message.starts_with("missing field") => (message, "add the key".to_owned()),
                None => (message, "correct this line".to_owned()),
            };
            ConfigError {
                file: self.file.clone(),
                line: error.span().map(|span| self.line(&span)),
                what,
                remedy,
            }
        })
    }

    pub(super) fn refuse<T>(
        &self,
        at: &Spanned<T>,
        what: impl Into<String>,
        remedy: impl Into<String>,
    ) -> ConfigError {
        ConfigError {
            file: self.file.clone(),
            line: Some(self.line(&at.span())),
            what: what.into(),
            remedy: remedy.into(),
        }
    }

    /// An interface's name, as the kernel (and a QEMU id made of it) takes it.
    pub(super) fn interface(&self, name: &Spanned<String>) -> Result<String, ConfigError> {
        let text = name.get_ref();
        let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        let dots = text == "." || text == "..";
        if text.is_empty() || text.len() > 15 || dots || !text.chars().all(allowed) {
            let what = format!("{text:?} is no interface name");
            let remedy = "give 1 to 15 letters, digits, '.', '_' or '-', as `ip link` shows it";
            return Err(self.refuse(name, what, remedy));
        }
        Ok(text.clone())
    }

    /// A path that means the same wherever the daemon was started.
    pub(super) fn path(&self, path: &Spanned<PathBuf>) -> Result<PathBuf, ConfigError> {
        let found = path.get_ref();
        if !found.is_absolute() {
            let what = format!("{:?} is a relative path", found.display().to_string());
            return Err(self.refuse(path, what, "give it in full, from / on"));
        }
        Ok(found.clone())
    }

    /// A path that fits into a socket address.
    pub(super) fn socket(&self, path: &Spanned<PathBuf>) -> Result<PathBuf, ConfigError> {
        let found = self.path(path)?;
        if found.as_os_str().len() > MAX_SOCKET_PATH {
            let what = format!("a socket's path of more than {MAX_SOCKET_PATH} bytes");
            return Err(self.refuse(path, what, "put the socket where its path is shorter"));
        }
        Ok(found)
    }

    fn line(&self, span: &Range<usize>) -> usize {
        let before = self.text.as_bytes().get(..span.start).unwrap_or(&[]);
        before.iter().filter(|byte| **byte == b'\n').count() + 1
    }
}

/// What `sun_path` of a Unix socket address holds, less its final zero.
const MAX_SOCKET_PATH: usize = 107;
