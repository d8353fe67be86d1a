//! A fixed set of workers that run one parallel loop at a time.
//!
//! A decode step is a few hundred short loops, each over in microseconds, so what counts is the time to start and to
//! end one. Workers therefore spin for a moment after each loop; a pool that is left alone sleeps and takes no CPU time.
//! The thread that calls is worker 0: it never waits for a hand-over, and `Pool::new(1)` is a plain loop.
//!
//! On a machine with several nodes each worker belongs to one, and work on a node's memory is claimed by its workers
//! only. A worker that has run out of work does not help another node: it would read from there through the link
//! between the nodes, which is what all of this avoids, and take that link from others.
//!
//! # Why this is sound
//!
//! How a loop is handed to the workers and ends, `workers.rs` tells. What is added here are tasks: each index comes
//! from one `fetch_add` on one counter, so one worker has it. Relaxed is enough: the counters guard no memory, the
//! hand-over and the end of the loop order everything else. The counters of nodes are set to zero through `&mut`, when no
//! loop runs.

mod seats;
mod workers;

use std::io;
use std::marker::PhantomData;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

use crossbeam_utils::CachePadded;
use thiserror::Error;

use crate::affinity;
use crate::cores;
use crate::topology::{NodeId, Topology};
use seats::{Cores, Seats};
use workers::Workers;

/// Whether workers stay where they were put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pinning {
    /// Each worker on a physical core of its own, spread evenly over those of its node; with more threads than cores
    /// each on any core of its node.
    ///
    /// The calling thread is left as it is, because threads that it spawns would inherit its pin; one core is kept
    /// free for it, and the kernel finds that core. A thread that only drives the pool, and every one that drives a pool
    /// of several nodes, should [pin itself there](Pool::pin_caller).
    Pinned,
    /// Wherever the kernel puts them.
    Free,
}

/// The workers of one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerNode {
    /// The kernel's number; none where the pool takes the machine as one.
    pub id: Option<NodeId>,
    /// Their indices; never empty.
    pub workers: Range<usize>,
}

/// Why a pool did not start; inside an [`io::Error`].
#[derive(Debug, Error)]
pub enum PoolError {
    /// A node would have memory and nobody to read it.
    #[error("{threads} threads are too few for {nodes} nodes: give each node one, or take the machine as one node")]
    TooFewThreads {
        /// Threads asked for.
        threads: usize,
        /// Nodes with cores.
        nodes: usize,
    },
    /// No node has cores.
    #[error("a pool needs a node with cores, and this topology has none")]
    NoCores,
    /// The kernel does not run a thread there.
    #[error(
        "cannot keep worker {worker} on CPUs {cpus:?}: {source}; they have to exist and be allowed (taskset, cpuset), so a \
         topology that was given by hand has to be this machine's"
    )]
    Seat {
        /// Index of the worker.
        worker: usize,
        /// Where it should be.
        cpus: Vec<usize>,
        /// The system's answer.
        source: io::Error,
    },
}

impl From<PoolError> for io::Error {
    fn from(error: PoolError) -> Self {
        let kind = match &error {
            PoolError::TooFewThreads { .. } | PoolError::NoCores => io::ErrorKind::InvalidInput,
            PoolError::Seat { source, .. } => source.kind(),
        };
        Self::new(kind, error)
    }
}

/// Workers that are made once and used for every parallel loop of the process.
///
/// Loops are [`run`](Self::run), [`chunks`](Self::chunks), [`tiles`](Self::tiles), and
/// [`tiles_on_nodes`](Self::tiles_on_nodes). None allocates. Which worker gets which task is left to chance, within a
/// node where the task belongs to one, so a task's result must not depend on its scratch space. A panic in a task goes on
/// in the caller, after all workers have come back; tasks not begun by then may have run or not, and the pool stays
/// usable.
#[derive(Debug)]
pub struct Pool {
    workers: Workers,
    nodes: Vec<WorkerNode>,
    /// Index of each worker's node.
    node_of_worker: Box<[usize]>,
    /// The next task of each node, each on a cache line that no other node's workers write.
    claims: Box<[CachePadded<AtomicUsize>]>,
    pinned: bool,
    caller_cpus: Vec<usize>,
}

/// Keeps the calling thread on its core of a pool; when dropped, the thread may go where it could before.
///
/// It cannot leave its thread.
#[derive(Debug)]
#[must_use = "the thread is free again as soon as this is dropped"]
pub struct CallerPin {
    before: Vec<usize>,
    thread: PhantomData<*const ()>,
}

impl Drop for CallerPin {
    fn drop(&mut self) {
        // CPUs that went offline meanwhile are no error, and if none is left the kernel has already moved the thread.
        let _ = affinity::pin_current_thread(&self.before);
    }
}

impl Pool {
    /// A pool of `threads`, of which the calling thread is one: `threads - 1` are started. All cores are one node.
    ///
    /// With more threads than allowed physical cores no worker has one of its own; [`pinned`](Self::pinned) tells.
    ///
    /// # Errors
    /// When the system refuses a thread or its placement; threads started before that are gone again.
    pub fn new(threads: NonZeroUsize, pinning: Pinning) -> io::Result<Self> {
        Self::start(threads, pinning, &[Cores { id: None, cores: cores::allowed()? }])
    }

    /// A pool whose workers belong to the nodes of `topology` that have cores, spread evenly over these.
    ///
    /// To use some nodes only, take the others out of [`Topology::nodes`]. With [`Pinning::Free`] workers belong to
    /// nodes and run anywhere, which is how several nodes are tested on a machine with one.
    ///
    /// # Errors
    /// [`PoolError`] when there are fewer threads than nodes or the kernel does not run a worker at its place, and when
    /// the system refuses a thread; threads started before that are gone again.
    pub fn on_nodes(threads: NonZeroUsize, pinning: Pinning, topology: &Topology) -> io::Result<Self> {
        let nodes = topology.nodes.iter().filter(|node| !node.cores.is_empty());
        let nodes: Vec<_> = nodes.map(|node| Cores { id: Some(node.id), cores: node.cores.clone() }).collect();
        if nodes.is_empty() {
            return Err(PoolError::NoCores.into());
        }
        Self::start(threads, pinning, &nodes)
    }

    fn start(threads: NonZeroUsize, pinning: Pinning, nodes: &[Cores]) -> io::Result<Self> {
        let seats = Seats::new(threads, pinning, nodes)?;
        Ok(Self {
            workers: Workers::start(&seats)?,
            node_of_worker: seats.node_of_worker(),
            claims: nodes.iter().map(|_| CachePadded::default()).collect(),
            pinned: seats.pinned,
            caller_cpus: seats.cpus[0].clone(),
            nodes: seats.nodes,
        })
    }

    /// How many threads work in a loop, the caller among them: the length of every `scratch`.
    pub fn threads(&self) -> usize {
        self.workers.count()
    }

    /// The nodes and their workers, in the order of the topology; one without a number for [`Pool::new`].
    pub fn nodes(&self) -> &[WorkerNode] {
        &self.nodes
    }

    /// Workers of each node: what [`Slices`](crate::Slices) divides by.
    pub fn worker_counts(&self) -> Vec<usize> {
        self.nodes.iter().map(|node| node.workers.len()).collect()
    }

    /// The index in [`nodes`](Self::nodes) of a worker's node.
    ///
    /// # Panics
    /// When there is no such worker.
    pub fn node_of_worker(&self, worker: usize) -> usize {
        self.node_of_worker[worker]
    }

    /// Whether every worker has a physical core of its own.
    pub fn pinned(&self) -> bool {
        self.pinned
    }

    /// The CPUs that the calling thread is best on: the core that no worker has, or with more threads than cores all
    /// those of its node, or without pinning all.
    pub fn caller_cpus(&self) -> &[usize] {
        &self.caller_cpus
    }

    /// Keeps the calling thread, as worker 0, on [`caller_cpus`](Self::caller_cpus) until the answer is dropped.
    ///
    /// Threads that it spawns meanwhile inherit this, and it sees those CPUs as all that it may use.
    ///
    /// # Errors
    /// [`PoolError::Seat`] when the kernel does not run the thread there.
    pub fn pin_caller(&self) -> io::Result<CallerPin> {
        let before = affinity::allowed_cpus()?;
        let cpus = self.caller_cpus.clone();
        affinity::pin_current_thread(&cpus).map_err(|source| PoolError::Seat { worker: 0, cpus, source })?;
        Ok(CallerPin { before, thread: PhantomData })
    }

    /// Calls `task(scratch of the worker, index)` once for every index below `tasks`, in any order and at the same time.
    ///
    /// # Panics
    /// When `scratch` has not [`threads`](Self::threads) elements, and with a task's own panic.
    pub fn run<S: Send>(&mut self, scratch: &mut [S], tasks: usize, task: impl Fn(&mut S, usize) + Sync) {
        if tasks <= 1 || self.threads() == 1 {
            // Waking others for one task only adds a hand-over.
            self.workers.check_scratch(scratch);
            (0..tasks).for_each(|index| task(&mut scratch[0], index));
            return;
        }
        let next = CachePadded::new(AtomicUsize::new(0));
        self.workers.broadcast(scratch, |scratch, _| {
            loop {
                let index = next.fetch_add(1, Relaxed);
                if index >= tasks {
                    break;
                }
                task(scratch, index);
            }
        });
    }

    /// Calls `task(scratch, worker)` once on each worker, worker 0 being the calling thread: for work that belongs to
    /// a place rather than to whoever is free.
    ///
    /// # Panics
    /// When `scratch` has not [`threads`](Self::threads) elements, and with a task's own panic.
    pub fn broadcast<S: Send>(&mut self, scratch: &mut [S], task: impl Fn(&mut S, usize) + Sync) {
        self.workers.broadcast(scratch, task);
    }

    /// Calls `work(scratch, node, next task)` once on each worker; a call that is told an index has it alone among the
    /// workers of its node, and indices of one call ascend.
    pub(crate) fn claim_on_nodes<S: Send>(
        &mut self,
        scratch: &mut [S],
        work: impl Fn(&mut S, usize, &dyn Fn() -> usize) + Sync,
    ) {
        let Self { workers, node_of_worker, claims, .. } = self;
        for claim in &mut *claims {
            *claim.get_mut() = 0;
        }
        workers.broadcast(scratch, |scratch, worker| {
            let node = node_of_worker[worker];
            work(scratch, node, &|| claims[node].fetch_add(1, Relaxed));
        });
    }
}

#[cfg(test)]
mod tests {
    use std::any::Any;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::atomic::{AtomicU32, AtomicU64};
    use std::time::Duration;

    use super::*;

    fn pool(threads: usize, pinning: Pinning) -> Pool {
        Pool::new(NonZeroUsize::new(threads).unwrap(), pinning).unwrap()
    }

    fn message(panic: &(dyn Any + Send)) -> &str {
        panic.downcast_ref::<&str>().copied().or(panic.downcast_ref::<String>().map(String::as_str)).unwrap()
    }

    #[test]
    fn every_task_runs_once_for_any_number_of_threads() {
        for threads in [1, 2, 3, 8] {
            for pinning in [Pinning::Free, Pinning::Pinned] {
                let mut pool = pool(threads, pinning);
                assert_eq!(pool.threads(), threads);
                for tasks in [0, 1, 2, threads, 100] {
                    let runs: Vec<_> = (0..tasks).map(|_| AtomicU32::new(0)).collect();
                    let mut counts = vec![0; threads];
                    pool.run(&mut counts, tasks, |count, index| {
                        *count += 1;
                        runs[index].fetch_add(1, Relaxed);
                    });
                    assert!(runs.iter().all(|runs| runs.load(Relaxed) == 1), "{threads} threads, {tasks} tasks");
                    assert_eq!(counts.iter().sum::<usize>(), tasks);
                }
            }
        }
    }

    #[test]
    fn all_threads_are_in_a_loop_at_the_same_time() {
        for threads in [2, 3, 8] {
            // Each task waits for all others: a pool with a missing thread would hang here.
            let barrier = std::sync::Barrier::new(threads);
            let mut ids = vec![None; threads];
            pool(threads, Pinning::Free).run(&mut ids, threads, |id, _| {
                barrier.wait();
                *id = Some(std::thread::current().id());
            });
            assert_eq!(ids[0], Some(std::thread::current().id()), "the caller is worker 0");
            ids.sort_by_key(|id| format!("{id:?}"));
            ids.dedup();
            assert_eq!(ids.len(), threads);
        }
    }

    #[test]
    fn a_pool_lasts_for_thousands_of_loops() {
        for threads in [2, 8] {
            let mut pool = pool(threads, Pinning::Free);
            let mut sums = vec![0; threads];
            for round in 0..3000 {
                pool.run(&mut sums, 5, |sum, index| *sum += round * 5 + index);
            }
            assert_eq!(sums.iter().sum::<usize>(), (0..15_000_usize).sum::<usize>());
        }
    }

    #[test]
    fn loops_see_what_earlier_loops_wrote_even_after_sleep() {
        let mut pool = pool(3, Pinning::Free);
        let mut cells = [0_u64; 64];
        for round in 1..=40 {
            pool.chunks(&mut [(); 3], &mut cells, 1, |(), index, cell| {
                cell[0] += index as u64;
            });
            assert!(cells.iter().enumerate().all(|(index, &cell)| cell == index as u64 * round));
            if round % 10 == 0 {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    }

    #[test]
    fn a_pool_may_be_driven_from_another_thread() {
        let mut pool = pool(2, Pinning::Free);
        let sum = AtomicU64::new(0);
        for _ in 0..2 {
            std::thread::scope(|scope| {
                scope.spawn(|| pool.run(&mut [(); 2], 10, |(), index| _ = sum.fetch_add(index as u64, Relaxed)));
            });
        }
        assert_eq!(sum.into_inner(), 90);
    }

    #[test]
    fn a_panic_reaches_the_caller_after_all_workers_and_the_pool_goes_on() {
        for threads in [1, 2, 8] {
            let mut pool = pool(threads, Pinning::Free);
            let inside = AtomicU32::new(0);
            for bad in [0, 1, 19] {
                let outcome = catch_unwind(AssertUnwindSafe(|| {
                    pool.run(&mut vec![(); threads], 20, |(), index| {
                        inside.fetch_add(1, Relaxed);
                        std::thread::sleep(Duration::from_micros(50));
                        inside.fetch_sub(1, Relaxed);
                        assert!(index != bad, "task {index} went wrong");
                    });
                }));
                assert_eq!(message(&*outcome.unwrap_err()), format!("task {bad} went wrong"));
                assert_eq!(inside.load(Relaxed), 0, "nobody is left in the loop");
            }
            let mut counts = vec![0; threads];
            pool.run(&mut counts, 20, |count, _| *count += 1);
            assert_eq!(counts.iter().sum::<usize>(), 20);
        }
    }

    #[test]
    fn a_broadcast_runs_once_on_each_worker_with_its_own_scratch() {
        for threads in [1, 2, 3, 8] {
            let mut pool = pool(threads, Pinning::Pinned);
            let mut seen: Vec<_> = (0..threads).map(|worker| (worker, vec![])).collect();
            for _ in 0..3 {
                pool.broadcast(&mut seen, |(own, seen), worker| {
                    assert_eq!(*own, worker);
                    seen.push(std::thread::current().id());
                });
            }
            assert_eq!(seen[0].1[0], std::thread::current().id());
            assert!(seen.iter().all(|(_, ids)| ids.len() == 3 && ids.iter().all(|id| *id == ids[0])));
        }
    }

    #[test]
    fn when_every_thread_panics_one_panic_comes_through() {
        let outcome = catch_unwind(|| {
            let barrier = std::sync::Barrier::new(4);
            pool(4, Pinning::Free).run(&mut [(); 4], 4, |(), _| {
                barrier.wait();
                panic!("all at once");
            });
        });
        assert_eq!(message(&*outcome.unwrap_err()), "all at once");
    }

    #[test]
    fn a_pool_ends_without_ever_having_run() {
        for threads in [1, 2, 8] {
            drop(pool(threads, Pinning::Pinned));
        }
    }

    #[test]
    #[should_panic(expected = "one scratch element for each of its threads")]
    fn scratch_of_the_wrong_length_is_refused() {
        pool(2, Pinning::Free).run(&mut [()], 1, |(), _| {});
    }

    #[test]
    fn pinned_workers_have_a_core_each_and_the_caller_keeps_its_freedom() {
        let cores: Vec<_> = cores::allowed().unwrap().into_iter().map(|core| core.cpus).collect();
        let allowed = affinity::allowed_cpus().unwrap();
        let threads = cores.len();
        let mut pool = pool(threads, Pinning::Pinned);
        assert!(pool.pinned());
        let barrier = std::sync::Barrier::new(threads);
        let mut places = vec![vec![]; threads];
        pool.run(&mut places, threads, |place, _| {
            barrier.wait();
            *place = affinity::allowed_cpus().unwrap();
        });
        if threads > 1 {
            assert_eq!(places[0], allowed);
            places[0] = pool.caller_cpus().to_vec();
            places.sort();
            let mut cores = cores;
            cores.sort();
            assert_eq!(places, cores);
        }
    }

    #[test]
    fn a_caller_is_pinned_for_as_long_as_it_wants() {
        let allowed = affinity::allowed_cpus().unwrap();
        let pool = pool(1, Pinning::Pinned);
        let pin = pool.pin_caller().unwrap();
        assert_eq!(affinity::allowed_cpus().unwrap(), pool.caller_cpus());
        drop(pin);
        assert_eq!(affinity::allowed_cpus().unwrap(), allowed);
    }

    #[test]
    fn workers_belong_to_the_nodes_of_the_topology_that_have_cores() {
        let json = r#"{"nodes": [
            {"id": 0, "cores": 0, "memory_bytes": 8, "distances": [10, 21, 21]},
            {"id": 2, "cores": 2, "memory_bytes": 8, "distances": [21, 10, 21]},
            {"id": 5, "cores": 2, "memory_bytes": 8, "distances": [21, 21, 10]}]}"#;
        let topology = Topology::from_json(json).unwrap();
        let pool = Pool::on_nodes(NonZeroUsize::new(5).unwrap(), Pinning::Free, &topology).unwrap();
        let node = |id, workers| WorkerNode { id: Some(NodeId(id)), workers };
        assert_eq!(pool.nodes(), [node(2, 0..3), node(5, 3..5)]);
        assert_eq!(pool.worker_counts(), [3, 2]);
        let nodes: Vec<_> = (0..5).map(|worker| pool.node_of_worker(worker)).collect();
        assert_eq!(nodes, [0, 0, 0, 1, 1]);

        let one = Pool::new(NonZeroUsize::new(2).unwrap(), Pinning::Free).unwrap();
        assert_eq!(one.nodes(), [WorkerNode { id: None, workers: 0..2 }]);
    }

    #[test]
    fn a_pool_on_this_machines_nodes_has_every_worker_on_a_core_of_its_node() {
        let topology = Topology::discover().unwrap();
        let threads = topology.core_count();
        let mut pool = Pool::on_nodes(NonZeroUsize::new(threads).unwrap(), Pinning::Pinned, &topology).unwrap();
        assert!(pool.pinned());
        let _pin = pool.pin_caller().unwrap();
        let mut places = vec![vec![]; threads];
        pool.broadcast(&mut places, |place, _| *place = affinity::allowed_cpus().unwrap());
        let with_cores: Vec<_> = topology.nodes.iter().filter(|node| !node.cores.is_empty()).collect();
        for (worker, place) in places.iter().enumerate() {
            let node = with_cores[pool.node_of_worker(worker)];
            assert!(node.cores.iter().any(|core| core.cpus == *place), "worker {worker} on {place:?}");
        }
    }

    #[test]
    fn a_pool_that_cannot_be_says_why() {
        let pool = |threads: usize, topology: &Topology| {
            Pool::on_nodes(NonZeroUsize::new(threads).unwrap(), Pinning::Pinned, topology).unwrap_err().to_string()
        };
        let message = pool(1, &Topology::parse("2x1").unwrap());
        assert!(message.contains("1 threads are too few for 2 nodes"), "{message}");
        assert!(pool(1, &Topology { nodes: vec![] }).contains("has none"));

        // CPUs that no machine has.
        let mut topology = Topology::parse("1x2").unwrap();
        topology.nodes[0].cores.iter_mut().for_each(|core| core.cpus = vec![1023]);
        let message = pool(2, &topology);
        assert!(message.contains("worker 1 on CPUs [1023]") && message.contains("by hand"), "{message}");
    }

    #[test]
    fn more_threads_than_cores_have_none_of_their_own_and_the_pool_says_so() {
        let cores: Vec<_> = cores::allowed().unwrap().into_iter().map(|core| core.cpus).collect();
        assert!(!pool(cores.len() + 1, Pinning::Pinned).pinned());
        assert!(!pool(1, Pinning::Free).pinned());
    }
}
