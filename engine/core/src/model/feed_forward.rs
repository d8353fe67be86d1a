//! Feed-forward part of one layer: a gated MLP, or a router and experts.
//!
//! Expert weights are the largest thing in the process, and a token touches few of them. So work is ordered by bytes,
//! not by arithmetic: route every row first, group rows by expert, then read each chosen expert once.

use std::ops::Range;
use std::slice;

use numa::TileMut;
use simd::elementwise;
use simd::matmul::{PANEL, Rows};

use super::forward::Observer;
use super::linear::Into;
use super::routing::{self, Assignments, NO_EXPERT};
use super::weights::{FeedForward, GatedMlp, Layer, Model};
use super::workspace::{Buffers, Crew, Workspace};
use crate::config::{Activation, Sparse};

impl Model {
    /// `residual += feed_forward(norm(residual))`
    pub(super) fn feed_forward(
        &self,
        index: usize,
        layer: &Layer,
        rows: usize,
        space: &mut Workspace,
        observer: &mut dyn Observer,
    ) {
        let Workspace { crew, buffers, .. } = space;
        let norm = &layer.post_attention_norm;
        match &layer.feed_forward {
            FeedForward::Dense(mlp) => {
                self.prepare_normed(norm, &mlp.gate, rows, buffers, crew);
                self.dense(mlp, rows, buffers, crew);
            }
            FeedForward::Sparse { router, experts, shape } => {
                self.prepare_normed(norm, router, rows, buffers, crew);
                let Buffers { prepared, identity, router_logits, .. } = buffers;
                let logits = &mut router_logits[..rows * shape.num_experts];
                self.project([router], prepared, identity, Into::Store, logits, crew);
                routing::choose(self.options.isa, shape, rows, buffers, crew);
                let logits = &buffers.router_logits[..rows * shape.num_experts];
                observer.routed(index, logits, &buffers.experts[..rows * shape.most_experts_per_tok]);
                if experts[0].gate.dtype != router.dtype {
                    self.prepare_normed(norm, &experts[0].gate, rows, buffers, crew);
                }
                self.sparse(experts, shape, rows, buffers, crew);
            }
        }
    }

    fn dense(&self, mlp: &GatedMlp, rows: usize, buffers: &mut Buffers, crew: &mut Crew) {
        let hidden = self.config().hidden_size;
        let Buffers { prepared, identity, activated, residual, .. } = buffers;
        let activated = &mut activated[..rows * mlp.down.cols];
        let rows_of_all = 0..rows;
        let groups = slice::from_ref(&rows_of_all);
        let everyone = Groups { mlps: slice::from_ref(mlp), chosen: &[0], rows: groups, select: identity };
        self.gate_and_up(&everyone, prepared, activated, crew);
        self.prepare(&mlp.down, activated, prepared, crew);
        self.project([&mlp.down], prepared, identity, Into::Add, &mut residual[..rows * hidden], crew);
    }

    fn sparse(&self, experts: &[GatedMlp], shape: &Sparse, rows: usize, buffers: &mut Buffers, crew: &mut Crew) {
        let (hidden, k) = (self.config().hidden_size, shape.most_experts_per_tok);
        let Buffers { prepared, identity, activated, assignments, expert_out, choices, residual, .. } = buffers;
        let Assignments { rows: select, experts: chosen, groups, of_choice, .. } = &*assignments;
        let count = select.len();
        let activated = &mut activated[..count * shape.moe_intermediate_size];
        self.gate_and_up(&Groups { mlps: experts, chosen, rows: groups, select }, prepared, activated, crew);

        self.prepare(&experts[0].down, activated, prepared, crew);
        let of_assignments = Groups { mlps: experts, chosen, rows: groups, select: identity };
        self.down(&of_assignments, prepared, &mut expert_out[..count * hidden], crew);

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
    fn gate_and_up(&self, groups: &Groups, prepared: &Rows, out: &mut [f32], crew: &mut Crew) {
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
            let gate = self.multiply(&mlp.gate, &cols, prepared, select, &mut worker.panel, &mut worker.sums);
            let up = self.multiply(&mlp.up, &cols, prepared, select, &mut worker.panel, &mut worker.up_sums);
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
    fn down(&self, groups: &Groups, prepared: &Rows, out: &mut [f32], crew: &mut Crew) {
        let width = groups.mlps[0].down.rows;
        crew.cut([&groups.mlps[0].down], groups.most_rows());
        crew.bytes_read += groups.chosen.iter().map(|mlp| groups.mlps[*mlp].down.bytes()).sum::<usize>();
        crew.tiles(out, width, groups.rows, |worker, mut tile: TileMut<'_, f32>| {
            let (mlp, select, cols) = (groups.mlp(tile.group()), &groups.select[tile.rows()], tile.cols());
            let sums = self.multiply(&mlp.down, &cols, prepared, select, &mut worker.panel, &mut worker.sums);
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
