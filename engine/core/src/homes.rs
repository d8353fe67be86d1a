//! Where weights, keys and values live on a machine with several nodes.
//!
//! Memory of another node is half as fast, and the way there is shared. So a large matrix is cut by output rows, and
//! keys and values by heads; each node has its part in memory of its own, which its own workers read. Which part a node
//! has changes no bit: no sum is split.

use std::io;

use numa::{NodeId, Placement, Pool, Region, Slices};

/// The nodes that share a model, in the order of the pool that computes with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Homes(Vec<Home>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Home {
    /// The node that the memory is bound to; none leaves it to the kernel.
    node: Option<NodeId>,
    workers: usize,
}

/// Regions up to this size are looked at page by page: it is a matter of milliseconds.
const EXACT_BYTES: usize = 256 << 20;

impl Homes {
    /// The machine as one.
    pub fn one() -> Self {
        Self(vec![Home { node: None, workers: 1 }])
    }

    /// Homes with so many workers each.
    #[cfg(test)]
    pub(crate) fn with_workers(workers: &[usize]) -> Self {
        Self(workers.iter().map(|workers| Home { node: None, workers: *workers }).collect())
    }

    /// The nodes of a pool; memory is bound to those that have a number.
    pub fn of(pool: &Pool) -> Self {
        Self(pool.nodes().iter().map(|node| Home { node: node.id, workers: node.workers.len() }).collect())
    }

    /// The same division with memory wherever the kernel puts it: several nodes on a machine with one.
    pub fn unbound(pool: &Pool) -> Self {
        let homes = Self::of(pool).0.into_iter();
        Self(homes.map(|home| Home { node: None, ..home }).collect())
    }

    /// How many; at least one.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// A division of panels or heads, by workers.
    pub(crate) fn slices(&self, panels: usize) -> Slices {
        Slices::new(panels, &self.0.iter().map(|home| home.workers).collect::<Vec<_>>())
    }

    /// Memory for each, of so many bytes; every node has been asked whether it has them.
    pub(crate) fn regions(&self, bytes: &[usize]) -> io::Result<Vec<Region>> {
        let region = |(home, bytes): (&Home, &usize)| match home.node {
            Some(node) => Region::on_node(*bytes, node),
            None => Region::anonymous(*bytes),
        };
        let regions = self.0.iter().zip(bytes).map(region).collect::<io::Result<Vec<_>>>()?;
        Region::check_room(&regions)?;
        Ok(regions)
    }
}

/// Pages of one region on a node: where they should be, and where they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodePages {
    /// Where all of them should be.
    pub node: NodeId,
    /// Where they are: every page of a small region, one of each 2 MiB of a large one.
    pub placement: Placement,
}

impl NodePages {
    /// Asks of those regions that are bound to a node.
    pub(crate) fn of(regions: &[Region]) -> io::Result<Vec<Self>> {
        let bound = regions.iter().filter_map(|region| Some((region.node()?, region)));
        bound
            .map(|(node, region)| {
                let placement = match region.as_slice().len() <= EXACT_BYTES {
                    true => region.exact_placement()?,
                    false => region.placement()?,
                };
                Ok(Self { node, placement })
            })
            .collect()
    }

    /// All pages asked for, and those that are where they should be.
    pub fn counts(&self) -> (usize, usize) {
        let there = self.placement.pages.iter().filter(|(node, _)| *node == self.node).map(|(_, pages)| pages).sum();
        (self.placement.touched() + self.placement.untouched, there)
    }
}
