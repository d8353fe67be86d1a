//! Products with MXFP4 weights that are expanded in registers, for few rows.
//!
//! A step is that of BF16 weights; only where its weights come from differs. So the chain of every sum is the same as
//! with the BF16 matrix that the blocks stand for, and so are its bits.

use super::Compute;
use super::step::{Ahead, Gather};
use crate::matmul::PANEL;

/// A cache line of a panel, see `matmul::mxfp4`.
pub(crate) type Line = [u8; 64];

/// Steps of a block of 32 columns.
pub(crate) const BLOCK_STEPS: usize = 16;
/// Lines of weights of a block.
pub(crate) const BLOCK_LINES: usize = 4;
pub(crate) const LINE_STEPS: usize = BLOCK_STEPS / BLOCK_LINES;
/// Blocks that share a line of scales.
pub(crate) const GROUP_BLOCKS: usize = 4;
/// Lines of a whole group: one of scales, then its blocks.
pub(crate) const GROUP_LINES: usize = 1 + GROUP_BLOCKS * BLOCK_LINES;

/// A way to expand 16 pairs of MXFP4 weights to the weights of a step.
pub(crate) trait Mxfp4Step: Gather {
    /// Weights of a step: the lowest four bits of every half word.
    type Nibbles: Copy;
    /// Scales of 16 rows for one block.
    type Scales: Copy;

    /// The scales of block `block % 4` of a group.
    fn scales(self, line: &Line, block: usize) -> Self::Scales;
    /// The steps of a line.
    fn nibbles(self, line: &Line) -> [Self::Nibbles; LINE_STEPS];
    fn expand(self, nibbles: Self::Nibbles, scales: Self::Scales) -> Self::W;
}

/// As [`Tile`](super::step::Tile), for panels of MXFP4.
pub(crate) struct Mxfp4Tile<'a, T: Mxfp4Step, const P: usize, const S: usize> {
    pub(crate) step: T,
    pub(crate) w: [&'a [Line]; P],
    /// Whole blocks.
    pub(crate) x: [&'a [T::X]; S],
}

impl<T: Mxfp4Step, const P: usize, const S: usize> Compute for Mxfp4Tile<'_, T, P, S> {
    type Output = [[[f32; PANEL]; P]; S];

    #[inline(always)]
    #[expect(clippy::needless_range_loop, reason = "one index for all streams and panels")]
    fn compute(self) -> Self::Output {
        let Self { step, w, x } = self;
        let mut sums = [[step.zero(); P]; S];
        let mut x_blocks: [&[[T::X; BLOCK_STEPS]]; S] = [x[0].as_chunks().0; S];
        for s in 1..S {
            x_blocks[s] = &x[s].as_chunks().0[..x_blocks[0].len()];
        }
        for block in 0..x_blocks[0].len() {
            let scales_at = block / GROUP_BLOCKS * GROUP_LINES;
            let lines_at = scales_at + 1 + block % GROUP_BLOCKS * BLOCK_LINES;
            let ahead = Ahead::new(size_of_val(&w[0][lines_at..]), (P - 1) * size_of_val(w[0]));
            if const { S * 2 <= T::STREAMS } && block % GROUP_BLOCKS == 0 {
                for w in w {
                    step.ask(&w[scales_at], ahead);
                }
            }
            let mut scales = [step.scales(&w[0][scales_at], block); P];
            for p in 1..P {
                scales[p] = step.scales(&w[p][scales_at], block);
            }
            let mut lines = [&w[0][lines_at..][..BLOCK_LINES]; P];
            for p in 1..P {
                lines[p] = &w[p][lines_at..][..BLOCK_LINES];
            }
            let mut x = [&x_blocks[0][block]; S];
            for s in 1..S {
                x[s] = &x_blocks[s][block];
            }
            for l in 0..BLOCK_LINES {
                if const { S * 2 <= T::STREAMS } {
                    for lines in lines {
                        step.ask(&lines[l], ahead);
                    }
                }
                let mut nibbles = [step.nibbles(&lines[0][l]); P];
                for p in 1..P {
                    nibbles[p] = step.nibbles(&lines[p][l]);
                }
                for j in 0..LINE_STEPS {
                    let mut weights = [step.expand(nibbles[0][j], scales[0]); P];
                    for p in 1..P {
                        weights[p] = step.expand(nibbles[p][j], scales[p]);
                    }
                    for s in 0..S {
                        for p in 0..P {
                            sums[s][p] = step.step(weights[p], &x[s][l * LINE_STEPS + j], sums[s][p]);
                        }
                    }
                }
            }
        }
        let mut out = [[[0.0; PANEL]; P]; S];
        for s in 0..S {
            for p in 0..P {
                out[s][p] = step.to_array(sums[s][p]);
            }
        }
        out
    }
}
