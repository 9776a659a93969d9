//! The command line, and what it means.

use std::os::fd::RawFd;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use flexvf_protocol::stats_page::MAX_QUEUE_PAIRS;

use crate::logic::feature_names::FeatureSet;

/// `IFNAMSIZ` (linux/if.h), less the zero at the end.
const MAX_NAME_BYTES: usize = 15;
/// What the tun driver allows: 65535 less an Ethernet header.
const MAX_TAP_MTU: i64 = 65_521;

mod open;
mod tuning;

pub use open::{Opened, Probed};
pub use tuning::TuningArgs;

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
        /// Print JSON instead of a table; with --watch, an object a line
        #[arg(long)]
        json: bool,
        /// Print rates, again and again, so many seconds apart [default: 1]
        #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "1")]
        #[arg(value_parser = interval)]
        watch: Option<Duration>,
    },
    /// Print the features that this host offers to guests, and what QEMU and DPDK call them
    Features(FeaturesArgs),
}

/// Arguments of telling features.
#[derive(Debug, Args)]
pub struct FeaturesArgs {
    /// Where frames would go; a TAP of the moment's own when nothing is said.
    #[command(flatten)]
    pub port: PortArgs,
    /// Try this set, as serving would
    #[arg(long, value_name = "SET", allow_hyphen_values = true)]
    pub features: Option<FeatureSet>,
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
}

/// Arguments of serving.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Listen for front-ends at this path
    #[arg(long, value_name = "PATH", group = "role", help_heading = "Front-end")]
    #[arg(visible_alias = "socket-path")]
    pub socket: Option<PathBuf>,
    /// Connect to a front-end that listens at this path, again whenever it comes back
    #[arg(long, value_name = "PATH", group = "role", help_heading = "Front-end")]
    pub connect: Option<PathBuf>,
    /// Use this open descriptor: a listening socket or a connected one [default: systemd's]
    #[arg(long, value_name = "N", group = "role", help_heading = "Front-end")]
    pub fd: Option<RawFd>,
    /// Offer these features to guests: names, `all`, `-name` for all but it, or a mask
    ///
    /// Names are those that `vhost-net-pv features` prints. A set that is written out means the
    /// same on every host: one that cannot offer all of it says so at start. So give all hosts that
    /// guests may migrate between the same set.
    #[arg(long, value_name = "SET", allow_hyphen_values = true, help_heading = "Front-end")]
    pub features: Option<FeatureSet>,

    /// Where frames go.
    #[command(flatten)]
    pub port: PortArgs,
    /// Make the TAP a port of this bridge
    #[arg(long, value_name = "NAME", conflicts_with_all = ["tap_fd", "port"], help_heading = "Network")]
    #[arg(value_parser = interface_name)]
    pub bridge: Option<String>,
    /// MTU of the TAP [default: as it is; 1500 when new]
    #[arg(long, value_name = "BYTES", conflicts_with_all = ["tap_fd", "port"], help_heading = "Network")]
    #[arg(value_parser = clap::value_parser!(u16).range(68..=MAX_TAP_MTU))]
    pub mtu: Option<u16>,

    /// How queues are served.
    #[command(flatten)]
    pub tuning: TuningArgs,

    /// Publish counters in this file; counters found there are continued
    #[arg(long, value_name = "FILE")]
    pub stats: Option<PathBuf>,
    /// Give up capabilities, files and most system calls before the first front-end is served
    #[arg(long, value_name = "SWITCH", default_value = "on")]
    pub sandbox: Switch,
    /// Print what kind of backend this is, as JSON, and end (QEMU's convention)
    #[arg(long)]
    pub print_capabilities: bool,
}

/// Where frames go.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Network")]
pub struct PortArgs {
    /// TAP interface; made if it does not exist, and then removed in the end
    #[arg(long, value_name = "NAME", group = "frames", value_parser = interface_name)]
    pub tap: Option<String>,
    /// Open descriptors of a TAP with a virtio-net header, one a queue pair
    #[arg(long, value_name = "N,…", value_delimiter = ',', group = "frames")]
    pub tap_fd: Vec<RawFd>,
    /// No interface: swallow every frame (null), give it back (loopback), or swallow all and give
    /// frames of 64 bytes without end (source)
    #[arg(long, value_name = "KIND", group = "frames")]
    pub port: Option<TestPort>,
    /// How frames are read from and written to a TAP
    #[arg(long, value_name = "METHOD", default_value = "auto")]
    pub io: Method,
    /// Queue pairs offered to the guest
    #[arg(long, value_name = "N", default_value_t = 1)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=MAX_QUEUE_PAIRS as i64))]
    pub queues: u16,
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

/// How frames are read from and written to a TAP.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Method {
    /// A batch in one call, where the kernel allows io_uring; a frame in one call otherwise.
    #[default]
    Auto,
    /// io_uring, or an error.
    Uring,
    /// A frame in one call.
    Plain,
}

/// On or off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Switch {
    /// On.
    On,
    /// Off.
    Off,
}

/// What the kernel takes as an interface's name (`dev_valid_name` in net/core/dev.c), but for `%`,
/// which would ask it to choose a number.
fn interface_name(text: &str) -> Result<String, String> {
    let odd = |c: char| matches!(c, '/' | ':' | '%') || c.is_whitespace() || c.is_control();
    match text {
        "" => Err("an interface has a name".to_owned()),
        "." | ".." => Err("no interface has this name".to_owned()),
        _ if text.len() > MAX_NAME_BYTES => {
            Err(format!("longer than {MAX_NAME_BYTES} bytes, which no interface's name is"))
        }
        _ => match text.chars().find(|c| odd(*c)) {
            Some(odd) => Err(format!("{odd:?} stands in no interface's name")),
            None => Ok(text.to_owned()),
        },
    }
}

/// Pauses between two tables: shorter ones show noise, longer ones are slips of the finger.
fn interval(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().ok().filter(|seconds| (0.1..=86_400.0).contains(seconds));
    seconds.map(Duration::from_secs_f64).ok_or_else(|| {
        "give seconds between 0.1 and 86400; the file goes before --watch".to_owned()
    })
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
        assert_eq!(cli.serve.port.queue_pairs(), 2);
    }

    #[test]
    fn the_stats_command_needs_no_socket() {
        let cli = parse("vhost-net-pv stats FILE --json").unwrap();
        assert!(matches!(cli.command, Some(Task::Stats { json: true, watch: None, .. })));
    }

    #[test]
    fn contradictions_are_refused() {
        for line in [
            "vhost-net-pv --socket S --connect C --tap vm0",
            "vhost-net-pv --socket S --tap vm0 --port null",
            "vhost-net-pv --socket S --tap vm0 --queues 0",
            "vhost-net-pv --socket S --tap vm0 --mtu 65522",
            "vhost-net-pv --socket S --tap a/b",
            "vhost-net-pv --socket S --tap v%d",
            "vhost-net-pv --socket S --tap ..",
            "vhost-net-pv --socket S --tap=",
            "vhost-net-pv --socket S --tap sixteen-bytes-na",
            "vhost-net-pv --socket S --tap vm0 --bridge br:0",
            "vhost-net-pv --socket S --tap vm0 --queues 17",
            "vhost-net-pv --socket S --port null --bridge br0",
            "vhost-net-pv --socket S --port null --poll-us 1001",
            "vhost-net-pv --socket S --port null --rx-pps 0",
            "vhost-net-pv --socket S --port null --tx-mbit 0",
            "vhost-net-pv --socket S --port null --cpus 2-1",
            "vhost-net-pv --socket S --port null --features nonsense",
            "vhost-net-pv --socket S --port null --sandbox maybe",
            "vhost-net-pv stats FILE --watch 0",
        ] {
            assert!(parse(line).is_err(), "{line} was taken");
        }
    }

    #[test]
    fn watching_is_once_a_second_unless_said_otherwise() {
        let every = |line| match parse(line).unwrap().command {
            Some(Task::Stats { watch, .. }) => watch,
            _ => None,
        };
        assert_eq!(every("vhost-net-pv stats FILE --watch"), Some(Duration::from_secs(1)));
        assert_eq!(every("vhost-net-pv stats FILE --watch 0.5"), Some(Duration::from_millis(500)));
    }

    #[test]
    fn a_set_of_features_may_begin_with_a_hyphen() {
        let cli = parse("vhost-net-pv --socket-path S --port null --features -event_idx").unwrap();
        assert_eq!(cli.serve.features, Some("-event_idx".parse().unwrap()));
    }

    #[test]
    fn features_that_the_port_lacks_are_an_error_at_start() {
        let cli = parse("vhost-net-pv --socket S --port null --features csum,mq").unwrap();
        let error = cli.serve.open().err().unwrap();
        assert!(format!("{error:#}").contains("this host cannot offer mq"), "{error:#}");
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
