//! Capabilities of this thread: none are left.

use caps::CapSet;
use caps::errors::CapsError;

/// Empties all sets. True: the bounding set, too, which an unprivileged process cannot.
pub(super) fn give_up() -> Result<bool, CapsError> {
    // First, since it takes CAP_SETPCAP, which goes with the others.
    let _ = caps::clear(None, CapSet::Bounding);
    // Kernels before 4.3 have no ambient set.
    if caps::runtime::ambient_set_supported().is_ok() {
        caps::clear(None, CapSet::Ambient)?;
    }
    for set in [CapSet::Effective, CapSet::Permitted, CapSet::Inheritable] {
        caps::clear(None, set)?;
    }
    Ok(caps::read(None, CapSet::Bounding)?.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_left_in_this_thread() {
        let sets = std::thread::spawn(|| {
            let all_gone = give_up().unwrap();
            let base = [CapSet::Effective, CapSet::Permitted, CapSet::Inheritable, CapSet::Ambient];
            let left = base.map(|set| caps::read(None, set).unwrap().len());
            let bounding = caps::read(None, CapSet::Bounding).unwrap().len();
            (all_gone, left, bounding)
        });
        let (all_gone, left, bounding) = sets.join().unwrap();
        assert_eq!(left, [0; 4]);
        assert_eq!(all_gone, bounding == 0);
    }
}
