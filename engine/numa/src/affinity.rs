//! Where the kernel may run a thread.
//!
//! A worker that is moved leaves its caches behind, and on a machine with several nodes its memory too.

use std::io;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// CPUs on which the calling thread may run, ascending.
///
/// # Errors
/// The kernel's error for `sched_getaffinity`; `EINVAL` on a kernel built for more than 1024 CPUs.
pub fn allowed_cpus() -> io::Result<Vec<usize>> {
    let set = sched_getaffinity(None)?;
    Ok((0..CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu)).collect())
}

/// Keeps the calling thread on `cpus`. Threads it spawns from then on inherit this.
///
/// # Errors
/// The kernel's error for `sched_setaffinity`; `EINVAL` where none of `cpus` is allowed or one is above 1023.
pub fn pin_current_thread(cpus: &[usize]) -> io::Result<()> {
    let mut set = CpuSet::new();
    for &cpu in cpus {
        if cpu >= CpuSet::MAX_CPU {
            return Err(io::Error::from(rustix::io::Errno::INVAL));
        }
        set.set(cpu);
    }
    Ok(sched_setaffinity(None, &set)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_thread_can_be_pinned_to_each_of_its_cores() {
        std::thread::spawn(|| {
            for core in crate::cores::allowed().unwrap() {
                pin_current_thread(&core.cpus).unwrap();
                assert_eq!(allowed_cpus().unwrap(), core.cpus);
            }
        })
        .join()
        .unwrap();
    }

    #[test]
    fn pinning_to_no_cpu_or_an_impossible_one_is_an_error() {
        assert!(pin_current_thread(&[]).is_err());
        assert!(pin_current_thread(&[CpuSet::MAX_CPU]).is_err());
    }
}
