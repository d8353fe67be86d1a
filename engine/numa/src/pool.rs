//! A fixed set of workers that run one parallel loop at a time.
//!
//! A decode step is a few hundred short loops, each over in microseconds, so what counts is the time to start and to
//! end one. Workers therefore spin for a moment after each loop; a pool that is left alone sleeps and takes no CPU time.
//! The thread that calls is worker 0: it never waits for a hand-over, and `Pool::new(1)` is a plain loop.
//!
//! # Why this is sound
//!
//! The caller publishes a pointer to a closure on its own stack, and does not return before every worker has left it.
//! Every loop takes `&mut Pool`, so there is one publisher at a time.
//!
//! * *Publication.* The caller writes `job` and `remaining`, then stores `epoch` (at least Release). A worker loads
//!   `epoch` (at least Acquire) until it differs from the last one it saw, and only then reads `job`: it sees this
//!   epoch's pointer and everything written before, the closure's captures among it.
//! * *Retirement.* A worker leaves by `remaining.fetch_sub` (at least Release) and touches neither closure nor captures
//!   afterwards. The caller returns only after it has loaded `remaining == 0` (Acquire). All decrements are one release
//!   sequence, so every worker's writes are visible to the caller, and no worker can still be inside.
//! * *No lost epoch.* The next epoch needs `remaining == 0`, hence every worker has seen this one. `epoch` never runs
//!   ahead by more than one, so comparing for inequality is enough and wrapping is harmless.
//! * *No lost wake-up.* A sleeper raises `sleepers`, then asks the kernel to sleep while `epoch` is unchanged, which the
//!   kernel compares under the lock that a wake-up takes. The caller stores `epoch`, then loads `sleepers`. All are
//!   SeqCst: in their single order either the caller sees the sleeper and wakes it, or the sleeper's comparison comes
//!   after the store and it does not sleep. The caller's own sleep on `remaining` mirrors this.
//! * *Tasks.* Each index comes from one `fetch_add`, so one worker has it. Relaxed is enough: the counter guards no
//!   memory, publication and retirement order everything else.

use std::any::Any;
use std::io;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr::{self, NonNull};
use std::sync::atomic::Ordering::{Acquire, Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicUsize};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_utils::CachePadded;
use rustix::thread::futex;

use crate::affinity;
use crate::cores;
use crate::partition::Slots;

/// Longer than the gaps between the loops of a step, shorter than anything a person or a power meter would notice.
const SPIN: Duration = Duration::from_micros(80);

/// With more threads than CPUs, whoever spins keeps off the CPU the one it waits for.
const SPIN_OVERSUBSCRIBED: Duration = Duration::from_micros(2);

/// Whether workers stay on one core each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pinning {
    /// Each worker on a physical core of its own, spread evenly over the allowed ones.
    ///
    /// The calling thread is left as it is, because threads that it spawns would inherit its pin; one core is kept
    /// free for it, and the kernel finds that core. A thread that only drives the pool may pin itself there with
    /// [`affinity::pin_current_thread`] and [`Pool::caller_cpus`].
    Pinned,
    /// Wherever the kernel puts them.
    Free,
}

/// What every worker runs in one epoch: the argument is the worker's index.
type Body<'a> = &'a (dyn Fn(usize) + Sync + 'a);

struct Shared {
    /// Changes once for every job.
    epoch: CachePadded<AtomicU32>,
    /// Workers that sleep, or are about to, until `epoch` changes.
    sleepers: CachePadded<AtomicU32>,
    /// Workers that have not yet left this epoch's job.
    remaining: CachePadded<AtomicU32>,
    /// The caller sleeps, or is about to, until `remaining` is zero.
    caller_sleeps: AtomicBool,
    /// This epoch's body, on the caller's stack; null tells the workers to end.
    job: AtomicPtr<Body<'static>>,
    spin: Duration,
}

impl Shared {
    /// Hands `job` to every worker.
    fn publish(&self, job: *mut Body<'static>, workers: u32) {
        self.job.store(job, Relaxed);
        self.remaining.store(workers, Relaxed);
        self.epoch.fetch_add(1, SeqCst);
        if self.sleepers.load(SeqCst) > 0 {
            // It fails only for arguments that these are not; nobody asleep is no error.
            let _ = futex::wake(&self.epoch, futex::Flags::PRIVATE, i32::MAX as u32);
        }
    }

    /// Waits for an epoch other than `seen`.
    fn next_epoch(&self, seen: u32) -> u32 {
        if !spin_until(self.spin, || self.epoch.load(Acquire) != seen) {
            self.sleepers.fetch_add(1, SeqCst);
            while self.epoch.load(SeqCst) == seen {
                // Signals and a changed value end it early, which the loop covers.
                let _ = futex::wait(&self.epoch, futex::Flags::PRIVATE, seen, None);
            }
            self.sleepers.fetch_sub(1, Relaxed);
        }
        self.epoch.load(Acquire)
    }

    /// Says that the calling worker is out of the job for good.
    fn leave(&self) {
        if self.remaining.fetch_sub(1, SeqCst) == 1 && self.caller_sleeps.load(SeqCst) {
            let _ = futex::wake(&self.remaining, futex::Flags::PRIVATE, 1);
        }
    }

    /// Waits until every worker is out of the job.
    fn wait_for_all(&self) {
        if spin_until(self.spin, || self.remaining.load(Acquire) == 0) {
            return;
        }
        self.caller_sleeps.store(true, SeqCst);
        loop {
            match self.remaining.load(SeqCst) {
                0 => break,
                some => {
                    let _ = futex::wait(&self.remaining, futex::Flags::PRIVATE, some, None);
                }
            }
        }
        self.caller_sleeps.store(false, Relaxed);
    }

    fn work(&self, worker: usize) {
        let mut seen = 0;
        loop {
            seen = self.next_epoch(seen);
            let Some(job) = NonNull::new(self.job.load(Relaxed)) else { return };
            // SAFETY: the caller stays in `dispatch`, where the body lives, until this worker has left (module comment).
            let body: &Body<'_> = unsafe { job.as_ref() };
            body(worker);
            self.leave();
        }
    }
}

/// Spins until `done`, but not much longer than `limit`; whether it is done.
fn spin_until(limit: Duration, done: impl Fn() -> bool) -> bool {
    let start = Instant::now();
    loop {
        // Several pauses to one look at the clock, which on some CPUs costs as much as all of them.
        for _ in 0..16 {
            if done() {
                return true;
            }
            std::hint::spin_loop();
        }
        if start.elapsed() >= limit {
            return done();
        }
    }
}

/// Workers that are made once and used for every parallel loop of the process.
///
/// Loops are [`run`](Self::run), [`chunks`](Self::chunks) and [`tiles`](Self::tiles). None allocates. Which worker gets
/// which task is left to chance, so a task's result must not depend on its scratch space. A panic in a task goes on in
/// the caller, after all workers have come back; tasks not begun by then may have run or not, and the pool stays usable.
#[derive(Debug)]
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    threads: NonZeroUsize,
    pinned: bool,
    caller_cpus: Vec<usize>,
}

impl Pool {
    /// A pool of `threads`, of which the calling thread is one: `threads - 1` are started.
    ///
    /// With more threads than allowed physical cores [`Pinning::Pinned`] becomes [`Pinning::Free`];
    /// [`pinned`](Self::pinned) tells.
    ///
    /// # Errors
    /// When the system refuses a thread or its placement; threads started before that are gone again.
    pub fn new(threads: NonZeroUsize, pinning: Pinning) -> io::Result<Self> {
        let cores: Vec<_> = cores::allowed()?.into_iter().map(|core| core.cpus).collect();
        let allowed_cpus: usize = cores.iter().map(Vec::len).sum();
        let pinned = pinning == Pinning::Pinned && threads.get() <= cores.len();
        let cores_of_threads: Vec<Vec<usize>> = if pinned {
            (0..threads.get()).map(|thread| cores[thread * cores.len() / threads].clone()).collect()
        } else {
            vec![cores.concat(); threads.get()]
        };
        let spin = if threads.get() > allowed_cpus { SPIN_OVERSUBSCRIBED } else { SPIN };
        let mut pool = Self {
            shared: Arc::new(Shared {
                epoch: CachePadded::new(AtomicU32::new(0)),
                sleepers: CachePadded::new(AtomicU32::new(0)),
                remaining: CachePadded::new(AtomicU32::new(0)),
                caller_sleeps: AtomicBool::new(false),
                job: AtomicPtr::new(ptr::null_mut()),
                spin,
            }),
            workers: Vec::with_capacity(threads.get() - 1),
            threads,
            pinned,
            caller_cpus: cores_of_threads[0].clone(),
        };
        let (placed, placements) = mpsc::channel();
        for (worker, cpus) in cores_of_threads.into_iter().enumerate().skip(1) {
            let (shared, placed) = (Arc::clone(&pool.shared), placed.clone());
            pool.workers.push(Builder::new().name(format!("worker-{worker}")).spawn(move || {
                let placement = if pinned { affinity::pin_current_thread(&cpus) } else { Ok(()) };
                // The receiver is gone only when another thread failed to start, and then the pool ends anyway.
                let _ = placed.send(placement);
                // `new` listens until the last sender is gone.
                drop(placed);
                shared.work(worker);
            })?);
        }
        drop(placed);
        placements.iter().collect::<io::Result<()>>()?;
        Ok(pool)
    }

    /// How many threads work in a loop, the caller among them: the length of every `scratch`.
    pub fn threads(&self) -> usize {
        self.threads.get()
    }

    /// Whether every worker has a physical core of its own.
    pub fn pinned(&self) -> bool {
        self.pinned
    }

    /// The CPUs that the calling thread is best on: the core that no worker has, or all allowed ones without pinning.
    pub fn caller_cpus(&self) -> &[usize] {
        &self.caller_cpus
    }

    /// Calls `task(scratch of the worker, index)` once for every index below `tasks`, in any order and at the same time.
    ///
    /// # Panics
    /// When `scratch` has not [`threads`](Self::threads) elements, and with a task's own panic.
    pub fn run<S: Send>(&mut self, scratch: &mut [S], tasks: usize, task: impl Fn(&mut S, usize) + Sync) {
        if tasks <= 1 || self.workers.is_empty() {
            // Waking others for one task only adds a hand-over.
            self.check_scratch(scratch);
            (0..tasks).for_each(|index| task(&mut scratch[0], index));
            return;
        }
        let next = CachePadded::new(AtomicUsize::new(0));
        self.broadcast(scratch, |scratch, _| {
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
        self.check_scratch(scratch);
        let scratch = Slots::new(scratch);
        let first_panic = Mutex::new(None);
        self.dispatch(&|worker| {
            // SAFETY: every worker of an epoch has an index of its own, below the length that was checked.
            let scratch = unsafe { scratch.slot(worker) };
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| task(scratch, worker))) {
                keep_first(&first_panic, panic);
            }
        });
        if let Some(panic) = first_panic.into_inner().unwrap_or_else(PoisonError::into_inner) {
            resume_unwind(panic);
        }
    }

    fn check_scratch<S>(&self, scratch: &[S]) {
        assert_eq!(scratch.len(), self.threads(), "a pool needs one scratch element for each of its threads");
    }

    /// Runs `body` once on every thread and returns when all have left it. `body` must not unwind.
    fn dispatch(&mut self, body: Body<'_>) {
        // An unwinding body would leave this frame while workers are in it; there is no way on from there.
        let no_unwind = AbortOnUnwind;
        let workers = u32::try_from(self.workers.len()).expect("the system has fewer threads than that");
        self.shared.publish(ptr::from_ref(&body).cast_mut().cast(), workers);
        body(0);
        self.shared.wait_for_all();
        std::mem::forget(no_unwind);
    }
}

struct AbortOnUnwind;

impl Drop for AbortOnUnwind {
    fn drop(&mut self) {
        std::process::abort();
    }
}

fn keep_first(first: &Mutex<Option<Box<dyn Any + Send>>>, panic: Box<dyn Any + Send>) {
    let mut first = first.lock().unwrap_or_else(PoisonError::into_inner);
    if first.is_none() {
        *first = Some(panic);
    } else {
        // A payload may panic when it is dropped, and this worker must reach its exit.
        std::mem::forget(panic);
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.publish(ptr::null_mut(), 0);
        for worker in self.workers.drain(..) {
            // A worker cannot panic: what it runs catches.
            let _ = worker.join();
        }
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("epoch", &self.epoch).field("spin", &self.spin).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

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
    fn more_threads_than_cores_are_free_and_the_pool_says_so() {
        let cores: Vec<_> = cores::allowed().unwrap().into_iter().map(|core| core.cpus).collect();
        assert!(!pool(cores.len() + 1, Pinning::Pinned).pinned());
        assert!(!pool(1, Pinning::Free).pinned());
    }
}
