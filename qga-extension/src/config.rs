//! The command line, and the settings of the bond that the agent makes.

use std::path::PathBuf;

use clap::{ArgGroup, Parser};
use tracing::Level;

use crate::logic::links::{PvSelector, Selector};

/// Lets a host move this guest's network between a paravirtual NIC and a virtual function.
///
/// The agent listens on a virtio-serial port and answers one request at a time, in
/// qemu-guest-agent's wire format. It tells what the guest's paths look like and counts them, takes
/// a virtual function (VF) into an active-backup bond beside the paravirtual (PV) NIC, makes one of
/// the two the active port, and takes the VF out again before the host unplugs it. It runs no
/// program and opens no file for the host. It needs CAP_NET_ADMIN.
#[derive(Debug, Clone, Parser)]
#[command(
    name = "qga-extension",
    version,
    about,
    after_long_help = AFTER_HELP,
    group(ArgGroup::new("bond-of").args(["bond", "create_bond"]))
)]
pub struct Config {
    /// The virtio-serial port to listen on
    ///
    /// When the path does not exist, as in a guest without udev, a port of the same name is looked
    /// for in /sys/class/virtio-ports.
    #[arg(long, value_name = "PATH", default_value = DEFAULT_PORT)]
    pub port: PathBuf,

    /// Listen on a Unix socket instead, for tests and containers
    ///
    /// One client is served at a time. A stale socket file is replaced.
    #[arg(long, value_name = "PATH", conflicts_with = "port")]
    pub listen_unix: Option<PathBuf>,

    /// Use this bond [default: the one that holds the PV NIC]
    ///
    /// It must be in mode active-backup and hold the PV NIC. Nothing of it is changed but its ports
    /// and which of them is active.
    #[arg(long, value_name = "NAME")]
    pub bond: Option<String>,

    /// Make this bond at the start, if it is not there yet, with the PV NIC as its port
    ///
    /// Settings: mode active-backup, miimon 100, fail_over_mac follow, all_slaves_active 1,
    /// num_peer_notif 3, no primary. The bond gets the PV NIC's MAC address and is set up; giving it
    /// addresses is left to you. A PV NIC that has addresses is refused: taking it into the bond would
    /// cut the guest off. A bond that is in use already is used as it is.
    #[arg(long, value_name = "NAME")]
    pub create_bond: Option<String>,

    /// The PV NIC: its driver, its interface name, or its permanent MAC address
    #[arg(long, value_name = "DRIVER|NAME|MAC", default_value = DEFAULT_PV)]
    pub pv: PvSelector,

    /// Log more: -v each step on the links, -vv each request
    #[arg(short, long, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

impl Config {
    /// What is logged.
    pub const fn log_level(&self) -> Level {
        match self.verbose {
            0 => Level::INFO,
            1 => Level::DEBUG,
            _ => Level::TRACE,
        }
    }

    /// Which links the agent works on.
    pub fn selector(&self) -> Selector {
        Selector {
            bond: self.bond.clone().or_else(|| self.create_bond.clone()),
            pv: self.pv.clone(),
        }
    }
}

/// Settings of a bond that the agent makes.
#[derive(Debug, Clone, Copy)]
pub struct BondSettings {
    /// How often the bond looks at its ports' links, milliseconds. It bounds how long a switch waits
    /// for the bond's own view of a new port, and how long a dead one is used.
    pub miimon_ms: u32,
    /// Announcements (gratuitous ARP, unsolicited NA) after a change of the active port: one may get
    /// lost, and a switch learns from the first that arrives.
    pub peer_notifications: u8,
}

/// The bond's settings. Mode active-backup; `fail_over_mac=follow`, so that a VF keeps its own MAC
/// address until it is activated (a PF may refuse any other) and the shared one is never on two
/// ports; `all_slaves_active=1`, so that frames which still arrive on the other port are taken; no
/// primary, so that nothing switches unasked. In this way planned switches lose almost nothing.
pub const BOND: BondSettings = BondSettings { miimon_ms: 100, peer_notifications: 3 };

const DEFAULT_PORT: &str = "/dev/virtio-ports/io.flexvf.agent.0";
const DEFAULT_PV: &str = "virtio_net";

const AFTER_HELP: &str = "\
Examples:
  qga-extension --create-bond bond0
      Makes bond0 from the guest's only virtio NIC and serves the host.
  qga-extension --bond bond1 --pv 52:54:00:12:34:56
      Uses an existing bond; the PV NIC is the one with this address.
  qga-extension --listen-unix /tmp/agent.sock
      Serves a Unix socket; try it with: socat - UNIX-CONNECT:/tmp/agent.sock

On the host, QEMU needs a port of this name:
  -device virtio-serial -chardev socket,id=flexvf,path=AGENT.sock,server=on,wait=off
  -device virtserialport,chardev=flexvf,name=io.flexvf.agent.0

Exit status: 0 after SIGTERM or SIGINT, 1 when the port, the bond or netlink cannot be had, 2 for a
wrong command line. A request that fails is answered with an error and ends nothing.";

#[cfg(test)]
mod tests {
    use super::*;
    use flexvf_protocol::agent::PORT_NAME;

    fn parse(arguments: &[&str]) -> Result<Config, String> {
        Config::try_parse_from([&["qga-extension"], arguments].concat())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn the_default_port_is_the_protocols() {
        assert!(parse(&[]).unwrap().port.ends_with(PORT_NAME));
    }

    #[test]
    fn the_created_bond_is_the_one_used() {
        let config = parse(&["--create-bond", "bond7", "--pv", "02:f1:00:00:00:01"]).unwrap();
        assert_eq!(config.selector().bond.as_deref(), Some("bond7"));
        assert!(matches!(config.pv, PvSelector::Mac(_)));
    }

    #[test]
    fn contradictions_are_refused() {
        assert!(parse(&["--bond", "a", "--create-bond", "b"]).is_err());
        assert!(parse(&["--port", "/x", "--listen-unix", "/y"]).is_err());
    }
}
