//! How much to offer somebody for the most of it to arrive.
//!
//! A guest that is flooded spends its time on dropping. So the offer is raised step by step, until
//! half of it is lost for good, and the one of which most arrived is taken.

/// A search under way.
#[derive(Debug, Clone, Copy)]
pub struct Search {
    offered_pps: u64,
    best_pps: u64,
    best_rate: f64,
    losing: u32,
}

/// What a search wants next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Offer so much.
    Offer(u64),
    /// It is over: this was the best offer.
    Best(u64),
}

impl Search {
    /// Begins with an offer that anybody takes.
    pub const fn from(first_pps: u64) -> Self {
        Self { offered_pps: first_pps, best_pps: first_pps, best_rate: 0.0, losing: 0 }
    }

    /// Takes what arrived of the last offer.
    pub fn arrived(&mut self, rate: f64) -> Next {
        if rate > self.best_rate {
            (self.best_pps, self.best_rate) = (self.offered_pps, rate);
        }
        self.losing = if rate < self.offered_pps as f64 / 2.0 { self.losing + 1 } else { 0 };
        if self.losing == LOSING_AT_MOST || self.offered_pps >= MAX_PPS {
            return Next::Best(self.best_pps);
        }
        self.offered_pps = self.offered_pps * 5 / 4;
        Next::Offer(self.offered_pps)
    }
}

/// Offers in a row of which half was lost; a single one may have met with something else.
const LOSING_AT_MOST: u32 = 3;
/// More than one sender makes.
const MAX_PPS: u64 = 2_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn search(arrives: impl Fn(u64) -> f64) -> u64 {
        let (mut search, mut offered) = (Search::from(8000), 8000);
        loop {
            match search.arrived(arrives(offered)) {
                Next::Offer(next) => offered = next,
                Next::Best(best) => return best,
            }
        }
    }

    #[test]
    fn the_best_offer_is_near_what_a_guest_can_take() {
        // Takes 50,000, and less the more it is flooded.
        let guest = |offered: u64| {
            50_000f64.min(offered as f64) * 50_000f64.min(2.5e9 / offered as f64) / 50_000.0
        };
        let best = search(guest);
        assert!((40_000..=62_500).contains(&best), "{best}");
    }

    #[test]
    fn one_bad_moment_does_not_end_it() {
        let moment = |offered| if offered == 8000 { 10.0 } else { 30_000f64.min(offered as f64) };
        assert!(search(moment) >= 24_000);
    }

    #[test]
    fn a_guest_that_takes_everything_ends_it_too() {
        assert!(search(|offered| offered as f64) >= MAX_PPS);
    }
}
