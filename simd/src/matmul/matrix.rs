//! A weight matrix over borrowed bytes: as a checkpoint stores it, or laid into panels.
//!
//! A `Matrix` exists only if its bytes have the length and the alignment that its shape asks for.

use std::ops::Range;

use super::mxfp4::{self, MXFP4_BLOCK};
use super::packed::{Packed, PackedError};
use super::rows::words_of_stream;
use super::{PANELS_MAX, STREAMS_MAX};
use crate::arch::{Compute, Lanes};
use crate::isa::with_lanes;
use crate::{Dtype, Isa};

/// Output rows in a panel: the lanes of a kernel.
pub const PANEL: usize = 16;

/// A cache line; kernels load whole ones.
const LINE_BYTES: usize = 64;

#[derive(Clone, Copy)]
pub(super) enum Layout<'a> {
    RowMajor,
    Panels,
    Packed(Packed<'a>),
    /// The form of the matrix, and of its activations, is BF16; its bytes are MXFP4, see [`mxfp4`].
    Mxfp4RowMajor,
    Mxfp4Panels,
}

/// Weights, `[rows, cols]`: an output row is a matrix row.
///
/// In panels, 16 rows lie side by side: BF16 as `[cols / 2][16 rows][2]`, so that 64 bytes are 16 pairs, F16 and F32 as
/// `[cols][16 rows]`; MXFP4 as the module of that name says. The last panel is filled up with rows of zeros, and for BF16 an odd number of columns with a
/// column of zeros.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    dtype: Dtype,
    layout: Layout<'a>,
    rows: usize,
    cols: usize,
    bytes: &'a [u8],
    /// Of published MXFP4.
    scales: &'a [u8],
    /// Of a row-major matrix: the stored row that is row 0, and how many stored rows further row 1 is.
    first_row: usize,
    row_step: usize,
}

impl<'a> Matrix<'a> {
    /// A matrix stored row after row; `None` if `bytes` has another length or is not aligned to the dtype.
    pub fn row_major(dtype: Dtype, bytes: &'a [u8], [rows, cols]: [usize; 2]) -> Option<Self> {
        Self::panel_bytes(dtype, [rows, cols])?;
        let want = rows.checked_mul(cols)?.checked_mul(dtype.size())?;
        Self::new(dtype, Layout::RowMajor, bytes, [rows, cols], want)
    }

    /// A matrix stored in panels; `None` if `bytes` has another length than [`Matrix::panel_bytes`] or is not aligned
    /// to the dtype.
    pub fn panels(dtype: Dtype, bytes: &'a [u8], [rows, cols]: [usize; 2]) -> Option<Self> {
        let want = Self::panel_bytes(dtype, [rows, cols])?;
        Self::new(dtype, Layout::Panels, bytes, [rows, cols], want)
    }

    /// A BF16 matrix in packed panels, see [`packed`](super::packed).
    ///
    /// # Errors
    /// [`PackedError`]: the bytes cannot be such a matrix. That its patches fit is for [`Matrix::check_packed`] to say.
    pub fn packed(bytes: &'a [u8], shape @ [rows, cols]: [usize; 2]) -> Result<Self, PackedError> {
        let layout = Layout::Packed(Packed::new(bytes, shape)?);
        Ok(Self { dtype: Dtype::Bf16, layout, rows, cols, bytes, scales: &[], first_row: 0, row_step: 1 })
    }

    /// Reads the lines of bases of some panels and checks that their patches fit; of another matrix nothing is asked.
    ///
    /// # Errors
    /// [`PackedError::Patches`] names the first panel that is damaged.
    ///
    /// # Panics
    /// If there are no such panels.
    pub fn check_packed(&self, panels: Range<usize>) -> Result<(), PackedError> {
        match self.layout {
            Layout::Packed(packed) => packed.check(panels),
            _ => Ok(()),
        }
    }

    fn new(dtype: Dtype, layout: Layout<'a>, bytes: &'a [u8], [rows, cols]: [usize; 2], want: usize) -> Option<Self> {
        let aligned = bytes.as_ptr().addr().is_multiple_of(dtype.size());
        let whole = Self { dtype, layout, rows, cols, bytes, scales: &[], first_row: 0, row_step: 1 };
        (bytes.len() == want && aligned).then_some(whole)
    }

    /// A matrix of published MXFP4: `blocks`, `[rows, cols / 32, 16]`, two weights a byte with the even column in the
    /// lower half, and `scales`, `[rows, cols / 32]`. `None` if they have other lengths or `cols` is no multiple of 32.
    ///
    /// Scales must be among [`MXFP4_SCALES`](super::MXFP4_SCALES); beyond them weights are wrong. Its
    /// [`dtype`](Matrix::dtype) is BF16, as which it meets activations.
    pub fn mxfp4_row_major(blocks: &'a [u8], scales: &'a [u8], [rows, cols]: [usize; 2]) -> Option<Self> {
        let blocks_of_all = rows.checked_mul(cols / MXFP4_BLOCK)?;
        let want = blocks_of_all.checked_mul(MXFP4_BLOCK / 2)?;
        let whole = cols.is_multiple_of(MXFP4_BLOCK) && scales.len() == blocks_of_all && blocks.len() == want;
        let matrix = Self::mxfp4(Layout::Mxfp4RowMajor, blocks, scales, [rows, cols]);
        whole.then_some(matrix)
    }

    /// A matrix of MXFP4 in panels, as [`Matrix::pack_panel`] lays them; `None` if `bytes` has another length than
    /// [`Matrix::mxfp4_panel_bytes`] or `cols` is no multiple of 32.
    pub fn mxfp4_panels(bytes: &'a [u8], [rows, cols]: [usize; 2]) -> Option<Self> {
        let whole = Self::mxfp4_panel_bytes([rows, cols]) == Some(bytes.len());
        whole.then_some(Self::mxfp4(Layout::Mxfp4Panels, bytes, &[], [rows, cols]))
    }

    fn mxfp4(layout: Layout<'a>, bytes: &'a [u8], scales: &'a [u8], [rows, cols]: [usize; 2]) -> Self {
        Self { dtype: Dtype::Bf16, layout, rows, cols, bytes, scales, first_row: 0, row_step: 1 }
    }

    /// Bytes of all MXFP4 panels of a matrix of this shape; `None` if there are more than an address can say, or the
    /// columns are no whole blocks.
    pub const fn mxfp4_panel_bytes([rows, cols]: [usize; 2]) -> Option<usize> {
        match mxfp4::one_panel_bytes(cols) {
            Some(bytes) if cols.is_multiple_of(MXFP4_BLOCK) => bytes.checked_mul(rows.div_ceil(PANEL)),
            _ => None,
        }
    }

    /// Of a row-major matrix, the rows `first`, `first + step` and so on: gate and up where their rows alternate.
    ///
    /// # Panics
    /// If the matrix is in panels, or `step` is 0.
    pub fn every(self, first: usize, step: usize) -> Self {
        assert!(matches!(self.layout, Layout::RowMajor | Layout::Mxfp4RowMajor), "rows of {self:?}");
        let rows = self.rows.saturating_sub(first).div_ceil(step);
        let (first_row, row_step) = (self.first_row + first * self.row_step, self.row_step * step);
        Self { rows, first_row, row_step, ..self }
    }

    /// Bytes of all panels of a matrix of this shape; `None` if there are more than an address can say.
    pub const fn panel_bytes(dtype: Dtype, [rows, cols]: [usize; 2]) -> Option<usize> {
        match Self::one_panel_bytes(dtype, cols) {
            Some(bytes) => bytes.checked_mul(rows.div_ceil(PANEL)),
            None => None,
        }
    }

    /// Bytes of one panel of a matrix this wide; `None` if there are more than an address can say.
    pub const fn one_panel_bytes(dtype: Dtype, cols: usize) -> Option<usize> {
        match padded_cols(dtype, cols) {
            Some(cols) => cols.checked_mul(PANEL * dtype.size()),
            None => None,
        }
    }

    /// Bytes of one panel of this matrix.
    pub fn bytes_of_panel(&self) -> usize {
        match self.layout {
            Layout::RowMajor | Layout::Panels | Layout::Packed(_) => self.bytes_of_expanded_panel(),
            Layout::Mxfp4RowMajor | Layout::Mxfp4Panels => {
                mxfp4::one_panel_bytes(self.cols).expect("checked when the matrix was made")
            }
        }
    }

    /// Bytes of one panel in the matrix's dtype.
    pub(super) fn bytes_of_expanded_panel(&self) -> usize {
        // Checked when the matrix was made.
        self.cols.next_multiple_of(cols_per_step(self.dtype)) * PANEL * self.dtype.size()
    }

    /// Panels, the last of which may be filled up.
    pub fn panel_count(&self) -> usize {
        self.rows.div_ceil(PANEL)
    }

    /// Output rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns: the length of a row of activations.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The storage format.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The bytes as they were given.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Whether 16 rows of it, stored one behind the other, are always a panel, and whole cache lines.
    pub(super) fn is_whole_lines(&self) -> bool {
        let row_bytes = self.cols * self.dtype.size();
        (self.first_row, self.row_step) == (0, 1)
            && row_bytes.is_multiple_of(LINE_BYTES)
            && self.rows.is_multiple_of(PANEL)
    }

    /// Whether kernels read it as it lies.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))] // asked for by tiles
    pub(super) fn is_plain_panels(&self) -> bool {
        matches!(self.layout, Layout::Panels)
    }

    pub(super) fn layout(&self) -> Layout<'a> {
        self.layout
    }

    /// Lays panel `panel` into `out`, plain; from a matrix in plain panels it is a copy.
    ///
    /// # Panics
    /// If there is no such panel, or `out` is not [`Matrix::bytes_of_panel`] long.
    pub fn pack_panel(&self, panel: usize, out: &mut [u8]) {
        self.pack_panel_with(Isa::Scalar, panel, out);
    }

    /// The same bytes as [`Matrix::pack_panel`], faster.
    ///
    /// # Panics
    /// If there is no such panel, or `out` is not [`Matrix::bytes_of_panel`] long.
    pub fn pack_panel_with(&self, isa: Isa, panel: usize, out: &mut [u8]) {
        assert!(panel < self.panel_count(), "panel {panel} of {}", self.panel_count());
        assert_eq!(out.len(), self.bytes_of_panel(), "bytes of a panel");
        match self.layout {
            Layout::Packed(packed) => packed.panel(panel).expand(isa, out),
            Layout::Panels | Layout::Mxfp4Panels => {
                out.copy_from_slice(&self.bytes[panel * out.len()..][..out.len()]);
            }
            Layout::RowMajor => {
                let row_bytes = self.cols * self.dtype.size();
                let rows = self.rows_of(panel, self.bytes, row_bytes);
                with_lanes!(isa, lanes => lanes.vectorize(Pack { lanes, dtype: self.dtype, rows, row_bytes, out }));
            }
            Layout::Mxfp4RowMajor => mxfp4::pack(isa, self.published_rows(panel), out),
        }
    }

    /// Lays panel `panel` into `out` in the matrix's dtype.
    pub(super) fn expand_panel(&self, isa: Isa, panel: usize, out: &mut [u8]) {
        match self.layout {
            Layout::RowMajor | Layout::Panels | Layout::Packed(_) => self.pack_panel_with(isa, panel, out),
            Layout::Mxfp4RowMajor => mxfp4::expand(isa, mxfp4::Weights::Published(&self.published_rows(panel)), out),
            Layout::Mxfp4Panels => {
                let bytes = self.bytes_of_panel();
                mxfp4::expand(isa, mxfp4::Weights::Panel(&self.bytes[panel * bytes..][..bytes]), out);
            }
        }
    }

    fn published_rows(&self, panel: usize) -> mxfp4::PublishedRows<'a> {
        let blocks = self.cols / MXFP4_BLOCK;
        mxfp4::PublishedRows {
            blocks: self.rows_of(panel, self.bytes, blocks * MXFP4_BLOCK / 2),
            scales: self.rows_of(panel, self.scales, blocks),
        }
    }

    /// The rows of a panel in row-major `bytes`; empty beyond the last row.
    fn rows_of(&self, panel: usize, bytes: &'a [u8], row_bytes: usize) -> [&'a [u8]; PANEL] {
        let mut rows: [&[u8]; PANEL] = [&[]; PANEL];
        for (row, bytes_of_row) in (panel * PANEL..self.rows).zip(&mut rows) {
            *bytes_of_row = &bytes[(self.first_row + row * self.row_step) * row_bytes..][..row_bytes];
        }
        rows
    }
}

/// Rows of a panel, 16 or fewer, to `[steps][PANEL]`.
struct Pack<'a, L> {
    lanes: L,
    dtype: Dtype,
    rows: [&'a [u8]; PANEL],
    row_bytes: usize,
    out: &'a mut [u8],
}

impl<L: Lanes> Compute for Pack<'_, L> {
    type Output = ();

    #[inline(always)]
    fn compute(self) {
        let Self { lanes, dtype, rows, row_bytes, out } = self;
        // 16 words of each row at a time; they become 16 lines in which rows lie side by side.
        let (blocks, rest) = out.as_chunks_mut::<{ PANEL * LINE_BYTES }>();
        for (b, out) in blocks.iter_mut().enumerate().take(row_bytes / LINE_BYTES) {
            let mut lines = [&[0; LINE_BYTES]; PANEL];
            for (line, row) in lines.iter_mut().zip(rows) {
                if let Some(bytes) = row.as_chunks().0.get(b) {
                    *line = bytes;
                }
            }
            let words = lanes.transpose(lines);
            match dtype {
                Dtype::Bf16 | Dtype::F32 => out.copy_from_slice(bytemuck::cast_slice(&words)),
                Dtype::F16 => {
                    // A word has two columns, which are two steps.
                    for (out, words) in out.as_chunks_mut::<{ 4 * PANEL }>().0.iter_mut().zip(&words) {
                        let (even, odd) = out.split_at_mut(2 * PANEL);
                        for ((even, odd), word) in
                            even.as_chunks_mut().0.iter_mut().zip(odd.as_chunks_mut().0).zip(words)
                        {
                            *even = (*word as u16).to_le_bytes();
                            *odd = ((word >> 16) as u16).to_le_bytes();
                        }
                    }
                }
            }
        }
        // Fewer than 16 words of each row, element by element.
        let done = row_bytes / LINE_BYTES;
        let rest = match blocks.get_mut(done) {
            // A last column of BF16 without its pair can fill up a block.
            Some(last) => &mut last[..],
            None => rest,
        };
        rest.fill(0);
        let (size, per_step) = (dtype.size(), cols_per_step(dtype));
        for (r, row) in rows.into_iter().enumerate() {
            for (k, element) in row.get(done * LINE_BYTES..).unwrap_or_default().chunks_exact(size).enumerate() {
                let place = (k / per_step * PANEL + r) * per_step + k % per_step;
                rest[place * size..][..size].copy_from_slice(element);
            }
        }
    }
}

impl std::fmt::Debug for Matrix<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let layout = match self.layout {
            Layout::RowMajor => "row-major",
            Layout::Panels => "panels",
            Layout::Packed(_) => "packed panels",
            Layout::Mxfp4RowMajor => "row-major MXFP4",
            Layout::Mxfp4Panels => "panels of MXFP4",
        };
        write!(f, "Matrix({} {layout} [{}, {}])", self.dtype, self.rows, self.cols)
    }
}

/// Columns that one step of a sum takes.
pub(super) const fn cols_per_step(dtype: Dtype) -> usize {
    match dtype {
        Dtype::Bf16 => 2,
        Dtype::F16 | Dtype::F32 => 1,
    }
}

const fn padded_cols(dtype: Dtype, cols: usize) -> Option<usize> {
    cols.checked_next_multiple_of(cols_per_step(dtype))
}

/// Room for what a product lays out anew: panels of a tile where the matrix is not in plain ones, and on ISAs with tiles
/// of activations the selected rows of one, side by side.
#[derive(Debug)]
pub struct PanelScratch {
    bytes: Vec<u8>,
    skip: usize,
    panels: usize,
    streams: usize,
}

impl PanelScratch {
    /// Enough for every matrix with up to `cols` columns whose panels are plain ones, or whose dtype is `laid_out` or
    /// smaller; MXFP4 counts as BF16. `None` if that is more than an address can say.
    pub fn with_capacity(laid_out: Option<Dtype>, cols: usize) -> Option<Self> {
        let [panels, streams] = Self::parts(laid_out, cols)?;
        let bytes = vec![0; Self::bytes_for(laid_out, cols)?];
        let skip = bytes.as_ptr().align_offset(LINE_BYTES).min(LINE_BYTES);
        Some(Self { bytes, skip, panels, streams })
    }

    /// Bytes that [`PanelScratch::with_capacity`] takes; `None` if that is more than an address can say.
    pub fn bytes_for(laid_out: Option<Dtype>, cols: usize) -> Option<usize> {
        let [panels, streams] = Self::parts(laid_out, cols)?;
        panels.checked_add(streams)?.checked_add(LINE_BYTES)
    }

    fn parts(laid_out: Option<Dtype>, cols: usize) -> Option<[usize; 2]> {
        let panels = match laid_out {
            Some(dtype) => Matrix::one_panel_bytes(dtype, cols)?.checked_mul(PANELS_MAX)?.next_multiple_of(LINE_BYTES),
            None => 0,
        };
        let stream = words_of_stream(cols.div_ceil(2)).checked_mul(size_of::<u32>())?;
        Some([panels, stream.checked_mul(STREAMS_MAX)?])
    }

    /// Room for panels of `panels` bytes, and for streams of `streams` words.
    pub(super) fn parts_mut(&mut self, panels: usize, streams: usize) -> (&mut [u8], &mut [u32]) {
        assert!(panels <= self.panels, "a tile of {panels} bytes in scratch for {}", self.panels);
        let streams = size_of::<u32>() * streams;
        assert!(streams <= self.streams, "streams of {streams} bytes in scratch for {}", self.streams);
        let (of_panels, of_streams) = self.bytes[self.skip..].split_at_mut(self.panels);
        (&mut of_panels[..panels], bytemuck::cast_slice_mut(&mut of_streams[..streams]))
    }

    pub(super) fn bytes_mut(&mut self, len: usize) -> &mut [u8] {
        self.parts_mut(len, 0).0
    }
}
