//! Products with weight matrices, spread over the workers by output columns.
//!
//! A task is some rows times some panels of one matrix; the sums of an output element are never split, so any division
//! into tasks gives the same bits.

use std::ops::Range;

use numa::TileMut;
use simd::matmul::{PANEL, PanelScratch, Rows};

use super::load::ModelOptions;
use super::weights::{Linear, Model};
use super::workspace::Crew;

/// What becomes of a product.
#[derive(Clone, Copy)]
pub(super) enum Into {
    /// `out = W x + b`
    Store,
    /// `out += W x + b`
    Add,
}

impl Model {
    /// Lays `x` `[rows, cols]` out as the kernels for `linear` read it.
    pub(super) fn prepare(&self, linear: &Linear, x: &[f32], prepared: &mut Rows, crew: &mut Crew) {
        let ModelOptions { isa, activations, .. } = self.options;
        let (form, words) = prepared.start(isa, linear.dtype, activations, x.len() / linear.cols, linear.cols);
        crew.pool.chunks(&mut crew.workers, words, form.words(), |_, row, words| {
            form.prepare(&x[row * linear.cols..][..linear.cols], words);
        });
    }

    /// Products of the prepared rows with several matrices, side by side in `out` `[rows, sum of their rows]`.
    ///
    /// All of them have one data type, and so take the form of activations that was prepared.
    pub(super) fn project<const N: usize>(
        &self,
        linears: [&Linear; N],
        prepared: &Rows,
        identity: &[u32],
        into: Into,
        out: &mut [f32],
        crew: &mut Crew,
    ) {
        let width: usize = linears.iter().map(|linear| linear.rows).sum();
        let rows = out.len() / width;
        crew.cut(linears.map(|linear| linear.rows), rows);
        let select = &identity[..rows];
        let all_rows = 0..rows;
        crew.bytes_read += linears.iter().map(|linear| linear.bytes()).sum::<usize>();
        let Crew { pool, workers, cuts, .. } = crew;
        pool.tiles(workers, out, width, std::slice::from_ref(&all_rows), cuts, |worker, mut tile: TileMut<'_, f32>| {
            let (linear, cols) = at_column(&linears, tile.cols());
            let sums = self.multiply(linear, &cols, prepared, select, &mut worker.panel, &mut worker.sums);
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
    /// panel.
    pub(super) fn multiply<'s>(
        &self,
        linear: &Linear,
        cols: &Range<usize>,
        prepared: &Rows,
        select: &[u32],
        scratch: &mut PanelScratch,
        sums: &'s mut [[f32; PANEL]],
    ) -> &'s [[f32; PANEL]] {
        let panels = cols.start / PANEL..cols.end.div_ceil(PANEL);
        let sums = &mut sums[..panels.len() * select.len()];
        simd::matmul::multiply(self.options.isa, &self.matrix(linear), panels, prepared, select, scratch, sums);
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

/// The matrix that holds column `cols` of matrices laid side by side, and the columns within it.
fn at_column<'a>(linears: &[&'a Linear], mut cols: Range<usize>) -> (&'a Linear, Range<usize>) {
    for linear in linears {
        if cols.start < linear.rows {
            return (linear, cols);
        }
        cols = cols.start - linear.rows..cols.end - linear.rows;
    }
    unreachable!("cuts end at the last matrix")
}
