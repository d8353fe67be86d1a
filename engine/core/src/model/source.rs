//! Where a matrix's numbers are published, and how they become panels.

use std::borrow::Cow;

use simd::matmul::{Matrix, PANEL, packed};
use simd::{Dtype, Isa};

use crate::checkpoint::Location;

/// The published form of one matrix `[rows, cols]`.
#[derive(Clone, Debug)]
pub(super) enum Source {
    /// Rows `first_row`, `first_row + row_step`, … of the row-major matrix at `location`; `first_row` is below
    /// `row_step`, the others belong to matrices that are published row by row with this one.
    Rows { location: Location, first_row: usize, row_step: usize },
    /// Panels, as `nightmonk pack --plain` writes them.
    Panels(Location),
    /// BF16 panels in 12 bits, as `nightmonk pack` writes them: all panels, then what belongs to them.
    Packed(Location),
}

impl Source {
    /// All rows of the matrix at `location`.
    pub(super) fn rows(location: Location) -> Self {
        Self::Rows { location, first_row: 0, row_step: 1 }
    }

    /// Where all of its bytes lie, perhaps among those of other matrices.
    pub(super) fn location(&self) -> &Location {
        match self {
            Self::Rows { location, .. } | Self::Panels(location) | Self::Packed(location) => location,
        }
    }

    /// Published bytes from which one panel is made; those of the next panel follow them.
    pub(super) fn bytes_of_panel(&self, dtype: Dtype, cols: usize) -> usize {
        match self {
            Self::Rows { row_step, .. } => PANEL * row_step * cols * dtype.size(),
            Self::Panels(_) | Self::Packed(_) => self.panel_bytes(dtype, cols),
        }
    }

    /// Bytes of one panel in memory.
    pub(super) fn panel_bytes(&self, dtype: Dtype, cols: usize) -> usize {
        match self {
            Self::Rows { .. } | Self::Panels(_) => Matrix::one_panel_bytes(dtype, cols),
            Self::Packed(_) => packed::panel_bytes(cols),
        }
        .expect("checked when the checkpoint was opened")
    }

    /// Bytes of the matrix in memory of its own.
    pub(super) fn resident_bytes(&self, dtype: Dtype, shape: [usize; 2]) -> usize {
        match self {
            Self::Rows { .. } => {
                Matrix::panel_bytes(dtype, shape).expect("config.json's limits keep sizes far below 2^63")
            }
            Self::Panels(location) | Self::Packed(location) => location.size(),
        }
    }

    /// Lays the panels that `bytes` hold into `panels`. The first of these bytes is the first of a panel's, and where
    /// they end within a panel, the matrix ends. What was published as panels is copied as it is.
    pub(super) fn lay(&self, isa: Isa, dtype: Dtype, cols: usize, bytes: &[u8], panels: &mut [u8]) {
        if matches!(self, Self::Panels(_) | Self::Packed(_)) {
            return panels.copy_from_slice(bytes);
        }
        let panel_bytes = self.panel_bytes(dtype, cols);
        let published = bytes.chunks(self.bytes_of_panel(dtype, cols));
        for (published, out) in published.zip(panels.chunks_exact_mut(panel_bytes)) {
            let rows = self.rows_of(published, cols * dtype.size());
            let shape = [rows.len() / (cols * dtype.size()), cols];
            let matrix = Matrix::row_major(dtype, &rows, shape)
                .expect("shape, length and alignment were checked when the checkpoint was opened");
            matrix.pack_panel_with(isa, 0, out);
        }
    }

    /// This matrix's rows among those of `published`, which may hold rows of others between them.
    fn rows_of<'a>(&self, published: &'a [u8], row_bytes: usize) -> Cow<'a, [u8]> {
        match *self {
            Self::Rows { row_step: 1, .. } | Self::Panels(_) | Self::Packed(_) => Cow::Borrowed(published),
            Self::Rows { first_row, row_step, .. } => {
                published.chunks_exact(row_bytes).skip(first_row).step_by(row_step).flatten().copied().collect()
            }
        }
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
            source.lay(Isa::detect(), dtype, COLS, &published, &mut got);
            assert_eq!(got, want, "from row {first_row}");
        }
    }
}
