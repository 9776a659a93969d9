//! Which processors each side of a run gets: the same ones for us and for whom we are compared with.

/// Where the busy threads of a run go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cores {
    /// The backend's, one a queue pair where there are enough.
    pub backend: Vec<usize>,
    /// The front-end's, likewise.
    pub front_end: Vec<usize>,
}

impl Cores {
    /// Deals out `cpus`, alternately and at least one to each side.
    pub fn deal(cpus: &[usize], pairs: usize) -> Self {
        let every_other = |from| cpus.iter().copied().skip(from).step_by(2).take(pairs).collect();
        let backend: Vec<usize> = every_other(0);
        let front_end: Vec<usize> = every_other(1);
        match front_end.is_empty() {
            true => Self { front_end: backend.clone(), backend },
            false => Self { backend, front_end },
        }
    }

    /// Every queue pair has a processor to itself on either side.
    pub fn suffice(&self, pairs: usize) -> bool {
        self.backend.len() == pairs
            && self.front_end.len() == pairs
            && self.backend != self.front_end
    }
}

/// Processors with those that share a core with an earlier one behind all others.
///
/// `siblings` are the processors of each one's core.
pub fn cores_first(cpus: &[(usize, Vec<usize>)]) -> Vec<usize> {
    let is_first = |cpu: usize, siblings: &[usize]| {
        let known = |other: &usize| cpus.iter().any(|(cpu, _)| cpu == other);
        !siblings.iter().any(|other| *other < cpu && known(other))
    };
    let (mut first, second): (Vec<_>, Vec<_>) =
        cpus.iter().partition(|(cpu, siblings)| is_first(*cpu, siblings));
    first.extend(second);
    first.into_iter().map(|(cpu, _)| *cpu).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_processors_are_one_for_each_side_however_many_pairs_there_are() {
        let cores = Cores { backend: vec![0], front_end: vec![1] };
        assert_eq!(Cores::deal(&[0, 1], 1), cores);
        assert_eq!(Cores::deal(&[0, 1], 2), cores);
        assert!(cores.suffice(1) && !cores.suffice(2));
    }

    #[test]
    fn four_processors_suffice_for_two_pairs_and_a_single_one_is_shared() {
        let cores = Cores::deal(&[4, 5, 6, 7], 2);
        assert_eq!(cores, Cores { backend: vec![4, 6], front_end: vec![5, 7] });
        assert!(cores.suffice(2));
        assert!(!Cores::deal(&[3], 1).suffice(1));
    }

    #[test]
    fn hyperthreads_come_last_unless_their_sibling_is_not_ours() {
        let cpus = [(1, vec![0, 1]), (2, vec![2, 3]), (3, vec![2, 3]), (4, vec![4])];
        assert_eq!(cores_first(&cpus), [1, 2, 4, 3]);
    }
}
