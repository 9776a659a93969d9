//! What alternating runs say: medians, and how the two sides compare.
//!
//! Machines drift, so a run is compared with its own neighbour only: each pair has a ratio, and
//! the median of those is the result. A ratio of more than one always means that ours is better.

/// Which values are the better ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Better {
    /// Rates.
    Higher,
    /// Times, sizes, counts of what should not be.
    Lower,
}

/// Two runs that followed one another.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pair {
    /// Our value.
    pub ours: f64,
    /// The other's.
    pub peer: f64,
}

/// What a number of pairs comes to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Summary {
    /// Median of our values.
    pub ours: f64,
    /// Median of the other's.
    pub peer: f64,
    /// Median of the pairs' ratios.
    pub ratio: f64,
    /// Worst pair for us.
    pub ratio_min: f64,
    /// Best pair for us.
    pub ratio_max: f64,
    /// How many pairs there were.
    pub pairs: usize,
}

impl Pair {
    /// How many times as good as the other we are; one where both are nothing.
    pub fn ratio(&self, better: Better) -> f64 {
        let (good, bad) = match better {
            Better::Higher => (self.ours, self.peer),
            Better::Lower => (self.peer, self.ours),
        };
        if bad == 0.0 { f64::from(u8::from(good == 0.0)) } else { good / bad }
    }
}

/// Sums up; `None` without pairs.
pub fn summarise(pairs: &[Pair], better: Better) -> Option<Summary> {
    let mut ratios: Vec<f64> = pairs.iter().map(|pair| pair.ratio(better)).collect();
    let ratio = median(&mut ratios)?;
    Some(Summary {
        ours: median(&mut pairs.iter().map(|pair| pair.ours).collect::<Vec<_>>())?,
        peer: median(&mut pairs.iter().map(|pair| pair.peer).collect::<Vec<_>>())?,
        ratio,
        // Sorted by the median.
        ratio_min: *ratios.first()?,
        ratio_max: *ratios.last()?,
        pairs: pairs.len(),
    })
}

/// The middle value, or the mean of the two in the middle; sorts.
pub fn median(values: &mut [f64]) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let above = values.get(values.len() / 2)?;
    let below = values.get(values.len().saturating_sub(1) / 2)?;
    Some(f64::midpoint(*below, *above))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_drifting_machine_does_not_change_the_ratio() {
        let pairs = [1.0, 2.0, 4.0, 8.0].map(|peer| Pair { ours: 1.5 * peer, peer });
        let summary = summarise(&pairs, Better::Higher).unwrap();
        assert_eq!((summary.ratio, summary.ratio_min, summary.ratio_max), (1.5, 1.5, 1.5));
        assert_eq!((summary.ours, summary.peer, summary.pairs), (4.5, 3.0, 4));
    }

    #[test]
    fn where_less_is_better_half_as_much_is_twice_as_good() {
        assert_eq!(Pair { ours: 3.0, peer: 6.0 }.ratio(Better::Lower), 2.0);
    }

    #[test]
    fn nothing_against_a_bound_of_nothing_is_just_as_good_and_anything_is_not() {
        assert_eq!(Pair { ours: 0.0, peer: 0.0 }.ratio(Better::Lower), 1.0);
        assert_eq!(Pair { ours: 4.0, peer: 0.0 }.ratio(Better::Lower), 0.0);
    }

    #[test]
    fn no_runs_are_no_result() {
        assert_eq!(summarise(&[], Better::Higher), None);
    }

    proptest! {
        #[test]
        fn half_of_the_values_lie_on_each_side_of_the_median(
            mut values in prop::collection::vec(-1e6f64..1e6, 1..40)
        ) {
            let median = median(&mut values).unwrap();
            let below = values.iter().filter(|value| **value < median).count();
            let above = values.iter().filter(|value| **value > median).count();
            prop_assert!(2 * below <= values.len() && 2 * above <= values.len());
        }
    }
}
