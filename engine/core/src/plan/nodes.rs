//! What each node of a machine would hold, and whether it has room for that.
//!
//! A matrix is cut by panels and the cache by heads, in proportion to workers ([`numa::Slices`]): a node with more cores
//! gets more bytes, whatever memory it has, and a share that does not fit fails there though the machine as a whole has
//! room.

use numa::{NodeId, Slices, Topology};

use super::Plan;

/// Memory that a run may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Room {
    /// Bytes in all.
    pub bytes: u64,
    /// The nodes that share the model, if there are several and their memory is known.
    pub nodes: Vec<NodeRoom>,
}

/// A node that gets a share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeRoom {
    /// The kernel's number.
    pub id: NodeId,
    /// Workers, or cores where there is one on each: what its share is in proportion to.
    pub workers: usize,
    /// Bytes that it may take.
    pub bytes: u64,
}

/// A node whose share is larger than its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FullNode {
    /// The kernel's number.
    pub id: NodeId,
    /// Bytes of weights, keys and values that it would hold.
    pub needs: u64,
    /// Bytes that it may take.
    pub available: u64,
}

impl From<u64> for Room {
    /// A machine that is taken as one.
    fn from(bytes: u64) -> Self {
        Self { bytes, nodes: Vec::new() }
    }
}

impl Room {
    /// `bytes` on the nodes of `topology` that have CPUs and memory, of which `usable` of its memory may be taken on each.
    /// Fewer than two nodes are a machine as one.
    pub fn on(topology: &Topology, bytes: u64, usable: impl Fn(u64) -> u64) -> Self {
        let nodes = topology.nodes.iter().filter(|node| !node.cores.is_empty() && node.memory_bytes > 0);
        let room =
            |node: &numa::Node| NodeRoom { id: node.id, workers: node.cores.len(), bytes: usable(node.memory_bytes) };
        let nodes: Vec<NodeRoom> = nodes.map(room).collect();
        Self { bytes, nodes: if nodes.len() > 1 { nodes } else { Vec::new() } }
    }

    /// Whether the plan fits, on every node too.
    pub(super) fn holds(&self, plan: &Plan) -> bool {
        plan.total_bytes <= self.bytes && self.full_node(plan).is_none()
    }

    /// The node that lacks most.
    pub(super) fn full_node(&self, plan: &Plan) -> Option<FullNode> {
        let workers: Vec<usize> = self.nodes.iter().map(|node| node.workers).collect();
        let shares = plan.bytes_on_nodes(&workers).into_iter().zip(&self.nodes);
        let full = shares.filter(|(needs, node)| *needs > node.bytes);
        let (needs, node) = full.max_by_key(|(needs, node)| needs - node.bytes)?;
        Some(FullNode { id: node.id, needs, available: node.bytes })
    }
}

impl Plan {
    /// Bytes of weights, keys and values that nodes with so many workers hold; none where nothing is cut: fewer than two
    /// nodes, mapped weights, panels of 12 bits.
    pub fn bytes_on_nodes(&self, workers: &[usize]) -> Vec<u64> {
        if workers.len() < 2 || !self.can_be_cut() {
            return Vec::new();
        }
        let share = |bytes: u64, pieces: usize, node: usize| {
            let of_node = Slices::new(pieces, workers).of_node(node).len();
            (u128::from(bytes) * of_node as u128).div_ceil(pieces.max(1) as u128) as u64
        };
        let of_node = |node| {
            let weights = self.matrix_bytes_by_panels.iter().map(|(panels, bytes)| share(*bytes, *panels, node));
            weights.chain([share(self.kv_bytes, self.kv_heads, node)]).fold(0, u64::saturating_add)
        };
        (0..workers.len()).map(of_node).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;
    use simd::Dtype;

    use super::*;
    use crate::config::ModelConfig;
    use crate::model::Load;
    use crate::plan::{DoesNotFit, PlanRequest};

    const GIB: u64 = 1 << 30;

    /// About 57 GiB of weights.
    fn model() -> ModelConfig {
        let json = json!({
            "architectures": ["Qwen3MoeForCausalLM"], "hidden_size": 2048, "num_hidden_layers": 48,
            "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "intermediate_size": 6144,
            "moe_intermediate_size": 768, "num_experts": 128, "num_experts_per_tok": 8, "vocab_size": 151_936,
            "max_position_embeddings": 262_144, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "norm_topk_prob": true,
            "tie_word_embeddings": false, "decoder_sparse_step": 1, "mlp_only_layers": [],
        });
        ModelConfig::from_json(Path::new("config.json"), json.to_string().as_bytes()).expect("a config")
    }

    fn request(nodes: usize, ctx_size: usize) -> PlanRequest {
        PlanRequest {
            ctx_size,
            width: 1,
            ubatch_size: 256,
            logits: 1,
            threads: 64,
            kv_dtype: Dtype::F16,
            load: Load::Resident,
            nodes,
            adapters: crate::adapter::AdapterNeeds::default(),
        }
    }

    /// Cores and GiB of each node, as a file says them.
    fn machine(nodes: &[(usize, u64)]) -> Topology {
        let node = |(id, (cores, gib)): (usize, &(usize, u64))| {
            let distances: Vec<u32> = (0..nodes.len()).map(|to| if to == id { 10 } else { 21 }).collect();
            json!({"id": id, "cores": cores, "memory_bytes": gib * GIB, "distances": distances})
        };
        let file = tempfile::NamedTempFile::new().expect("a file");
        let text = json!({"nodes": nodes.iter().enumerate().map(node).collect::<Vec<_>>()}).to_string();
        std::fs::write(file.path(), text).expect("it is written");
        Topology::read(file.path()).expect("a topology")
    }

    fn fit(nodes: &[(usize, u64)], ctx_size: usize, load: Load) -> Result<Plan, Box<DoesNotFit>> {
        let topology = machine(nodes);
        let all = topology.nodes.iter().map(|node| node.memory_bytes).sum();
        let room = Room::on(&topology, all, |bytes| bytes);
        let request = PlanRequest { load, ..request(nodes.len(), ctx_size) };
        Plan::fit(&model(), |_| Dtype::Bf16, &request, room)
    }

    #[test]
    fn shares_add_up_to_the_whole_and_follow_the_workers() {
        let plan = Plan::new(&model(), |_| Dtype::Bf16, &request(2, 32_768));
        let sliced = plan.matrix_bytes_by_panels.values().sum::<u64>() + plan.kv_bytes;
        for workers in [&[1, 1][..], &[32, 32], &[48, 16], &[1, 2, 3, 4]] {
            let shares = plan.bytes_on_nodes(workers);
            let sum: u64 = shares.iter().sum();
            assert!(sum >= sliced && sum < sliced + 1000, "{workers:?}: {sum} of {sliced}");
            assert!(shares.is_sorted_by(|a, b| (a < b) == (workers[0] < workers[1]) || a == b), "{shares:?}");
        }
        // Norms alone are nobody's.
        assert!(plan.weight_bytes + plan.kv_bytes - sliced < 16 << 20);
        assert!(plan.bytes_on_nodes(&[64]).is_empty());
        let mapped = PlanRequest { load: Load::Mapped, ..request(2, 32_768) };
        assert!(Plan::new(&model(), |_| Dtype::Bf16, &mapped).bytes_on_nodes(&[1, 1]).is_empty());
    }

    #[test]
    fn a_share_that_does_not_fit_its_node_is_refused_though_the_machine_has_room() {
        fit(&[(32, 48), (32, 48)], 4096, Load::Resident).expect("two halves fit");
        // As much memory in all, but not where the cores are; then cores that are not where the memory is.
        for (nodes, full) in [([(32, 72), (32, 24)], 1), ([(56, 48), (8, 48)], 0)] {
            let refusal = fit(&nodes, 4096, Load::Resident).expect_err("a node is too small");
            let node = refusal.node.expect("it is the node that refuses");
            assert!(node.id == NodeId(full) && node.needs > node.available, "{node:?}");
            let said = refusal.to_string();
            assert!(said.contains(&format!("node {full}")) && said.contains("`--load mapped`"), "{said}");
            // Pages of files are where the kernel puts them.
            fit(&nodes, 4096, Load::Mapped).expect("mapped weights are not cut");
        }
    }

    #[test]
    fn the_context_that_is_offered_fits_the_fullest_node_and_no_longer_one_does() {
        let nodes = [(32, 31), (32, 96)];
        let refusal = fit(&nodes, 262_144, Load::Resident).expect_err("too long");
        let fitting = refusal.ctx_size_that_fits.expect("a shorter one fits");
        fit(&nodes, fitting, Load::Resident).expect("it was offered");
        assert!(fit(&nodes, fitting + 1, Load::Resident).is_err());
        // The machine as one would take all of it.
        fit(&[(64, 127)], 262_144, Load::Resident).expect("127 GiB are enough");
    }
}
