//! Adapters: one outside world each, nothing decided.
//!
//! | module | what it speaks to |
//! |---|---|
//! | [`registry`] | the folder of VM registration files |
//! | [`qmp`] | QEMU's monitor socket |
//! | [`agent`] | the agent in a guest, ours or a stock qemu-ga |
//! | [`stats`] | stats pages of PV backends |
//! | [`sysfs`] | PCI functions of the host and their drivers |
//! | [`vfio`] | VFIO's group nodes |
//! | [`found`] | records of what VFs were like |
//! | [`proc`] | QEMU's process |
//! | [`recorder`] | the flight recorder's folder |
//! | [`recording`] | recordings, to be replayed |
//! | [`netlink`] | links, a PF's per-VF settings and counters, forwarding entries |
//!
//! Everything that another process sends is bounded in size and in time, and no fault of it panics.

pub mod agent;
pub mod found;
pub mod netlink;
pub mod proc;
pub mod qmp;
pub mod recorder;
pub mod recording;
pub mod registry;
pub mod stats;
pub mod sysfs;
pub mod vfio;

mod text;

use std::io::{Error, ErrorKind};

use flexvf_protocol::frame::LineSplitter;
use tokio::net::UnixStream;

/// Read at once; an answer is seldom longer.
const READ_BYTES: usize = 4096;

/// Waits for bytes and hands them to a splitter; how many there were. Fails at the stream's end.
///
/// The buffer is not held while it waits: a thousand VMs' tasks wait nearly all the time.
async fn read_some(stream: &UnixStream, splitter: &mut LineSplitter) -> Result<usize, Error> {
    loop {
        stream.readable().await?;
        if let Some(count) = try_read(stream, splitter)? {
            return Ok(count);
        }
    }
}

/// The same of what is there; `None` if that is nothing.
fn try_read(stream: &UnixStream, splitter: &mut LineSplitter) -> Result<Option<usize>, Error> {
    let mut buffer = [0; READ_BYTES];
    match stream.try_read(&mut buffer) {
        Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
        Ok(count) => {
            splitter.push(buffer.get(..count).unwrap_or(&[]));
            Ok(Some(count))
        }
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}
