//! The suite of vhost-net-pv.
//!
//! Rates are those of frames that arrive. Each side's busy threads have the same processors, and both
//! sides stand ready all the time: the one that is not measured sleeps. Left out: the cost of the
//! ring walk alone, for which there are `vhost-net-pv/benches`.

pub mod footprint;
pub mod guest;
pub mod ring;
pub mod tap;

use super::drive::Experiment;
use super::io::stage::Stage;

/// All experiments, in the table's order.
pub fn experiments(stage: &Stage) -> Vec<Box<dyn Experiment + '_>> {
    let mut all = ring::experiments(stage);
    all.extend(tap::experiments(stage));
    all.extend(
        [false, true].map(|polls| -> Box<dyn Experiment + '_> {
            Box::new(guest::Guests::new(stage, polls))
        }),
    );
    all.extend(footprint::experiments(stage));
    all
}

/// Short runs for each one that was asked for.
const SHORT_RUNS: usize = 5;
