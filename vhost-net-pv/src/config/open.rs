//! Opens everything that the command line asks for, in an order that leaves nothing half done:
//! the socket comes last, since its appearance tells others that everything else is there.

use std::io;
use std::os::fd::{OwnedFd, RawFd};

use anyhow::{Context, bail};
use tracing::warn;

use super::{FeaturesArgs, Method, PortArgs, ServeArgs, Switch, TestPort};
use crate::FrontEnds;
use crate::io::netdev::Netdev;
use crate::io::port::{IoMethod, Loopback, Null, Port, Source, Tap, TapOptions};
use crate::io::server::DeviceParts;
use crate::io::stats::StatsPage;
use crate::io::{inherited, systemd};
use crate::logic::features::{self, DEFAULT_MASK, Offloads};

/// What [`features`](FeaturesArgs) are asked of when no port was named; the kernel numbers it.
const PROBE_TAP: &str = "pv-probe%d";

/// A device that can be made, and its front-ends.
pub struct Opened {
    /// All of a device but its threads.
    pub parts: DeviceParts,
    /// How front-ends are found.
    pub front_ends: FrontEnds,
}

/// What a port would offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probed {
    /// Features that can be offered.
    pub offered: u64,
    /// Features that would be.
    pub chosen: u64,
}

/// What a device's ports are, and what can be done with them.
struct Ports {
    ports: Vec<Box<dyn Port>>,
    offloads: Offloads,
    /// The interface behind them, if there is one.
    interface: Option<Interface>,
}

/// An interface that frames go to.
struct Interface {
    name: String,
    /// It was asked for by name, not given as descriptors: it is ours to change.
    ours: bool,
}

impl ServeArgs {
    /// Opens everything that was asked for.
    ///
    /// # Errors
    /// Whatever cannot be had, by name.
    pub fn open(&self) -> anyhow::Result<Opened> {
        let queue_pairs = self.port.queue_pairs();
        let tuning = self.tuning.resolve(queue_pairs)?;
        self.check_descriptors()?;
        let stats = match &self.stats {
            Some(path) => StatsPage::open(path, queue_pairs)?,
            None => StatsPage::private(queue_pairs)?,
        };
        let ports = self.port.open()?;
        if let Some(interface) = ports.interface.as_ref().filter(|interface| interface.ours) {
            self.set_up(&interface.name)?;
        }
        let features = match &self.features {
            Some(set) => {
                set.resolve(features::offered(queue_pairs, ports.offloads)).context("--features")?
            }
            None => DEFAULT_MASK,
        };
        let set_mtu = mtu_setter(ports.interface, self.sandbox)?;
        Ok(Opened {
            parts: DeviceParts {
                ports: ports.ports,
                offloads: ports.offloads,
                features,
                tuning,
                stats,
                set_mtu,
            },
            front_ends: self.front_ends()?,
        })
    }

    /// Each descriptor has one use; the first to be done with it would close it for all.
    fn check_descriptors(&self) -> anyhow::Result<()> {
        let given = || self.port.tap_fd.iter().chain(&self.fd);
        match given().find(|number| given().filter(|other| other == number).count() > 1) {
            Some(number) => bail!("descriptor {number} is given twice"),
            None => Ok(()),
        }
    }

    fn front_ends(&self) -> anyhow::Result<FrontEnds> {
        match (&self.socket, &self.connect, self.fd) {
            (Some(path), None, None) => Ok(FrontEnds::listen(path)?),
            (None, Some(path), None) => FrontEnds::connecting(path).context("--connect"),
            (None, None, Some(number)) => {
                let given = || format!("--fd {number}");
                FrontEnds::from_fd(take(number).with_context(given)?).with_context(given)
            }
            _ => match systemd::activation_socket()? {
                Some(number) => FrontEnds::from_fd(take(number)?).context("systemd's socket"),
                None => {
                    bail!("say where the front-end is: --socket PATH, --connect PATH or --fd N")
                }
            },
        }
    }

    fn set_up(&self, interface: &str) -> anyhow::Result<()> {
        let netdev = netdev()?;
        if let Some(mtu) = self.mtu {
            netdev.set_mtu(interface, mtu)?;
        }
        if let Some(bridge) = &self.bridge {
            netdev.join_bridge(interface, bridge)?;
        }
        Ok(netdev.up(interface)?)
    }
}

impl FeaturesArgs {
    /// Asks a port what it can offer, and gives it back.
    ///
    /// # Errors
    /// There is no such port, or it cannot offer what was asked for.
    pub fn probe(&self) -> anyhow::Result<Probed> {
        let queue_pairs = self.port.queue_pairs();
        let ports = match self.port.is_named() {
            true => self.port.open()?,
            false => self
                .port
                .named_tap(PROBE_TAP)
                .context("name a port (--tap NAME or --port KIND), or be root")?,
        };
        let offered = features::offered(queue_pairs, ports.offloads);
        let chosen = match &self.features {
            Some(set) => set.resolve(offered).context("--features")?,
            None => offered & DEFAULT_MASK,
        };
        Ok(Probed { offered, chosen })
    }
}

impl PortArgs {
    /// Queue pairs asked for.
    pub(super) fn queue_pairs(&self) -> usize {
        match self.tap_fd.len() {
            0 => usize::from(self.queues),
            fds => fds,
        }
    }

    const fn is_named(&self) -> bool {
        self.port.is_some() || self.tap.is_some() || !self.tap_fd.is_empty()
    }

    fn open(&self) -> anyhow::Result<Ports> {
        match (&self.tap, self.port) {
            (None, Some(kind)) => self.test_ports(kind),
            (Some(name), None) => {
                let interface = Some(Interface { name: name.clone(), ours: true });
                Ok(Ports { interface, ..self.named_tap(name)? })
            }
            _ if self.tap_fd.is_empty() => {
                bail!("say where frames go: --tap NAME, --tap-fd N,… or --port KIND")
            }
            _ => self.given_taps(),
        }
    }

    fn named_tap(&self, name: &str) -> anyhow::Result<Ports> {
        let (queues, io) = (self.queue_pairs(), self.io.into());
        Ok(Ports::of_taps(Tap::open(&TapOptions { name: name.to_owned(), queues, io })?))
    }

    fn given_taps(&self) -> anyhow::Result<Ports> {
        if self.queues != 1 && usize::from(self.queues) != self.tap_fd.len() {
            bail!(
                "--queues {} and {} descriptors in --tap-fd: leave --queues out",
                self.queues,
                self.tap_fd.len()
            );
        }
        let open = |number: &RawFd| {
            take(*number)
                .and_then(|fd| Ok(Tap::from_fd(fd, self.io.into())?))
                .with_context(|| format!("--tap-fd {number}"))
        };
        let taps: Vec<_> = self.tap_fd.iter().map(open).collect::<Result<_, _>>()?;
        if let [first, others @ ..] = &*taps {
            if let Some(other) = others.iter().find(|tap| tap.name() != first.name()) {
                bail!(
                    "--tap-fd: descriptors of two interfaces, {} and {}: give the queues of one",
                    first.name(),
                    other.name()
                );
            }
            if !others.is_empty() && !first.is_multi_queue() {
                bail!(
                    "--tap-fd: {} has one queue: make it with multi_queue, and attach once for \
                     each descriptor",
                    first.name()
                );
            }
        }
        let name = taps.first().map(|tap| tap.name().to_owned());
        let interface = name.map(|name| Interface { name, ours: false });
        Ok(Ports { interface, ..Ports::of_taps(taps) })
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

impl Ports {
    fn of_taps(taps: Vec<Tap>) -> Self {
        let offloads = taps.first().map(Tap::supported_offloads).unwrap_or_default();
        Self { ports: taps.into_iter().map(boxed).collect(), offloads, interface: None }
    }
}

impl From<Method> for IoMethod {
    fn from(method: Method) -> Self {
        match method {
            Method::Auto => Self::Auto,
            Method::Uring => Self::Uring,
            Method::Plain => Self::Plain,
        }
    }
}

fn boxed(port: impl Port + 'static) -> Box<dyn Port> {
    Box::new(port)
}

fn take(number: RawFd) -> anyhow::Result<OwnedFd> {
    inherited(number).with_context(|| format!("descriptor {number} was not passed to this program"))
}

fn netdev() -> anyhow::Result<Netdev> {
    Netdev::new().context("cannot open a socket for interface requests")
}

type MtuSetter = Box<dyn FnMut(u16) -> io::Result<()> + Send>;

/// A guest that was promised large frames needs an interface that carries them.
fn mtu_setter(interface: Option<Interface>, sandbox: Switch) -> anyhow::Result<MtuSetter> {
    let Some(Interface { name, ours }) = interface else {
        return Ok(Box::new(|_mtu| Ok(())));
    };
    let netdev = netdev()?;
    Ok(Box::new(move |mtu| {
        let now = match netdev.mtu(&name) {
            Ok(now) => now,
            Err(error) if ours => return Err(io::Error::other(error)),
            // It came as a descriptor, and is in another network namespace or by another name.
            Err(error) => {
                warn!(%error, mtu, "whether the interface carries this MTU is not known");
                return Ok(());
            }
        };
        let advice = match (ours, sandbox) {
            _ if now >= u32::from(mtu) => return Ok(()),
            (true, Switch::Off) => return netdev.set_mtu(&name, mtu).map_err(io::Error::other),
            // The right to change interfaces went before the first front-end came.
            (true, Switch::On) => format!("start with --mtu {mtu} (or with --sandbox off)"),
            (false, _) => format!("set {mtu} there before the guest starts"),
        };
        Err(io::Error::other(format!("{name} has an MTU of {now}: {advice}")))
    }))
}
