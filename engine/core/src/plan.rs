//! Counts every byte before it is allocated, from config.json alone, and refuses what does not fit.

mod expected;
mod nodes;
mod vram;

use std::collections::BTreeMap;

use numa::region::HUGE_PAGE;
use serde::Serialize;
use simd::Dtype;
use simd::matmul::{MXFP4_BLOCK, Matrix, PANEL};

use crate::adapter::AdapterNeeds;
use crate::checkpoint::{Layout, TensorForm};
use crate::config::{ModelConfig, TensorKind, TensorSpec};
use crate::kv_cache::{KvShape, blocks_for};
use crate::model::{AdapterRoom, Load, WorkspaceShape, largest_strip, load_buffer_bytes};

pub use expected::{Expected, Limits};
pub use nodes::{FullNode, NodeRoom, Room};
pub use vram::OnGpu;

/// What is to be run.
#[derive(Clone, Copy, Debug)]
pub struct PlanRequest {
    /// Positions that a sequence may have.
    pub ctx_size: usize,
    /// Sequences that run side by side.
    pub width: usize,
    /// Rows of prompts that a step takes.
    pub ubatch_size: usize,
    /// Rows of a step that get logits.
    pub logits: usize,
    /// Workers.
    pub threads: usize,
    /// Type of keys and values.
    pub kv_dtype: Dtype,
    /// Where weights live.
    pub load: Load,
    /// Nodes that share the model.
    pub nodes: usize,
    /// What its adapters ask for.
    pub adapters: AdapterNeeds,
}

/// Bytes of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// Where the weights are to live.
    pub load: Load,
    /// Parameters of the model.
    pub parameters: u64,
    /// Bytes of all tensors as published; they pass through the page cache.
    pub checkpoint_bytes: u64,
    /// These bytes by the type of their numbers.
    pub bytes_by_type: BTreeMap<&'static str, u64>,
    /// Bytes of all experts as published, with their biases.
    pub expert_bytes: u64,
    /// Experts of all layers.
    pub experts: u64,
    /// Bytes of the embedding as published.
    pub embedding_bytes: u64,
    /// Anonymous memory of the weights: panels with their padding, norms and biases.
    pub weight_bytes: u64,
    /// About what that would be in a folder of `nightmonk pack`; the same where nothing would shrink.
    pub packed_weight_bytes: u64,
    /// Anonymous memory of keys and values.
    pub kv_bytes: u64,
    /// Bytes of keys and values of one position.
    pub kv_bytes_per_token: u64,
    /// Anonymous memory of a step's buffers, with room for adapters.
    pub scratch_bytes: u64,
    /// Anonymous memory of adapters' matrices.
    pub adapter_bytes: u64,
    /// Buffers of the threads that load. They are given back before keys, values and scratch are taken.
    pub load_bytes: u64,
    /// Page-cache pages without which the run would read from the disk: the embedding, or all of a mapped model.
    pub mapped_bytes: u64,
    /// What it takes at its largest: weights and mapped pages, and keys, values and scratch, or the buffers that load.
    pub total_bytes: u64,
    /// Bytes of weights that one token reads.
    pub bytes_per_token: u64,
    /// Weights that one token is multiplied with.
    pub weights_per_token: u64,
    /// Bytes of weights and of keys and values that the fullest of the nodes holds.
    pub node_bytes: u64,
    /// Nodes that share the model.
    pub nodes: usize,
    /// Positions of a sequence.
    pub ctx_size: usize,
    /// Sequences side by side.
    pub width: usize,
    /// Some matrices lie in packed panels, which many rows of a step read from scratch.
    #[serde(skip)]
    packed: bool,
    /// Bytes of all resident matrices that have so many panels.
    #[serde(skip)]
    matrix_bytes_by_panels: BTreeMap<usize, u64>,
    /// Heads of keys and values.
    #[serde(skip)]
    kv_heads: usize,
}

/// A plan that does not fit.
#[derive(Debug, thiserror::Error)]
#[error("{}", self.message())]
pub struct DoesNotFit {
    /// What was asked for.
    pub plan: Plan,
    /// Bytes that there are.
    pub available_bytes: u64,
    /// The node that lacks most, where its share is what does not fit.
    pub node: Option<FullNode>,
    /// Largest context that fits, if any does.
    pub ctx_size_that_fits: Option<usize>,
    /// Other ways to run the context that was asked for: what to change, and the bytes that it then takes.
    pub instead: Vec<(&'static str, u64)>,
}

impl DoesNotFit {
    fn message(&self) -> String {
        let Plan { total_bytes, weight_bytes, kv_bytes, scratch_bytes, mapped_bytes, ctx_size, width, .. } = &self.plan;
        let adapters = match self.plan.adapter_bytes {
            0 => String::new(),
            of_adapters => format!(", {} adapters", bytes(of_adapters)),
        };
        let needs = format!(
            "needs {} ({} weights, {} keys and values for {width} x {ctx_size} tokens, {} scratch{adapters}, {} mapped), {} {} are available",
            bytes(*total_bytes),
            bytes(*weight_bytes),
            bytes(*kv_bytes),
            bytes(*scratch_bytes),
            bytes(*mapped_bytes),
            if *total_bytes > self.available_bytes { "but" } else { "and" },
            bytes(self.available_bytes),
        );
        let needs = match &self.node {
            Some(FullNode { id, needs: of_node, available }) => format!(
                "{needs}, and of weights, keys and values node {id} would hold {}, but {} are available there",
                bytes(*of_node),
                bytes(*available)
            ),
            None => needs,
        };
        let needs = match self.plan.load_bytes > kv_bytes.saturating_add(*scratch_bytes) {
            true => format!("{needs} (loading takes {} before that)", bytes(self.plan.load_bytes)),
            false => needs,
        };
        let needs = match self.ctx_size_that_fits {
            Some(ctx_size) => format!("{needs}; `--ctx-size {ctx_size}` fits"),
            None => format!(
                "{needs}; no context fits beside the weights{}",
                if *width > 1 { ", try `--width 1`" } else { "" }
            ),
        };
        let ways = self.instead.iter().map(|(way, total)| format!("with {way} ({})", bytes(*total)));
        match ways.collect::<Vec<_>>().join(" or ") {
            ways if ways.is_empty() => needs,
            ways => format!("{needs}; as asked for, it fits {ways}"),
        }
    }
}

const EMBEDDING: &str = "model.embed_tokens.weight";

/// Bits of a BF16 weight in a packed folder, of 16 in panels: 12.1 of weights like those of trained models, whose patches
/// are few (benches/record, and the README's table).
const PACKED_BITS: f64 = 12.13;

const FITS: &str = "config.json's limits keep sizes far below 2^63";

/// Bytes of a tensor as it is stored.
fn stored_bytes(spec: &TensorSpec, form: TensorForm) -> u64 {
    match (form.layout, &spec.shape[..]) {
        (Layout::Panels | Layout::Packed { .. }, [rows, cols]) => form.bytes([*rows, *cols]).expect(FITS) as u64,
        _ => spec.published_bytes(form.dtype),
    }
}

/// Bytes of a tensor's matrices in panels, each from a cache line on.
fn panel_bytes(spec: &TensorSpec, form: TensorForm) -> u64 {
    let (matrices, panels) = match (spec.kind, &spec.shape[..]) {
        (TensorKind::Matrix, [rows, cols]) => {
            let layout = if form.layout == Layout::RowMajor { Layout::Panels } else { form.layout };
            (1, TensorForm { layout, ..form }.bytes([*rows, *cols]))
        }
        (TensorKind::Stack { matrices, transposed: false }, [stacked, rows, cols]) => {
            (matrices, Matrix::panel_bytes(form.dtype, [stacked * rows / matrices, *cols]))
        }
        (TensorKind::Stack { matrices, transposed: true }, [stacked, cols, rows]) => {
            (matrices, Matrix::panel_bytes(form.dtype, [stacked * rows / matrices, *cols]))
        }
        (TensorKind::Mxfp4Blocks { matrices }, [stacked, rows, blocks, _]) => {
            (matrices, Matrix::mxfp4_panel_bytes([stacked * rows / matrices, blocks * MXFP4_BLOCK]))
        }
        _ => (0, Some(0)),
    };
    matrices as u64 * (panels.expect(FITS) as u64).next_multiple_of(64)
}

/// Panels of each of a tensor's matrices.
fn panels_of_matrix(spec: &TensorSpec) -> usize {
    let rows = match (spec.kind, &spec.shape[..]) {
        (TensorKind::Stack { matrices, transposed: true }, [stacked, _, rows])
        | (TensorKind::Stack { matrices, transposed: false }, [stacked, rows, _])
        | (TensorKind::Mxfp4Blocks { matrices }, [stacked, rows, ..]) => stacked * rows / matrices,
        (_, shape) => shape.first().copied().unwrap_or(0),
    };
    rows.div_ceil(PANEL)
}

/// Bytes of the largest strip in which a tensor's matrices are read.
fn strip_bytes(spec: &TensorSpec, form: TensorForm) -> usize {
    match (spec.kind, &spec.shape[..]) {
        (TensorKind::Matrix, [rows, cols]) => {
            let panel = stored_bytes(&TensorSpec { shape: vec![PANEL.min(*rows), *cols], ..spec.clone() }, form);
            largest_strip(stored_bytes(spec, form) as usize, panel as usize)
        }
        (TensorKind::Stack { matrices, transposed: false }, [_, _, cols]) => {
            let matrix = stored_bytes(spec, form) as usize / matrices;
            largest_strip(matrix, PANEL * cols * form.dtype.size())
        }
        // Read as a whole.
        (TensorKind::Stack { transposed: true, .. }, [stacked, ..]) => stored_bytes(spec, form) as usize / stacked,
        // Rows of several matrices may lie in turn; each stack is cut on its own.
        (TensorKind::Mxfp4Blocks { matrices }, [stacked, _, blocks, bytes]) => {
            largest_strip(stored_bytes(spec, form) as usize / stacked, PANEL * (matrices / stacked) * blocks * bytes)
        }
        _ => 0,
    }
}

/// Several nodes have a region each, of whole large pages. What a single one has in its last page is within any reserve.
fn padding(request: &PlanRequest) -> u64 {
    if request.nodes > 1 { (request.nodes * HUGE_PAGE) as u64 } else { 0 }
}

/// `n` bytes for people, in binary units.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let unit = (n.max(1).ilog2() / 10).min(4);
    match unit {
        0 => format!("{n} B"),
        _ => format!("{:.2} {}", n as f64 / f64::from(1u32 << 10).powi(unit as i32), UNITS[unit as usize]),
    }
}

impl Plan {
    /// Counts the bytes of a run. `form_of` gives the type of a tensor, or its [`TensorForm`]: from the shards where they
    /// are at hand ([`Checkpoint::form`](crate::checkpoint::Checkpoint::form)), else from config.json.
    pub fn new<F: Into<TensorForm>>(config: &ModelConfig, form_of: impl Fn(&str) -> F, request: &PlanRequest) -> Self {
        let mut plan = Self {
            load: request.load,
            parameters: 0,
            checkpoint_bytes: 0,
            bytes_by_type: BTreeMap::new(),
            expert_bytes: 0,
            experts: 0,
            embedding_bytes: 0,
            weight_bytes: 0,
            packed_weight_bytes: 0,
            kv_bytes: 0,
            kv_bytes_per_token: 0,
            scratch_bytes: 0,
            adapter_bytes: request.adapters.bytes,
            load_bytes: 0,
            packed: false,
            matrix_bytes_by_panels: BTreeMap::new(),
            kv_heads: config.num_key_value_heads,
            mapped_bytes: 0,
            total_bytes: 0,
            bytes_per_token: 0,
            weights_per_token: 0,
            node_bytes: 0,
            nodes: request.nodes,
            ctx_size: request.ctx_size,
            width: request.width,
        };
        let active_experts: u64 = config.sparse_layers().map(|(_, sparse)| sparse.num_experts_per_tok as u64).sum();
        let all_experts: u64 = config.sparse_layers().map(|(_, sparse)| sparse.num_experts as u64).sum();
        plan.experts = all_experts;
        let (mut expert_bytes, mut expert_weights) = (0, 0);
        let mut saved = 0.0;
        let mut strip = 0;
        // Has panels wherever the weights live.
        let mut unmapped = 0;
        for spec in config.tensors() {
            // Of what holds no numbers the type is that of the numbers that it stands for.
            let form = if spec.kind.is_numbers() { form_of(&spec.name).into() } else { Dtype::Bf16.into() };
            plan.parameters += spec.parameters();
            plan.checkpoint_bytes += stored_bytes(&spec, form);
            *plan.bytes_by_type.entry(type_name(&spec, form)).or_default() += stored_bytes(&spec, form);
            if spec.is_of_expert() {
                plan.expert_bytes += stored_bytes(&spec, form);
            }
            // Returns what a token reads: packed panels as they are, of others only the weights.
            let mut matrix = |plan: &mut Self, form: TensorForm| {
                plan.packed |= matches!(form.layout, Layout::Packed { .. });
                let transposed = matches!(spec.kind, TensorKind::Stack { transposed: true, .. });
                unmapped += if transposed { stored_bytes(&spec, form) } else { 0 };
                if request.load == Load::Resident || transposed {
                    let panels = panel_bytes(&spec, form);
                    plan.weight_bytes += panels;
                    *plan.matrix_bytes_by_panels.entry(panels_of_matrix(&spec)).or_default() += panels;
                    let matrices = matches!(spec.kind, TensorKind::Matrix | TensorKind::Stack { .. });
                    let shrinks = matrices && form == TensorForm::from(Dtype::Bf16);
                    saved += if shrinks { panels as f64 * (1.0 - PACKED_BITS / 16.0) } else { 0.0 };
                    strip = strip.max(strip_bytes(&spec, form));
                }
                match form.layout {
                    Layout::Packed { .. } => stored_bytes(&spec, form),
                    _ => spec.published_bytes(form.dtype),
                }
            };
            match spec.kind {
                TensorKind::Vector => plan.weight_bytes += spec.parameters() * 4,
                TensorKind::Mxfp4Scales => expert_bytes += spec.published_bytes(form.dtype),
                _ if spec.name == EMBEDDING => {
                    plan.mapped_bytes += stored_bytes(&spec, form);
                    plan.embedding_bytes = stored_bytes(&spec, form);
                    if config.tie_word_embeddings {
                        // A folder of panels holds the output matrix once more.
                        let head: TensorForm = form_of("lm_head.weight").into();
                        if head.layout != Layout::RowMajor {
                            plan.checkpoint_bytes += stored_bytes(&spec, head);
                        }
                        let read = matrix(&mut plan, head);
                        plan.bytes_per_token += read;
                        plan.weights_per_token += spec.parameters();
                    }
                }
                _ if spec.is_of_expert() => {
                    expert_bytes += matrix(&mut plan, form);
                    expert_weights += spec.parameters();
                }
                _ => {
                    let read = matrix(&mut plan, form);
                    plan.bytes_per_token += read;
                    plan.weights_per_token += spec.parameters();
                }
            }
        }
        if let Some(per_expert) = expert_bytes.checked_div(all_experts) {
            plan.bytes_per_token += per_expert * active_experts;
            plan.weights_per_token += expert_weights / all_experts * active_experts;
        }
        match request.load {
            Load::Mapped => plan.mapped_bytes = plan.checkpoint_bytes - unmapped,
            Load::Resident => {
                plan.weight_bytes += padding(request);
                plan.load_bytes = load_buffer_bytes(request.threads, plan.checkpoint_bytes as usize, strip) as u64;
            }
        }
        plan.packed_weight_bytes = plan.weight_bytes - saved as u64;
        plan.size_for(config, request, request.ctx_size);
        plan
    }

    /// Counts what depends on the context. Sums saturate: a run beyond 2^64 bytes fits nowhere.
    fn size_for(&mut self, config: &ModelConfig, request: &PlanRequest, ctx_size: usize) {
        let kv = KvShape::new(config, request.kv_dtype, 1);
        let blocks = (request.width as u64).saturating_mul(blocks_for(ctx_size) as u64);
        self.ctx_size = ctx_size;
        self.kv_bytes = blocks.saturating_mul(kv.block_bytes() as u64).saturating_add(padding(request));
        self.kv_bytes_per_token = kv.position_bytes() as u64;
        // Matrices are cut by rows, keys and values by heads.
        let heads = kv.heads.div_ceil(request.nodes.max(1)) as u64;
        let of_node = (u128::from(self.kv_bytes) * u128::from(heads) / kv.heads as u128) as u64;
        self.node_bytes = self.weight_bytes.div_ceil(request.nodes.max(1) as u64).saturating_add(of_node);
        let rows = request.ubatch_size.min(ctx_size) + request.width;
        let logits = request.logits.min(rows);
        let shape = WorkspaceShape::new(config, request.load, self.packed, rows, logits, request.threads);
        let room = AdapterRoom { adapters: request.adapters.count, rank: request.adapters.rank };
        self.scratch_bytes = (shape.bytes() + room.bytes(&shape)) as u64;
        let running = self.kv_bytes.saturating_add(self.scratch_bytes).saturating_add(self.adapter_bytes);
        let all = [self.weight_bytes, self.mapped_bytes, running.max(self.load_bytes)];
        self.total_bytes = all.into_iter().fold(0, u64::saturating_add);
    }

    /// Whether matrices would be cut over nodes: those in memory of their own, and not in panels of 12 bits.
    fn can_be_cut(&self) -> bool {
        self.load == Load::Resident && !self.packed
    }

    /// The plan, if it fits: into so many bytes, or into a [`Room`] with nodes.
    ///
    /// # Errors
    /// [`DoesNotFit`] with the largest context that would.
    pub fn fit<F: Into<TensorForm>>(
        config: &ModelConfig,
        form_of: impl Fn(&str) -> F,
        request: &PlanRequest,
        room: impl Into<Room>,
    ) -> Result<Self, Box<DoesNotFit>> {
        let room = room.into();
        let mut plan = Self::new(config, &form_of, request);
        let workers: Vec<usize> = room.nodes.iter().map(|node| node.workers).collect();
        if let Some(fullest) = plan.bytes_on_nodes(&workers).into_iter().max() {
            plan.node_bytes = fullest;
        }
        if room.holds(&plan) {
            return Ok(plan);
        }
        // Bytes never fall where the context grows: look for the last context that fits.
        let fits = |ctx_size: usize| {
            let mut smaller = plan.clone();
            smaller.size_for(config, request, ctx_size);
            room.holds(&smaller)
        };
        let (mut fitting, mut too_many) = (0, request.ctx_size);
        while too_many - fitting > 1 {
            let middle = fitting.midpoint(too_many);
            if fits(middle) { fitting = middle } else { too_many = middle }
        }
        let ctx_size_that_fits = (fitting > 0).then_some(fitting);
        let instead = plan.instead(config, &form_of, request, &room);
        let node = room.full_node(&plan);
        Err(Box::new(DoesNotFit { plan, available_bytes: room.bytes, node, ctx_size_that_fits, instead }))
    }

    /// Other ways to run what was asked for that do fit.
    fn instead<F: Into<TensorForm>>(
        &self,
        config: &ModelConfig,
        form_of: impl Fn(&str) -> F,
        request: &PlanRequest,
        room: &Room,
    ) -> Vec<(&'static str, u64)> {
        let with = |request: &PlanRequest, packed: bool| {
            let mut other = Self::new(config, &form_of, request);
            if packed {
                other.weight_bytes = other.packed_weight_bytes;
                other.packed = true;
                other.size_for(config, request, request.ctx_size);
            }
            (other.total_bytes, room.holds(&other))
        };
        let shrinks = self.packed_weight_bytes < self.weight_bytes;
        let of_f16 = PlanRequest { kv_dtype: Dtype::F16, ..*request };
        let mut ways = Vec::new();
        if request.kv_dtype == Dtype::F32 {
            ways.push(("`--cache-type-k f16`", with(&of_f16, false)));
        }
        if shrinks {
            ways.push(("a folder of `nightmonk pack`", with(request, true)));
        }
        if shrinks && request.kv_dtype == Dtype::F32 {
            ways.push(("`--cache-type-k f16` and a folder of `nightmonk pack`", with(&of_f16, true)));
        }
        if request.width > 1 {
            let alone = PlanRequest { width: 1, logits: request.logits.min(1), ..*request };
            ways.push(("`--width 1`", with(&alone, false)));
        }
        if request.load == Load::Resident {
            let mapped = PlanRequest { load: Load::Mapped, ..*request };
            ways.push(("`--load mapped`", with(&mapped, false)));
        }
        let fitting = ways.into_iter().filter(|(_, (_, fits))| *fits);
        fitting.map(|(way, (total, _))| (way, total)).collect()
    }
}

/// What a tensor's numbers are, for people.
fn type_name(spec: &TensorSpec, form: TensorForm) -> &'static str {
    match (spec.kind.is_numbers(), form.layout, form.dtype) {
        (false, ..) => "MXFP4",
        (true, Layout::Packed { .. }, _) => "BF16 in 12 bits",
        (true, _, Dtype::Bf16) => "BF16",
        (true, _, Dtype::F16) => "F16",
        (true, _, Dtype::F32) => "F32",
    }
}

#[cfg(test)]
mod tests;
