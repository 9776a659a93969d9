//! TAP interfaces, made the same way for whoever uses them.

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::os::fd::AsFd;

use anyhow::{Context, Result};

use super::stage::{Stage, command};
use crate::bench::logic::frame::HEADER_BYTES;
use crate::sys::attach_tap;

/// A TAP that is up and belongs to this benchmark; it goes when this is dropped.
#[derive(Debug)]
pub struct Tap {
    name: String,
    /// First address of a network of four.
    network: u32,
}

impl Tap {
    /// Makes one for so many queue pairs.
    pub fn make(stage: &Stage, pairs: usize) -> Result<Self> {
        let number = stage.new_number();
        let name = format!("bench{number}");
        let kind = if pairs > 1 { " multi_queue" } else { "" };
        command(&format!("ip tuntap add dev {name} mode tap vnet_hdr{kind}"))?;
        let tap = Self { name, network: NETWORKS + 4 * (number % MAX_NETWORKS) };
        command(&format!("ip link set {} txqueuelen {QUEUE_FRAMES} up", tap.name))?;
        Ok(tap)
    }

    /// Gives the host an address on it, and makes it know its neighbour if that cannot answer.
    pub fn address(&self, neighbour: Option<&str>) -> Result<()> {
        let (name, host, guest) = (&self.name, Ipv4Addr::from(self.network + 1), self.guest());
        command(&format!("ip addr add {host}/{PREFIX} dev {name}"))?;
        let Some(mac) = neighbour else { return Ok(()) };
        command(&format!("ip neigh add {guest} lladdr {mac} dev {name} nud permanent"))
    }

    /// The address of who is behind it.
    pub fn guest(&self) -> Ipv4Addr {
        Ipv4Addr::from(self.network + 2)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Frames that its user has written so far, by the kernel's account.
    pub fn written(&self) -> Result<u64> {
        let file = format!("/sys/class/net/{}/statistics/rx_packets", self.name);
        let text = fs::read_to_string(&file).with_context(|| format!("read {file}"))?;
        text.trim().parse().with_context(|| format!("{file} has no number"))
    }

    /// Its user's end, for frames with a virtio-net header and perhaps a checksum to finish.
    pub fn open(&self) -> Result<File> {
        let file = File::options().read(true).write(true).open("/dev/net/tun");
        let file = file.context("open /dev/net/tun")?;
        attach_tap(file.as_fd(), &self.name, HEADER_BYTES)
            .with_context(|| format!("attach to the TAP {}", self.name))?;
        Ok(file)
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        // The namespace takes with it what is left.
        let _ = command(&format!("ip link del {}", self.name));
    }
}

/// 10.128.0.0, from where on each TAP has a network of its own: those of both sides exist at once.
const NETWORKS: u32 = u32::from_be_bytes([10, 128, 0, 0]);
const MAX_NETWORKS: u32 = 1 << 16;
/// Of a network of four addresses.
pub const PREFIX: u8 = 30;

/// Frames that a TAP keeps for its reader, the kernel's default.
pub const QUEUE_FRAMES: u64 = 1000;
