//! The forward pass: one step over a batch of rows, the same for every family.
//!
//! A row is one token of one sequence at one position. Prefill is a step with many rows of a sequence, decoding one with
//! a row each of many sequences, and any mix is allowed: no row's bits depend on the rows beside it.

use std::num::NonZeroUsize;

use numa::TileMut;
use simd::Dtype;
use simd::elementwise;
use simd::matmul::{PANEL, Rows, multiply};

use super::linear::{Into, Product};
use super::load::ModelOptions;
use super::low_rank::Input;
use super::routing::Choice;
use super::weights::{Linear, Model};
use super::workspace::{Buffers, Crew, Workspace};
use crate::adapter::{AdapterSet, Module, Norm};
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
    /// Adapters of each sequence, in the order of `tables`; of a sequence beyond their end, none.
    pub adapters: &'a [AdapterSet],
}

impl<'a> Batch<'a> {
    /// The adapters of a row, if its sequence has any.
    pub(super) fn adapters_of(&self, row: usize) -> Option<&'a AdapterSet> {
        self.adapters.get(self.rows[row].sequence)
    }
}

/// A norm of some layer, which adapters may replace for their rows.
#[derive(Clone, Copy)]
pub(super) struct NormOf<'a> {
    pub(super) batch: &'a Batch<'a>,
    pub(super) layer: usize,
    pub(super) norm: Norm,
    pub(super) weight: &'a [f32],
}

impl<'a> NormOf<'a> {
    /// The weights for a row: of the final norm, a row with logits.
    pub(super) fn of_row(self, row: usize) -> &'a [f32] {
        if self.batch.adapters.is_empty() {
            return self.weight;
        }
        let row = if self.norm == Norm::Final { self.batch.logits[row] } else { row };
        self.batch.adapters_of(row).and_then(|set| set.norm(self.layer, self.norm)).unwrap_or(self.weight)
    }
}

/// Watches a step from the control thread, between its phases.
pub trait Observer {
    /// The residual stream `[rows, hidden_size]` before layer `layer`; after the last one `layer` is their number.
    fn residual(&mut self, _layer: usize, _rows: &[f32]) {}
    /// Router logits `[rows, num_experts]` and chosen experts `[rows, most_experts_per_tok]`, best first; behind those of a
    /// row that asked for fewer stand choices without an expert.
    fn routed(&mut self, _layer: usize, _logits: &[f32], _choices: &[Choice]) {}
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
        space.buffers.low_rank.begin(batch);
        for (index, layer) in self.layers.iter().enumerate() {
            observer.residual(index, self.residual(rows, space));
            self.attention(index, layer, batch, kv, space);
            self.feed_forward(index, layer, batch, space, observer);
        }
        observer.residual(self.layers.len(), self.residual(rows, space));
        self.unembed(batch, space);
    }

    /// The final norm of one row of the last residual stream, `[hidden_size]`, of a sequence with these adapters.
    pub(crate) fn final_norm(&self, residual: &[f32], adapters: Option<&AdapterSet>, normed: &mut [f32]) {
        let replaced = adapters.and_then(|set| set.norm(0, Norm::Final));
        let weight = replaced.unwrap_or(&self.final_norm);
        elementwise::rms_norm(self.options.isa, residual, weight, self.config().rms_norm_eps, normed);
    }

    fn residual<'s>(&self, rows: usize, space: &'s Workspace) -> &'s [f32] {
        &space.buffers.residual[..rows * self.config().hidden_size]
    }

    /// `residual = embedding[token]`, and the rotary tables of the rows' positions.
    fn embed(&self, batch: &Batch, buffers: &mut Buffers) {
        let config = self.config();
        let embedding = self.checkpoint.tensor("model.embed_tokens.weight");
        let pairs = self.rope.pairs();
        for (index, row) in batch.rows.iter().enumerate() {
            buffers.asked_experts[index] = row.experts_per_token;
            let replaced = batch.adapters_of(index).and_then(AdapterSet::embedding);
            let (dtype, bytes) = replaced.unwrap_or((embedding.dtype, embedding.bytes));
            let row_bytes = config.hidden_size * dtype.size();
            let from = &bytes[row.token as usize * row_bytes..][..row_bytes];
            dtype.widen(from, &mut buffers.residual[index * config.hidden_size..][..config.hidden_size]);
            let of_row = index * pairs..(index + 1) * pairs;
            self.rope.fill(row.position, &mut buffers.cos[of_row.clone()], &mut buffers.sin[of_row]);
        }
    }

    /// Lays `rms_norm(residual)` out as the kernels for `linear` read it.
    pub(super) fn prepare_normed(
        &self,
        norm: NormOf,
        linear: &Linear,
        rows: usize,
        buffers: &mut Buffers,
        crew: &mut Crew,
    ) {
        let Buffers { residual, prepared, .. } = buffers;
        self.normed(norm, linear.dtype, rows, residual, prepared, crew);
    }

    /// As [`prepare_normed`](Self::prepare_normed), for what adapters add.
    pub(super) fn prepare_normed_exact(&self, norm: NormOf, rows: usize, buffers: &mut Buffers, crew: &mut Crew) {
        let Buffers { residual, low_rank, .. } = buffers;
        self.normed(norm, Dtype::F32, rows, residual, &mut low_rank.input, crew);
    }

    fn normed(&self, norm: NormOf, dtype: Dtype, rows: usize, residual: &[f32], prepared: &mut Rows, crew: &mut Crew) {
        let (hidden, epsilon) = (self.config().hidden_size, self.config().rms_norm_eps);
        let ModelOptions { isa, activations, .. } = self.options;
        let (form, words) = prepared.start(isa, dtype, activations, rows, hidden);
        crew.pool.chunks(&mut crew.workers, words, form.words(), |worker, row, words| {
            let normed = &mut worker.row[..hidden];
            elementwise::rms_norm(isa, &residual[row * hidden..][..hidden], norm.of_row(row), epsilon, normed);
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
        let norm = NormOf { batch, layer: 0, norm: Norm::Final, weight: &self.final_norm };
        let adapted = buffers.low_rank.adapts(batch, 0, &[Module::LmHead]);
        buffers.low_rank.gather_wanted(batch);
        let replaced = |row: &usize| batch.adapters_of(*row).is_some_and(AdapterSet::replaces_lm_head);
        if !batch.logits.iter().all(replaced) {
            self.prepare_normed(norm, &self.lm_head, wanted, buffers, crew);
            if adapted {
                self.prepare_normed_exact(norm, wanted, buffers, crew);
            }
            let Buffers { prepared, identity, logits, low_rank, .. } = buffers;
            let deltas = low_rank.deltas(self, batch, 0, [Module::LmHead], Input::Rows, crew);
            let logits = &mut logits[..wanted * self.config().vocab_size];
            let product = Product { linears: [&self.lm_head], deltas };
            self.project(product, prepared, identity, Into::Store, logits, crew);
        }
        if batch.logits.iter().any(replaced) {
            self.unembed_replaced(norm, wanted, buffers, crew);
        }
    }

    /// The logits of rows with adapters that replace the output matrix.
    fn unembed_replaced(&self, norm: NormOf, wanted: usize, buffers: &mut Buffers, crew: &mut Crew) {
        let Buffers { residual, prepared, logits, low_rank, .. } = buffers;
        let vocab_size = self.config().vocab_size;
        let logits = &mut logits[..wanted * vocab_size];
        low_rank.each_lm_head(norm.batch, |matrix, select| {
            self.normed(norm, matrix.dtype(), wanted, residual, prepared, crew);
            let (isa, prepared) = (self.options.isa, &*prepared);
            let all = 0..wanted;
            crew.bytes_read += matrix.bytes().len();
            crew.cut([&self.lm_head], wanted);
            crew.tiles(logits, vocab_size, std::slice::from_ref(&all), |worker, mut tile: TileMut<'_, f32>| {
                let panels = tile.cols().start / PANEL..tile.cols().end.div_ceil(PANEL);
                let sums = &mut worker.sums[..panels.len() * select.len()];
                multiply(isa, matrix, panels, prepared, select, &mut worker.panel, sums);
                for (nth, row) in select.iter().enumerate() {
                    for (panel, out) in tile.row_mut(*row as usize).chunks_mut(PANEL).enumerate() {
                        out.copy_from_slice(&sums[panel * select.len() + nth][..out.len()]);
                    }
                }
            });
        });
    }
}
