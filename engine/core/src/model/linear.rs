//! Products with weight matrices, spread over the workers by output columns.
//!
//! A task is some rows times some panels of one matrix; the sums of an output element are never split, so any division
//! into tasks gives the same bits. On several nodes no task goes beyond a slice, and the workers of its node compute it.

use std::ops::Range;

use numa::TileMut;
use simd::Dtype;
use simd::matmul::{PANEL, PanelScratch, Rows};

use super::load::ModelOptions;
use super::low_rank::Deltas;
use super::weights::{Linear, Model};
use super::workspace::{Crew, Worker};

/// What becomes of a product.
#[derive(Clone, Copy)]
pub(super) enum Into {
    /// `out = W x + b`
    Store,
    /// `out += W x + b`
    Add,
}

/// Matrices of one input, side by side, and what adapters add to their products.
pub(super) struct Product<'a, const N: usize> {
    pub(super) linears: [&'a Linear; N],
    pub(super) deltas: Option<Deltas<'a, N>>,
}

impl Model {
    /// Lays `x` `[rows, cols]` out as the kernels for `linear` read it.
    pub(super) fn prepare(&self, linear: &Linear, x: &[f32], prepared: &mut Rows, crew: &mut Crew) {
        self.prepare_for(linear.dtype, linear.cols, x, prepared, crew);
    }

    /// The same for what adapters add.
    pub(super) fn prepare_exact(&self, linear: &Linear, x: &[f32], prepared: &mut Rows, crew: &mut Crew) {
        self.prepare_for(Dtype::F32, linear.cols, x, prepared, crew);
    }

    fn prepare_for(&self, dtype: Dtype, cols: usize, x: &[f32], prepared: &mut Rows, crew: &mut Crew) {
        let ModelOptions { isa, activations, .. } = self.options;
        let (form, words) = prepared.start(isa, dtype, activations, x.len() / cols, cols);
        crew.pool.chunks(&mut crew.workers, words, form.words(), |_, row, words| {
            form.prepare(&x[row * cols..][..cols], words);
        });
    }

    /// Products of the prepared rows with several matrices, side by side in `out` `[rows, sum of their rows]`.
    ///
    /// All of them have one data type, and so take the form of activations that was prepared.
    pub(super) fn project<const N: usize>(
        &self,
        Product { linears, deltas }: Product<N>,
        prepared: &Rows,
        identity: &[u32],
        into: Into,
        out: &mut [f32],
        crew: &mut Crew,
    ) {
        let width: usize = linears.iter().map(|linear| linear.rows).sum();
        let rows = out.len() / width;
        crew.cut(linears, rows);
        let select = &identity[..rows];
        let all_rows = 0..rows;
        crew.bytes_read += linears.iter().map(|linear| linear.bytes()).sum::<usize>();
        crew.tiles(out, width, std::slice::from_ref(&all_rows), |worker, mut tile: TileMut<'_, f32>| {
            let (nth, cols) = at_column(&linears, tile.cols());
            let Worker { panel, sums, low_rank, .. } = worker;
            let sums = self.multiply(linears[nth], &cols, prepared, select, panel, sums);
            if let Some(deltas) = &deltas {
                deltas.add(self.options.isa, nth, 0, &cols, rows, low_rank, panel, sums);
            }
            for row in 0..rows {
                for (panel, out) in tile.row_mut(row).chunks_mut(PANEL).enumerate() {
                    for (out, product) in out.iter_mut().zip(&sums[panel * rows + row]) {
                        match into {
                            Into::Store => *out = *product,
                            Into::Add => *out += product,
                        }
                    }
                }
            }
        });
    }

    /// Columns `cols` of the products of the selected rows, biases added, as `[panel][row][PANEL]`; `cols` begins at a
    /// panel and lies in one slice.
    pub(super) fn multiply<'s>(
        &self,
        linear: &Linear,
        cols: &Range<usize>,
        prepared: &Rows,
        select: &[u32],
        scratch: &mut PanelScratch,
        sums: &'s mut [[f32; PANEL]],
    ) -> &'s mut [[f32; PANEL]] {
        let (matrix, first_row) = self.matrix(linear, cols.start);
        let panels = (cols.start - first_row) / PANEL..(cols.end - first_row).div_ceil(PANEL);
        let sums = &mut sums[..panels.len() * select.len()];
        simd::matmul::multiply(self.options.isa, &matrix, panels, prepared, select, scratch, sums);
        if let Some(bias) = &linear.bias
            && !select.is_empty()
        {
            for (sums, bias) in sums.chunks_exact_mut(select.len()).zip(bias[cols.clone()].chunks(PANEL)) {
                for (sum, bias) in sums.iter_mut().flat_map(|sums| sums.iter_mut().zip(bias)) {
                    *sum += bias;
                }
            }
        }
        sums
    }
}

/// Index of the matrix that holds column `cols` of matrices laid side by side, and the columns within it.
fn at_column(linears: &[&Linear], mut cols: Range<usize>) -> (usize, Range<usize>) {
    for (nth, linear) in linears.iter().enumerate() {
        if cols.start < linear.rows {
            return (nth, cols);
        }
        cols = cols.start - linear.rows..cols.end - linear.rows;
    }
    unreachable!("cuts end at the last matrix")
}
