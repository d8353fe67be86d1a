//! Which CPUs this process may use, and keeping a thread on one core.
//!
//! A container or `taskset` may leave any subset of the machine, so pinning starts from the allowed set and never from
//! the CPU count. Two hardware threads of one core share its load ports: for a reader of memory the second is no gain,
//! so a pool counts cores.

use std::io;
use std::path::Path;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::id_list;

const CPU_ROOT: &str = "/sys/devices/system/cpu";

/// CPUs on which the calling thread may run, ascending.
///
/// # Errors
/// The kernel's error for `sched_getaffinity`; `EINVAL` on a kernel built for more than 1024 CPUs.
pub fn allowed_cpus() -> io::Result<Vec<usize>> {
    let set = sched_getaffinity(None)?;
    Ok((0..CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu)).collect())
}

/// Allowed CPUs grouped by physical core, ordered by package, then last-level cache, then number.
///
/// Neighbours in this order share most, so a pool that takes every k-th core spreads over nodes and caches. A machine
/// without topology files counts every CPU as a core.
///
/// # Errors
/// As [`allowed_cpus`].
pub fn allowed_cores() -> io::Result<Vec<Vec<usize>>> {
    Ok(group_by_core(&allowed_cpus()?, |cpu, file| {
        std::fs::read_to_string(Path::new(CPU_ROOT).join(format!("cpu{cpu}")).join(file)).ok()
    }))
}

/// [`allowed_cores`] over given files: `read(cpu, file)` is the text of `file` in the CPU's directory.
pub(crate) fn group_by_core(allowed: &[usize], read: impl Fn(usize, &str) -> Option<String>) -> Vec<Vec<usize>> {
    let first_of = |cpu, file: &str| {
        let ids = id_list::parse(&read(cpu, file)?)?;
        ids.first().copied()
    };
    let mut cpus: Vec<_> = allowed
        .iter()
        .map(|&cpu| {
            let package = first_of(cpu, "topology/physical_package_id").unwrap_or(0);
            let cache = first_of(cpu, "cache/index3/shared_cpu_list").unwrap_or(0);
            let core = first_of(cpu, "topology/thread_siblings_list").unwrap_or(cpu);
            (package, cache, core, cpu)
        })
        .collect();
    cpus.sort_unstable();
    cpus.chunk_by(|a, b| a.2 == b.2).map(|core| core.iter().map(|&(_, _, _, cpu)| cpu).collect()).collect()
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

    /// Two packages of two cores with two hardware threads each, numbered as Linux does: siblings four apart.
    fn two_packages(cpu: usize, file: &str) -> Option<String> {
        let core = cpu % 4;
        Some(match file {
            "topology/physical_package_id" => format!("{}\n", core % 2),
            "topology/thread_siblings_list" => format!("{core},{}\n", core + 4),
            "cache/index3/shared_cpu_list" => format!("{},{}\n", core % 2, core % 2 + 2),
            _ => return None,
        })
    }

    #[test]
    fn hardware_threads_of_a_core_stay_together_and_packages_follow_each_other() {
        let all: Vec<usize> = (0..8).collect();
        assert_eq!(group_by_core(&all, two_packages), [[0, 4], [2, 6], [1, 5], [3, 7]]);
    }

    #[test]
    fn a_core_keeps_only_its_allowed_cpus() {
        assert_eq!(group_by_core(&[1, 4, 6], two_packages), [[4], [6], [1]]);
    }

    #[test]
    fn without_topology_files_every_cpu_is_a_core() {
        assert_eq!(group_by_core(&[3, 9], |_, _| None), [[3], [9]]);
    }

    #[test]
    fn this_thread_can_be_pinned_to_each_of_its_cores() {
        std::thread::spawn(|| {
            for core in allowed_cores().unwrap() {
                pin_current_thread(&core).unwrap();
                assert_eq!(allowed_cpus().unwrap(), core);
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
