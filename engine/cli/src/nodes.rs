//! On which nodes a model lives: `--numa`.
//!
//! A model that is cut over nodes needs workers on each, and memory that stays where it was put. Where one of these is
//! not to be had, `auto` takes the machine as one node and says why; what was asked for by name fails instead.

use std::io;
use std::num::NonZeroUsize;

use engine_core::homes::NodePages;
use engine_core::plan::Room;
use numa::{CallerPin, Node, Pinning, Pool, Region, Topology};

use crate::args::NumaMode;
use crate::model::beside_reserve;

/// A choice.
pub(crate) struct Nodes {
    /// The nodes; none takes the machine as one.
    sliced: Option<Topology>,
    /// Why not, where that is worth saying.
    reason: Option<String>,
}

impl Nodes {
    /// Decides for a machine; `threads` as far as they were asked for.
    pub(crate) fn choose(mode: NumaMode, threads: Option<NonZeroUsize>, machine: Topology) -> Self {
        let one = |reason| Self { sliced: None, reason };
        if mode == NumaMode::Off {
            return one(None);
        }
        let nodes: Vec<Node> =
            machine.nodes.into_iter().filter(|node| !node.cores.is_empty() && node.memory_bytes > 0).collect();
        let count = nodes.len();
        if count < 2 {
            return one((mode == NumaMode::Slice).then(|| "one node has CPUs and memory".into()));
        }
        if let Some(threads) = threads.filter(|threads| threads.get() < count) {
            return one(Some(format!("{threads} threads are too few for {count} nodes")));
        }
        if mode == NumaMode::Auto
            && let Some(error) = nodes.iter().find_map(|node| Region::on_node(1, node.id).err())
        {
            return one(Some(error.to_string()));
        }
        Self { sliced: Some(Topology { nodes }), reason: None }
    }

    /// How many share the model.
    pub(crate) fn count(&self) -> usize {
        self.sliced.as_ref().map_or(1, |topology| topology.nodes.len())
    }

    /// These bytes, and the memory of each node, if the model is cut.
    pub(crate) fn room(&self, bytes: u64) -> Room {
        match &self.sliced {
            Some(topology) => Room::on(topology, bytes, beside_reserve),
            None => bytes.into(),
        }
    }

    /// Their physical cores, if the model is cut.
    pub(crate) fn cores(&self) -> Option<usize> {
        self.sliced.as_ref().map(Topology::core_count)
    }

    /// The same for weights that are not cut.
    pub(crate) fn whole(self) -> Self {
        match self.sliced {
            Some(_) => Self { sliced: None, reason: Some("mapped weights and 12-bit panels are not cut".into()) },
            None => self,
        }
    }

    /// Workers, on their nodes.
    pub(crate) fn pool(&self, threads: NonZeroUsize) -> io::Result<Pool> {
        match &self.sliced {
            Some(topology) => Pool::on_nodes(threads, Pinning::Pinned, topology),
            None => Pool::new(threads, Pinning::Pinned),
        }
    }

    /// For the run's first line.
    pub(crate) fn words(&self) -> String {
        match (&self.sliced, &self.reason) {
            (Some(topology), _) => {
                let ids: Vec<String> = topology.nodes.iter().map(|node| node.id.to_string()).collect();
                format!("numa slice on nodes {}", ids.join(", "))
            }
            (None, Some(reason)) => format!("numa off ({reason})"),
            (None, None) => "numa off".into(),
        }
    }
}

/// On several nodes the thread that drives the workers is one of them and has to stay with its weights. Threads that it
/// starts while it is pinned are pinned too, so this comes after loading.
pub(crate) fn pin_caller(pool: &Pool) -> io::Result<Option<CallerPin>> {
    (pool.nodes().len() > 1).then(|| pool.pin_caller()).transpose()
}

/// Says where weights, keys and values are, if they were to be on nodes.
pub(crate) fn report_placement(weights: io::Result<Vec<NodePages>>, kv: io::Result<Vec<NodePages>>) {
    let lines = match weights.and_then(|weights| Ok((weights, kv?))) {
        Ok((weights, kv)) => placement_lines(&[weights, kv].concat()),
        Err(error) => vec![format!("warning: it is not known whether weights are on their nodes: {error}")],
    };
    for line in lines {
        eprintln!("{line}");
    }
}

fn placement_lines(regions: &[NodePages]) -> Vec<String> {
    let (mut all, mut there, mut nodes) = (0, 0, Vec::new());
    let mut warnings = Vec::new();
    for region in regions {
        let (pages, here) = region.counts();
        (all, there) = (all + pages, there + here);
        nodes.push(region.node);
        if here < pages {
            let elsewhere = region.placement.pages.iter().filter(|(node, _)| *node != region.node);
            let elsewhere = elsewhere.map(|(node, pages)| format!("{pages} on node {node}, ")).collect::<String>();
            let untouched = region.placement.untouched;
            warnings.push(format!(
                "warning: of {pages} pages for node {}, {here} are there, {elsewhere}{untouched} nowhere yet",
                region.node
            ));
        }
    }
    if nodes.is_empty() {
        return warnings;
    }
    nodes.sort_unstable();
    nodes.dedup();
    // Rounded down: only all of them are 100 %.
    let tenths = (there * 1000).checked_div(all).unwrap_or(1000);
    let line = format!("placed {}.{} % on {} nodes", tenths / 10, tenths % 10, nodes.len());
    [vec![line], warnings].concat()
}

#[cfg(test)]
mod tests {
    use numa::{NodeId, Placement};

    use super::*;

    fn machine(description: &str) -> Topology {
        Topology::parse(description).unwrap()
    }

    fn choice(mode: NumaMode, threads: usize, description: &str) -> String {
        Nodes::choose(mode, NonZeroUsize::new(threads), machine(description)).words()
    }

    #[test]
    fn several_nodes_are_sliced_where_each_has_a_worker_cpus_and_memory() {
        assert_eq!(choice(NumaMode::Slice, 0, "2x4x8"), "numa slice on nodes 0, 1");
        assert_eq!(choice(NumaMode::Slice, 2, "2x4x8"), "numa slice on nodes 0, 1");
        assert_eq!(choice(NumaMode::Slice, 1, "2x4x8"), "numa off (1 threads are too few for 2 nodes)");
        assert_eq!(choice(NumaMode::Slice, 8, "1x4x8"), "numa off (one node has CPUs and memory)");
        assert_eq!(choice(NumaMode::Off, 8, "2x4x8"), "numa off");
        assert_eq!(choice(NumaMode::Auto, 8, "1x4x8"), "numa off");
    }

    #[test]
    fn a_node_without_memory_has_no_part() {
        let mut machine = machine("3x4x8");
        machine.nodes[1].memory_bytes = 0;
        let nodes = Nodes::choose(NumaMode::Slice, None, machine);
        assert_eq!(nodes.words(), "numa slice on nodes 0, 2");
        assert_eq!((nodes.count(), nodes.cores()), (2, Some(8)));
        assert_eq!(nodes.whole().count(), 1);
    }

    #[test]
    fn only_all_pages_are_a_hundred_percent() {
        let pages = |node, pages: &[(usize, usize)], untouched| NodePages {
            node: NodeId(node),
            placement: Placement { pages: pages.iter().map(|(id, n)| (NodeId(*id), *n)).collect(), untouched },
        };
        assert_eq!(placement_lines(&[]), [""; 0]);
        let good = [pages(0, &[(0, 4000)], 0), pages(1, &[(1, 5999)], 0)];
        assert_eq!(placement_lines(&good), ["placed 100.0 % on 2 nodes"]);
        let lines = placement_lines(&[&good[..], &[pages(1, &[(0, 1), (1, 3)], 2)]].concat());
        assert_eq!(
            lines,
            ["placed 99.9 % on 2 nodes", "warning: of 6 pages for node 1, 3 are there, 1 on node 0, 2 nowhere yet"]
        );
    }
}
