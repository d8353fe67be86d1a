//! Weights in the form in which kernels read them.
//!
//! `resident` lays every matrix into panels in anonymous memory with huge pages, cut over the nodes; `mapped` leaves the
//! published file where it is, in the page cache, and turns each panel in registers. A folder that `nightmonk pack` wrote
//! holds panels already: they are mapped or copied as they are. All give the same bits. The embedding is only
//! looked up by rows and stays in the map; norms and biases are small and become float32.

use std::io;
use std::ops::Range;

use numa::Region;
use simd::Dtype;
use simd::matmul::{MXFP4_BLOCK, Matrix};

use super::load::{Load, ModelOptions};
use super::rope_table::RopeTable;
use super::source::{MXFP4_BLOCK_BYTES, Source};
use super::strips::EMBEDDING;
use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::config::{ModelConfig, Sparse};
use crate::homes::{Homes, NodePages};

/// A model ready to compute.
pub struct Model {
    pub(super) checkpoint: Checkpoint,
    pub(super) options: ModelOptions,
    pub(super) rope: RopeTable,
    pub(super) layers: Vec<Layer>,
    pub(super) final_norm: Vec<f32>,
    pub(super) lm_head: Linear,
    pub(super) homes: Homes,
    /// The slices of each home.
    pub(super) panels: Vec<Region>,
}

pub(super) struct Layer {
    pub(super) input_norm: Vec<f32>, // [hidden_size]
    pub(super) query: Linear,
    pub(super) key: Linear,
    pub(super) value: Linear,
    pub(super) output: Linear,
    pub(super) head_norms: Option<HeadNorms>,
    /// One more score of each query head, without a value.
    pub(super) sinks: Option<Vec<f32>>, // [num_attention_heads]
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
    Dense(Box<GatedMlp>),
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
    pub(super) source: Source,
    /// Its panels, cut by rows: ascending, together all of it. None where it stays in the map.
    pub(super) slices: Vec<Slice>,
}

/// Panels of a matrix that lie together, in the memory of one node.
pub(super) struct Slice {
    pub(super) home: usize,
    /// Rows of the matrix; they begin at a panel.
    pub(super) rows: Range<usize>,
    /// Bytes of the home's region.
    pub(super) bytes: Range<usize>,
}

impl Model {
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
        self.panels.iter().map(|region| region.as_slice().len()).sum()
    }

    /// The nodes that share it.
    pub fn homes(&self) -> &Homes {
        &self.homes
    }

    /// Where the pages of its weights are, of those that are bound to nodes.
    ///
    /// # Errors
    /// If the kernel does not say.
    pub fn placement(&self) -> io::Result<Vec<NodePages>> {
        NodePages::of(&self.panels)
    }

    /// Keeps all weights in memory, those in the map with them, whatever else needs some.
    ///
    /// # Errors
    /// [`numa::lock::LockError`] with the limit that forbids it.
    pub fn lock(&self) -> io::Result<()> {
        match self.options.load {
            Load::Mapped => self.checkpoint.lock(None),
            Load::Resident => {
                self.panels.iter().try_for_each(|region| numa::lock(region.as_slice()))?;
                self.checkpoint.lock(Some(&self.checkpoint.location(EMBEDDING)))
            }
        }
    }

    /// Whether the mapped weights that steps read are still the published ones; nothing that a step computed may leave
    /// before this was asked.
    ///
    /// # Errors
    /// [`CheckpointError::Broken`] with the shard that was cut short or cannot be read.
    pub fn check_intact(&self) -> Result<(), CheckpointError> {
        match self.options.load {
            Load::Mapped => self.checkpoint.check_intact(),
            Load::Resident => self.checkpoint.check_intact_at(&self.checkpoint.location(EMBEDDING)),
        }
    }

    /// The weights as they lie in memory, for measuring how fast this machine reads them; on several nodes, those of one.
    pub fn weight_bytes(&self) -> &[u8] {
        match self.options.load {
            Load::Resident => self.panels.iter().map(Region::as_slice).max_by_key(|bytes| bytes.len()).unwrap_or(&[]),
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
                    // Packed experts differ a little in their bytes.
                    let all: usize = experts.iter().map(mlp).sum();
                    of(router) + (all * shape.num_experts_per_tok).checked_div(experts.len()).unwrap_or(0)
                }
            };
            attention.into_iter().map(&of).sum::<usize>() + feed_forward
        };
        self.layers.iter().map(layer).sum::<usize>() + of(&self.lm_head)
    }

    /// The part of a matrix that holds row `row`, as it lies in memory, and its first row: the one place where its form is
    /// decided.
    pub(super) fn matrix(&self, linear: &Linear, row: usize) -> (Matrix<'_>, usize) {
        let slice = linear.slices.iter().find(|slice| row < slice.rows.end);
        let rows = slice.map_or(0..linear.rows, |slice| slice.rows.clone());
        let shape = [rows.len(), linear.cols];
        let panels = slice.map(|slice| &self.panels[slice.home].as_slice()[slice.bytes.clone()]);
        let published = |location| self.checkpoint.bytes(location);
        let matrix = match (panels, &linear.source) {
            (Some(panels), Source::Rows { .. }) => Matrix::panels(linear.dtype, panels, shape),
            (Some(panels), Source::Mxfp4 { .. }) => Matrix::mxfp4_panels(panels, shape),
            (None, Source::Rows { location, first_row, row_step }) => {
                Matrix::row_major(linear.dtype, published(location), [linear.rows * row_step, linear.cols])
                    .map(|all| all.every(*first_row, *row_step))
            }
            (None, Source::Mxfp4 { blocks, scales, first_row, row_step }) => {
                let all = [linear.rows * row_step, linear.cols];
                Matrix::mxfp4_row_major(published(blocks), published(scales), all)
                    .map(|all| all.every(*first_row, *row_step))
            }
            (Some(panels), Source::Transposed { .. }) => Matrix::panels(linear.dtype, panels, shape),
            (None, Source::Transposed { .. }) => None, // `place` gives them panels wherever weights live.
            (panels, Source::Panels(location)) => {
                Matrix::panels(linear.dtype, panels.unwrap_or_else(|| published(location)), shape)
            }
            (panels, Source::Packed(location)) => {
                Matrix::packed(panels.unwrap_or_else(|| published(location)), shape).ok()
            }
        };
        (matrix.expect("shape, length and alignment were checked when the checkpoint was opened"), rows.start)
    }
}

impl Linear {
    /// Its parts that one node each computes: rows and home. Without a place it is one.
    pub(super) fn parts(&self) -> impl Iterator<Item = (Range<usize>, usize)> + '_ {
        let whole = self.slices.is_empty().then_some((0..self.rows, 0));
        self.slices.iter().map(|slice| (slice.rows.clone(), slice.home)).chain(whole)
    }

    /// Bytes that a product reads: the weights themselves, without padding, or all of packed panels.
    pub(super) fn bytes(&self) -> usize {
        match &self.source {
            Source::Rows { .. } | Source::Transposed { .. } | Source::Panels(_) => {
                self.rows * self.cols * self.dtype.size()
            }
            Source::Mxfp4 { .. } => self.rows * (self.cols / MXFP4_BLOCK) * MXFP4_BLOCK_BYTES,
            Source::Packed(location) => location.size(),
        }
    }
}
