//! Weights in the form in which kernels read them.
//!
//! `resident` lays every matrix into panels in anonymous memory with huge pages; `mapped` leaves the published file
//! where it is, in the page cache, and turns each panel in registers. Both give the same bits. The embedding is only
//! looked up by rows and stays in the map; norms and biases are small and become float32.

use std::fmt;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::str::FromStr;

use numa::Region;
use rayon::prelude::*;
use simd::Dtype;
use simd::Isa;
use simd::matmul::{Activations, Matrix};

use super::rope_table::RopeTable;
use crate::checkpoint::{Checkpoint, CheckpointError, Location};
use crate::config::{AttentionBias, Mlp, ModelConfig, QkNorm, Sparse, expert_names, layer_names};

/// Where weights live while the model runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// In the page cache, as published.
    Mapped,
    /// In anonymous memory, as panels.
    Resident,
}

impl FromStr for Load {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "mapped" => Ok(Self::Mapped),
            "resident" => Ok(Self::Resident),
            other => Err(format!("`{other}` is not a way to load weights; known: mapped, resident")),
        }
    }
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Mapped => "mapped",
            Self::Resident => "resident",
        })
    }
}

/// What decides how a model computes: with the checkpoint these decide every bit of its logits.
#[derive(Clone, Copy, Debug)]
pub struct ModelOptions {
    /// Instructions of the kernels.
    pub isa: Isa,
    /// Terms of the activations in products with BF16 weights.
    pub activations: Activations,
    /// Where weights live; changes speed only.
    pub load: Load,
    /// Threads that load.
    pub threads: usize,
}

/// How far loading is.
#[derive(Clone, Copy, Debug)]
pub struct LoadProgress {
    /// Bytes of weights read and checked.
    pub done_bytes: usize,
    /// Bytes of weights in the checkpoint.
    pub total_bytes: usize,
}

/// Why a model did not load.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The folder is wrong or damaged.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// Matrices that take the same activations differ in type.
    #[error(
        "layer {layer}: `{first}` is {first_dtype} and `{second}` is {second_dtype}, but matrices that share their input must have one type; convert the checkpoint to one type"
    )]
    MixedTypes {
        /// Decoder layer.
        layer: usize,
        /// A tensor.
        first: String,
        /// Its type.
        first_dtype: &'static str,
        /// Another tensor with the same input.
        second: String,
        /// Its type.
        second_dtype: &'static str,
    },
    /// The weights did not get their memory.
    #[error("cannot get {bytes} bytes of memory for the weights: {source}; try `--load mapped`, or free memory")]
    Memory {
        /// Bytes asked for.
        bytes: usize,
        /// What the system said.
        source: io::Error,
    },
    /// The threads that load could not start.
    #[error("cannot start {threads} threads: {why}")]
    Threads {
        /// Threads asked for.
        threads: usize,
        /// What the system said.
        why: String,
    },
}

/// A model ready to compute.
pub struct Model {
    pub(super) checkpoint: Checkpoint,
    pub(super) options: ModelOptions,
    pub(super) rope: RopeTable,
    pub(super) layers: Vec<Layer>,
    pub(super) final_norm: Vec<f32>,
    pub(super) lm_head: Linear,
    panels: Region,
}

pub(super) struct Layer {
    pub(super) input_norm: Vec<f32>, // [hidden_size]
    pub(super) query: Linear,
    pub(super) key: Linear,
    pub(super) value: Linear,
    pub(super) output: Linear,
    pub(super) head_norms: Option<HeadNorms>,
    pub(super) post_attention_norm: Vec<f32>, // [hidden_size]
    pub(super) window: Option<usize>,
    pub(super) feed_forward: FeedForward,
}

/// QK-norm weights, `[head_dim]` each.
pub(super) struct HeadNorms {
    pub(super) query: Vec<f32>,
    pub(super) key: Vec<f32>,
}

pub(super) enum FeedForward {
    Dense(GatedMlp),
    Sparse { router: Linear, experts: Vec<GatedMlp>, shape: Sparse },
}

pub(super) struct GatedMlp {
    pub(super) gate: Linear,
    pub(super) up: Linear,
    pub(super) down: Linear,
}

/// A matrix `[out_features, in_features]` and perhaps a bias `[out_features]`.
pub(super) struct Linear {
    pub(super) dtype: Dtype,
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) bias: Option<Vec<f32>>,
    location: Location,
    panels: Option<Range<usize>>,
}

/// Huge pages and vector loads want every matrix to begin at a cache line.
const MATRIX_ALIGNMENT: usize = 64;

impl Model {
    /// Opens `folder`, checks every weight, and places the matrices.
    ///
    /// # Errors
    /// [`LoadError`]: a wrong or damaged folder, or memory that is not there.
    pub fn load(
        folder: &Path,
        options: ModelOptions,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<Self, LoadError> {
        Self::from_checkpoint(Checkpoint::open(folder)?, options, progress)
    }

    /// As [`Model::load`], from a checkpoint that is open already.
    ///
    /// # Errors
    /// As [`Model::load`].
    pub fn from_checkpoint(
        checkpoint: Checkpoint,
        options: ModelOptions,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<Self, LoadError> {
        let workers = rayon::ThreadPoolBuilder::new()
            .num_threads(options.threads)
            .build()
            .map_err(|error| LoadError::Threads { threads: options.threads, why: error.to_string() })?;
        check_types(&checkpoint)?;
        check_weights(&checkpoint, &workers, progress)?;
        let mut next = 0;
        let mut place = Place { checkpoint: &checkpoint, load: options.load, next: &mut next };
        let config = checkpoint.config();
        let layers: Vec<Layer> = (0..config.layers.len()).map(|layer| place.layer(config, layer)).collect();
        let lm_head = place.linear(config.lm_head_name());
        let final_norm = place.vector("model.norm.weight");
        let rope = RopeTable::new(&config.rope);
        let memory = |source| LoadError::Memory { bytes: next, source };
        let mut panels = Region::anonymous(next).map_err(memory)?;
        if options.load == Load::Resident {
            let mut linears: Vec<&Linear> = layers.iter().flat_map(Layer::linears).collect();
            linears.push(&lm_head);
            workers.install(|| lay_panels(&checkpoint, options.isa, &linears, panels.as_mut_slice()));
        }
        Ok(Self { checkpoint, options, rope, layers, final_norm, lm_head, panels })
    }

    /// What config.json says.
    pub fn config(&self) -> &ModelConfig {
        self.checkpoint.config()
    }

    /// The folder that the model came from.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// What decides how it computes.
    pub fn options(&self) -> &ModelOptions {
        &self.options
    }

    /// Bytes of anonymous memory that the weights take.
    pub fn resident_bytes(&self) -> usize {
        self.panels.as_slice().len()
    }

    /// The weights as they lie in memory, for measuring how fast this machine reads them.
    pub fn weight_bytes(&self) -> &[u8] {
        match self.options.load {
            Load::Resident => self.panels.as_slice(),
            Load::Mapped => {
                self.checkpoint.shards().map(|(_, bytes)| bytes).max_by_key(|bytes| bytes.len()).unwrap_or(&[])
            }
        }
    }

    /// Bytes of weights that one token reads: every matrix once, but of the experts only those that a token goes
    /// through.
    pub fn bytes_per_token(&self) -> usize {
        self.sum_per_token(Linear::bytes)
    }

    /// Weights that one token meets.
    pub fn weights_per_token(&self) -> usize {
        self.sum_per_token(|linear| linear.rows * linear.cols)
    }

    fn sum_per_token(&self, of: impl Fn(&Linear) -> usize) -> usize {
        let mlp = |mlp: &GatedMlp| of(&mlp.gate) + of(&mlp.up) + of(&mlp.down);
        let layer = |layer: &Layer| {
            let attention = [&layer.query, &layer.key, &layer.value, &layer.output];
            let feed_forward = match &layer.feed_forward {
                FeedForward::Dense(dense) => mlp(dense),
                FeedForward::Sparse { router, experts, shape } => {
                    of(router) + experts.first().map_or(0, mlp) * shape.num_experts_per_tok
                }
            };
            attention.into_iter().map(&of).sum::<usize>() + feed_forward
        };
        self.layers.iter().map(layer).sum::<usize>() + of(&self.lm_head)
    }

    pub(super) fn matrix(&self, linear: &Linear) -> Matrix<'_> {
        let shape = [linear.rows, linear.cols];
        let matrix = match &linear.panels {
            Some(range) => Matrix::panels(linear.dtype, &self.panels.as_slice()[range.clone()], shape),
            None => Matrix::row_major(linear.dtype, self.checkpoint.bytes(&linear.location), shape),
        };
        matrix.expect("shape, length and alignment were checked when the checkpoint was opened")
    }
}

impl Linear {
    /// Bytes of the weights themselves, without padding.
    pub(super) fn bytes(&self) -> usize {
        self.rows * self.cols * self.dtype.size()
    }
}

impl Layer {
    fn linears(&self) -> Vec<&Linear> {
        let mut linears = vec![&self.query, &self.key, &self.value, &self.output];
        match &self.feed_forward {
            FeedForward::Dense(dense) => linears.extend([&dense.gate, &dense.up, &dense.down]),
            FeedForward::Sparse { router, experts, .. } => {
                linears.push(router);
                linears.extend(experts.iter().flat_map(|expert| [&expert.gate, &expert.up, &expert.down]));
            }
        }
        linears
    }
}

/// Gives each tensor its place; the bytes follow when all places are known.
struct Place<'a> {
    checkpoint: &'a Checkpoint,
    load: Load,
    next: &'a mut usize,
}

impl Place<'_> {
    fn layer(&mut self, config: &ModelConfig, index: usize) -> Layer {
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
            Mlp::Dense { .. } => FeedForward::Dense(
                self.gated_mlp(["gate", "up", "down"].map(|part| name(&format!("mlp.{part}_proj.weight")))),
            ),
            Mlp::Sparse(shape) => FeedForward::Sparse {
                router: self.linear(&config.router_name(index)),
                experts: (0..shape.num_experts)
                    .map(|expert| self.gated_mlp(expert_names(config, index, expert)))
                    .collect(),
                shape: shape.clone(),
            },
        };
        Layer {
            input_norm: self.vector(&name("input_layernorm.weight")),
            query,
            key,
            value,
            output,
            head_norms,
            post_attention_norm: self.vector(&name("post_attention_layernorm.weight")),
            window: config.layers[index].window,
            feed_forward,
        }
    }

    fn gated_mlp(&mut self, [gate, up, down]: [String; 3]) -> GatedMlp {
        GatedMlp { gate: self.linear(&gate), up: self.linear(&up), down: self.linear(&down) }
    }

    fn linear(&mut self, name: &str) -> Linear {
        let tensor = self.checkpoint.tensor(name);
        let (dtype, rows, cols) = (tensor.dtype, tensor.shape[0], tensor.shape[1]);
        let panels = (self.load == Load::Resident).then(|| {
            let bytes =
                Matrix::panel_bytes(dtype, [rows, cols]).expect("config.json's limits keep sizes far below 2^63");
            let start = self.next.next_multiple_of(MATRIX_ALIGNMENT);
            *self.next = start + bytes;
            start..start + bytes
        });
        Linear { dtype, rows, cols, bias: None, location: self.checkpoint.location(name), panels }
    }

    fn vector(&self, name: &str) -> Vec<f32> {
        let tensor = self.checkpoint.tensor(name);
        let mut values = vec![0.0; tensor.shape.iter().product()];
        tensor.dtype.widen(tensor.bytes, &mut values);
        values
    }
}

/// Activations are laid out once for all matrices that take them, in the form that the matrices' type asks for.
fn check_types(checkpoint: &Checkpoint) -> Result<(), LoadError> {
    let config = checkpoint.config();
    for (layer, shape) in config.layers.iter().enumerate() {
        let attention = ["q", "k", "v"].map(|part| layer_names(layer, &format!("self_attn.{part}_proj.weight")));
        let mut sharing = vec![attention.to_vec()];
        match &shape.mlp {
            Mlp::Dense { .. } => {
                sharing
                    .push(["gate", "up"].map(|part| layer_names(layer, &format!("mlp.{part}_proj.weight"))).to_vec());
            }
            Mlp::Sparse(sparse) => {
                let experts: Vec<_> = (0..sparse.num_experts).map(|e| expert_names(config, layer, e)).collect();
                sharing.push(experts.iter().flat_map(|[gate, up, _]| [gate.clone(), up.clone()]).collect());
                sharing.push(experts.into_iter().map(|[_, _, down]| down).collect());
            }
        }
        for names in sharing {
            let dtype_of = |name: &String| checkpoint.tensor(name).dtype;
            let first = dtype_of(&names[0]);
            if let Some(second) = names.iter().find(|name| dtype_of(name) != first) {
                return Err(LoadError::MixedTypes {
                    layer,
                    first: names[0].clone(),
                    first_dtype: first.name(),
                    second_dtype: dtype_of(second).name(),
                    second: second.clone(),
                });
            }
        }
    }
    Ok(())
}

/// Reads every tensor once: damaged weights are refused by name, and the pages come into memory on the way.
fn check_weights(
    checkpoint: &Checkpoint,
    workers: &rayon::ThreadPool,
    progress: &mut dyn FnMut(LoadProgress),
) -> Result<(), CheckpointError> {
    let specs = checkpoint.config().tensors();
    let total_bytes = specs.iter().map(|spec| checkpoint.tensor(&spec.name).bytes.len()).sum();
    let mut done_bytes = 0;
    progress(LoadProgress { done_bytes, total_bytes });
    for some in specs.chunks(64) {
        workers.install(|| some.par_iter().try_for_each(|spec| checkpoint.check_finite(&spec.name)))?;
        done_bytes += some.iter().map(|spec| checkpoint.tensor(&spec.name).bytes.len()).sum::<usize>();
        progress(LoadProgress { done_bytes, total_bytes });
    }
    Ok(())
}

fn lay_panels(checkpoint: &Checkpoint, isa: Isa, linears: &[&Linear], region: &mut [u8]) {
    // The places ascend, so cutting the region front to back gives each matrix its own bytes.
    let mut rest = region;
    let mut at = 0;
    let mut jobs = Vec::with_capacity(linears.len());
    for linear in linears {
        let range = linear.panels.clone().expect("every matrix of a resident model has panels");
        let (_, tail) = rest.split_at_mut(range.start - at);
        let (bytes, tail) = tail.split_at_mut(range.len());
        (rest, at) = (tail, range.end);
        jobs.push((*linear, bytes));
    }
    jobs.into_par_iter().for_each(|(linear, bytes)| {
        let source = Matrix::row_major(linear.dtype, checkpoint.bytes(&linear.location), [linear.rows, linear.cols])
            .expect("shape, length and alignment were checked when the checkpoint was opened");
        let panel_bytes = bytes.len() / source.panel_count();
        bytes.par_chunks_mut(panel_bytes).enumerate().for_each(|(panel, out)| source.pack_panel_with(isa, panel, out));
    });
}
