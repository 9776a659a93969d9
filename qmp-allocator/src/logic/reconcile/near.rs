//! Which of the free VFs a VM gets: one of its own NUMA node where there is one.

use std::collections::BTreeMap;

use flexvf_protocol::VmName;

use super::Step;
use crate::logic::vf::VfId;

/// The same steps, with VFs near to their VMs. Who gets one, and how many do, stays; so does the order of
/// `free` where nodes do not matter.
pub fn near(
    mut steps: Vec<Step>,
    free: &[VfId],
    vf_nodes: &BTreeMap<VfId, u32>,
    vm_node: impl Fn(&VmName) -> Option<u32>,
) -> Vec<Step> {
    if vf_nodes.is_empty() {
        return steps;
    }
    let mut left: Vec<&VfId> = free.iter().collect();
    let mut gives: Vec<(&VmName, &mut VfId)> = Vec::new();
    for step in &mut steps {
        if let Step::Give { vm, vf, .. } = step {
            gives.push((vm, vf));
        }
    }
    // Whoever is near to one takes it before the others take what is left.
    gives.retain_mut(|(vm, vf)| {
        let node = vm_node(vm);
        let at = left.iter().position(|vf| node.is_some() && vf_nodes.get(*vf).copied() == node);
        match at {
            Some(at) => {
                **vf = left.remove(at).clone();
                false
            }
            None => true,
        }
    });
    for ((_, vf), given) in gives.into_iter().zip(left) {
        *vf = given.clone();
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn vm(index: usize) -> VmName {
        format!("vm{index}").parse().unwrap()
    }

    fn vf(index: usize) -> VfId {
        VfId::new(format!("vf{index}"))
    }

    fn given(steps: &[Step]) -> Vec<(VmName, VfId)> {
        let give = |step: &Step| match step {
            Step::Give { vm, vf, .. } => Some((vm.clone(), vf.clone())),
            Step::Take { .. } => None,
        };
        steps.iter().filter_map(give).collect()
    }

    proptest! {
        #[test]
        fn as_many_vms_as_can_have_a_vf_of_their_node(
            vm_nodes in prop::collection::vec(prop::option::of(0u32..3), 0..6),
            more in prop::collection::vec(0u32..3, 0..4),
            vf_nodes in prop::collection::vec(prop::option::of(0u32..3), 6),
        ) {
            let free: Vec<_> = (0..vm_nodes.len() + more.len()).map(vf).collect();
            let nodes: BTreeMap<_, _> = (0..).map(vf)
                .zip(vf_nodes.iter().chain(more.iter().map(|_| &None)))
                .filter_map(|(vf, node)| Some((vf, (*node)?)))
                .collect();
            let mut before = vec![Step::Take { vm: vm(9), reason: "x".into() }];
            before.extend((0..vm_nodes.len()).map(|i| {
                Step::Give { vm: vm(i), vf: vf(i), reason: "y".into() }
            }));
            let node_of = |name: &VmName| vm_nodes[name.as_str()[2..].parse::<usize>().unwrap()];
            let after = near(before.clone(), &free, &nodes, node_of);
            let (before, after) = (given(&before), given(&after));
            let vms = |steps: &[(VmName, VfId)]| steps.iter().map(|(vm, _)| vm.clone()).collect::<Vec<_>>();
            prop_assert_eq!(vms(&before), vms(&after));
            let vfs: BTreeSet<_> = after.iter().map(|(_, vf)| vf).collect();
            prop_assert_eq!(vfs.len(), after.len(), "a VF is given twice");
            prop_assert!(vfs.iter().all(|vf| free.contains(vf)));
            for node in 0..3 {
                let takers = vm_nodes.iter().filter(|it| **it == Some(node)).count();
                let there = free.iter().filter(|vf| nodes.get(vf) == Some(&node)).count();
                let met = after.iter().filter(|(vm, vf)| {
                    node_of(vm) == Some(node) && nodes.get(vf) == Some(&node)
                });
                prop_assert_eq!(met.count(), takers.min(there));
            }
        }
    }

    #[test]
    fn without_nodes_nothing_changes() {
        let steps = vec![Step::Give { vm: vm(1), vf: vf(1), reason: "y".into() }];
        assert_eq!(near(steps.clone(), &[vf(0), vf(1)], &BTreeMap::new(), |_| Some(0)), steps);
    }
}
