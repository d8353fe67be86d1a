//! Machines that nobody here has: a topology by hand.
//!
//! Plans are made for machines that are yet to be bought, and tested on topologies that no single machine has. So a
//! topology is a value, and this is how it is written down: `2x32` on a command line, JSON in a file. Core and CPU
//! numbers are no part of it: cores count up from 0, node by node, with one hardware thread each.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{Node, NodeId, Topology, TopologyError};
use crate::cores::Core;

/// The kernel's own limit for nodes, CONFIG_NODES_SHIFT = 10.
const NODES_MAX: usize = 1024;

/// Far more than any machine has.
const CORES_MAX: usize = 1 << 16;

/// A description is a few lines a node.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Distances of a node to itself and to others, where nobody says more: those of two sockets.
const NEAR: u32 = 10;
const FAR: u32 = 21;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Description {
    nodes: Vec<NodeDescription>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct NodeDescription {
    id: NodeId,
    cores: usize,
    memory_bytes: u64,
    distances: Vec<u32>,
}

impl Topology {
    /// What a person gives on a command line: `2x32` as [`parse`](Self::parse) has it, or else the path of a file.
    ///
    /// # Errors
    /// As [`parse`](Self::parse) and [`read`](Self::read).
    pub fn from_argument(argument: &str) -> Result<Self, TopologyError> {
        let is_product = !argument.is_empty() && argument.chars().all(|c| c == 'x' || c.is_ascii_digit());
        if is_product { Self::parse(argument) } else { Self::read(Path::new(argument)) }
    }

    /// Equal nodes: `2x32` are two nodes of 32 cores, `2x32x384` the same with 384 GiB each.
    ///
    /// Without a size nodes have no memory: enough to divide work, not to plan a load. Other nodes are 21 away.
    ///
    /// # Errors
    /// [`TopologyError::Description`] with what is wrong.
    pub fn parse(text: &str) -> Result<Self, TopologyError> {
        let wrong = |why: &str| described_wrongly(&format!("`{text}`"), why);
        let factors: Result<Vec<usize>, _> = text.split('x').map(str::parse).collect();
        let factors = factors.map_err(|_| wrong("it is not a product of whole numbers"))?;
        let (nodes, cores, gib) = match factors[..] {
            [nodes, cores] => (nodes, cores, 0),
            [nodes, cores, gib] => (nodes, cores, gib),
            _ => return Err(wrong("it has other than two or three factors")),
        };
        let memory_bytes = (gib as u64).checked_mul(1 << 30).ok_or_else(|| wrong("it has too much memory"))?;
        // Before anything is made of it.
        if nodes > NODES_MAX {
            return Err(wrong("it has more than 1024 nodes"));
        }
        let distance = |from, to| if from == to { NEAR } else { FAR };
        let node = |id| NodeDescription {
            id: NodeId(id),
            cores,
            memory_bytes,
            distances: (0..nodes).map(|to| distance(id, to)).collect(),
        };
        Description { nodes: (0..nodes).map(node).collect() }.topology().map_err(|why| wrong(&why))
    }

    /// A file in the form of [`from_json`](Self::from_json).
    ///
    /// # Errors
    /// [`TopologyError::Unreadable`] with what the system says, [`TopologyError::Description`] with what is wrong.
    pub fn read(path: &Path) -> Result<Self, TopologyError> {
        let name = path.display().to_string();
        let unreadable = |why: &dyn ToString| TopologyError::Unreadable { path: name.clone(), why: why.to_string() };
        let mut text = String::new();
        let file = File::open(path).map_err(|error| unreadable(&error))?;
        file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(|error| unreadable(&error))?;
        if text.len() as u64 > FILE_BYTES_MAX {
            return Err(described_wrongly(&name, "it has more than 1 MiB"));
        }
        Self::from_json_named(&text, &name)
    }

    /// `{"nodes": [{"id": 0, "cores": 32, "memory_bytes": 412316860416, "distances": [10, 21]}, …]}`.
    ///
    /// Nodes come in ascending order of `id`, the kernel's number; `distances` has one entry for each node, in the same
    /// order. A node may have no cores or no memory, but one has cores.
    ///
    /// # Errors
    /// [`TopologyError::Description`] with what is wrong.
    pub fn from_json(text: &str) -> Result<Self, TopologyError> {
        Self::from_json_named(text, "the given text")
    }

    fn from_json_named(text: &str, origin: &str) -> Result<Self, TopologyError> {
        let description: Result<Description, _> = serde_json::from_str(text);
        description
            .map_err(|error| described_wrongly(origin, &error.to_string()))?
            .topology()
            .map_err(|why| described_wrongly(origin, &why))
    }

    /// This topology as [`from_json`](Self::from_json) reads it. What is lost are the numbers of cores and CPUs.
    pub fn to_json(&self) -> String {
        let node = |node: &Node| NodeDescription {
            id: node.id,
            cores: node.cores.len(),
            memory_bytes: node.memory_bytes,
            distances: node.distances.clone(),
        };
        let description = Description { nodes: self.nodes.iter().map(node).collect() };
        serde_json::to_string_pretty(&description).expect("numbers and lists are JSON")
    }
}

impl Description {
    fn topology(self) -> Result<Topology, String> {
        let count = self.nodes.len();
        if count > NODES_MAX {
            return Err("it has more than 1024 nodes".to_owned());
        }
        if !self.nodes.is_sorted_by(|a, b| a.id < b.id) {
            return Err("the ids of its nodes do not ascend".to_owned());
        }
        let cores = self.nodes.iter().try_fold(0_usize, |sum, node| sum.checked_add(node.cores));
        match cores {
            Some(1..=CORES_MAX) => {}
            Some(0) => return Err("no node has a core".to_owned()),
            _ => return Err("it has more than 65536 cores".to_owned()),
        }
        let mut next_core = 0;
        let mut nodes = Vec::with_capacity(count);
        for (index, node) in self.nodes.into_iter().enumerate() {
            let NodeDescription { id, cores, memory_bytes, distances } = node;
            if id.0 >= NODES_MAX {
                return Err(format!("node {id} is beyond 1023, the last that Linux has"));
            }
            if distances.len() != count {
                return Err(format!("node {id} has {} distances, and there are {count} nodes", distances.len()));
            }
            if distances[index] != NEAR || distances.iter().any(|&distance| distance < NEAR) {
                return Err(format!("distances of node {id}: the one to itself is 10, and no other is less"));
            }
            let last_level_cache = next_core;
            let core = |cpu| Core { package: index, last_level_cache, cpus: vec![cpu] };
            nodes.push(Node { id, cores: (next_core..next_core + cores).map(core).collect(), memory_bytes, distances });
            next_core += cores;
        }
        Ok(Topology { nodes })
    }
}

fn described_wrongly(origin: &str, why: &str) -> TopologyError {
    TopologyError::Description { origin: origin.to_owned(), why: why.to_owned() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_product_is_equal_nodes_with_cores_of_their_own() {
        let topology = Topology::parse("2x3").unwrap();
        let cpus: Vec<_> = topology.nodes.iter().map(Node::cpus).collect();
        assert_eq!(cpus, [[0, 1, 2], [3, 4, 5]]);
        assert_eq!(topology.nodes[1].id, NodeId(1));
        assert_eq!(topology.nodes[1].distances, [21, 10]);
        assert_eq!(topology.nodes[1].memory_bytes, 0);
        assert_eq!(Topology::parse("4x16x384").unwrap().nodes[3].memory_bytes, 384 << 30);
    }

    #[test]
    fn a_file_may_have_gaps_nodes_without_cores_and_nodes_without_memory() {
        let text = r#"{"nodes": [
            {"id": 0, "cores": 2, "memory_bytes": 1000, "distances": [10, 21, 14]},
            {"id": 1, "cores": 1, "memory_bytes": 0, "distances": [21, 10, 24]},
            {"id": 4, "cores": 0, "memory_bytes": 3000, "distances": [14, 24, 10]}]}"#;
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let topology = Topology::from_argument(file.path().to_str().unwrap()).unwrap();
        assert_eq!(topology, Topology::from_json(text).unwrap());
        assert_eq!(topology.core_count(), 3);
        assert_eq!(
            topology.nodes[2],
            Node { id: NodeId(4), cores: vec![], memory_bytes: 3000, distances: vec![14, 24, 10] }
        );
    }

    #[test]
    fn what_is_no_topology_is_refused_with_what_is_wrong_and_what_would_be_right() {
        let node = |id: usize, cores: usize, distances: &str| {
            format!(r#"{{"id": {id}, "cores": {cores}, "memory_bytes": 1, "distances": {distances}}}"#)
        };
        let file = |nodes: &[String]| format!(r#"{{"nodes": [{}]}}"#, nodes.join(", "));
        let cases = [
            (Topology::parse("2y3"), "not a product"),
            (Topology::parse("3"), "two or three factors"),
            (Topology::parse("1x1x1x1"), "two or three factors"),
            (Topology::parse("0x4"), "no node has a core"),
            (Topology::parse("2x0"), "no node has a core"),
            (Topology::parse("1025x1"), "more than 1024 nodes"),
            (Topology::parse("99999999999x99999999999"), "more than 1024 nodes"),
            (Topology::parse("2x18446744073709551615"), "more than 65536 cores"),
            (Topology::parse("2x1x18446744073709551615"), "too much memory"),
            (Topology::parse("2x99999999999999999999"), "not a product"),
            (Topology::from_json("{}"), "nodes"),
            (Topology::from_json("[[[["), "line 1"),
            (Topology::from_json(&file(&[])), "no node has a core"),
            (Topology::from_json(&file(&[node(0, 1, "[10]")]).replace("cores", "cpus")), "cpus"),
            (Topology::from_json(&file(&[node(1, 1, "[10, 21]"), node(0, 1, "[21, 10]")])), "do not ascend"),
            (Topology::from_json(&file(&[node(0, 1, "[10, 21]"), node(0, 1, "[21, 10]")])), "do not ascend"),
            (Topology::from_json(&file(&[node(1024, 1, "[10]")])), "beyond 1023"),
            (Topology::from_json(&file(&[node(0, 1, "[10, 21]")])), "2 distances"),
            (Topology::from_json(&file(&[node(0, 1, "[21]")])), "to itself is 10"),
            (Topology::from_json(&file(&[node(0, 1, "[10, 9]"), node(1, 1, "[21, 10]")])), "to itself is 10"),
        ];
        for (refused, why) in cases {
            let message = refused.unwrap_err().to_string();
            assert!(message.contains(why), "{why}: {message}");
            assert!(message.contains("2x32") && message.contains("\"memory_bytes\""), "{message}");
        }
    }

    #[test]
    fn a_file_that_is_missing_or_endless_is_named() {
        for (path, why) in [("no-such-topology.json", "cannot read"), ("/dev/zero", "more than 1 MiB")] {
            let message = Topology::from_argument(path).unwrap_err().to_string();
            assert!(message.contains(path) && message.contains(why), "{message}");
        }
    }

    #[test]
    fn this_machine_can_be_written_down_and_read_again() {
        let here = Topology::discover().unwrap();
        let read = Topology::from_json(&here.to_json()).unwrap();
        let facts = |topology: &Topology| -> Vec<_> {
            let nodes = topology.nodes.iter();
            nodes.map(|node| (node.id, node.cores.len(), node.memory_bytes, node.distances.clone())).collect()
        };
        assert_eq!(facts(&read), facts(&here));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn every_product_within_the_limits_survives_being_written(nodes in 1_usize..9, cores in 1_usize..40) {
            let topology = Topology::parse(&format!("{nodes}x{cores}x7")).unwrap();
            prop_assert_eq!(topology.core_count(), nodes * cores);
            prop_assert_eq!(&Topology::from_json(&topology.to_json()).unwrap(), &topology);
        }

        #[test]
        fn no_text_makes_it_panic(text in ".{0,40}") {
            let _ = (Topology::parse(&text), Topology::from_json(&text));
        }
    }
}
