//! Where the host's requests come from, and a Unix socket as such a place.

use std::fmt;
use std::fs;
use std::future::Future;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

/// A byte stream to one host at a time.
pub trait Channel: fmt::Display {
    /// Waits for bytes. Zero says that the host has gone; the next call waits for another one. May be
    /// dropped and called again without losing bytes.
    fn read(&mut self, buffer: &mut [u8]) -> impl Future<Output = io::Result<usize>>;
    /// Waits until some of the bytes can be sent, and says how many were. What nobody is there to
    /// read may be dropped, which counts as sent. May be dropped and called again.
    fn write(&mut self, bytes: &[u8]) -> impl Future<Output = io::Result<usize>>;
}

/// A listening Unix socket: the next client is taken when the one before has gone.
#[derive(Debug)]
pub struct UnixChannel {
    path: PathBuf,
    listener: UnixListener,
    client: Option<UnixStream>,
}

impl UnixChannel {
    /// Listens. A socket that is there already is replaced, any other file is not.
    pub fn bind(path: &Path) -> io::Result<Self> {
        if fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket()) {
            fs::remove_file(path)?;
        }
        let listener = UnixListener::bind(path).map_err(|error| {
            io::Error::new(error.kind(), format!("{}: {error}", path.display()))
        })?;
        Ok(Self { path: path.to_owned(), listener, client: None })
    }
}

impl Channel for UnixChannel {
    async fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let client = match &mut self.client {
            Some(client) => client,
            none => none.insert(self.listener.accept().await?.0),
        };
        // A client that ends badly is a client that has gone.
        let count = client.read(buffer).await.unwrap_or(0);
        if count == 0 {
            self.client = None;
        }
        Ok(count)
    }

    async fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(client) = &mut self.client else {
            return Ok(bytes.len());
        };
        // A client that ended badly stays until a read has said so: what it left half-said must not
        // become part of the next client's first request.
        Ok(client.write(bytes).await.unwrap_or(bytes.len()))
    }
}

impl fmt::Display for UnixChannel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path.display().fmt(f)
    }
}
