//! How fast a run can be at most, from its bytes, its operations, and two limits of the machine.
//!
//! Decoding reads the weights of a token and all keys and values that it sees; prefill multiplies, and reads the weights
//! once for each step. What a run reaches of these figures stands in benches/record: nearly all of decoding's, the less
//! the longer the context.

use serde::Serialize;

use super::{Plan, PlanRequest};
use crate::config::ModelConfig;

/// What a machine can do.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Limits {
    /// Bytes that all workers read from memory in a second.
    pub read_bandwidth: f64,
    /// Operations of all workers in a second, on BF16 numbers in registers.
    pub peak_flops: f64,
}

/// Speeds that cannot be exceeded, in tokens a second.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Expected {
    /// The limits that they follow from.
    pub limits: Limits,
    /// One sequence that decodes its first tokens.
    pub decode: f64,
    /// One sequence at the end of its context.
    pub decode_at_full_context: f64,
    /// The first step of a prompt.
    pub prefill: f64,
}

impl Plan {
    /// Bytes of keys and values that the last token of a context of `ctx_size` positions reads.
    pub fn kv_bytes_read(&self, config: &ModelConfig, ctx_size: usize) -> u64 {
        let of_layer = self.kv_bytes_per_token / config.layers.len() as u64;
        let visible = |window: Option<usize>| window.map_or(ctx_size, |window| window.min(ctx_size)) as u64;
        config.layers.iter().map(|layer| of_layer.saturating_mul(visible(layer.window))).fold(0, u64::saturating_add)
    }

    /// The most that the planned run can reach; `terms` is how many products a weight takes in prefill: two in the default
    /// form of activations.
    pub fn expected(&self, config: &ModelConfig, request: &PlanRequest, terms: u32, limits: Limits) -> Expected {
        let Limits { read_bandwidth, peak_flops } = limits;
        let decode = |ctx_size| {
            let read = self.bytes_per_token.saturating_add(self.kv_bytes_read(config, ctx_size));
            read_bandwidth / read as f64
        };
        let rows = request.ubatch_size.min(request.ctx_size).max(1) as f64;
        let multiply = rows * 2.0 * f64::from(terms) * self.weights_per_token as f64 / peak_flops;
        let read = self.bytes_of_step(config, rows) / read_bandwidth;
        Expected {
            limits,
            decode: decode(0),
            decode_at_full_context: decode(self.ctx_size),
            prefill: rows / multiply.max(read),
        }
    }

    /// Bytes of weights that a step of `rows` rows reads, where rows choose experts as if by lot.
    fn bytes_of_step(&self, config: &ModelConfig, rows: f64) -> f64 {
        let (experts, chosen) = config.sparse_layers().fold((0.0, 0.0), |(all, chosen), (_, sparse)| {
            let share = sparse.num_experts_per_tok as f64 / sparse.num_experts as f64;
            (all + sparse.num_experts as f64, chosen + sparse.num_experts as f64 * (1.0 - (1.0 - share).powf(rows)))
        });
        let active: usize = config.sparse_layers().map(|(_, sparse)| sparse.num_experts_per_tok).sum();
        let one = if experts > 0.0 { self.expert_bytes as f64 / experts } else { 0.0 };
        self.bytes_per_token as f64 + one * (chosen - active as f64).max(0.0)
    }
}
