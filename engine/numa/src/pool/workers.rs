//! Threads that run one body at a time.
//!
//! A step of a model is a few hundred short loops, so workers spin for a moment after each; when they are left alone they
//! sleep and take no CPU time. What a body does with its worker's index is the pool's business.
//!
//! # Why this is sound
//!
//! The caller publishes a pointer to a closure on its own stack, and does not return before every worker has left it.
//! Every loop takes `&mut Workers`, so there is one publisher at a time.
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

use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr::{self, NonNull};
use std::sync::atomic::Ordering::{Acquire, Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_utils::CachePadded;
use rustix::thread::futex;

use super::PoolError;
use super::seats::Seats;
use crate::affinity;
use crate::partition::Slots;

/// Longer than the gaps between the loops of a step, shorter than anything a person or a power meter would notice.
const SPIN: Duration = Duration::from_micros(80);

/// With more threads than CPUs, whoever spins keeps off the CPU the one it waits for.
const SPIN_OVERSUBSCRIBED: Duration = Duration::from_micros(2);

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

/// Workers 1 and up; worker 0 is whoever calls.
#[derive(Debug)]
pub(super) struct Workers {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Workers {
    /// Starts a thread for each seat but the first.
    ///
    /// # Errors
    /// When the system refuses a thread or its seat; threads started before that are gone again.
    pub(super) fn start(seats: &Seats) -> io::Result<Self> {
        let spin = if seats.cpus.len() > seats.allowed_cpus { SPIN_OVERSUBSCRIBED } else { SPIN };
        let mut workers = Self {
            shared: Arc::new(Shared {
                epoch: CachePadded::new(AtomicU32::new(0)),
                sleepers: CachePadded::new(AtomicU32::new(0)),
                remaining: CachePadded::new(AtomicU32::new(0)),
                caller_sleeps: AtomicBool::new(false),
                job: AtomicPtr::new(ptr::null_mut()),
                spin,
            }),
            threads: Vec::with_capacity(seats.cpus.len() - 1),
        };
        let (placed, placements) = mpsc::channel();
        for (worker, cpus) in seats.cpus.iter().cloned().enumerate().skip(1) {
            let (shared, placed, stays) = (Arc::clone(&workers.shared), placed.clone(), seats.stay);
            workers.threads.push(Builder::new().name(format!("worker-{worker}")).spawn(move || {
                let placement = if stays { affinity::pin_current_thread(&cpus) } else { Ok(()) };
                // The receiver is gone only when another thread failed to start, and then the pool ends anyway.
                let _ = placed.send(placement.map_err(|source| PoolError::Seat { worker, cpus, source }));
                // `start` listens until the last sender is gone.
                drop(placed);
                shared.work(worker);
            })?);
        }
        drop(placed);
        placements.iter().collect::<Result<(), PoolError>>()?;
        Ok(workers)
    }

    /// How many work in a loop, the caller among them.
    pub(super) fn count(&self) -> usize {
        self.threads.len() + 1
    }

    /// Calls `task(scratch, worker)` once on each worker.
    ///
    /// # Panics
    /// When `scratch` has not an element for each worker, and with a task's own panic.
    pub(super) fn broadcast<S: Send>(&mut self, scratch: &mut [S], task: impl Fn(&mut S, usize) + Sync) {
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

    pub(super) fn check_scratch<S>(&self, scratch: &[S]) {
        assert_eq!(scratch.len(), self.count(), "a pool needs one scratch element for each of its threads");
    }

    /// Runs `body` once on every thread and returns when all have left it. `body` must not unwind.
    fn dispatch(&mut self, body: Body<'_>) {
        // An unwinding body would leave this frame while workers are in it; there is no way on from there.
        let no_unwind = AbortOnUnwind;
        let others = u32::try_from(self.threads.len()).expect("the system has fewer threads than that");
        self.shared.publish(ptr::from_ref(&body).cast_mut().cast(), others);
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

impl Drop for Workers {
    fn drop(&mut self) {
        self.shared.publish(ptr::null_mut(), 0);
        for thread in self.threads.drain(..) {
            // A worker cannot panic: what it runs catches.
            let _ = thread.join();
        }
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("epoch", &self.epoch).field("spin", &self.spin).finish_non_exhaustive()
    }
}
