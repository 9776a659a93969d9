//! Who did better than whom, found in the figures and put into words beside what the paper leads one to expect.

/// By the paper's argument, from the best on; those of one place are not told apart.
const EXPECTED: [&[&str]; 3] = [&["activity"], &["fair", "random"], &["PV only"]];
/// Values this near to each other, as a part of the larger one, are no order.
const EQUAL: f64 = 0.01;

/// A contender's value, and what explains it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Entry {
    /// Who.
    pub name: &'static str,
    /// How it did.
    pub value: f64,
    /// Part of what counts that was on a VF.
    pub on_vf: f64,
}

/// What is compared.
#[derive(Debug, Clone, Copy)]
pub struct Scale {
    /// Larger values are better.
    pub larger_wins: bool,
    /// Of the values.
    pub unit: &'static str,
}

/// The order of all, and whether it is the expected one: a sentence or more.
pub fn overall(entries: &[Entry], scale: Scale) -> String {
    let order = words(entries, scale);
    let inverted = inversions(entries, scale);
    if !order.contains(", then ") {
        return format!("{order} are equal: there is no order to compare.");
    }
    if inverted.is_empty() {
        return format!("{order}: the order that the paper's argument leads to.");
    }
    format!("{order}. Other than by the paper's argument, {}.", inverted.join("; "))
}

/// Where a part of it is ordered otherwise, and why; none if it is as expected.
pub fn exception(part: &str, entries: &[Entry], scale: Scale) -> Option<String> {
    let inverted = inversions(entries, scale);
    (!inverted.is_empty()).then(|| format!("{part}: {}.", inverted.join("; ")))
}

/// Names from the best on, those that are equal joined.
fn words(entries: &[Entry], scale: Scale) -> String {
    let mut sorted = entries.to_vec();
    sorted.sort_by(|a, b| {
        let order = a.value.total_cmp(&b.value);
        if scale.larger_wins { order.reverse() } else { order }
    });
    let mut text = String::new();
    let mut before: Option<Entry> = None;
    for entry in sorted {
        text += match before {
            None => "",
            Some(before) if is_equal(before.value, entry.value) => " and ",
            Some(_) => ", then ",
        };
        text += entry.name;
        before = Some(entry);
    }
    text
}

/// Pairs that stand the other way round than expected, with their values and what they had.
fn inversions(entries: &[Entry], scale: Scale) -> Vec<String> {
    let place = |name: &str| EXPECTED.iter().position(|place| place.contains(&name));
    let mut found = Vec::new();
    for better in entries {
        for worse in entries {
            let wins = if scale.larger_wins {
                worse.value > better.value
            } else {
                worse.value < better.value
            };
            let expected = place(better.name) < place(worse.name);
            if expected && wins && !is_equal(better.value, worse.value) {
                found.push(format!(
                    "{} ({}, {:.0} % on VFs) comes before {} ({}, {:.0} %)",
                    worse.name,
                    told(worse.value, scale.unit),
                    100.0 * worse.on_vf,
                    better.name,
                    told(better.value, scale.unit),
                    100.0 * better.on_vf,
                ));
            }
        }
    }
    found
}

fn told(value: f64, unit: &str) -> String {
    format!("{value:.2} {unit}")
}

fn is_equal(a: f64, b: f64) -> bool {
    (a - b).abs() <= EQUAL * a.abs().max(b.abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME: Scale = Scale { larger_wins: false, unit: "µs" };
    const SPEED: Scale = Scale { larger_wins: true, unit: "Gbit/s" };

    fn entries(values: [f64; 4]) -> Vec<Entry> {
        let names = ["PV only", "random", "fair", "activity"];
        let entry = |(name, value)| Entry { name, value, on_vf: 0.5 };
        names.into_iter().zip(values).map(entry).collect()
    }

    #[test]
    fn the_expected_order_is_recognised_either_way_up_and_equals_are_joined() {
        let told = overall(&entries([9.0, 4.0, 4.01, 1.0]), TIME);
        let wanted = "activity, then random and fair, then PV only: the order that the paper's argument leads to.";
        assert_eq!(told, wanted);
        let told = overall(&entries([1.0, 4.0, 3.0, 9.0]), SPEED);
        assert!(
            told.starts_with("activity, then random, then fair, then PV only: the order"),
            "{told}"
        );
        assert_eq!(exception("x", &entries([9.0, 4.0, 4.01, 1.0]), TIME), None);
        let told = overall(&entries([2.0; 4]), SPEED);
        assert!(told.ends_with("activity are equal: there is no order to compare."), "{told}");
    }

    #[test]
    fn another_order_is_said_with_who_where_and_why() {
        let mut of_slow = entries([9.0, 4.0, 3.0, 6.0]);
        of_slow[3].on_vf = 0.0;
        let told = exception("at 20 kpps", &of_slow, TIME).unwrap();
        let wanted = "at 20 kpps: random (4.00 µs, 50 % on VFs) comes before activity (6.00 µs, 0 %); fair (3.00 µs, 50 % on VFs) comes before activity (6.00 µs, 0 %).";
        assert_eq!(told, wanted);
        assert!(overall(&of_slow, TIME).contains(". Other than by the paper's argument, random"));
    }
}
