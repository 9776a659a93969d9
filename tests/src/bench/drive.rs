//! Runs experiments: ours and the other's in turn, so that what the machine does to one run it
//! does to its neighbour.

use anyhow::{Result, anyhow};

use super::logic::pairs::Pair;
use super::logic::result::Outcome;
use super::logic::row::Row;
use super::logic::table::{line, number};

/// Whose run it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Ours.
    Ours,
    /// Of what we are compared with.
    Peer,
}

/// Something that is measured on both sides. A run may fill several rows at once.
pub trait Experiment {
    /// Its rows.
    fn rows(&self) -> Vec<Row>;

    /// What a reader of the results must know of this machine.
    fn note(&self) -> Option<String> {
        None
    }

    /// Pairs of runs where so many are asked for: more of runs that are short.
    fn pairs(&self, asked: usize) -> usize {
        asked
    }

    /// One run of one side: a value for each of `rows`, which are some of its own.
    ///
    /// # Errors
    /// Whatever keeps it from being measured.
    fn run(&mut self, side: Side, rows: &[Row]) -> Result<Vec<f64>>;
}

/// What came of all experiments.
#[derive(Debug, Default)]
pub struct Driven {
    /// In order.
    pub results: Vec<(Row, Outcome)>,
    /// What could not be measured, and why.
    pub failures: Vec<String>,
}

/// Runs what fills the rows of these names, each side `pairs` times; `tell` hears how it goes.
pub fn drive(
    experiments: Vec<Box<dyn Experiment + '_>>,
    names: &[&str],
    pairs: usize,
    tell: impl Fn(&str),
) -> Driven {
    let mut driven = Driven::default();
    // By value: what an experiment has running ends with it.
    for mut experiment in experiments {
        let rows: Vec<Row> =
            experiment.rows().into_iter().filter(|row| names.contains(&row.name)).collect();
        if rows.is_empty() {
            continue;
        }
        if let Some(note) = experiment.note() {
            tell(&format!("NOTE: {note}"));
        }
        let pairs = experiment.pairs(pairs);
        match alternate(&mut *experiment, &rows, pairs, &tell) {
            Ok(outcomes) => {
                for (row, outcome) in rows.into_iter().zip(outcomes) {
                    tell(&line(&row, &outcome));
                    driven.results.push((row, outcome));
                }
            }
            Err(error) => {
                let names: Vec<_> = rows.iter().map(|row| row.name).collect();
                let failure = format!("{}: {error:#}", names.join(", "));
                tell(&format!("FAILED: {failure}"));
                driven.failures.push(failure);
            }
        }
    }
    driven
}

/// One experiment: an outcome for each of its rows.
fn alternate(
    experiment: &mut dyn Experiment,
    rows: &[Row],
    pairs: usize,
    tell: &impl Fn(&str),
) -> Result<Vec<Outcome>> {
    let mut seen: Vec<Vec<Pair>> = vec![Vec::new(); rows.len()];
    for turn in 1..=pairs {
        let ours = experiment.run(Side::Ours, rows)?;
        let peer = experiment.run(Side::Peer, rows)?;
        for ((row, pairs_of_row), (ours, peer)) in
            rows.iter().zip(&mut seen).zip(ours.into_iter().zip(peer))
        {
            let pair = Pair { ours, peer };
            tell(&format!(
                "{}: pair {turn} of {pairs}: {} and {} {}, {:.2}",
                row.name,
                number(ours),
                number(peer),
                row.unit,
                pair.ratio(row.better)
            ));
            pairs_of_row.push(pair);
        }
    }
    rows.iter()
        .zip(seen)
        .map(|(row, pairs)| Outcome::new(row, &pairs))
        .map(|outcome| outcome.ok_or_else(|| anyhow!("a run gave no value")))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::VecDeque;

    use anyhow::bail;

    use super::*;
    use crate::bench::logic::pairs::Better;

    /// Plays values back, and notes whose turn it was.
    struct Scripted {
        names: &'static [&'static str],
        values: VecDeque<Vec<f64>>,
        turns: Vec<Side>,
    }

    impl Experiment for &RefCell<Scripted> {
        fn rows(&self) -> Vec<Row> {
            let row = |name: &&'static str| Row {
                name,
                unit: "pps",
                peer_name: "peer",
                better: Better::Higher,
                wanted: 1.0,
            };
            self.borrow().names.iter().map(row).collect()
        }

        fn run(&mut self, side: Side, rows: &[Row]) -> Result<Vec<f64>> {
            let mut script = self.borrow_mut();
            script.turns.push(side);
            let Some(values) = script.values.pop_front() else { bail!("nothing left") };
            assert_eq!(values.len(), rows.len());
            Ok(values)
        }
    }

    fn scripted(names: &'static [&'static str], values: &[&[f64]]) -> RefCell<Scripted> {
        let values = values.iter().map(|values| values.to_vec()).collect();
        RefCell::new(Scripted { names, values, turns: Vec::new() })
    }

    #[test]
    fn sides_take_turns_and_each_row_gets_its_own_values() {
        let script = scripted(&["a", "b"], &[&[2.0, 9.0], &[1.0, 3.0], &[4.0, 8.0], &[2.0, 2.0]]);
        let driven = drive(vec![Box::new(&script)], &["a", "b"], 2, |_| ());
        assert!(driven.failures.is_empty());
        let ratios: Vec<_> = driven.results.iter().map(|(_, o)| (o.name, o.ratio_max)).collect();
        assert_eq!(ratios, [("a", 2.0), ("b", 4.0)]);
        assert_eq!(script.borrow().turns, [Side::Ours, Side::Peer, Side::Ours, Side::Peer]);
    }

    #[test]
    fn what_nobody_asked_for_is_not_run() {
        let wanted = scripted(&["a"], &[&[1.0], &[1.0]]);
        let other = scripted(&["b"], &[]);
        let driven = drive(vec![Box::new(&other), Box::new(&wanted)], &["a"], 1, |_| ());
        assert_eq!(driven.results.len(), 1);
        assert!(other.borrow().turns.is_empty());
    }

    #[test]
    fn an_experiment_that_fails_is_named_and_the_others_go_on() {
        let broken = scripted(&["a", "b"], &[&[1.0, 1.0]]);
        let good = scripted(&["c"], &[&[1.0], &[1.0]]);
        let driven = drive(vec![Box::new(&broken), Box::new(&good)], &["a", "b", "c"], 1, |_| ());
        assert_eq!(driven.failures, ["a, b: nothing left"]);
        assert_eq!(driven.results.len(), 1);
    }
}
