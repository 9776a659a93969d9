//! Lists of processors as people write them: `2,3` or `4-7`, in the order that was meant.

use std::str::FromStr;

/// Most processors that Linux's fixed-size sets know, and so the number of the first that they
/// do not.
pub const MAX_CPUS: usize = 1024;

/// Processors, in order, each once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CpuList(Vec<usize>);

/// Why a text is no list of processors.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CpuListError {
    /// Neither a number nor a range.
    #[error("{0:?} is neither a processor's number nor a range such as 2-5")]
    Word(String),
    /// No system has it.
    #[error("there is no processor {0}: numbers end at {last}", last = MAX_CPUS - 1)]
    TooLarge(usize),
    /// Named more than once.
    #[error("processor {0} is named twice")]
    Twice(usize),
}

impl CpuList {
    /// The processors.
    pub fn into_vec(self) -> Vec<usize> {
        self.0
    }
}

impl FromStr for CpuList {
    type Err = CpuListError;

    fn from_str(text: &str) -> Result<Self, CpuListError> {
        let mut cpus = Vec::new();
        for word in text.split(',') {
            let (first, last) = word.split_once('-').unwrap_or((word, word));
            let number = |digits: &str| digits.trim().parse::<usize>().ok();
            let range = number(first).zip(number(last)).filter(|(first, last)| first <= last);
            let (first, last) = range.ok_or_else(|| CpuListError::Word(word.to_owned()))?;
            if last >= MAX_CPUS {
                return Err(CpuListError::TooLarge(last));
            }
            for cpu in first..=last {
                if cpus.contains(&cpu) {
                    return Err(CpuListError::Twice(cpu));
                }
                cpus.push(cpu);
            }
        }
        Ok(Self(cpus))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_order_is_kept() {
        let list: CpuList = "7,2-4,0".parse().unwrap();
        assert_eq!(list.into_vec(), [7, 2, 3, 4, 0]);
    }

    #[test]
    fn nonsense_is_refused() {
        let error = |text: &str| text.parse::<CpuList>().unwrap_err();
        for text in ["", "a", "1,", "3-1", "-1", "1-2-3"] {
            assert!(matches!(error(text), CpuListError::Word(_)), "{text:?}");
        }
        assert_eq!(error("0-1024"), CpuListError::TooLarge(1024));
        assert_eq!(error("1,0-2"), CpuListError::Twice(1));
    }

    proptest! {
        #[test]
        fn no_text_panics(text: String) {
            let _ = text.parse::<CpuList>();
        }
    }
}
