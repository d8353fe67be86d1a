//! From a folder to a model in memory.
//!
//! First every tensor gets its place, then memory is taken once, then each tensor is read once: checked for numbers that
//! are none, and laid into its place on the way. So a damaged file is refused by name, progress is true, and a model
//! that nearly fills the memory is not read twice.

use std::fmt;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::str::FromStr;

use numa::Region;
use rayon::prelude::*;
use simd::Isa;
use simd::matmul::{Activations, Matrix};

use super::rope_table::RopeTable;
use super::weights::{FeedForward, GatedMlp, HeadNorms, Layer, Linear, Model};
use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::config::{AttentionBias, Mlp, ModelConfig, QkNorm, expert_names, layer_names};

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

/// Huge pages and vector loads want every matrix to begin at a cache line.
const MATRIX_ALIGNMENT: usize = 64;

/// Tensors that are read together; progress is told after each such group.
const GROUP_BYTES: usize = 256 << 20;

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
        let config = checkpoint.config();
        let mut place = Place { checkpoint: &checkpoint, load: options.load, next: 0, placed: Vec::new() };
        let layers: Vec<Layer> = (0..config.layers.len()).map(|layer| place.layer(config, layer)).collect();
        let lm_head = place.linear(config.lm_head_name());
        let final_norm = place.vector("model.norm.weight");
        let rope = RopeTable::new(&config.rope);

        let Place { next: bytes, placed, .. } = place;
        let mut panels = Region::anonymous(bytes).map_err(|source| LoadError::Memory { bytes, source })?;
        let jobs = jobs(&checkpoint, placed, panels.as_mut_slice());
        let total_bytes = jobs.iter().map(|job| checkpoint.tensor(&job.tensor).bytes.len()).sum();
        let mut done_bytes = 0;
        progress(LoadProgress { done_bytes, total_bytes });
        let mut rest = jobs.into_iter().peekable();
        while rest.peek().is_some() {
            let mut group_bytes = 0;
            let group: Vec<Job> = std::iter::from_fn(|| {
                rest.next_if(|_| group_bytes < GROUP_BYTES)
                    .inspect(|job| group_bytes += checkpoint.tensor(&job.tensor).bytes.len())
            })
            .collect();
            workers.install(|| group.into_par_iter().try_for_each(|job| job.run(&checkpoint, options.isa)))?;
            if options.load == Load::Resident {
                checkpoint.release();
            }
            done_bytes += group_bytes;
            progress(LoadProgress { done_bytes, total_bytes });
        }
        Ok(Self { checkpoint, options, rope, layers, final_norm, lm_head, panels })
    }
}

/// One tensor to be read.
struct Job<'a> {
    tensor: String,
    /// Its place in the region, if it has one.
    panels: Option<&'a mut [u8]>,
}

/// Every tensor of the checkpoint, with its part of the region.
fn jobs<'a>(checkpoint: &Checkpoint, placed: Vec<(String, Range<usize>)>, region: &'a mut [u8]) -> Vec<Job<'a>> {
    // Places ascend, so cutting the region front to back gives each tensor its own bytes.
    let (mut rest, mut at) = (region, 0);
    let mut jobs = Vec::with_capacity(placed.len());
    let mut names = std::collections::HashSet::new();
    for (tensor, range) in placed {
        let (_, tail) = rest.split_at_mut(range.start - at);
        let (panels, tail) = tail.split_at_mut(range.len());
        (rest, at) = (tail, range.end);
        names.insert(tensor.clone());
        jobs.push(Job { tensor, panels: Some(panels) });
    }
    let others = checkpoint.config().tensors().into_iter().filter(|spec| !names.contains(&spec.name));
    jobs.extend(others.map(|spec| Job { tensor: spec.name, panels: None }));
    jobs
}

impl Job<'_> {
    fn run(self, checkpoint: &Checkpoint, isa: Isa) -> Result<(), CheckpointError> {
        checkpoint.check_finite(&self.tensor)?;
        let Some(panels) = self.panels else { return Ok(()) };
        let tensor = checkpoint.tensor(&self.tensor);
        let source = Matrix::row_major(tensor.dtype, tensor.bytes, [tensor.shape[0], tensor.shape[1]])
            .expect("shape, length and alignment were checked when the checkpoint was opened");
        let panel_bytes = panels.len() / source.panel_count();
        panels.par_chunks_mut(panel_bytes).enumerate().for_each(|(panel, out)| source.pack_panel_with(isa, panel, out));
        Ok(())
    }
}

/// Gives each tensor its place; the bytes follow when all places are known.
struct Place<'a> {
    checkpoint: &'a Checkpoint,
    load: Load,
    /// Where the next matrix may begin.
    next: usize,
    /// Tensors with a place in the region, in its order.
    placed: Vec<(String, Range<usize>)>,
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
            self.next = start + bytes;
            self.placed.push((name.into(), start..start + bytes));
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
