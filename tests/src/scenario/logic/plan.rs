//! Where the load is, phase by phase.

use flexvf_protocol::VmName;

/// One phase's load of one guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestLoad {
    /// Which guest.
    pub vm: VmName,
    /// Load packets a second, each way; 0 for a guest that is not busy.
    pub load_pps: u32,
}

/// The load of every guest in phase `phase`: `busy` guests, beginning with the `phase`th one, of
/// which each has a little less than the one before it, so that the ranking has one right answer.
pub fn loads(vms: &[VmName], busy: usize, load_pps: u32, phase: usize) -> Vec<GuestLoad> {
    let place = |index: usize| (index + vms.len() - phase % vms.len().max(1)) % vms.len().max(1);
    let load = |index: usize| match place(index) {
        place if place < busy => load_pps / 2 * step_percent(place) / 100,
        _ => 0,
    };
    let with_load =
        |(index, vm): (usize, &VmName)| GuestLoad { vm: vm.clone(), load_pps: load(index) };
    vms.iter().enumerate().map(with_load).collect()
}

/// How many guests are busy at a time: as many as there are VFs, but never all.
pub fn busy_guests(guests: usize, vfs: usize) -> usize {
    vfs.min(guests.saturating_sub(1))
}

/// Who should hold the VFs in a phase, by name.
pub fn expected_holders(loads: &[GuestLoad]) -> Vec<VmName> {
    let busy = loads.iter().filter(|load| load.load_pps > 0);
    let mut vms: Vec<_> = busy.map(|load| load.vm.clone()).collect();
    vms.sort();
    vms
}

/// Rounds after which `guests` have had equally many turns on `vfs` VFs.
pub fn rounds_for_equal_turns(guests: usize, vfs: usize) -> u64 {
    let (mut a, mut b) = (guests, vfs);
    while b > 0 {
        (a, b) = (b, a % b);
    }
    (guests / a.max(1)) as u64
}

const fn step_percent(place: usize) -> u32 {
    match place {
        0 => 100,
        1 => 75,
        _ => 50,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vms(count: usize) -> Vec<VmName> {
        (1..=count).map(|n| format!("vm{n}").parse().unwrap()).collect()
    }

    #[test]
    fn the_centre_of_gravity_moves_by_one_guest_a_phase() {
        let busy = |phase| {
            let loads = loads(&vms(3), 2, 400, phase);
            loads.iter().map(|load| load.load_pps).collect::<Vec<_>>()
        };
        assert_eq!(busy(0), [200, 150, 0]);
        assert_eq!(busy(1), [0, 200, 150]);
        assert_eq!(busy(2), [150, 0, 200]);
        assert_eq!(busy(3), busy(0));
    }

    #[test]
    fn somebody_always_has_no_load() {
        assert_eq!(busy_guests(3, 2), 2);
        assert_eq!(busy_guests(3, 7), 2);
        assert_eq!(busy_guests(1, 1), 0);
    }

    #[test]
    fn turns_are_equal_after_a_whole_number_of_circles() {
        for (guests, vfs, rounds) in [(3, 2, 3), (3, 1, 3), (4, 2, 2), (6, 4, 3), (1, 1, 1)] {
            assert_eq!(rounds_for_equal_turns(guests, vfs), rounds, "{guests} {vfs}");
        }
    }
}
