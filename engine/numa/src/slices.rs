//! Which node owns which part of a matrix.
//!
//! A large matrix is cut by output rows: every node holds a contiguous range of whole panels and computes those rows
//! itself. So the weights are in memory once, every node has its share of the work whatever a router chooses, and no sum
//! is split, which keeps the bits the same for any number of nodes. KV heads are divided in the same way.

use std::ops::Range;

/// A division of panels (or heads: anything that is not cut further) over nodes, in order: one range a node.
///
/// The share of a node is proportional to its weight, rounded to a panel; a node of weight 0 owns nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slices {
    /// Where each node's range begins, and at last the number of panels.
    cuts: Box<[usize]>,
}

impl Slices {
    /// `panels` over nodes with these weights: workers, as in [`Pool::worker_counts`](crate::Pool::worker_counts), or
    /// cores, as in [`Topology::core_counts`](crate::Topology::core_counts).
    ///
    /// # Panics
    /// When every weight is 0, so that nobody could own a panel, or their sum is no `usize`.
    pub fn new(panels: usize, weights: &[usize]) -> Self {
        let total = weights.iter().try_fold(0_usize, |sum, &weight| sum.checked_add(weight));
        let total = total.expect("weights are counts of what a machine has");
        assert!(total > 0, "none of {} nodes has a weight", weights.len());
        // Each cut is the ideal one rounded down, so a node has its ideal share rounded up or down.
        let mut weight_before = 0;
        let mut cut = |weight: usize| {
            weight_before += weight;
            (panels as u128 * weight_before as u128 / total as u128) as usize
        };
        Self { cuts: std::iter::once(0).chain(weights.iter().map(|&weight| cut(weight))).collect() }
    }

    /// How many nodes, those that own nothing among them.
    pub fn nodes(&self) -> usize {
        self.cuts.len() - 1
    }

    /// How many panels.
    pub fn panels(&self) -> usize {
        self.cuts[self.nodes()]
    }

    /// The panels of a node; empty for one that owns nothing.
    ///
    /// # Panics
    /// When there is no such node.
    pub fn of_node(&self, node: usize) -> Range<usize> {
        assert!(node < self.nodes(), "node {node} of {}", self.nodes());
        self.cuts[node]..self.cuts[node + 1]
    }

    /// The node that owns a panel.
    ///
    /// # Panics
    /// When there is no such panel.
    pub fn node_of(&self, panel: usize) -> usize {
        assert!(panel < self.panels(), "panel {panel} of {}", self.panels());
        self.cuts.partition_point(|&cut| cut <= panel) - 1
    }

    /// The panels of each node, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Range<usize>> + '_ {
        self.cuts.windows(2).map(|cut| cut[0]..cut[1])
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::Topology;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn every_panel_is_owned_once_and_every_share_is_within_a_panel_of_the_ideal(
            panels in 0_usize..5000,
            weights in vec(prop_oneof![Just(0_usize), 1_usize..130], 1..12)
                .prop_filter("a node with a weight", |weights| weights.iter().any(|&weight| weight > 0)),
        ) {
            let slices = Slices::new(panels, &weights);
            prop_assert_eq!((slices.nodes(), slices.panels()), (weights.len(), panels));
            let mut owners = vec![vec![]; panels];
            let total: usize = weights.iter().sum();
            for (node, (range, weight)) in slices.iter().zip(&weights).enumerate() {
                prop_assert_eq!(&range, &slices.of_node(node));
                let ideal = panels as f64 * *weight as f64 / total as f64;
                prop_assert!((range.len() as f64 - ideal).abs() < 1.0, "node {}: {:?} of {}", node, range, ideal);
                prop_assert!(*weight > 0 || range.is_empty());
                range.for_each(|panel| owners[panel].push(node));
            }
            for (panel, owners) in owners.iter().enumerate() {
                prop_assert_eq!(owners, &[slices.node_of(panel)], "panel {}", panel);
            }
            prop_assert!(owners.is_sorted(), "ranges follow the order of the nodes");
        }
    }

    fn ranges(panels: usize, weights: &[usize]) -> Vec<Range<usize>> {
        Slices::new(panels, weights).iter().collect()
    }

    #[test]
    fn equal_nodes_have_equal_parts() {
        let topology = Topology::parse("4x16").unwrap();
        assert_eq!(ranges(96, &topology.core_counts()), [0..24, 24..48, 48..72, 72..96]);
    }

    #[test]
    fn one_node_has_everything() {
        assert_eq!(ranges(7, &[3]), std::slice::from_ref(&(0..7)));
    }

    #[test]
    fn with_more_nodes_than_panels_some_own_nothing() {
        let slices = Slices::new(2, &[8; 4]);
        assert_eq!(slices.iter().map(|range| range.len()).collect::<Vec<_>>(), [0, 1, 0, 1]);
        assert_eq!((slices.node_of(0), slices.node_of(1)), (1, 3));
    }

    #[test]
    fn a_node_without_cpus_owns_nothing() {
        let json = r#"{"nodes": [
            {"id": 0, "cores": 0, "memory_bytes": 8, "distances": [10, 21, 21]},
            {"id": 1, "cores": 2, "memory_bytes": 8, "distances": [21, 10, 21]},
            {"id": 2, "cores": 6, "memory_bytes": 8, "distances": [21, 21, 10]}]}"#;
        assert_eq!(ranges(16, &Topology::from_json(json).unwrap().core_counts()), [0..0, 0..4, 4..16]);
    }

    #[test]
    fn sizes_at_the_edge_of_the_numbers_are_divided_too() {
        assert_eq!(ranges(usize::MAX, &[usize::MAX / 2, 0, usize::MAX / 2])[2], usize::MAX / 2..usize::MAX);
    }

    #[test]
    #[should_panic(expected = "none of 2 nodes has a weight")]
    fn weights_of_nothing_are_refused() {
        Slices::new(1, &[0, 0]);
    }

    #[test]
    #[should_panic(expected = "panel 3 of 3")]
    fn a_panel_beyond_the_last_has_no_owner() {
        Slices::new(3, &[1, 1]).node_of(3);
    }
}
