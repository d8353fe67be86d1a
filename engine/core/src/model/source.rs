//! Where a matrix's numbers are published, and how they become panels.
//!
//! Blocks of MXFP4 stay what they are: their panels hold the same nibbles and scales in the order of the kernel.

use std::ops::Range;

use simd::matmul::{MXFP4_BLOCK, Matrix, PANEL, packed};
use simd::{Dtype, Isa};

use crate::checkpoint::Location;

/// The published form of one matrix `[rows, cols]`.
#[derive(Clone, Debug)]
pub(super) enum Source {
    /// Rows `first_row`, `first_row + row_step`, … of the row-major matrix at `location`; `first_row` is below
    /// `row_step`, the others belong to matrices that are published row by row with this one.
    Rows { location: Location, first_row: usize, row_step: usize },
    /// Columns `first_row`, `first_row + row_step`, … of the row-major matrix at `location`, as rows: weights that are
    /// published with their inputs as rows. Every panel has bytes from all over the matrix, so it is read as a whole.
    Transposed { location: Location, first_row: usize, row_step: usize },
    /// The same rows of a matrix of MXFP4, whose blocks and scales lie apart.
    Mxfp4 { blocks: Location, scales: Location, first_row: usize, row_step: usize },
    /// Panels, as `nightmonk pack --plain` writes them.
    Panels(Location),
    /// BF16 panels in 12 bits, as `nightmonk pack` writes them: all panels, then what belongs to them.
    Packed(Location),
}

/// A block with its scale.
pub(super) const MXFP4_BLOCK_BYTES: usize = MXFP4_BLOCK / 2 + 1;

impl Source {
    /// All rows of the matrix at `location`.
    pub(super) fn rows(location: Location) -> Self {
        Self::Rows { location, first_row: 0, row_step: 1 }
    }

    /// The same of some of its rows only; `rows` begin at a panel.
    pub(super) fn of_rows(&self, rows: &Range<usize>, dtype: Dtype, cols: usize) -> Self {
        let of_rows =
            |row_step: &usize, row_bytes: usize| rows.start * row_step * row_bytes..rows.end * row_step * row_bytes;
        match self {
            Self::Rows { location, first_row, row_step } => {
                let location = location.part(of_rows(row_step, cols * dtype.size()));
                Self::Rows { location, first_row: *first_row, row_step: *row_step }
            }
            Self::Transposed { location, first_row, row_step } => Self::Transposed {
                location: location.clone(),
                first_row: first_row + rows.start * row_step,
                row_step: *row_step,
            },
            Self::Mxfp4 { blocks, scales, first_row, row_step } => Self::Mxfp4 {
                blocks: blocks.part(of_rows(row_step, cols / 2)),
                scales: scales.part(of_rows(row_step, cols / MXFP4_BLOCK)),
                first_row: *first_row,
                row_step: *row_step,
            },
            Self::Panels(location) => {
                let panel = self.panel_bytes(dtype, cols);
                Self::Panels(location.part(rows.start / PANEL * panel..rows.end.div_ceil(PANEL) * panel))
            }
            // What follows the panels belongs to all of them; `Model::on_nodes` takes such a folder for one node only.
            Self::Packed(_) => self.clone(),
        }
    }

    /// Where all of its weights lie, perhaps among those of other matrices.
    pub(super) fn location(&self) -> &Location {
        match self {
            Self::Rows { location, .. } | Self::Transposed { location, .. } => location,
            Self::Panels(location) | Self::Packed(location) => location,
            Self::Mxfp4 { blocks, .. } => blocks,
        }
    }

    /// Where the scales of the part `part` of its blocks lie, if it has any.
    pub(super) fn scales_of(&self, part: &Location) -> Option<Location> {
        const BLOCK_BYTES: usize = MXFP4_BLOCK / 2;
        match self {
            Self::Rows { .. } | Self::Transposed { .. } | Self::Panels(_) | Self::Packed(_) => None,
            Self::Mxfp4 { blocks, scales, .. } => {
                let part = part.within(blocks);
                Some(scales.part(part.start / BLOCK_BYTES..part.end / BLOCK_BYTES))
            }
        }
    }

    /// Whether only all of its bytes together make panels.
    pub(super) fn is_whole(&self) -> bool {
        matches!(self, Self::Transposed { .. })
    }

    /// Published bytes, without scales, from which one panel is made; those of the next panel follow them, unless it
    /// [`is_whole`](Self::is_whole).
    pub(super) fn bytes_of_panel(&self, dtype: Dtype, cols: usize) -> usize {
        match self {
            Self::Rows { row_step, .. } => PANEL * row_step * cols * dtype.size(),
            Self::Transposed { location, .. } => location.size(),
            Self::Mxfp4 { row_step, .. } => PANEL * row_step * cols / 2,
            Self::Panels(_) | Self::Packed(_) => self.panel_bytes(dtype, cols),
        }
    }

    /// Bytes of one panel in memory.
    pub(super) fn panel_bytes(&self, dtype: Dtype, cols: usize) -> usize {
        let bytes = match self {
            Self::Rows { .. } | Self::Transposed { .. } | Self::Panels(_) => Matrix::one_panel_bytes(dtype, cols),
            Self::Mxfp4 { .. } => Matrix::mxfp4_panel_bytes([PANEL, cols]),
            Self::Packed(_) => packed::panel_bytes(cols),
        };
        bytes.expect("config.json's limits keep sizes far below 2^63, and shards were checked when they were opened")
    }

    /// Bytes of the matrix in memory of its own.
    pub(super) fn resident_bytes(&self, dtype: Dtype, [rows, cols]: [usize; 2]) -> usize {
        match self {
            Self::Rows { .. } | Self::Transposed { .. } | Self::Mxfp4 { .. } => {
                self.panel_bytes(dtype, cols) * rows.div_ceil(PANEL)
            }
            Self::Panels(location) | Self::Packed(location) => location.size(),
        }
    }

    /// Lays the panels that `bytes` hold into `panels`, with the `scales` of these bytes where they have some. The first
    /// byte is the first of a panel's, and where they end within a panel, the matrix ends. What lies in panels already is
    /// copied as it is.
    pub(super) fn lay(&self, isa: Isa, dtype: Dtype, cols: usize, bytes: &[u8], scales: &[u8], panels: &mut [u8]) {
        let (matrix, first_row, row_step) = match *self {
            Self::Rows { first_row, row_step, .. } => {
                let all = [bytes.len() / (cols * dtype.size()), cols];
                (Matrix::row_major(dtype, bytes, all), first_row, row_step)
            }
            Self::Mxfp4 { first_row, row_step, .. } => {
                (Matrix::mxfp4_row_major(bytes, scales, [bytes.len() / (cols / 2), cols]), first_row, row_step)
            }
            Self::Transposed { first_row, row_step, .. } => {
                return lay_transposed(isa, dtype, cols, bytes, [first_row, row_step], panels);
            }
            Self::Panels(_) | Self::Packed(_) => return panels.copy_from_slice(bytes),
        };
        let matrix = matrix.expect("shape, length and alignment were checked when the checkpoint was opened");
        let matrix = matrix.every(first_row, row_step);
        for (panel, out) in panels.chunks_exact_mut(matrix.bytes_of_panel()).enumerate() {
            matrix.pack_panel_with(isa, panel, out);
        }
    }
}

/// Lays columns of the row-major matrix in `bytes`, which has `cols` rows, into panels as rows.
fn lay_transposed(
    isa: Isa,
    dtype: Dtype,
    cols: usize,
    bytes: &[u8],
    [first_row, row_step]: [usize; 2],
    panels: &mut [u8],
) {
    let (size, line) = (dtype.size(), bytes.len() / cols);
    let mut block = vec![0; PANEL * cols * size + size];
    // A vector of bytes need not begin where a number may.
    let start = block.as_ptr().align_offset(size);
    let panel_bytes = Matrix::one_panel_bytes(dtype, cols).expect("the region was allocated for such panels");
    for (panel, out) in panels.chunks_exact_mut(panel_bytes).enumerate() {
        let first = first_row + panel * PANEL * row_step;
        let rows = (line / size).saturating_sub(first).div_ceil(row_step).min(PANEL);
        let block = &mut block[start..][..rows * cols * size];
        for (col, inputs) in bytes.chunks_exact(line).enumerate() {
            for row in 0..rows {
                let number = &inputs[(first + row * row_step) * size..][..size];
                block[(row * cols + col) * size..][..size].copy_from_slice(number);
            }
        }
        let matrix = Matrix::row_major(dtype, block, [rows, cols]).expect("cut to shape and aligned");
        matrix.pack_panel_with(isa, 0, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Location;

    #[test]
    fn rows_published_among_others_make_the_panels_that_they_would_make_alone() {
        const COLS: usize = 37;
        const ROWS: usize = 2 * PANEL + 5;
        let dtype = Dtype::F32;
        let words = |rows: &mut dyn Iterator<Item = usize>| -> Vec<f32> {
            rows.flat_map(|row| (0..COLS).map(move |col| (row * COLS + col) as f32)).collect()
        };
        let bytes = |words: &[f32]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
        let published = bytes(&words(&mut (0..2 * ROWS)));
        for first_row in 0..2 {
            let alone = bytes(&words(&mut (0..ROWS).map(|row| first_row + 2 * row)));
            let matrix = Matrix::row_major(dtype, &alone, [ROWS, COLS]).unwrap();
            let mut want = vec![0; Matrix::panel_bytes(dtype, [ROWS, COLS]).unwrap()];
            for (panel, out) in want.chunks_mut(matrix.bytes_of_panel()).enumerate() {
                matrix.pack_panel(panel, out);
            }
            let mut got = vec![0; want.len()];
            let source = Source::Rows { location: Location::default(), first_row, row_step: 2 };
            source.lay(Isa::detect(), dtype, COLS, &published, &[], &mut got);
            assert_eq!(got, want, "from row {first_row}");
        }
    }
    #[test]
    fn transposed_matrices_make_the_panels_of_their_rows_wherever_they_are_cut() {
        const COLS: usize = 37;
        const ROWS: usize = 2 * PANEL + 5;
        for dtype in [Dtype::Bf16, Dtype::F32] {
            let size = dtype.size();
            // Any bytes do: nothing is computed with them.
            let number = |row: usize, col: usize| ((row * COLS + col) as u32).to_le_bytes()[..size].to_vec();
            let published: Vec<u8> =
                (0..COLS).flat_map(|col| (0..2 * ROWS).flat_map(move |row| number(row, col))).collect();
            for first_row in 0..2 {
                let alone: Vec<u8> =
                    (0..ROWS).flat_map(|row| (0..COLS).flat_map(move |col| number(first_row + 2 * row, col))).collect();
                let matrix = Matrix::row_major(dtype, &alone, [ROWS, COLS]).unwrap();
                let mut want = vec![0; Matrix::panel_bytes(dtype, [ROWS, COLS]).unwrap()];
                for (panel, out) in want.chunks_mut(matrix.bytes_of_panel()).enumerate() {
                    matrix.pack_panel(panel, out);
                }
                let source = Source::Transposed { location: Location::default(), first_row, row_step: 2 };
                for cut in [0, PANEL, 2 * PANEL] {
                    let mut got = vec![0; want.len()];
                    let (above, below) = got.split_at_mut(cut / PANEL * matrix.bytes_of_panel());
                    for (rows, panels) in [(0..cut, above), (cut..ROWS, below)] {
                        let part = source.of_rows(&rows, dtype, COLS);
                        part.lay(Isa::detect(), dtype, COLS, &published, &[], panels);
                    }
                    assert_eq!(got, want, "from row {first_row}, cut at {cut}");
                }
            }
        }
    }
}
