//! What is counted of one VM: by the host where it can, by the guest where not; and what the guest's word
//! is worth. A guest is not asked for what the host knows, but for a comparison now and then.

use tracing::{debug, warn};

use flexvf_protocol::stats_page::{Counter as Cell, Direction, Header};

use super::VmTask;
use crate::daemon::LINK_MBPS;
use crate::daemon::clock::now;
use crate::logic::engine::Event;
use crate::logic::guest_count::{
    Counter, Counting, CrossCheck, GuestWord, LineBound, Reading, Tally, Told, Unit,
};
use crate::logic::rate::{Sample, Trust};

/// What is kept from one count to the next.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pv_bound: LineBound,
    vf_bound: LineBound,
    pv_check: CrossCheck,
    vf_check: CrossCheck,
    /// Of both paths together.
    sum_check: CrossCheck,
    word: GuestWord,
    /// As last told to the engine.
    counting: Counting,
}

impl Counts {
    const fn is_distrusted(&self) -> bool {
        matches!(self.word, GuestWord::Diverges(_))
    }

    /// Another guest, or an operator who knows better.
    pub(super) fn trust_anew(&mut self) {
        *self = Self { counting: std::mem::take(&mut self.counting), ..Self::default() };
    }

    fn heard(&mut self) {
        if self.word == GuestWord::Unheard {
            self.word = GuestWord::Unchecked;
        }
    }

    /// The first lie is told, and stays.
    fn found(&mut self, word: Option<GuestWord>) {
        let Some(word) = word.filter(|_| !self.is_distrusted()) else { return };
        if let GuestWord::Diverges(what) = &word {
            warn!("{what}: its own numbers are not counted any more");
        }
        self.word = word;
    }
}

/// What the host has counted; none of a path that it cannot count.
struct OfHost {
    pv: Option<(Counter, Tally)>,
    vf: Option<(Counter, Tally)>,
}

impl OfHost {
    fn pv(&self) -> Option<Tally> {
        self.pv.map(|(_, tally)| tally)
    }

    fn vf(&self) -> Option<Tally> {
        self.vf.map(|(_, tally)| tally)
    }
}

impl VmTask {
    /// Counts both paths, and tells the engine.
    pub(super) async fn sample(&mut self) {
        let was_ready = self.guest.is_ready();
        let host = self.count_by_host().await;
        let has_vf = self.holds.is_some();
        let is_needed = host.pv.is_none() || has_vf && host.vf.is_none();
        let told = match is_needed && !self.counts.is_distrusted() {
            true => self.guest.counts(&self.config).await,
            false => None,
        };
        let at = now();
        let (pv, vf) = told.map_or((None, None), |told| told.fill(host.pv(), host.vf(), has_vf));
        let guest = self.guest.counter();
        let counter = |host: Option<(Counter, Tally)>, told: Option<Tally>| {
            host.map(|(counter, _)| counter).or(guest.filter(|_| told.is_some()))
        };
        let (pv_by, vf_by) = (counter(host.pv, pv), counter(host.vf, vf));
        let link_mbps = self.shared.host.link_mbps(&self.config.pool).unwrap_or(LINK_MBPS);
        let of_host = |tally: Tally| tally.count(Trust::Host);
        let Counts { pv_bound, vf_bound, .. } = &mut self.counts;
        let bounded = |bound: &mut LineBound, told: Option<Tally>| {
            told.map(|told| bound.take(at, told.count(Trust::Guest), link_mbps))
        };
        let pv = host.pv().map(of_host).or_else(|| bounded(pv_bound, pv));
        let vf = host.vf().map(of_host).or_else(|| bounded(vf_bound, vf));
        if told.is_some() {
            self.counts.heard();
        }
        let vm = self.name.clone();
        self.send(Event::Sampled { vm, sample: Sample { at, pv, vf } }).await;
        self.tell_counting(pv_by, vf_by).await;
        if was_ready && !self.guest.is_ready() {
            self.look_at_guest().await;
        }
    }

    /// Compares what the guest has counted with what the host has. For a guest that answers.
    pub(super) async fn cross_check(&mut self) {
        if self.counts.is_distrusted() || self.guest.counter().is_none() {
            return;
        }
        let before = self.count_by_host().await;
        if before.pv.is_none() && before.vf.is_none() {
            return;
        }
        let Some(told) = self.guest.counts(&self.config).await else { return };
        let after = self.count_by_host().await;
        let (at, has_vf) = (now(), self.holds.is_some());
        let counts = &mut self.counts;
        counts.heard();
        let look = |before: Option<(Counter, Tally)>, told: Tally, after: Option<Tally>| {
            let (counter, before) = before?;
            Some((Reading { at, before, told, after: after? }, Unit::of(counter)))
        };
        match told {
            Told::Paths { pv, vf } => {
                let pv = pv.and_then(|pv| look(before.pv, pv, after.pv()));
                let word = pv.and_then(|(reading, unit)| counts.pv_check.take(reading, unit));
                counts.found(word);
                let vf = look(before.vf, vf, after.vf());
                let word = vf.and_then(|(reading, unit)| counts.vf_check.take(reading, unit));
                counts.found(word);
            }
            Told::Both(sum) => {
                let of_both = |host: &OfHost| match (host.pv, host.vf) {
                    (pv, None) if !has_vf => pv,
                    (Some((counter, pv)), Some((of_vf, vf))) => {
                        Some((counter.coarser(of_vf), pv.plus(vf)))
                    }
                    _ => None,
                };
                let sum = look(of_both(&before), sum, of_both(&after).map(|(_, tally)| tally));
                let word = sum.and_then(|(reading, unit)| counts.sum_check.take(reading, unit));
                counts.found(word);
            }
        }
        let Counting { pv, vf, .. } = self.counts.counting;
        self.tell_counting(pv, vf).await;
    }

    async fn tell_counting(&mut self, pv: Option<Counter>, vf: Option<Counter>) {
        let counting = Counting { pv, vf, word: self.counts.word.clone() };
        if counting != self.counts.counting {
            self.counts.counting.clone_from(&counting);
            self.send(Event::Counting { vm: self.name.clone(), counting }).await;
        }
    }

    async fn count_by_host(&mut self) -> OfHost {
        let page = self.count_page();
        let host = &self.shared.host;
        let pv = match (page, &self.config.pv_interface) {
            (Some(page), _) => Some((Counter::StatsPage, page)),
            // A page that cannot be read for a moment is waited for: another counter is none to go on with.
            (None, Some(interface)) if self.config.stats.is_none() => {
                let counted = host.count_pv_interface(interface).await;
                counted.map(|tally| (Counter::PvInterface, tally))
            }
            (None, _) => None,
        };
        let vf = match &self.holds {
            Some(vf) => host.count(&self.config, vf, self.tenure).await,
            None => None,
        };
        OfHost { pv, vf }
    }

    fn count_page(&mut self) -> Option<Tally> {
        let page = self.page.read(self.config.stats.as_deref()?);
        let page = page.inspect_err(|error| debug!(%error, "no sample of PV")).ok()?;
        let both =
            |cell| page.total(Direction::Rx, cell).wrapping_add(page.total(Direction::Tx, cell));
        Some(Tally {
            epoch: page.header(Header::Generation),
            packets: both(Cell::Segments),
            bytes: both(Cell::Bytes),
        })
    }
}
