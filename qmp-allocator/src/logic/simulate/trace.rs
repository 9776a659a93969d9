//! A workload from a file: rates as they were recorded.
//!
//! Comma-separated text. The first line is `time_s,vm,pps`; each other one says that a VM sent so many
//! packets a second from that time on, until its next line. Times do not fall. Before its first line a VM
//! sends nothing.

use std::collections::BTreeMap;

use flexvf_protocol::VmName;

use super::Source;

/// See the module's text.
#[derive(Debug, Clone, PartialEq)]
pub struct Trace {
    names: Vec<VmName>,
    /// Time, index of the VM, rate.
    changes: Vec<(f64, u32, f64)>,
    /// How many of them are in force.
    taken: usize,
}

/// What is wrong with a trace, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {what}")]
pub struct TraceError {
    /// From 1.
    pub line: usize,
    /// What is wrong, and what to do.
    pub what: String,
}

/// More than a day of 100 VMs, second by second.
const MAX_CHANGES: usize = 20_000_000;
/// More than a host has.
const MAX_VMS: usize = 10_000;
/// A hundred years, seconds.
const MAX_TIME_S: f64 = 3.2e9;
/// More than any link carries.
const MAX_PPS: f64 = 1e12;
const HEAD: &str = "time_s,vm,pps";

impl Trace {
    /// Reads a trace.
    ///
    /// # Errors
    /// The first line that is not as it should be.
    pub fn parse(text: &str) -> Result<Self, TraceError> {
        let refuse = |line: usize, what: String| Err(TraceError { line: line + 1, what });
        let mut lines = text.lines().map(str::trim).enumerate();
        if lines.next().is_none_or(|(_, head)| head != HEAD) {
            return refuse(0, format!("begin with a line {HEAD}"));
        }
        let mut trace = Self { names: Vec::new(), changes: Vec::new(), taken: 0 };
        let mut known: BTreeMap<&str, u32> = BTreeMap::new();
        let mut last = 0.0;
        for (line, row) in lines.filter(|(_, row)| !row.is_empty()) {
            let Some((time, vm, pps)) = split(row) else {
                return refuse(line, format!("{row:?} is not {HEAD}; give three fields"));
            };
            let Some(time) = number(time, MAX_TIME_S) else {
                return refuse(line, format!("time {time:?}; give seconds, 0 or more"));
            };
            let Some(pps) = number(pps, MAX_PPS) else {
                return refuse(line, format!("rate {pps:?}; give packets a second, 0 or more"));
            };
            if time < last {
                return refuse(line, format!("time {time} after {last}; sort the lines by time"));
            }
            if trace.changes.len() == MAX_CHANGES {
                return refuse(line, format!("more than {MAX_CHANGES} lines; give less"));
            }
            let index = match known.get(vm) {
                Some(index) => *index,
                None if known.len() == MAX_VMS => {
                    return refuse(line, format!("more than {MAX_VMS} VMs; give less"));
                }
                None => {
                    let index = known.len() as u32;
                    match vm.parse() {
                        Ok(name) => trace.names.push(name),
                        Err(error) => return refuse(line, format!("{error}")),
                    }
                    known.insert(vm, index);
                    index
                }
            };
            trace.changes.push((time, index, pps));
            last = time;
        }
        Ok(trace)
    }

    /// When its last line is, seconds.
    pub fn end_s(&self) -> u64 {
        self.changes.last().map_or(0, |(time, ..)| time.ceil() as u64)
    }
}

impl Source for Trace {
    fn names(&self) -> Vec<VmName> {
        self.names.clone()
    }

    fn rates_at(&mut self, second: u64, pps: &mut [f64]) {
        while let Some((time, vm, rate)) = self.changes.get(self.taken)
            && *time <= second as f64
        {
            if let Some(pps) = pps.get_mut(*vm as usize) {
                *pps = *rate;
            }
            self.taken += 1;
        }
    }
}

fn split(row: &str) -> Option<(&str, &str, &str)> {
    let mut fields = row.split(',').map(str::trim);
    let found = (fields.next()?, fields.next()?, fields.next()?);
    fields.next().is_none().then_some(found)
}

fn number(text: &str, most: f64) -> Option<f64> {
    text.parse().ok().filter(|number| (0.0..=most).contains(number))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_rate_stands_until_the_next_line_of_its_vm() {
        let mut trace =
            Trace::parse("time_s,vm,pps\n0,web,10\n1.5, db ,20.5\r\n\n3,web,0\n").unwrap();
        assert_eq!((trace.names().len(), trace.end_s()), (2, 3));
        let mut pps = [0.0, 0.0];
        let mut told = Vec::new();
        for second in 0..4 {
            trace.rates_at(second, &mut pps);
            told.push(pps);
        }
        assert_eq!(told, [[10.0, 0.0], [10.0, 0.0], [10.0, 20.5], [0.0, 20.5]]);
    }

    #[test]
    fn each_error_names_its_line_and_what_to_do() {
        for (text, error) in [
            ("", "line 1: begin with a line time_s,vm,pps"),
            ("time_s,vm,pps\n1,web", "line 2: \"1,web\" is not time_s,vm,pps; give three fields"),
            ("time_s,vm,pps\n-1,web,2", "line 2: time \"-1\"; give seconds, 0 or more"),
            ("time_s,vm,pps\n1,web,inf", "line 2: rate \"inf\"; give packets a second, 0 or more"),
            ("time_s,vm,pps\n5,a,2\n\n4,a,2", "line 4: time 4 after 5; sort the lines by time"),
            (
                "time_s,vm,pps\n5,-a,2",
                "line 2: \"-a\" is not a VM name; use 1 to 64 letters, digits, '.', '_' or '-', beginning with a letter or digit",
            ),
        ] {
            assert_eq!(Trace::parse(text).unwrap_err().to_string(), error);
        }
    }

    proptest! {
        #[test]
        fn no_text_breaks_it(text in "(time_s,vm,pps\n)?([0-9a-zA-Z.,\n -]|NaN){0,200}") {
            if let Ok(mut trace) = Trace::parse(&text) {
                let mut pps = vec![0.0; trace.names().len()];
                trace.rates_at(trace.end_s(), &mut pps);
                prop_assert!(pps.iter().all(|pps| pps.is_finite() && *pps >= 0.0));
                prop_assert_eq!(trace.taken, trace.changes.len());
            }
        }
    }
}
