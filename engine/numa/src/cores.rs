//! Physical cores out of the CPUs that this process may use.
//!
//! Two hardware threads of one core share its load ports: for a reader of memory the second is no gain, so workers are
//! counted and placed by core. A container or `taskset` may leave any subset of the machine, so cores are made from the
//! allowed CPUs and never from a count.

use std::io;

use crate::affinity;
use crate::id_list;
use crate::kernel_files::{self, Read};

/// A physical core, as far as this process may use it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Core {
    /// The socket's number.
    pub package: usize,
    /// Its last-level cache, named by the first CPU that shares it: a CCD on AMD. 0 where the kernel does not say.
    pub last_level_cache: usize,
    /// Its allowed hardware threads, ascending; never empty.
    pub cpus: Vec<usize>,
}

/// The cores of the CPUs that the calling thread may use, by package, then last-level cache, then number.
///
/// Neighbours in this order share most, so whoever takes every k-th core spreads over nodes and caches. A machine
/// without topology files counts every CPU as a core.
///
/// # Errors
/// As [`affinity::allowed_cpus`].
pub fn allowed() -> io::Result<Vec<Core>> {
    Ok(group(&affinity::allowed_cpus()?, &kernel_files::read))
}

/// [`allowed`] over given CPUs and files.
pub(crate) fn group(cpus: &[usize], read: Read<'_>) -> Vec<Core> {
    let first_of = |cpu: usize, file: &str| {
        let ids = id_list::parse(&read(&format!("/sys/devices/system/cpu/cpu{cpu}/{file}"))?)?;
        ids.first().copied()
    };
    let mut keyed: Vec<_> = cpus
        .iter()
        .map(|&cpu| {
            let package = first_of(cpu, "topology/physical_package_id").unwrap_or(0);
            let cache = first_of(cpu, "cache/index3/shared_cpu_list").unwrap_or(0);
            let first_sibling = first_of(cpu, "topology/thread_siblings_list").unwrap_or(cpu);
            (package, cache, first_sibling, cpu)
        })
        .collect();
    keyed.sort_unstable();
    let core = |cpus: &[(usize, usize, usize, usize)]| Core {
        package: cpus[0].0,
        last_level_cache: cpus[0].1,
        cpus: cpus.iter().map(|&(_, _, _, cpu)| cpu).collect(),
    };
    keyed.chunk_by(|a, b| a.2 == b.2).map(core).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two packages of two cores with two hardware threads each, numbered as Linux does: siblings four apart.
    fn two_packages(path: &str) -> Option<String> {
        let (cpu, file) = path.strip_prefix("/sys/devices/system/cpu/cpu")?.split_once('/')?;
        let core = cpu.parse::<usize>().ok()? % 4;
        Some(match file {
            "topology/physical_package_id" => format!("{}\n", core % 2),
            "topology/thread_siblings_list" => format!("{core},{}\n", core + 4),
            "cache/index3/shared_cpu_list" => format!("{},{}\n", core % 2, core % 2 + 2),
            _ => return None,
        })
    }

    fn cpus(cores: &[Core]) -> Vec<&[usize]> {
        cores.iter().map(|core| &*core.cpus).collect()
    }

    #[test]
    fn hardware_threads_of_a_core_stay_together_and_packages_follow_each_other() {
        let cores = group(&(0..8).collect::<Vec<_>>(), &two_packages);
        assert_eq!(cpus(&cores), [[0, 4], [2, 6], [1, 5], [3, 7]]);
        assert_eq!(cores[2], Core { package: 1, last_level_cache: 1, cpus: vec![1, 5] });
    }

    #[test]
    fn a_core_keeps_only_its_allowed_cpus() {
        assert_eq!(cpus(&group(&[1, 4, 6], &two_packages)), [[4], [6], [1]]);
    }

    #[test]
    fn without_topology_files_every_cpu_is_a_core() {
        assert_eq!(cpus(&group(&[3, 9], &|_| None)), [[3], [9]]);
    }
}
