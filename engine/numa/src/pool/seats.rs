//! Who sits where: threads on nodes, and on cores within a node.

use std::num::NonZeroUsize;

use super::{Pinning, PoolError, WorkerNode};
use crate::cores::Core;
use crate::topology::NodeId;

/// A node as a pool sees it.
pub(super) struct Cores {
    pub(super) id: Option<NodeId>,
    /// At least one.
    pub(super) cores: Vec<Core>,
}

/// A place for every worker.
pub(super) struct Seats {
    /// Neighbouring workers share a node.
    pub(super) nodes: Vec<WorkerNode>,
    /// CPUs of each worker.
    pub(super) cpus: Vec<Vec<usize>>,
    /// Whether workers are kept on their CPUs.
    pub(super) stay: bool,
    /// Whether every worker has a core of its own.
    pub(super) pinned: bool,
    /// CPUs of all nodes together.
    pub(super) allowed_cpus: usize,
}

impl Seats {
    /// Spreads `threads` over the nodes by their cores, and within a node over all its cores.
    pub(super) fn new(threads: NonZeroUsize, pinning: Pinning, nodes: &[Cores]) -> Result<Self, PoolError> {
        let threads = threads.get();
        if threads < nodes.len() {
            return Err(PoolError::TooFewThreads { threads, nodes: nodes.len() });
        }
        let core_counts: Vec<_> = nodes.iter().map(|node| node.cores.len()).collect();
        let stay = pinning == Pinning::Pinned;
        let pinned = stay && threads <= core_counts.iter().sum();
        let mut seats = Self { nodes: vec![], cpus: vec![], stay, pinned, allowed_cpus: 0 };
        let everywhere: Vec<_> = nodes.iter().flat_map(cpus).collect();
        for (node, workers) in nodes.iter().zip(share(threads, &core_counts)) {
            let first = seats.cpus.len();
            seats.nodes.push(WorkerNode { id: node.id, workers: first..first + workers });
            seats.cpus.extend((0..workers).map(|worker| match pinning {
                Pinning::Pinned if pinned => node.cores[worker * node.cores.len() / workers].cpus.clone(),
                Pinning::Pinned => cpus(node).collect(),
                Pinning::Free => everywhere.clone(),
            }));
        }
        seats.allowed_cpus = everywhere.len();
        Ok(seats)
    }

    /// The index of the node of each worker.
    pub(super) fn node_of_worker(&self) -> Box<[usize]> {
        let workers = |(index, node): (usize, &WorkerNode)| node.workers.clone().map(move |_| index);
        self.nodes.iter().enumerate().flat_map(workers).collect()
    }
}

fn cpus(node: &Cores) -> impl Iterator<Item = usize> + '_ {
    node.cores.iter().flat_map(|core| &core.cpus).copied()
}

/// Threads of each node: one each, and every further one where there are most cores to a thread.
///
/// Where there are as many cores as threads, no node has more threads than cores.
fn share(threads: usize, core_counts: &[usize]) -> Vec<usize> {
    let mut workers = vec![1; core_counts.len()];
    for _ in core_counts.len()..threads {
        // (workers + 1) / cores is least, compared without fractions; the first of equals.
        let fullness = |node: usize| ((workers[node] + 1) as u128, core_counts[node] as u128);
        let less_full = |a: usize, b: usize| {
            let ((a_workers, a_cores), (b_workers, b_cores)) = (fullness(a), fullness(b));
            if b_workers * a_cores < a_workers * b_cores { b } else { a }
        };
        if let Some(node) = (0..core_counts.len()).reduce(less_full) {
            workers[node] += 1;
        }
    }
    workers
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn nodes(core_counts: &[usize]) -> Vec<Cores> {
        let mut next = 0;
        let mut node = |(id, &count): (usize, &usize)| {
            let first = next;
            next += 2 * count;
            // Two hardware threads a core.
            let core = |core| Core { package: id, last_level_cache: first, cpus: vec![core, core + 1] };
            Cores { id: Some(NodeId(id)), cores: (first..next).step_by(2).map(core).collect() }
        };
        core_counts.iter().enumerate().map(&mut node).collect()
    }

    fn seats(threads: usize, pinning: Pinning, core_counts: &[usize]) -> Seats {
        Seats::new(NonZeroUsize::new(threads).unwrap(), pinning, &nodes(core_counts)).unwrap()
    }

    #[test]
    fn workers_are_spread_evenly_over_nodes_and_over_the_cores_of_a_node() {
        let seats = seats(4, Pinning::Pinned, &[4, 4]);
        assert!(seats.pinned && seats.stay);
        assert_eq!(seats.cpus, [[0, 1], [4, 5], [8, 9], [12, 13]]);
        let workers: Vec<_> = seats.nodes.iter().map(|node| node.workers.clone()).collect();
        assert_eq!(workers, [0..2, 2..4]);
        assert_eq!(*seats.node_of_worker(), [0, 0, 1, 1]);
        assert_eq!(seats.allowed_cpus, 16);
    }

    #[test]
    fn threads_follow_the_cores_and_no_node_is_without() {
        assert_eq!(share(66, &[2, 64]), [2, 64]);
        assert_eq!(share(33, &[2, 64]), [1, 32]);
        assert_eq!(share(2, &[1, 63]), [1, 1]);
        assert_eq!(share(5, &[4, 4]), [3, 2]);
        assert_eq!(share(7, &[9]), [7]);
    }

    #[test]
    fn more_threads_than_cores_stay_on_their_node() {
        let seats = seats(5, Pinning::Pinned, &[1, 1]);
        assert!(!seats.pinned && seats.stay);
        assert_eq!(seats.cpus, [[0, 1], [0, 1], [0, 1], [2, 3], [2, 3]]);
    }

    #[test]
    fn free_workers_may_be_anywhere() {
        let seats = seats(2, Pinning::Free, &[1, 1]);
        assert!(!seats.pinned && !seats.stay);
        assert_eq!(seats.cpus, [[0, 1, 2, 3], [0, 1, 2, 3]]);
    }

    #[test]
    fn fewer_threads_than_nodes_are_refused() {
        let error = Seats::new(NonZeroUsize::MIN, Pinning::Free, &nodes(&[4, 4])).err().unwrap();
        assert!(error.to_string().contains("1 threads") && error.to_string().contains("2 nodes"), "{error}");
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn every_worker_has_a_seat_and_nobody_shares_a_core_where_there_are_enough(
            core_counts in vec(1_usize..9, 1..6), more in 0_usize..40,
        ) {
            let (threads, cores) = (core_counts.len() + more, core_counts.iter().sum::<usize>());
            let seats = seats(threads, Pinning::Pinned, &core_counts);
            prop_assert_eq!(seats.cpus.len(), threads);
            prop_assert_eq!(seats.nodes.iter().map(|node| node.workers.len()).sum::<usize>(), threads);
            prop_assert_eq!(seats.pinned, threads <= cores);
            if seats.pinned {
                let mut taken: Vec<_> = seats.cpus.concat();
                taken.sort_unstable();
                taken.dedup();
                prop_assert_eq!(taken.len(), 2 * threads);
            }
            for (worker, node) in seats.node_of_worker().iter().enumerate() {
                let home: Vec<_> = cpus(&nodes(&core_counts)[*node]).collect();
                prop_assert!(seats.cpus[worker].iter().all(|cpu| home.contains(cpu)));
            }
        }
    }
}
