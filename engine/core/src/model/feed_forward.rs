//! Feed-forward part of one layer: a gated MLP, or a router and experts.
//!
//! Expert weights are the largest thing in the process, and a token touches few of them. So work is ordered by bytes,
//! not by arithmetic: route every row first, group rows by expert, then read each chosen expert once.

use std::ops::Range;
use std::slice;

use numa::TileMut;
use simd::elementwise;
use simd::matmul::{PANEL, Rows};

use super::forward::{Batch, NormOf, Observer};
use super::linear::{Into, Product};
use super::low_rank::{Deltas, Input};
use super::routing::{self, Assignments, NO_EXPERT};
use super::weights::{FeedForward, GatedMlp, Layer, Model};
use super::workspace::{Buffers, Crew, Worker, Workspace};
use crate::adapter::{Module, Norm};
use crate::config::{Activation, Sparse};

impl Model {
    /// `residual += feed_forward(norm(residual))`
    pub(super) fn feed_forward(
        &self,
        index: usize,
        layer: &Layer,
        batch: &Batch,
        space: &mut Workspace,
        observer: &mut dyn Observer,
    ) {
        let Workspace { crew, buffers, .. } = space;
        let rows = batch.rows.len();
        let norm = NormOf { batch, layer: index, norm: Norm::PostAttention, weight: &layer.post_attention_norm };
        if buffers.low_rank.adapts(batch, index, &[Module::Router, Module::Gate, Module::Up]) {
            self.prepare_normed_exact(norm, rows, buffers, crew);
        }
        match &layer.feed_forward {
            FeedForward::Dense(mlp) => {
                self.prepare_normed(norm, &mlp.gate, rows, buffers, crew);
                self.dense(index, mlp, batch, buffers, crew);
            }
            FeedForward::Sparse { router, experts, shape } => {
                self.prepare_normed(norm, router, rows, buffers, crew);
                let Buffers { prepared, identity, router_logits, low_rank, .. } = buffers;
                let deltas = low_rank.deltas(self, batch, index, [Module::Router], Input::Rows, crew);
                let logits = &mut router_logits[..rows * shape.num_experts];
                self.project(Product { linears: [router], deltas }, prepared, identity, Into::Store, logits, crew);
                routing::choose(self.options.isa, shape, rows, buffers, crew);
                let logits = &buffers.router_logits[..rows * shape.num_experts];
                observer.routed(index, logits, &buffers.choices[..rows * shape.most_experts_per_tok]);
                if experts[0].gate.dtype != router.dtype {
                    self.prepare_normed(norm, &experts[0].gate, rows, buffers, crew);
                }
                self.sparse(index, experts, shape, batch, buffers, crew);
            }
        }
    }

    fn dense(&self, index: usize, mlp: &GatedMlp, batch: &Batch, buffers: &mut Buffers, crew: &mut Crew) {
        let (hidden, rows) = (self.config().hidden_size, batch.rows.len());
        let Buffers { prepared, identity, activated, residual, low_rank, .. } = buffers;
        let activated = &mut activated[..rows * mlp.down.cols];
        let rows_of_all = 0..rows;
        let groups = slice::from_ref(&rows_of_all);
        let everyone = Groups { mlps: slice::from_ref(mlp), chosen: &[0], rows: groups, select: identity };
        let deltas = low_rank.deltas(self, batch, index, [Module::Gate, Module::Up], Input::Rows, crew);
        self.gate_and_up(&everyone, deltas, prepared, activated, crew);

        self.prepare(&mlp.down, activated, prepared, crew);
        if low_rank.adapts(batch, index, &[Module::Down]) {
            self.prepare_exact(&mlp.down, activated, &mut low_rank.input, crew);
        }
        let deltas = low_rank.deltas(self, batch, index, [Module::Down], Input::Rows, crew);
        let product = Product { linears: [&mlp.down], deltas };
        self.project(product, prepared, identity, Into::Add, &mut residual[..rows * hidden], crew);
    }

    fn sparse(
        &self,
        index: usize,
        experts: &[GatedMlp],
        shape: &Sparse,
        batch: &Batch,
        buffers: &mut Buffers,
        crew: &mut Crew,
    ) {
        let (hidden, k, rows) = (self.config().hidden_size, shape.most_experts_per_tok, batch.rows.len());
        let Buffers { prepared, identity, activated, assignments, expert_out, choices, residual, low_rank, .. } =
            buffers;
        let Assignments { rows: select, experts: chosen, groups, of_choice, .. } = &*assignments;
        let count = select.len();
        let activated = &mut activated[..count * shape.moe_intermediate_size];
        low_rank.gather_experts(batch, index, chosen, groups, select);
        let deltas = low_rank.deltas(self, batch, index, [Module::Gate, Module::Up], Input::OfExperts, crew);
        self.gate_and_up(&Groups { mlps: experts, chosen, rows: groups, select }, deltas, prepared, activated, crew);

        self.prepare(&experts[0].down, activated, prepared, crew);
        if low_rank.adapts(batch, index, &[Module::Down]) {
            self.prepare_exact(&experts[0].down, activated, &mut low_rank.input, crew);
        }
        let deltas = low_rank.deltas(self, batch, index, [Module::Down], Input::Assignments, crew);
        let of_assignments = Groups { mlps: experts, chosen, rows: groups, select: identity };
        self.down(&of_assignments, deltas, prepared, &mut expert_out[..count * hidden], crew);

        // A row's experts are summed in the order of their scores, and the sum goes onto the residual.
        let (isa, expert_out, choices) = (self.options.isa, &*expert_out, &*choices);
        let residual = &mut residual[..rows * hidden];
        crew.pool.chunks(&mut crew.workers, residual, hidden, |worker, row, residual| {
            let sum = &mut worker.row[..hidden];
            sum.fill(0.0);
            let of_row = row * k..(row + 1) * k;
            let chosen = of_choice[of_row.clone()].iter().zip(&choices[of_row]);
            for (assignment, choice) in chosen.take_while(|(_, choice)| choice.expert != NO_EXPERT) {
                let out = &expert_out[*assignment as usize * hidden..][..hidden];
                elementwise::add_scaled(isa, sum, out, choice.weight);
            }
            elementwise::add_assign(isa, residual, sum);
        });
    }

    /// `activation(gate x, up x)` of each group's MLP, into `out` `[assignments, intermediate_size]`.
    fn gate_and_up(
        &self,
        groups: &Groups,
        deltas: Option<Deltas<2>>,
        prepared: &Rows,
        out: &mut [f32],
        crew: &mut Crew,
    ) {
        let width = groups.mlps[0].gate.rows;
        let (isa, activation) = (self.options.isa, self.config().activation);
        crew.cut([&groups.mlps[0].gate], groups.most_rows());
        crew.bytes_read += groups
            .chosen
            .iter()
            .map(|mlp| groups.mlps[*mlp].gate.bytes() + groups.mlps[*mlp].up.bytes())
            .sum::<usize>();
        crew.tiles(out, width, groups.rows, |worker, mut tile: TileMut<'_, f32>| {
            let (mlp, select, cols) = (groups.mlp(tile.group()), &groups.select[tile.rows()], tile.cols());
            let (group, rows) = (tile.group(), select.len());
            let Worker { panel, sums, up_sums, low_rank, .. } = worker;
            let gate = self.multiply(&mlp.gate, &cols, prepared, select, panel, sums);
            let up = self.multiply(&mlp.up, &cols, prepared, select, panel, up_sums);
            if let Some(deltas) = &deltas {
                deltas.add(isa, 0, group, &cols, rows, low_rank, panel, gate);
                deltas.add(isa, 1, group, &cols, rows, low_rank, panel, up);
            }
            for row in 0..select.len() {
                for (panel, out) in tile.row_mut(row).chunks_mut(PANEL).enumerate() {
                    let at = panel * select.len() + row;
                    let (gate, up) = (&gate[at][..out.len()], &up[at][..out.len()]);
                    match activation {
                        Activation::Silu => elementwise::silu_mul(isa, gate, up, out),
                        Activation::ClampedSilu { limit, alpha } => {
                            elementwise::clamped_silu_mul(isa, gate, up, limit, alpha, out);
                        }
                    }
                }
            }
        });
    }

    /// `down x` of each group's expert, into `out` `[assignments, hidden_size]`.
    fn down(&self, groups: &Groups, deltas: Option<Deltas<1>>, prepared: &Rows, out: &mut [f32], crew: &mut Crew) {
        let width = groups.mlps[0].down.rows;
        crew.cut([&groups.mlps[0].down], groups.most_rows());
        crew.bytes_read += groups.chosen.iter().map(|mlp| groups.mlps[*mlp].down.bytes()).sum::<usize>();
        crew.tiles(out, width, groups.rows, |worker, mut tile: TileMut<'_, f32>| {
            let (mlp, select, cols) = (groups.mlp(tile.group()), &groups.select[tile.rows()], tile.cols());
            let (group, rows) = (tile.group(), select.len());
            let Worker { panel, sums, low_rank, .. } = worker;
            let sums = self.multiply(&mlp.down, &cols, prepared, select, panel, sums);
            if let Some(deltas) = &deltas {
                deltas.add(self.options.isa, 0, group, &cols, rows, low_rank, panel, sums);
            }
            for row in 0..select.len() {
                for (panel, out) in tile.row_mut(row).chunks_mut(PANEL).enumerate() {
                    out.copy_from_slice(&sums[panel * select.len() + row][..out.len()]);
                }
            }
        });
    }
}

/// Which rows go through which MLP. All MLPs have one shape, and so one division into slices.
struct Groups<'a> {
    mlps: &'a [GatedMlp],
    /// MLP of each group.
    chosen: &'a [usize],
    /// Assignments of each group, ascending.
    rows: &'a [Range<usize>],
    /// Prepared row of each assignment.
    select: &'a [u32],
}

impl<'a> Groups<'a> {
    fn mlp(&self, group: usize) -> &'a GatedMlp {
        &self.mlps[self.chosen[group]]
    }

    fn most_rows(&self) -> usize {
        self.rows.iter().map(Range::len).max().unwrap_or(0)
    }
}
