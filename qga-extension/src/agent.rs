//! The one place that waits: for the host's bytes, and for links that vanish.
//!
//! One request is served at a time. A switch looks at the links, makes its plan, runs it, and looks
//! again; what failed is undone, and the host is told. Only a channel that breaks ends the agent.

use std::io;

use flexvf_protocol::MacAddr;
use flexvf_protocol::agent::{
    AgentCounters, AgentStatus, LinkCounters, PROTOCOL, VfAnswer, VfState,
};
use flexvf_protocol::frame::{Frame, LineSplitter, MAX_AGENT_LINE};
use serde_json::{Value, json};
use tracing::{debug, info, trace, warn};

use crate::io::{Change, Channel, Kernel, KernelError, proc};
use crate::logic::answer::{self, Fault};
use crate::logic::counters::VfCounters;
use crate::logic::identity::Identity;
use crate::logic::interfaces::interfaces;
use crate::logic::links::{Link, Selector, View};
use crate::logic::plan::{self, Planned, Switch, Verdict};
use crate::logic::request::{Intent, Request};
use crate::logic::setup::{self, SetupRefusal};

/// The agent: serves a host, on a kernel.
#[derive(Debug)]
pub struct Agent<K> {
    kernel: K,
    selector: Selector,
    identity: Identity,
    largest_epoch: u64,
    vf_counters: VfCounters,
    watched: Option<Watched>,
}

/// The links that are counted, as of the last look.
#[derive(Debug, Default)]
struct Watched {
    bond: Option<u32>,
    pv: Option<u32>,
    vf_ports: Vec<u32>,
    /// VFs that have left the bond, and may count on.
    released: Vec<u32>,
}

/// The bond could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CreateBondError {
    /// It was not tried.
    #[error(transparent)]
    Refused(#[from] SetupRefusal),
    /// The kernel would not.
    #[error("bond {0}: {1}; is the kernel's bonding module there, and have we CAP_NET_ADMIN?")]
    Failed(String, #[source] KernelError),
    /// Somebody works against us.
    #[error(
        "bond {0} is not complete after {MAX_SETUP_ROUNDS} rounds: does something else change it?"
    )]
    Unstable(String),
}

impl<K: Kernel> Agent<K> {
    /// An agent that has seen nothing yet.
    pub fn new(kernel: K, selector: Selector, identity: Identity) -> Self {
        let largest_epoch = identity.first_epoch();
        let vf_counters = VfCounters::default();
        Self { kernel, selector, identity, largest_epoch, vf_counters, watched: None }
    }

    /// The kernel that it runs on.
    #[cfg(fuzzing)]
    pub const fn kernel_mut(&mut self) -> &mut K {
        &mut self.kernel
    }

    /// Makes the bond, or what is missing of it.
    pub async fn create_bond(&mut self, name: &str) -> Result<(), CreateBondError> {
        let failed = |error| CreateBondError::Failed(name.to_owned(), error);
        let mut result = Err(CreateBondError::Unstable(name.to_owned()));
        for _ in 0..MAX_SETUP_ROUNDS {
            let links = self.kernel.links().await.map_err(failed)?;
            let addresses = self.kernel.addresses().await.map_err(failed)?;
            let steps = setup::next_round(&links, &addresses, name, &self.selector.pv)?;
            if steps.is_empty() {
                info!("bond {name} is complete");
                return Ok(());
            }
            // A failed round may be due to someone else's hand, such as a script that sets the bond up
            // between two of our steps: the next one begins with what is there then.
            if let Err(error) = self.run(&steps).await {
                result = Err(failed(error));
            }
        }
        result
    }

    /// Serves until the channel breaks, and says how it did.
    pub async fn serve(&mut self, channel: &mut impl Channel) -> io::Error {
        let mut splitter = new_splitter();
        let mut buffer = vec![0; READ_SIZE];
        let mut output: Vec<u8> = Vec::new();
        loop {
            // One request at a time: the next is begun when the answer before it is out.
            if output.is_empty()
                && let Some(frame) = splitter.next_frame()
            {
                output = self.answer(frame).await;
                continue;
            }
            let step = async {
                match output.is_empty() {
                    true => channel.read(&mut buffer).await.map(Moved::In),
                    false => channel.write(&output).await.map(Moved::Out),
                }
            };
            tokio::select! {
                moved = step => match moved {
                    // Half a request from a host that has gone is no part of the next one's.
                    Ok(Moved::In(0)) => splitter = new_splitter(),
                    Ok(Moved::In(count)) => splitter.push(buffer.get(..count).unwrap_or_default()),
                    Ok(Moved::Out(count)) => drop(output.drain(..count.min(output.len()))),
                    Err(error) => return error,
                },
                change = self.kernel.changed() => self.on_change(change).await,
            }
        }
    }

    /// The bytes that answer a frame; none for a reset.
    pub async fn answer(&mut self, frame: Frame) -> Vec<u8> {
        let Request { id, intent } = match frame {
            Frame::Reset => return Vec::new(),
            Frame::TooLong => Request::faulty("the request is too long"),
            Frame::Line(line) => Request::parse(&line),
        };
        trace!(?intent, "request");
        let delimited = matches!(intent, Ok(Intent::Sync { delimited: true, .. }));
        let result = match intent {
            Ok(intent) => self.execute(intent).await,
            Err(fault) => Err(fault),
        };
        if let Err(fault) = &result {
            debug!("refused: {fault}");
        }
        match delimited {
            true => answer::encode_delimited(id.as_ref(), result),
            false => answer::encode(id.as_ref(), result),
        }
    }

    /// Something has happened to the links by itself.
    pub async fn on_change(&mut self, change: Change) {
        match change {
            Change::Gone(index, counters) if self.vf_counters.closed(index, counters) => {
                info!(index, "a VF is gone");
            }
            Change::Gone(..) => return,
            Change::Lost => {}
        }
        match self.look().await {
            Ok(view) => self.repair(&view).await,
            Err(error) => warn!("after a change of the links: {error}"),
        }
    }

    async fn execute(&mut self, intent: Intent) -> Result<Value, Fault> {
        match intent {
            Intent::Sync { id, .. } => Ok(json!(id)),
            Intent::Ping => Ok(json!({})),
            Intent::Info => Ok(answer::info()),
            Intent::Interfaces => {
                let view = self.look().await?;
                let addresses = self.kernel.addresses().await?;
                Ok(interfaces(view.links(), &addresses))
            }
            Intent::Status => {
                let view = self.look().await?;
                answer::value(self.status(&view))
            }
            Intent::HostName => Ok(json!({"host-name": proc::host_name()})),
            Intent::OsInfo => answer::value(&self.identity.os),
            Intent::Time => Ok(json!(proc::realtime_ns())),
            Intent::Counters => {
                let counters = match self.count_watched() {
                    Some(counters) => counters,
                    None => {
                        let view = self.look().await?;
                        self.counters(&view)
                    }
                };
                answer::value(counters)
            }
            Intent::Join(arguments) => {
                let mac = arguments.vf_mac;
                self.move_vf(Switch::Join(mac), mac, arguments.epoch).await
            }
            Intent::Leave(arguments) => {
                let mac = arguments.vf_mac;
                self.move_vf(Switch::Leave(mac), mac, arguments.epoch).await
            }
            Intent::Activate(arguments) => {
                let switch = Switch::Activate(arguments.path, arguments.vf_mac);
                let view = self.switch(switch, arguments.epoch).await?;
                answer::value(self.status(&view))
            }
        }
    }

    async fn move_vf(&mut self, switch: Switch, mac: MacAddr, epoch: u64) -> Result<Value, Fault> {
        let view = self.switch(switch, epoch).await?;
        let state = view.vf_state(mac);
        answer::value(VfAnswer { state })
    }

    /// Runs a switch to its end or back, and shows the links after it.
    async fn switch(&mut self, switch: Switch, epoch: u64) -> Result<View, Fault> {
        if epoch < self.largest_epoch {
            let largest = self.largest_epoch;
            return Err(Fault::Generic(format!("epoch {epoch} is over: {largest} was seen")));
        }
        self.largest_epoch = epoch;
        let before = self.look().await?;
        let steps = plan::plan(switch, &before)?;
        if !steps.is_empty() {
            info!(epoch, "{switch:?}");
        }
        let result = self.run(&steps).await;
        let after = self.look().await?;
        if let Err(error) = result {
            self.repair(&after).await;
            // A VF that went in the middle of it is no fault of this switch.
            let gone = after.vf_state(switch.vf_mac()) == VfState::Absent;
            return match switch {
                Switch::Join(_) | Switch::Leave(_) if gone => Ok(after),
                _ => Err(error.into()),
            };
        }
        match plan::verify(switch, &after) {
            Verdict::Good => Ok(after),
            Verdict::Repair(_) => {
                self.repair(&after).await;
                Ok(self.look().await?)
            }
            Verdict::Undo { steps, why } => {
                warn!("{why}");
                for step in &steps {
                    self.try_step(step, &after).await;
                }
                let undone = self.look().await?;
                self.repair(&undone).await;
                Err(Fault::Generic(why))
            }
        }
    }

    /// Runs the steps in turn. After a failure those before it are undone, last one first.
    async fn run(&mut self, steps: &[Planned]) -> Result<(), KernelError> {
        for (done, planned) in steps.iter().enumerate() {
            debug!("{:?}", planned.step);
            if let Err(error) = self.kernel.apply(&planned.step).await {
                warn!("{error}; undoing");
                for undo in steps.iter().take(done).rev().filter_map(|p| p.undo.as_ref()) {
                    if let Err(error) = self.kernel.apply(undo).await {
                        warn!("undo: {error}");
                    }
                }
                return Err(error);
            }
        }
        Ok(())
    }

    /// Gives the PV NIC the shared MAC address, should it carry the traffic without it.
    async fn repair(&mut self, view: &View) {
        for step in plan::repairs(view) {
            warn!("the active PV NIC lacks the shared MAC address: giving it back");
            self.try_step(&step, view).await;
        }
    }

    async fn try_step(&mut self, step: &plan::Step, view: &View) {
        if let Err(error) = self.kernel.apply(step).await {
            let link = step.subject().and_then(|index| view.link(index));
            warn!("{}: {error}", link.map_or("", |link| &link.name));
        }
    }

    /// Reads the links, and counts what the VFs have grown by.
    async fn look(&mut self) -> Result<View, KernelError> {
        let view = View::new(self.kernel.links().await?, &self.selector);
        let vf_ports: Vec<u32> = view.vf_ports().map(|link| link.index).collect();
        for link in view.links() {
            let counters = link.stats.counters;
            if vf_ports.contains(&link.index) {
                self.vf_counters.observe(link.index, counters);
            } else {
                self.vf_counters.observe_released(link.index, counters);
            }
        }
        let tracked = self.vf_counters.tracked();
        let is_released = |index: &u32| !vf_ports.contains(index) && view.link(*index).is_some();
        self.watched = Some(Watched {
            bond: view.bond().map(|bond| bond.index),
            pv: view.pv().map(|pv| pv.index),
            released: tracked.filter(is_released).collect(),
            vf_ports,
        });
        Ok(view)
    }

    /// The same counters without a look at all links, while those are as they were.
    fn count_watched(&mut self) -> Option<AgentCounters> {
        let watched = self.watched.take()?;
        let Watched { bond, pv, vf_ports, released } = &watched;
        let links = bond.iter().chain(pv).chain(vf_ports).chain(released);
        let counters = self.kernel.counters(&links.copied().collect::<Vec<_>>())?;
        let mut counters = counters.into_iter();
        let bond = bond.and_then(|_| counters.next());
        let pv = pv.and_then(|_| counters.next());
        for (index, now) in vf_ports.iter().zip(counters.by_ref()) {
            self.vf_counters.observe(*index, now);
        }
        for (index, now) in released.iter().zip(counters) {
            self.vf_counters.observe_released(*index, now);
        }
        self.watched = Some(watched);
        Some(self.counters_of(bond, pv))
    }

    fn status(&self, view: &View) -> AgentStatus {
        AgentStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            protocol: PROTOCOL,
            boot_id: self.identity.boot_id.clone(),
            started_ns: self.identity.started_ns,
            epoch: self.largest_epoch,
            bond: view.bond().map(|bond| bond.name.clone()),
            bond_mac: view.bond().and_then(|bond| bond.mac),
            active: view.active_path(),
            vf: view.vf_in_bond(),
        }
    }

    fn counters(&self, view: &View) -> AgentCounters {
        let counters = |link: &Link| link.stats.counters;
        self.counters_of(view.bond().map(counters), view.pv().map(counters))
    }

    fn counters_of(&self, bond: Option<LinkCounters>, pv: Option<LinkCounters>) -> AgentCounters {
        AgentCounters {
            boot_id: self.identity.boot_id.clone(),
            started_ns: self.identity.started_ns,
            boottime_ns: proc::boottime_ns(),
            bond,
            pv,
            vf: self.vf_counters.total(),
        }
    }
}

/// Bytes taken from the host, or given to it.
enum Moved {
    In(usize),
    Out(usize),
}

impl From<KernelError> for Fault {
    fn from(error: KernelError) -> Self {
        Self::Generic(error.to_string())
    }
}

impl From<plan::Refusal> for Fault {
    fn from(refusal: plan::Refusal) -> Self {
        Self::Generic(refusal.to_string())
    }
}

const fn new_splitter() -> LineSplitter {
    LineSplitter::new(MAX_AGENT_LINE).with_reset_byte().with_objects()
}

/// Bytes taken from the host at once: a request is a hundred.
const READ_SIZE: usize = 4096;

/// Create, then complete; one more for a NIC that changes meanwhile, and the look that finds it done.
const MAX_SETUP_ROUNDS: usize = 4;

#[cfg(test)]
mod tests;
