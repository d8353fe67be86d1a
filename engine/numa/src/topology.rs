//! Nodes of the machine, and what of them this process may use.
//!
//! Real machines break every simple picture: CPU lists interleave (node 0 = 0-31,64-95), a node may have memory and no
//! CPU (CXL) or CPUs and no memory, node numbers have gaps, and a container hides part of it all. So nothing is counted
//! or ranged; each list is read, and cut to what is allowed.

use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

mod description;

use crate::cores::{self, Core};
use crate::id_list;
use crate::kernel_files::{self, Read};

const STATUS: &str = "/proc/thread-self/status";
const NODE_ROOT: &str = "/sys/devices/system/node";
const ONLINE: &str = "/sys/devices/system/node/online";
const MEMINFO: &str = "/proc/meminfo";

/// The kernel's number of a node, as `mbind` wants it.
///
/// It is no index: numbers have gaps, and nodes that may not be used are left out of every list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeId(pub usize);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Nodes that this process may use in some way, ascending by number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topology {
    /// At least one.
    pub nodes: Vec<Node>,
}

/// Cores and memory that are near to each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// The kernel's number.
    pub id: NodeId,
    /// Its allowed cores, in the order of [`cores::allowed`]; empty for a memory-only node.
    pub cores: Vec<Core>,
    /// Its memory in bytes; 0 where it has none or none is allowed.
    ///
    /// A lower bound: a virtual machine may still be bringing memory up. The ceiling is
    /// [`MemoryFacts`](crate::MemoryFacts).
    pub memory_bytes: u64,
    /// Distance to each node of [`Topology::nodes`], in that order; 10 is near.
    pub distances: Vec<u32>,
}

impl Node {
    /// Its allowed CPUs, ascending.
    pub fn cpus(&self) -> Vec<usize> {
        let mut cpus: Vec<_> = self.cores.iter().flat_map(|core| &core.cpus).copied().collect();
        cpus.sort_unstable();
        cpus
    }
}

/// Why the nodes of this machine are not known.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum TopologyError {
    /// A file that every Linux has is not there for this process.
    #[error("cannot read {path}: mount /proc and /sys, or give the topology by hand")]
    Missing {
        /// The file.
        path: String,
    },
    /// A file says something that is not its format.
    #[error("{path} has no {want}: {text:?}")]
    Malformed {
        /// The file.
        path: String,
        /// What was looked for.
        want: &'static str,
        /// What is there, shortened.
        text: String,
    },
    /// Nothing is left after the cut to what is allowed.
    #[error("no node has a CPU that this process may use: check its cpuset")]
    NoCpu,
    /// A topology that was given by hand is not one.
    #[error(
        "{origin} is no topology: {why}. Give nodes x cores, as in 2x32, or 2x32x384 with the GiB of each node, or a file \
         with {{\"nodes\": [{{\"id\": 0, \"cores\": 32, \"memory_bytes\": 412316860416, \"distances\": [10, 21]}}, …]}}"
    )]
    Description {
        /// The text or the file.
        origin: String,
        /// What is wrong.
        why: String,
    },
    /// The file of a topology that was given by hand is not there.
    #[error("cannot read the topology {path}: {why}")]
    Unreadable {
        /// The file.
        path: String,
        /// What the system says.
        why: String,
    },
}

impl Topology {
    /// The nodes of this machine, for the calling thread.
    ///
    /// A kernel that knows no nodes has one, number 0, with everything.
    ///
    /// # Errors
    /// When the kernel's files are missing, say what cannot be, or leave no CPU.
    pub fn discover() -> Result<Self, TopologyError> {
        Self::from_files(&kernel_files::read)
    }

    /// [`discover`](Self::discover) over given files.
    pub(crate) fn from_files(read: Read<'_>) -> Result<Self, TopologyError> {
        let allowed_cpus = allowed_list(read, "Cpus_allowed_list")?;
        let Some(online) = read(ONLINE) else { return Self::without_nodes(&allowed_cpus, read) };
        let online = list(ONLINE, &online)?;
        let allowed_nodes = allowed_list(read, "Mems_allowed_list")?;

        let mut nodes = Vec::with_capacity(online.len());
        for &id in &online {
            let path = |file| format!("{NODE_ROOT}/node{id}/{file}");
            let mut cpus = list(&path("cpulist"), &required(read, &path("cpulist"))?)?;
            cpus.retain(|cpu| allowed_cpus.binary_search(cpu).is_ok());
            let memory_bytes =
                if allowed_nodes.binary_search(&id).is_ok() { memory_total(&path("meminfo"), read)? } else { 0 };
            let distances = distances(&path("distance"), &required(read, &path("distance"))?, online.len())?;
            nodes.push(Node { id: NodeId(id), cores: cores::group(&cpus, read), memory_bytes, distances });
        }
        let kept: Vec<bool> = nodes.iter().map(|node| !node.cores.is_empty() || node.memory_bytes > 0).collect();
        for node in &mut nodes {
            let mut kept = kept.iter();
            node.distances.retain(|_| kept.next() == Some(&true));
        }
        let mut kept = kept.iter();
        nodes.retain(|_| kept.next() == Some(&true));
        Self { nodes }.with_a_cpu()
    }

    fn without_nodes(allowed_cpus: &[usize], read: Read<'_>) -> Result<Self, TopologyError> {
        let cores = cores::group(allowed_cpus, read);
        let memory_bytes = memory_total(MEMINFO, read)?;
        Self { nodes: vec![Node { id: NodeId(0), cores, memory_bytes, distances: vec![10] }] }.with_a_cpu()
    }

    fn with_a_cpu(self) -> Result<Self, TopologyError> {
        if self.nodes.iter().all(|node| node.cores.is_empty()) { Err(TopologyError::NoCpu) } else { Ok(self) }
    }

    /// All allowed cores: the most threads that a pinned pool can have.
    pub fn core_count(&self) -> usize {
        self.core_counts().iter().sum()
    }

    /// Cores of each node: what [`Slices`](crate::Slices) divides by. 0 for a node that has only memory.
    pub fn core_counts(&self) -> Vec<usize> {
        self.nodes.iter().map(|node| node.cores.len()).collect()
    }
}

fn required(read: Read<'_>, path: &str) -> Result<String, TopologyError> {
    read(path).ok_or_else(|| TopologyError::Missing { path: path.to_owned() })
}

fn malformed(path: &str, want: &'static str, text: &str) -> TopologyError {
    TopologyError::Malformed { path: path.to_owned(), want, text: text.chars().take(80).collect() }
}

fn list(path: &str, text: &str) -> Result<Vec<usize>, TopologyError> {
    id_list::parse(text).ok_or_else(|| malformed(path, "list of numbers", text))
}

fn allowed_list(read: Read<'_>, name: &'static str) -> Result<Vec<usize>, TopologyError> {
    let status = required(read, STATUS)?;
    let value = kernel_files::field(&status, name).ok_or_else(|| malformed(STATUS, name, &status))?;
    list(STATUS, value)
}

fn memory_total(path: &str, read: Read<'_>) -> Result<u64, TopologyError> {
    let meminfo = required(read, path)?;
    kernel_files::bytes_field(&meminfo, "MemTotal").ok_or_else(|| malformed(path, "MemTotal", &meminfo))
}

/// One distance for each online node, in their order.
fn distances(path: &str, text: &str, nodes: usize) -> Result<Vec<u32>, TopologyError> {
    let distances: Option<Vec<u32>> = text.split_whitespace().map(|distance| distance.parse().ok()).collect();
    distances
        .filter(|distances| distances.len() == nodes)
        .ok_or_else(|| malformed(path, "distance for each online node", text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel_files::tests::files;

    /// Two sockets whose CPU lists interleave, and a memory-only node with a gap before its number.
    const TWO_SOCKETS_AND_CXL: &[(&str, &str)] = &[
        (ONLINE, "0-1,4\n"),
        ("/sys/devices/system/node/node0/cpulist", "0-1,4-5\n"),
        ("/sys/devices/system/node/node0/meminfo", "Node 0 MemTotal:       1000 kB\nNode 0 MemFree: 1 kB\n"),
        ("/sys/devices/system/node/node0/distance", "10 21 14\n"),
        ("/sys/devices/system/node/node1/cpulist", "2-3,6-7\n"),
        ("/sys/devices/system/node/node1/meminfo", "Node 1 MemTotal:       2000 kB\n"),
        ("/sys/devices/system/node/node1/distance", "21 10 24\n"),
        ("/sys/devices/system/node/node4/cpulist", "\n"),
        ("/sys/devices/system/node/node4/meminfo", "Node 4 MemTotal:       3000 kB\n"),
        ("/sys/devices/system/node/node4/distance", "14 24 10\n"),
    ];

    /// That machine as a process sees it that may use `cpus` and the memory of `mems`.
    fn seen_with(cpus: &str, mems: &str) -> Result<Topology, TopologyError> {
        let status = format!("Name:\tx\nCpus_allowed_list:\t{cpus}\nMems_allowed_list:\t{mems}\n");
        Topology::from_files(&|path| match path {
            STATUS => Some(status.clone()),
            _ => files(TWO_SOCKETS_AND_CXL)(path).or_else(|| siblings(path)),
        })
    }

    fn siblings(path: &str) -> Option<String> {
        let cpu = path.strip_prefix("/sys/devices/system/cpu/cpu")?.strip_suffix("/topology/thread_siblings_list")?;
        let core = cpu.parse::<usize>().ok()? % 4;
        Some(format!("{core},{}", core + 4))
    }

    #[test]
    fn interleaved_cpu_lists_and_memory_only_nodes_are_read_as_they_are() {
        let topology = seen_with("0-7", "0-1,4").unwrap();
        let ids: Vec<_> = topology.nodes.iter().map(|node| node.id.0).collect();
        assert_eq!(ids, [0, 1, 4]);
        assert_eq!(topology.nodes[0].cpus(), [0, 1, 4, 5]);
        let cores: Vec<_> = topology.nodes[1].cores.iter().map(|core| &*core.cpus).collect();
        assert_eq!(cores, [[2, 6], [3, 7]]);
        assert_eq!(topology.nodes[2].cores, []);
        assert_eq!(topology.nodes[2].memory_bytes, 3000 * 1024);
        assert_eq!(topology.nodes[1].distances, [21, 10, 24]);
        assert_eq!(topology.core_count(), 4);
    }

    #[test]
    fn what_is_not_allowed_is_cut_with_its_distances() {
        let topology = seen_with("0,2,6", "0,4").unwrap();
        let memory: Vec<_> = topology.nodes.iter().map(|node| node.memory_bytes).collect();
        assert_eq!(memory, [1000 * 1024, 0, 3000 * 1024], "node 1 has cores and no memory");
        assert_eq!(topology.nodes[1].cpus(), [2, 6]);

        let topology = seen_with("2-3", "1,4").unwrap();
        let ids: Vec<_> = topology.nodes.iter().map(|node| node.id.0).collect();
        assert_eq!(ids, [1, 4]);
        assert_eq!(topology.nodes[0].distances, [10, 24]);
        assert_eq!(topology.nodes[1].distances, [24, 10]);
    }

    #[test]
    fn no_cpu_is_an_error() {
        assert_eq!(seen_with("64", "0"), Err(TopologyError::NoCpu));
    }

    #[test]
    fn a_kernel_without_nodes_has_one() {
        let texts = &[(STATUS, "Cpus_allowed_list:\t0-1\n"), (MEMINFO, "MemTotal: 8 kB\n")];
        let topology = Topology::from_files(&files(texts)).unwrap();
        assert_eq!(topology.nodes.len(), 1);
        assert_eq!(topology.nodes[0].cpus(), [0, 1]);
        assert_eq!((topology.nodes[0].memory_bytes, &*topology.nodes[0].distances), (8192, &[10][..]));
    }

    #[test]
    fn a_missing_or_damaged_file_is_named() {
        let missing = Topology::from_files(&|_| None).unwrap_err();
        assert_eq!(missing, TopologyError::Missing { path: STATUS.to_owned() });

        for (file, text, want) in [
            ("node0/cpulist", "0-x", "list of numbers"),
            ("node1/meminfo", "nothing", "MemTotal"),
            ("node4/distance", "10 21", "distance for each online node"),
        ] {
            let status = "Cpus_allowed_list:\t0-7\nMems_allowed_list:\t0-1,4\n";
            let damaged = format!("{NODE_ROOT}/{file}");
            let error = Topology::from_files(&|path| match path {
                STATUS => Some(status.to_owned()),
                _ if path == damaged => Some(text.to_owned()),
                _ => files(TWO_SOCKETS_AND_CXL)(path),
            })
            .unwrap_err();
            assert_eq!(error, TopologyError::Malformed { path: damaged, want, text: text.to_owned() });
            assert!(error.to_string().contains(file), "{error}");
        }
    }

    #[test]
    fn this_machine_has_the_cpus_that_this_thread_may_use() {
        let mut cpus: Vec<_> = Topology::discover().unwrap().nodes.iter().flat_map(Node::cpus).collect();
        cpus.sort_unstable();
        assert_eq!(cpus, crate::affinity::allowed_cpus().unwrap());
    }
}
