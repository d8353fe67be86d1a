//! A process of its own, because CPU time is counted for the whole process and other tests would add theirs.

use std::num::NonZeroUsize;
use std::thread::sleep;
use std::time::Duration;

use numa::{Pinning, Pool};

/// CPU time that this process has used on all its threads.
fn cpu_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a whole timespec that is ours.
    let rc = unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    assert_eq!(rc, 0);
    Duration::new(time.tv_sec.try_into().unwrap(), time.tv_nsec.try_into().unwrap())
}

#[test]
fn a_pool_that_is_left_alone_takes_no_cpu_time() {
    const IDLE: Duration = Duration::from_millis(300);
    for (threads, pinning) in [(2, Pinning::Pinned), (8, Pinning::Free)] {
        let mut pool = Pool::new(NonZeroUsize::new(threads).unwrap(), pinning).unwrap();
        for _ in 0..100 {
            pool.run(&mut vec![0; threads], 64, |sum, index| *sum += index);
        }
        let before = cpu_time();
        sleep(IDLE);
        let used = cpu_time() - before;
        // One thread that kept spinning would use about IDLE; parking and the clock use microseconds.
        assert!(used < IDLE / 10, "{threads} threads used {used:?} of CPU time while idle for {IDLE:?}");
        // And it still wakes up.
        let mut sums = vec![0; threads];
        pool.run(&mut sums, 64, |sum, index| *sum += index);
        assert_eq!(sums.iter().sum::<usize>(), 2016);
    }
}
