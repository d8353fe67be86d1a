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

/// A matrix within one of a stack.
struct Part {
    rows: usize,
    cols: usize,
    /// Rows of the stack's matrix, the first that is this one's, and from each to the next.
    of_all: [usize; 3],
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
                let mut experts: Vec<GatedMlp> = match shape.storage {
                    ExpertStorage::Matrices => (0..shape.num_experts)
                        .map(|expert| self.gated_mlp(expert_names(config, index, expert)))
                        .collect(),
                    _ => self.stacked_experts(config, index, shape),
                };
                if shape.biased {
                    self.bias_experts(config, index, &mut experts);
                }
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

    /// The experts of a layer whose matrices are stacked, gate and up in one.
    fn stacked_experts(&mut self, config: &ModelConfig, layer: usize, shape: &Sparse) -> Vec<GatedMlp> {
        let stacks = config.stacked_experts(layer);
        let (hidden, width) = (config.hidden_size, shape.moe_intermediate_size);
        let [up, step] = config.rows_of_up(width);
        let experts = 0..shape.num_experts;
        experts
            .map(|expert| {
                let mut part = |stack: usize, part: Part| self.part_of_stack(&stacks[stack], shape, expert, &part);
                GatedMlp {
                    gate: part(0, Part { rows: width, cols: hidden, of_all: [2 * width, 0, step] }),
                    up: part(0, Part { rows: width, cols: hidden, of_all: [2 * width, up, step] }),
                    down: part(1, Part { rows: hidden, cols: width, of_all: [hidden, 0, 1] }),
                }
            })
            .collect()
    }

    /// Gives the experts of a layer their biases, which are stacked.
    fn bias_experts(&mut self, config: &ModelConfig, layer: usize, experts: &mut [GatedMlp]) {
        let [gate_up, down] = config.expert_bias_names(layer).map(|name| self.vector(&name));
        let of_expert = |biases: &[f32], expert: usize, linear: &mut Linear, first: usize, step: usize, all: usize| {
            let biases = &biases[expert * all..(expert + 1) * all];
            linear.bias = Some(biases[first..].iter().step_by(step).take(linear.rows).copied().collect());
        };
        for (expert, GatedMlp { gate, up, down: last }) in experts.iter_mut().enumerate() {
            let (width, hidden) = (gate.rows, last.rows);
            let [first_up, step] = config.rows_of_up(width);
            of_expert(&gate_up, expert, gate, 0, step, 2 * width);
            of_expert(&gate_up, expert, up, first_up, step, 2 * width);
            of_expert(&down, expert, last, 0, 1, hidden);
        }
    }

    /// One matrix of one expert, as `storage` has it.
    fn part_of_stack(&mut self, stack: &StackedExperts, shape: &Sparse, expert: usize, part: &Part) -> Linear {
        let Part { rows, cols, of_all: [all_rows, first_row, row_step] } = *part;
        let of_expert = |name: &str| {
            let all = self.checkpoint.location(name);
            let bytes = all.size() / shape.num_experts;
            all.part(expert * bytes..(expert + 1) * bytes)
        };
        let (name, dtype, source) = match shape.storage {
            ExpertStorage::StackedMxfp4 => {
                let (blocks, scales) = (of_expert(&stack.blocks), of_expert(&stack.scales));
                // What the blocks stand for are BF16 numbers: as such they meet activations.
                (&stack.blocks, Dtype::Bf16, Source::Mxfp4 { blocks, scales, first_row, row_step })
            }
            ExpertStorage::StackedTransposed => {
                let location = of_expert(&stack.weights);
                let dtype = self.checkpoint.tensor(&stack.weights).dtype;
                (&stack.weights, dtype, Source::Transposed { location, first_row, row_step })
            }
            ExpertStorage::Stacked | ExpertStorage::Matrices => {
                let location = of_expert(&stack.weights);
                let row_bytes = location.size() / all_rows;
                let dtype = self.checkpoint.tensor(&stack.weights).dtype;
                let location = location.part(first_row * row_bytes..(first_row + rows) * row_bytes);
                (&stack.weights, dtype, Source::rows(location))
            }
        };
        self.matrix(name, source, dtype, [rows, cols])
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
        // No kernel reads transposed weights: they get panels wherever the others stay.
        if self.load == Load::Resident || source.is_whole() {
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
