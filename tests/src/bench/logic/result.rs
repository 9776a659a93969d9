//! The form of every benchmark's JSON.

use serde::Serialize;

use super::pairs::{Pair, summarise};
use super::row::Row;

/// A whole file.
#[derive(Debug, Serialize)]
pub struct Results {
    /// In the order of the suite.
    pub results: Vec<Outcome>,
}

/// One row's result.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Outcome {
    /// The row.
    pub name: &'static str,
    /// Unit of both values.
    pub unit: &'static str,
    /// Median of our values.
    pub ours: f64,
    /// Median of the other's.
    pub peer: f64,
    /// What the other is.
    pub peer_name: &'static str,
    /// Median of the pairs' ratios; above one, ours is better.
    pub ratio: f64,
    /// Worst pair for us.
    pub ratio_min: f64,
    /// Best pair for us.
    pub ratio_max: f64,
    /// Pairs of runs.
    pub pairs: usize,
}

impl Outcome {
    /// What a row's pairs come to; `None` without pairs.
    pub fn new(row: &Row, pairs: &[Pair]) -> Option<Self> {
        let summary = summarise(pairs, row.better)?;
        Some(Self {
            name: row.name,
            unit: row.unit,
            ours: summary.ours,
            peer: summary.peer,
            peer_name: row.peer_name,
            ratio: summary.ratio,
            ratio_min: summary.ratio_min,
            ratio_max: summary.ratio_max,
            pairs: summary.pairs,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::logic::pairs::Better;

    #[test]
    fn the_form_is_the_one_that_all_benches_share() {
        let row = Row {
            name: "tap-tx-64",
            unit: "Mpps",
            peer_name: "write()",
            better: Better::Higher,
            wanted: 1.1,
        };
        let outcome = Outcome::new(&row, &[Pair { ours: 3.0, peer: 2.0 }]).unwrap();
        let text = serde_json::to_string(&Results { results: vec![outcome] }).unwrap();
        let expected = r#"{"results":[{"name":"tap-tx-64","unit":"Mpps","ours":3.0,"peer":2.0,"peer_name":"write()","ratio":1.5,"ratio_min":1.5,"ratio_max":1.5,"pairs":1}]}"#;
        assert_eq!(text, expected);
    }
}
