//! `stats --watch`: looks at a page again and again and prints what happened in between.

use std::path::Path;
use std::time::{Duration, Instant};

use vhost_net_pv::{io, report};

/// Prints until nobody reads any more, or the page is gone.
pub(crate) fn watch(file: &Path, json: bool, every: Duration) -> anyhow::Result<()> {
    let mut before = io::stats::read(file)?;
    let mut looked = Instant::now();
    loop {
        std::thread::sleep(every);
        let after = io::stats::read(file)?;
        let seconds = looked.elapsed().as_secs_f64();
        looked = Instant::now();
        crate::print(&match json {
            true => report::rates_json(&before, &after, seconds),
            // A blank line parts the blocks, on a terminal and in a file alike.
            false => report::rates_table(&before, &after, seconds) + "\n",
        })?;
        before = after;
    }
}
