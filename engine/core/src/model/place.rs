//! Gives every weight its place before any is read, so that memory is taken once and each strip of the file knows where
//! it goes.

use std::ops::Range;

use simd::Dtype;
use simd::matmul::PANEL;

use super::load::Load;
use super::source::Source;
use super::weights::{FeedForward, GatedMlp, HeadNorms, Layer, Linear, Slice};
use crate::checkpoint::{Checkpoint, Layout};
use crate::config::{
    AttentionBias, ExpertStorage, Mlp, ModelConfig, QkNorm, Sparse, StackedExperts, expert_names, layer_names,
};
use crate::homes::Homes;

/// Huge pages and vector loads want every matrix to begin at a cache line.
const MATRIX_ALIGNMENT: usize = 64;

/// Gives each tensor its place; the bytes follow when all places are known.
pub(super) struct Place<'a> {
    checkpoint: &'a Checkpoint,
    load: Load,
    homes: &'a Homes,
    /// Where the next slice may begin in each node's region.
    next: Vec<usize>,
    /// Slices with a place, in the order of each region.
    placed: Vec<Placed>,
}

/// A slice of a matrix that is laid into panels.
pub(super) struct Placed {
    /// The tensor that its numbers are published in.
    pub(super) tensor: String,
    pub(super) source: Source,
    pub(super) dtype: Dtype,
    pub(super) cols: usize,
    /// Index of the region.
    pub(super) home: usize,
    /// Its panels, in bytes of the region.
    pub(super) bytes: Range<usize>,
}

impl<'a> Place<'a> {
    pub(super) fn new(checkpoint: &'a Checkpoint, load: Load, homes: &'a Homes) -> Self {
        Self { checkpoint, load, homes, next: vec![0; homes.count()], placed: Vec::new() }
    }

    /// Bytes of each region, and what goes there, in ascending order.
    pub(super) fn finish(self) -> (Vec<usize>, Vec<Placed>) {
        (self.next, self.placed)
    }

    pub(super) fn layer(&mut self, config: &ModelConfig, index: usize) -> Layer {
        let name = |tensor: &str| layer_names(index, tensor);
        let mut projection = |part: &str, biased: bool| {
            let mut linear = self.linear(&name(&format!("self_attn.{part}_proj.weight")));
            linear.bias = biased.then(|| self.vector(&name(&format!("self_attn.{part}_proj.bias"))));
            linear
        };
        let biased = config.attention_bias != AttentionBias::None;
        let query = projection("q", biased);
        let key = projection("k", biased);
        let value = projection("v", biased);
        let output = projection("o", config.attention_bias == AttentionBias::Qkvo);
        let head_norms = (config.qk_norm == QkNorm::PerHead).then(|| HeadNorms {
            query: self.vector(&name("self_attn.q_norm.weight")),
            key: self.vector(&name("self_attn.k_norm.weight")),
        });
        let feed_forward = match &config.layers[index].mlp {
            Mlp::Dense { .. } => FeedForward::Dense(Box::new(
                self.gated_mlp(["gate", "up", "down"].map(|part| name(&format!("mlp.{part}_proj.weight")))),
            )),
            Mlp::Sparse(shape) => {
                let mut router = self.linear(&config.router_name(index));
                router.bias = shape.biased.then(|| self.vector(&config.router_bias_name(index)));
                let experts = match shape.storage {
                    ExpertStorage::Matrices => (0..shape.num_experts)
                        .map(|expert| self.gated_mlp(expert_names(config, index, expert)))
                        .collect(),
                    ExpertStorage::StackedMxfp4 => self.stacked_experts(config, index, shape),
                };
                FeedForward::Sparse { router, experts, shape: shape.clone() }
            }
        };
        Layer {
            input_norm: self.vector(&name("input_layernorm.weight")),
            query,
            key,
            value,
            output,
            head_norms,
            sinks: config.attention_sinks.then(|| self.vector(&config.sinks_name(index))),
            post_attention_norm: self.vector(&name("post_attention_layernorm.weight")),
            window: config.layers[index].window,
            feed_forward,
        }
    }

    fn gated_mlp(&mut self, [gate, up, down]: [String; 3]) -> GatedMlp {
        GatedMlp { gate: self.linear(&gate), up: self.linear(&up), down: self.linear(&down) }
    }

    /// The experts of a layer whose matrices are stacked: gate and up row by row in turn, with biases.
    fn stacked_experts(&mut self, config: &ModelConfig, layer: usize, shape: &Sparse) -> Vec<GatedMlp> {
        let [gate_up, down] = config.stacked_experts(layer);
        let (hidden, width) = (config.hidden_size, shape.moe_intermediate_size);
        let [gate_up_bias, down_bias] = [&gate_up, &down].map(|stack| self.vector(&stack.bias));
        let experts = 0..shape.num_experts;
        experts
            .map(|expert| {
                let mut part = |stack: &StackedExperts, bias: &[f32], [rows, cols]: [usize; 2], first_row, row_step| {
                    let [blocks, scales] = [&stack.blocks, &stack.scales].map(|name| {
                        let all = self.checkpoint.location(name);
                        let bytes = all.size() / shape.num_experts;
                        all.part(expert * bytes..(expert + 1) * bytes)
                    });
                    let source = Source::Mxfp4 { blocks, scales, first_row, row_step };
                    // What the blocks stand for are BF16 numbers: as such they meet activations.
                    let mut linear = self.matrix(&stack.blocks, source, Dtype::Bf16, [rows, cols]);
                    let of_expert = &bias[expert * rows * row_step..(expert + 1) * rows * row_step];
                    linear.bias = Some(of_expert.iter().skip(first_row).step_by(row_step).copied().collect());
                    linear
                };
                GatedMlp {
                    gate: part(&gate_up, &gate_up_bias, [width, hidden], 0, 2),
                    up: part(&gate_up, &gate_up_bias, [width, hidden], 1, 2),
                    down: part(&down, &down_bias, [hidden, width], 0, 1),
                }
            })
            .collect()
    }

    /// A matrix that is a tensor of its own.
    pub(super) fn linear(&mut self, name: &str) -> Linear {
        let tensor = self.checkpoint.tensor(name);
        let shape = [tensor.shape[0], tensor.shape[1]];
        let location = self.checkpoint.location(name);
        let source = match tensor.layout {
            Layout::RowMajor => Source::rows(location),
            Layout::Panels => Source::Panels(location),
            Layout::Packed { .. } => Source::Packed(location),
        };
        self.matrix(name, source, tensor.dtype, shape)
    }

    fn matrix(&mut self, tensor: &str, source: Source, dtype: Dtype, [rows, cols]: [usize; 2]) -> Linear {
        let mut slices = Vec::new();
        if self.load == Load::Resident {
            // A matrix of few panels has none on some nodes.
            let of_homes = self.homes.slices(rows.div_ceil(PANEL));
            let shares = of_homes.iter().enumerate().filter(|(_, panels)| !panels.is_empty());
            slices.extend(shares.map(|(home, panels)| {
                let rows = panels.start * PANEL..rows.min(panels.end * PANEL);
                let source = source.of_rows(&rows, dtype, cols);
                let start = self.next[home].next_multiple_of(MATRIX_ALIGNMENT);
                let bytes = start..start + source.resident_bytes(dtype, [rows.len(), cols]);
                self.next[home] = bytes.end;
                self.placed.push(Placed { tensor: tensor.into(), source, dtype, cols, home, bytes: bytes.clone() });
                Slice { home, rows, bytes }
            }));
        }
        Linear { dtype, rows, cols, bias: None, source, slices }
    }

    /// A small tensor, as float32.
    pub(super) fn vector(&self, name: &str) -> Vec<f32> {
        let tensor = self.checkpoint.tensor(name);
        let mut values = vec![0.0; tensor.shape.iter().product()];
        tensor.dtype.widen(tensor.bytes, &mut values);
        values
    }
}
