//! How the engine is, as it tells after every step and anybody may read at any time.
//!
//! "Ready" must not mean "the process is there": servers have answered 200 for days while no token came. So what counts is
//! when the engine got on last, and whether it has anything to do.

use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Where the engine is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Phase {
    Loading = 0,
    Ready = 1,
    Ended = 2,
}

/// Written by the engine's thread alone.
pub(crate) struct Vitals {
    start: Instant,
    phase: AtomicU8,
    /// Milliseconds after `start`.
    progress_ms: AtomicU64,
    longest_step_ms: AtomicU64,
    steps: AtomicU64,
    pub(crate) running: AtomicUsize,
    pub(crate) waiting: AtomicUsize,
    pub(crate) free_blocks: AtomicUsize,
    pub(crate) blocks: AtomicUsize,
    pub(crate) prefill_tokens: AtomicUsize,
    pub(crate) cached_tokens: AtomicUsize,
    pub(crate) generated_tokens: AtomicUsize,
    pub(crate) step_micros: AtomicU64,
    pub(crate) bytes_read: AtomicU64,
    /// Sequences that the steps so far had, all together.
    pub(crate) busy: AtomicU64,
    /// Bits of the measured read bandwidth, bytes a second.
    bandwidth: AtomicU64,
}

impl Default for Vitals {
    fn default() -> Self {
        Self {
            start: Instant::now(),
            phase: AtomicU8::new(Phase::Loading as u8),
            progress_ms: AtomicU64::new(0),
            longest_step_ms: AtomicU64::new(0),
            steps: AtomicU64::new(0),
            running: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            free_blocks: AtomicUsize::new(0),
            blocks: AtomicUsize::new(0),
            prefill_tokens: AtomicUsize::new(0),
            cached_tokens: AtomicUsize::new(0),
            generated_tokens: AtomicUsize::new(0),
            step_micros: AtomicU64::new(0),
            bytes_read: AtomicU64::new(0),
            busy: AtomicU64::new(0),
            bandwidth: AtomicU64::new(0),
        }
    }
}

/// A step may take this much longer than any before, and no time below a minute is too long.
const LONGER_THAN_ANY: u32 = 20;
const PATIENCE_MIN: Duration = Duration::from_secs(60);
/// The first step may read all of a model from a slow disk.
const PATIENCE_AT_FIRST: Duration = Duration::from_secs(900);

impl Vitals {
    pub(crate) fn phase(&self) -> Phase {
        match self.phase.load(Relaxed) {
            0 => Phase::Loading,
            1 => Phase::Ready,
            _ => Phase::Ended,
        }
    }

    pub(crate) fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Relaxed);
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.running.load(Relaxed) == 0 && self.waiting.load(Relaxed) == 0
    }

    /// A step ended that took `time`.
    pub(crate) fn stepped(&self, time: Duration) {
        let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        self.longest_step_ms.fetch_max(ms(time), Relaxed);
        self.progress_ms.store(ms(self.start.elapsed()), Relaxed);
        self.steps.fetch_add(1, Relaxed);
    }

    pub(crate) fn steps(&self) -> u64 {
        self.steps.load(Relaxed)
    }

    /// Time since the last step that ended.
    pub(crate) fn since_progress(&self) -> Duration {
        self.start.elapsed().saturating_sub(Duration::from_millis(self.progress_ms.load(Relaxed)))
    }

    /// How long a step may take.
    pub(crate) fn patience(&self) -> Duration {
        match self.steps() {
            0 => PATIENCE_AT_FIRST,
            _ => PATIENCE_MIN.max(Duration::from_millis(self.longest_step_ms.load(Relaxed)) * LONGER_THAN_ANY),
        }
    }

    pub(crate) fn set_bandwidth(&self, bytes_per_second: f64) {
        self.bandwidth.store(bytes_per_second.to_bits(), Relaxed);
    }

    /// Read bandwidth of this machine with the engine's workers, bytes a second; 0 until it was measured.
    pub(crate) fn bandwidth(&self) -> f64 {
        f64::from_bits(self.bandwidth.load(Relaxed))
    }
}
