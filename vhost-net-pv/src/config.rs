//! The command line, and what it means.

use std::os::fd::{OwnedFd, RawFd};
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand};
use flexvf_protocol::stats_page::MAX_QUEUE_PAIRS;

use crate::io::netdev::Netdev;
use crate::io::port::{IoMethod, Loopback, Null, Port, Source, Tap, TapOptions};
use crate::io::stats::StatsPage;
use crate::io::{inherited, server::DeviceParts};
use crate::logic::features::Offloads;
use crate::logic::tuning::Tuning;
use crate::{Device, FrontEnds};

/// Virtual NIC backend for QEMU and DPDK (vhost-user-net) that counts what the wire sees.
///
/// Serves one NIC of one virtual machine: frames go between the guest and a TAP interface. Front-ends
/// may come and go; the process stays until SIGTERM or SIGINT, and then removes its socket and, if it
/// made it, the TAP.
///
/// QEMU needs the guest's memory shared, and a NIC on the socket:
///
///   -object memory-backend-memfd,id=mem,size=1G,share=on -machine memory-backend=mem
///   -chardev socket,id=net0,path=S,reconnect-ms=500
///   -netdev vhost-user,id=net0,chardev=net0,queues=N -device virtio-net-pci,netdev=net0,mq=on
#[derive(Debug, Parser)]
#[command(
    version,
    args_conflicts_with_subcommands = true,
    max_term_width = 100,
    verbatim_doc_comment
)]
#[command(
    after_help = "Example:\n  vhost-net-pv --socket /run/vm0/net.sock --tap vm0 --bridge br0 \
    --stats /run/vm0/net.stats\n\nLog level: RUST_LOG=debug (default: info)."
)]
pub struct Cli {
    /// Another task than serving.
    #[command(subcommand)]
    pub command: Option<Task>,
    /// Serving.
    #[command(flatten)]
    pub serve: ServeArgs,
}

/// Tasks besides serving.
#[derive(Debug, Subcommand)]
pub enum Task {
    /// Print a stats page
    Stats {
        /// The page, as given to --stats
        file: PathBuf,
        /// Print JSON instead of a table
        #[arg(long)]
        json: bool,
    },
}

/// Arguments of serving.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Listen for front-ends at this path
    #[arg(long, value_name = "PATH", group = "role", help_heading = "Front-end")]
    pub socket: Option<PathBuf>,
    /// Connect to a front-end that listens at this path, again whenever it comes back
    #[arg(long, value_name = "PATH", group = "role", help_heading = "Front-end")]
    pub connect: Option<PathBuf>,
    /// Use this open descriptor: a listening socket (systemd passes 3) or a connected one
    #[arg(long, value_name = "N", group = "role", help_heading = "Front-end")]
    pub fd: Option<RawFd>,

    /// TAP interface; made if it does not exist, and then removed in the end
    #[arg(long, value_name = "NAME", group = "frames", help_heading = "Network")]
    pub tap: Option<String>,
    /// Open descriptors of a TAP with a virtio-net header, one a queue pair
    #[arg(
        long,
        value_name = "N,…",
        value_delimiter = ',',
        group = "frames",
        help_heading = "Network"
    )]
    pub tap_fd: Vec<RawFd>,
    /// No interface: swallow every frame (null), give it back (loopback), or swallow all and give
    /// frames of 64 bytes without end (source)
    #[arg(long, value_name = "KIND", group = "frames", help_heading = "Network")]
    pub port: Option<TestPort>,
    /// Make the TAP a port of this bridge
    #[arg(long, value_name = "NAME", conflicts_with_all = ["tap_fd", "port"], help_heading = "Network")]
    pub bridge: Option<String>,
    /// MTU of the TAP [default: as it is; 1500 when new]
    #[arg(long, value_name = "BYTES", conflicts_with_all = ["tap_fd", "port"], help_heading = "Network")]
    #[arg(value_parser = clap::value_parser!(u16).range(68..))]
    pub mtu: Option<u16>,
    /// Queue pairs offered to the guest
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Network")]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=MAX_QUEUE_PAIRS as i64))]
    pub queues: u16,

    /// Publish counters in this file; counters found there are continued
    #[arg(long, value_name = "FILE")]
    pub stats: Option<PathBuf>,
}

/// Ports that are no interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum TestPort {
    /// Swallows every frame.
    Null,
    /// Gives every frame back.
    Loopback,
    /// Swallows every frame and gives frames without end.
    Source,
}

/// What a device's ports are, and what can be done with them.
struct Ports {
    ports: Vec<Box<dyn Port>>,
    offloads: Offloads,
    /// The interface, if it is ours to change.
    interface: Option<String>,
}

impl ServeArgs {
    /// Opens everything that was asked for.
    ///
    /// # Errors
    /// Whatever cannot be had, by name.
    pub fn open(&self) -> anyhow::Result<(Device, FrontEnds)> {
        let stats = match &self.stats {
            Some(path) => StatsPage::open(path, self.queue_pairs())?,
            None => StatsPage::private(self.queue_pairs())?,
        };
        let ports = self.ports()?;
        let device = Device::new(DeviceParts {
            ports: ports.ports,
            offloads: ports.offloads,
            features: u64::MAX,
            tuning: Tuning::default(),
            stats,
            set_mtu: mtu_setter(ports.interface)?,
        })
        .context("cannot start the device's threads")?;
        // Last, since the socket's appearance tells others that everything else is there.
        Ok((device, self.front_ends()?))
    }

    fn queue_pairs(&self) -> usize {
        match self.tap_fd.len() {
            0 => usize::from(self.queues),
            fds => fds,
        }
    }

    fn front_ends(&self) -> anyhow::Result<FrontEnds> {
        match (&self.socket, &self.connect, self.fd) {
            (Some(path), None, None) => Ok(FrontEnds::listen(path)?),
            (None, Some(path), None) => Ok(FrontEnds::Connect(path.clone())),
            (None, None, Some(number)) => {
                FrontEnds::from_fd(take(number)?).with_context(|| format!("--fd {number}"))
            }
            _ => bail!("say where the front-end is: --socket PATH, --connect PATH or --fd N"),
        }
    }

    fn ports(&self) -> anyhow::Result<Ports> {
        if let Some(kind) = self.port {
            return self.test_ports(kind);
        }
        let (taps, interface) = match &self.tap {
            Some(name) => (self.named_tap(name)?, Some(name.clone())),
            None if self.tap_fd.is_empty() => {
                bail!("say where frames go: --tap NAME, --tap-fd N,… or --port KIND")
            }
            None => (self.given_taps()?, None),
        };
        let offloads = taps.first().map(Tap::supported_offloads);
        Ok(Ports {
            offloads: offloads.unwrap_or_default(),
            ports: taps.into_iter().map(boxed).collect(),
            interface,
        })
    }

    fn named_tap(&self, name: &str) -> anyhow::Result<Vec<Tap>> {
        let options = TapOptions {
            name: name.to_owned(),
            queues: usize::from(self.queues),
            io: IoMethod::Auto,
        };
        let taps = Tap::open(&options)?;
        let netdev = Netdev::new().context("cannot open a socket for interface requests")?;
        if let Some(mtu) = self.mtu {
            netdev.set_mtu(name, mtu)?;
        }
        if let Some(bridge) = &self.bridge {
            netdev.join_bridge(name, bridge)?;
        }
        netdev.up(name)?;
        Ok(taps)
    }

    fn given_taps(&self) -> anyhow::Result<Vec<Tap>> {
        if self.queues != 1 && usize::from(self.queues) != self.tap_fd.len() {
            bail!(
                "--queues {} and {} descriptors in --tap-fd: leave --queues out",
                self.queues,
                self.tap_fd.len()
            );
        }
        let open = |number: &RawFd| {
            Tap::from_fd(take(*number)?, IoMethod::Auto)
                .with_context(|| format!("--tap-fd {number}"))
        };
        self.tap_fd.iter().map(open).collect()
    }

    fn test_ports(&self, kind: TestPort) -> anyhow::Result<Ports> {
        let one = |_| match kind {
            TestPort::Null => Ok(boxed(Null)),
            TestPort::Loopback => Loopback::new().map(boxed),
            TestPort::Source => Ok(boxed(Source)),
        };
        let ports = (0..self.queues).map(one).collect::<Result<_, _>>();
        Ok(Ports {
            ports: ports.context("cannot make the ports")?,
            offloads: Offloads::ALL,
            interface: None,
        })
    }
}

fn boxed(port: impl Port + 'static) -> Box<dyn Port> {
    Box::new(port)
}

fn take(number: RawFd) -> anyhow::Result<OwnedFd> {
    inherited(number).with_context(|| format!("descriptor {number} was not passed to this program"))
}

/// A guest that was promised large frames needs an interface that carries them.
fn mtu_setter(
    interface: Option<String>,
) -> anyhow::Result<Box<dyn FnMut(u16) -> std::io::Result<()> + Send>> {
    let Some(name) = interface else {
        return Ok(Box::new(|_mtu| Ok(())));
    };
    let netdev = Netdev::new().context("cannot open a socket for interface requests")?;
    Ok(Box::new(move |mtu| {
        let now = netdev.mtu(&name).map_err(std::io::Error::other)?;
        if now < u32::from(mtu) {
            netdev.set_mtu(&name, mtu).map_err(std::io::Error::other)?;
        }
        Ok(())
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_line_that_launch_vm_uses_is_taken() {
        let cli =
            parse("vhost-net-pv --socket S --tap vm0 --bridge br0 --stats F --queues 2").unwrap();
        assert!(cli.command.is_none());
        assert_eq!(cli.serve.queue_pairs(), 2);
    }

    #[test]
    fn the_stats_command_needs_no_socket() {
        let cli = parse("vhost-net-pv stats FILE --json").unwrap();
        assert!(matches!(cli.command, Some(Task::Stats { json: true, .. })));
    }

    #[test]
    fn contradictions_are_refused() {
        for line in [
            "vhost-net-pv --socket S --connect C --tap vm0",
            "vhost-net-pv --socket S --tap vm0 --port null",
            "vhost-net-pv --socket S --tap vm0 --queues 0",
            "vhost-net-pv --socket S --tap vm0 --queues 17",
            "vhost-net-pv --socket S --port null --bridge br0",
        ] {
            assert!(parse(line).is_err(), "{line} was taken");
        }
    }

    #[test]
    fn what_is_missing_is_said() {
        for (line, missing) in [
            ("vhost-net-pv --socket S", "--tap NAME"),
            ("vhost-net-pv --port null", "--socket PATH"),
        ] {
            let error = parse(line).unwrap().serve.open().err().unwrap();
            assert!(error.to_string().contains(missing), "{error}");
        }
    }
}
