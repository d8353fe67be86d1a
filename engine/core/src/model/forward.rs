//! The forward pass: one step over a batch of rows, the same for every family.
//!
//! A row is one token of one sequence at one position. Prefill is a step with many rows of a sequence, decoding one with
//! a row each of many sequences, and any mix is allowed: no row's bits depend on the rows beside it.

use std::num::NonZeroUsize;

use simd::elementwise;

use super::linear::Into;
use super::load::ModelOptions;
use super::weights::{Linear, Model};
use super::workspace::{Buffers, Crew, Workspace};
use crate::kv_cache::{BlockId, KvCache};

/// One token of a step.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Token id.
    pub token: u32,
    /// Position in its sequence, from 0.
    pub position: usize,
    /// Index of its sequence's block table in [`Batch::tables`].
    pub sequence: usize,
    /// Experts that it goes through, up to [`Sparse::most_experts_per_tok`](crate::config::Sparse); without it, as many as
    /// the model's tokens do.
    pub experts_per_token: Option<NonZeroUsize>,
}

/// Rows of one step. Rows of a sequence stand together, positions ascending by one.
pub struct Batch<'a> {
    /// The rows.
    pub rows: &'a [Row],
    /// Block tables, with room for every row's position.
    pub tables: &'a [Vec<BlockId>],
    /// Rows whose logits are wanted, ascending.
    pub logits: &'a [usize],
}

/// Watches a step from the control thread, between its phases.
pub trait Observer {
    /// The residual stream `[rows, hidden_size]` before layer `layer`; after the last one `layer` is their number.
    fn residual(&mut self, _layer: usize, _rows: &[f32]) {}
    /// Router logits `[rows, num_experts]` and chosen experts `[rows, most_experts_per_tok]`, best first; behind those of a
    /// row that asked for fewer stands `u32::MAX`.
    fn routed(&mut self, _layer: usize, _logits: &[f32], _experts: &[u32]) {}
}

/// Watches nothing.
impl Observer for () {}

impl Model {
    /// Computes a step: keys and values go into `kv`, wanted logits into the workspace.
    ///
    /// # Panics
    /// If a token is not in the vocabulary, a table has no room, or there are more rows than the workspace has: callers
    /// check what comes from outside.
    pub fn forward(&self, batch: &Batch, kv: &mut KvCache, space: &mut Workspace, observer: &mut dyn Observer) {
        let rows = batch.rows.len();
        assert!(rows <= space.max_rows(), "{rows} rows in a workspace for {}", space.max_rows());
        space.crew.bytes_read = 0;
        self.embed(batch, &mut space.buffers);
        for (index, layer) in self.layers.iter().enumerate() {
            observer.residual(index, self.residual(rows, space));
            self.attention(index, layer, batch, kv, space);
            self.feed_forward(index, layer, rows, space, observer);
        }
        observer.residual(self.layers.len(), self.residual(rows, space));
        self.unembed(batch, space);
    }

    fn residual<'s>(&self, rows: usize, space: &'s Workspace) -> &'s [f32] {
        &space.buffers.residual[..rows * self.config().hidden_size]
    }

    /// `residual = embedding[token]`, and the rotary tables of the rows' positions.
    fn embed(&self, batch: &Batch, buffers: &mut Buffers) {
        let config = self.config();
        let embedding = self.checkpoint.tensor("model.embed_tokens.weight");
        let row_bytes = config.hidden_size * embedding.dtype.size();
        let pairs = self.rope.pairs();
        for (index, row) in batch.rows.iter().enumerate() {
            buffers.asked_experts[index] = row.experts_per_token;
            let from = &embedding.bytes[row.token as usize * row_bytes..][..row_bytes];
            embedding.dtype.widen(from, &mut buffers.residual[index * config.hidden_size..][..config.hidden_size]);
            let of_row = index * pairs..(index + 1) * pairs;
            self.rope.fill(row.position, &mut buffers.cos[of_row.clone()], &mut buffers.sin[of_row]);
        }
    }

    /// Lays `rms_norm(residual)` out as the kernels for `linear` read it.
    pub(super) fn prepare_normed(
        &self,
        norm: &[f32],
        linear: &Linear,
        rows: usize,
        buffers: &mut Buffers,
        crew: &mut Crew,
    ) {
        let (hidden, epsilon) = (self.config().hidden_size, self.config().rms_norm_eps);
        let ModelOptions { isa, activations, .. } = self.options;
        let Buffers { residual, prepared, .. } = buffers;
        let (form, words) = prepared.start(isa, linear.dtype, activations, rows, hidden);
        crew.pool.chunks(&mut crew.workers, words, form.words(), |worker, row, words| {
            let normed = &mut worker.row[..hidden];
            elementwise::rms_norm(isa, &residual[row * hidden..][..hidden], norm, epsilon, normed);
            form.prepare(normed, words);
        });
    }

    /// `logits = lm_head rms_norm(residual)` of the wanted rows.
    fn unembed(&self, batch: &Batch, space: &mut Workspace) {
        let Workspace { crew, buffers, .. } = space;
        let (hidden, wanted) = (self.config().hidden_size, batch.logits.len());
        if wanted == 0 {
            return;
        }
        for (to, from) in batch.logits.iter().enumerate() {
            buffers.residual.copy_within(from * hidden..(from + 1) * hidden, to * hidden);
        }
        self.prepare_normed(&self.final_norm, &self.lm_head, wanted, buffers, crew);
        let Buffers { prepared, identity, logits, .. } = buffers;
        let logits = &mut logits[..wanted * self.config().vocab_size];
        self.project([&self.lm_head], prepared, identity, Into::Store, logits, crew);
    }
}
