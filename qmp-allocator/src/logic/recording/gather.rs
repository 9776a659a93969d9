//! A recording → what policies are compared over.
//!
//! Rates are measured as the daemon measured them. Intervals end where it decided, so that they are the
//! daemon's own; or every so many seconds, to ask what another interval would have done. While no daemon ran there
//! are none: an interval that a daemon did not see whole is left out.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use flexvf_protocol::VmName;

use super::decode::Item;
use super::{Head, Member};
use crate::logic::decision::Decision;
use crate::logic::policy::tenant::Tenants;
use crate::logic::policy::{Memory, Pin, Strategy, Words};
use crate::logic::rate::{RateMeter, Sample};
use crate::logic::simulate::{Demand, Guest, Interval};

/// How a recording is cut up and measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// An interval's length; none: as the daemon decided.
    pub interval: Option<Duration>,
    /// Of a moving average over rates; zero: the mean of each interval.
    pub rate_time_constant: Duration,
    /// VFs; none: as many as the daemon had.
    pub vfs: Option<usize>,
    /// Speed of a VF's link, megabits per second: bounds what a guest may have claimed.
    pub link_mbps: u64,
}

/// A pool's part of a recording.
#[derive(Debug, Clone, PartialEq)]
pub struct Gathered {
    /// Which pool.
    pub pool: String,
    /// What its VMs sent.
    pub demand: Demand,
    /// Between two decisions.
    pub interval: Duration,
}

/// Takes in entry after entry.
#[derive(Debug)]
pub struct Gatherer {
    cut: Cut,
    head: Option<Head>,
    /// By their numbers in the file that is being read.
    numbers: Vec<Option<(usize, usize)>>,
    pools: Vec<Pool>,
    samples: u64,
}

#[derive(Debug)]
struct Pool {
    name: String,
    vms: Vec<Vm>,
    by_name: BTreeMap<VmName, usize>,
    /// When the interval under way ends, if the clock ends it.
    ends: Option<Duration>,
    /// The interval under way may have begun before what was read.
    is_part: bool,
    /// None known: 0.
    vfs: usize,
    intervals: Vec<Interval>,
    /// What the daemon's strategy remembered before them.
    start: Option<(Strategy, Memory)>,
}

#[derive(Debug)]
struct Vm {
    guest: Guest,
    mean: RateMeter,
    /// Where rates are averaged over more than an interval.
    average: Option<RateMeter>,
    /// The last decision ranked it, or there was none.
    may_have_vf: bool,
}

/// Far more than a host has.
const MAX_VMS: usize = 100_000;

impl Gatherer {
    /// One that has taken in nothing.
    pub const fn new(cut: Cut) -> Self {
        Self { cut, head: None, numbers: Vec::new(), pools: Vec::new(), samples: 0 }
    }

    /// Samples taken in.
    pub const fn samples(&self) -> u64 {
        self.samples
    }

    /// The last daemon's settings.
    pub const fn head(&self) -> Option<&Head> {
        self.head.as_ref()
    }

    /// Another file begins.
    pub fn begin(&mut self, head: Head) {
        let of = |head: &Head| (head.boot_id.clone(), head.began_at_ms);
        let goes_on = self.head.as_ref().is_some_and(|last| of(last) == of(&head));
        if !goes_on {
            // Another daemon: nobody measured in between.
            for pool in &mut self.pools {
                pool.restart(&self.cut);
            }
        }
        self.numbers.clear();
        self.head = Some(head);
    }

    /// Takes in an entry of the file that was begun.
    pub fn take(&mut self, item: Item) {
        match item {
            Item::Vm(number, vm, member) => self.register(number, vm, member),
            // Without samples it takes part in nothing.
            Item::Gone(_) => {}
            Item::Sample(number, sample) => self.sample(number, sample),
            Item::Decision(decision) => self.decision(&decision),
            Item::Memory(pool, memory) => self.memory(&pool, memory),
        }
    }

    /// What was gathered, pool by pool; those without two intervals are left out.
    pub fn finish(self) -> Vec<Gathered> {
        let recorded = self.head.as_ref().map(|head| head.interval);
        let tenants = self.head.map(|head| head.tenants).unwrap_or_default();
        let Some(interval) = self.cut.interval.or(recorded) else { return Vec::new() };
        let gathered = self.pools.into_iter().filter(|pool| pool.intervals.len() > 1);
        gathered.map(|pool| pool.finish(interval, &tenants)).collect()
    }

    fn register(&mut self, number: usize, vm: VmName, member: Member) {
        let Member { pool: name, words } = member;
        let found = self.pools.iter().position(|pool| pool.name == name);
        let place = found.unwrap_or(self.pools.len());
        if found.is_none() {
            self.pools.push(Pool::new(name, &self.cut));
        }
        let Some(pool) = self.pools.get_mut(place) else { return };
        let index = pool.index(vm, words, &self.cut);
        if number >= self.numbers.len() {
            self.numbers.resize(number + 1, None);
        }
        if let Some(it) = self.numbers.get_mut(number) {
            *it = index.map(|index| (place, index));
        }
    }

    fn sample(&mut self, number: usize, sample: Sample) {
        let Some(Some((pool, vm))) = self.numbers.get(number).copied() else { return };
        let Some(pool) = self.pools.get_mut(pool) else { return };
        self.samples += 1;
        if let Some(interval) = self.cut.interval {
            pool.run_to(sample.at, interval);
        }
        if let Some(vm) = pool.vms.get_mut(vm) {
            vm.mean.on_sample(sample);
            vm.average.iter_mut().for_each(|average| average.on_sample(sample));
        }
    }

    /// The last one before the first whole interval is where a replay begins.
    fn memory(&mut self, pool: &str, memory: Memory) {
        let strategy = self.head.as_ref().map(|head| head.strategy);
        let found = self.pools.iter_mut().find(|it| it.name == pool && it.intervals.is_empty());
        // With other intervals counts of rounds mean something else.
        if let (Some(pool), Some(strategy), None) = (found, strategy, self.cut.interval) {
            pool.start = Some((strategy, memory));
        }
    }

    fn decision(&mut self, decision: &Decision) {
        let Some(pool) = self.pools.iter_mut().find(|pool| pool.name == decision.pool) else {
            return;
        };
        let ranked: BTreeSet<&VmName> = decision.vms.iter().map(|place| &place.vm).collect();
        for vm in &mut pool.vms {
            vm.may_have_vf = ranked.contains(&vm.guest.name);
        }
        pool.vfs = self.cut.vfs.unwrap_or(decision.vfs);
        if self.cut.interval.is_none() {
            let chosen = decision.vms.iter().take(decision.winners());
            let chosen = chosen.filter_map(|place| pool.by_name.get(&place.vm).copied()).collect();
            pool.end_interval(Some(chosen));
        }
    }
}

impl Pool {
    fn new(name: String, cut: &Cut) -> Self {
        Self {
            name,
            vms: Vec::new(),
            by_name: BTreeMap::new(),
            ends: None,
            is_part: true,
            vfs: cut.vfs.unwrap_or(0),
            intervals: Vec::new(),
            start: None,
        }
    }

    fn index(&mut self, vm: VmName, words: Words, cut: &Cut) -> Option<usize> {
        let index = self.by_name.get(&vm).copied().unwrap_or(self.vms.len());
        if let Some(known) = self.vms.get_mut(index) {
            known.guest.words = words;
        } else if index < MAX_VMS {
            self.by_name.insert(vm.clone(), index);
            self.vms.push(Vm::new(Guest { name: vm, words }, cut));
        } else {
            return None;
        }
        Some(index)
    }

    fn restart(&mut self, cut: &Cut) {
        for vm in &mut self.vms {
            *vm = Vm::new(vm.guest.clone(), cut);
        }
        (self.ends, self.is_part) = (None, true);
    }

    /// Ends intervals by the clock, the first one so long after the first sample.
    fn run_to(&mut self, now: Duration, interval: Duration) {
        let ends = *self.ends.get_or_insert(now.saturating_add(interval));
        if now < ends {
            return;
        }
        self.is_part = false;
        self.end_interval(None);
        // After a gap the next one begins with the first sample.
        let next = ends.saturating_add(interval);
        self.ends = Some(if now < next { next } else { now.saturating_add(interval) });
    }

    fn end_interval(&mut self, chosen: Option<Vec<usize>>) {
        let mut interval = Interval { vfs: self.vfs, chosen, ..Interval::default() };
        for vm in &mut self.vms {
            let sent = vm.mean.end_interval().map(|rate| rate.pps);
            let average = vm.average.as_mut().map(RateMeter::end_interval);
            let seen = average.map_or(sent, |rate| rate.map(|rate| rate.pps));
            let may = vm.may_have_vf && vm.guest.words.pin != Some(Pin::Pv);
            interval.sent_pps.push(sent.unwrap_or(0.0));
            interval.seen_pps.push(seen.filter(|_| may));
        }
        // Before the first decision nobody knows how many VFs there are.
        if !std::mem::take(&mut self.is_part) && interval.vfs > 0 {
            self.intervals.push(interval);
        }
    }

    fn finish(mut self, interval: Duration, tenants: &Tenants) -> Gathered {
        let tenants = tenants.of_pool(&self.name);
        let count = self.vms.len();
        for interval in &mut self.intervals {
            interval.sent_pps.resize(count, 0.0);
            interval.seen_pps.resize(count, None);
        }
        let vms = self.vms.into_iter().map(|vm| vm.guest).collect();
        let demand = Demand { vms, intervals: self.intervals, start: self.start, tenants };
        Gathered { pool: self.name, demand, interval }
    }
}

impl Vm {
    fn new(guest: Guest, cut: &Cut) -> Self {
        let meter = || RateMeter::new(cut.link_mbps);
        let constant = cut.rate_time_constant;
        let average = (!constant.is_zero()).then(|| meter().with_time_constant(constant));
        Self { guest, mean: meter(), average, may_have_vf: true }
    }
}
