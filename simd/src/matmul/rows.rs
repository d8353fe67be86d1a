//! Activations in the form that the kernels read.
//!
//! How activations meet BF16 weights is the numeric format of a run: rounded to BF16 (`bf16`), or to two BF16 terms whose
//! sum has about 16 bits of mantissa (`bf16x2`). Every ISA sees these same numbers: as pairs of BF16 where it has dot
//! products of them, else as float32 that holds `hi + lo`, which is exact. F16 and F32 weights meet activations as they
//! are.

use std::fmt;
use std::str::FromStr;

use bytemuck::{Pod, Zeroable, cast_slice, cast_slice_mut};

use super::Matrix;
use super::matrix::cols_per_step;
use crate::arch::Compute;
use crate::dtype::{bf16_from_f32, bf16_to_f32};
use crate::{Dtype, Isa};

/// To what activations are rounded before they are multiplied with BF16 weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Activations {
    /// One BF16 term.
    Bf16,
    /// Two BF16 terms: `x = hi + lo`, `hi` = `x` rounded, `lo` = `x - hi` rounded.
    #[default]
    Bf16x2,
}

/// A name that is neither `bf16` nor `bf16x2`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown activations `{0}`: known are bf16 and bf16x2")]
pub struct ActivationsError(String);

impl FromStr for Activations {
    type Err = ActivationsError;

    fn from_str(name: &str) -> Result<Self, ActivationsError> {
        match name {
            "bf16" => Ok(Self::Bf16),
            "bf16x2" => Ok(Self::Bf16x2),
            _ => Err(ActivationsError(name.to_owned())),
        }
    }
}

impl fmt::Display for Activations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Bf16 => "bf16",
            Self::Bf16x2 => "bf16x2",
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Float32 as it came.
    Exact,
    /// Float32 that holds one or two BF16 terms.
    Rounded(Activations),
    /// `[terms][pairs]` of BF16, the even column in the lower half of a word.
    Pairs(Activations),
    /// The same, with terms that begin at lines, see [`words_of_stream`].
    Tiles(Activations),
}

/// Words of a cache line.
pub(super) const LINE: usize = 16;

/// Words from one stream of a tile to the next: whole lines, an odd number of them. Then 16 streams, which a tile reads
/// side by side, lie in as many sets of the first cache.
pub(super) const fn words_of_stream(pairs: usize) -> usize {
    if pairs == 0 { 0 } else { (pairs.div_ceil(LINE) | 1) * LINE }
}

/// How a row is prepared, for rows of one width, one ISA and one weight dtype.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowForm {
    kind: Kind,
    cols: usize,
    isa: Isa,
}

impl RowForm {
    /// The form in which rows of `cols` activations meet weights of `dtype` on `isa`.
    pub fn new(isa: Isa, dtype: Dtype, activations: Activations, cols: usize) -> Self {
        let kind = match dtype {
            Dtype::Bf16 if isa.has_tiles() => Kind::Tiles(activations),
            Dtype::Bf16 if isa.multiplies_bf16() => Kind::Pairs(activations),
            Dtype::Bf16 => Kind::Rounded(activations),
            Dtype::F16 | Dtype::F32 => Kind::Exact,
        };
        Self { kind, cols, isa }
    }

    /// Words of a prepared row.
    pub fn words(self) -> usize {
        match self.kind {
            Kind::Exact => self.cols,
            Kind::Rounded(_) => self.cols.next_multiple_of(cols_per_step(Dtype::Bf16)),
            Kind::Pairs(_) => self.terms() * self.cols.div_ceil(2),
            Kind::Tiles(_) => self.terms() * words_of_stream(self.cols.div_ceil(2)),
        }
    }

    /// Streams that are summed apart.
    pub(super) fn terms(self) -> usize {
        match self.kind {
            Kind::Pairs(Activations::Bf16x2) | Kind::Tiles(Activations::Bf16x2) => 2,
            _ => 1,
        }
    }

    /// Words of a stream behind its last column.
    pub(super) fn padding(self) -> usize {
        let pairs = self.cols.div_ceil(2);
        match self.kind {
            Kind::Tiles(_) => words_of_stream(pairs) - pairs,
            _ => 0,
        }
    }

    /// Whether rows in this form can meet `w` on `isa`.
    pub(super) fn suits(self, isa: Isa, w: &Matrix) -> bool {
        let activations = match self.kind {
            Kind::Exact => Activations::default(),
            Kind::Rounded(activations) | Kind::Pairs(activations) | Kind::Tiles(activations) => activations,
        };
        let want = Self::new(isa, w.dtype(), activations, w.cols());
        (self.kind, self.cols) == (want.kind, want.cols)
    }

    /// Prepares one row: `x` has the columns of the form, `out` its words.
    ///
    /// A number that is not finite stays so in its first term and has no second one; a finite one that rounds beyond
    /// BF16 becomes infinite.
    ///
    /// # Panics
    /// If `x` or `out` has another length.
    pub fn prepare(self, x: &[f32], out: &mut [u32]) {
        assert_eq!(x.len(), self.cols, "columns of a row");
        assert_eq!(out.len(), self.words(), "words of a prepared row");
        self.isa.compute(Prepare { kind: self.kind, x, out });
    }
}

struct Prepare<'a> {
    kind: Kind,
    x: &'a [f32],
    out: &'a mut [u32],
}

impl Compute for Prepare<'_> {
    type Output = ();

    #[inline(always)]
    fn compute(self) {
        let Self { kind, x, out } = self;
        match kind {
            Kind::Exact => out.copy_from_slice(bytemuck::cast_slice(x)),
            Kind::Rounded(activations) => {
                for (out, x) in out.iter_mut().zip(x) {
                    let (hi, lo) = terms(*x, activations);
                    *out = (bf16_to_f32(hi) + bf16_to_f32(lo)).to_bits();
                }
                out[x.len()..].fill(0);
            }
            Kind::Pairs(Activations::Bf16) | Kind::Tiles(Activations::Bf16) => pairs(x, |even, odd, i| {
                out[i] = u32::from(bf16_from_f32(even)) | u32::from(bf16_from_f32(odd)) << 16;
            }),
            Kind::Pairs(Activations::Bf16x2) | Kind::Tiles(Activations::Bf16x2) => {
                let (hi, lo) = out.split_at_mut(out.len() / 2);
                pairs(x, |even, odd, i| {
                    let even = terms(even, Activations::Bf16x2);
                    let odd = terms(odd, Activations::Bf16x2);
                    hi[i] = u32::from(even.0) | u32::from(odd.0) << 16;
                    lo[i] = u32::from(even.1) | u32::from(odd.1) << 16;
                });
            }
        }
    }
}

/// Calls `each(even, odd, index)` for all pairs of columns; an odd last column is paired with zero.
#[inline(always)]
fn pairs(x: &[f32], mut each: impl FnMut(f32, f32, usize)) {
    let (whole, rest) = x.as_chunks::<2>();
    for (i, [even, odd]) in whole.iter().enumerate() {
        each(*even, *odd, i);
    }
    if let Some(last) = rest.first() {
        each(*last, 0.0, whole.len());
    }
}

/// The terms of `x` as BF16 bits; `lo` is zero where there is none.
#[inline(always)]
pub(super) fn terms(x: f32, activations: Activations) -> (u16, u16) {
    let hi = bf16_from_f32(x);
    let rest = x - bf16_to_f32(hi);
    // `inf - inf` is a NaN, and `x - inf` an infinity that would cancel the first.
    let lo = if rest.is_finite() { bf16_from_f32(rest) } else { 0 };
    match activations {
        Activations::Bf16 => (hi, 0),
        Activations::Bf16x2 => (hi, lo),
    }
}

/// Prepared rows in a buffer that is allocated once.
#[derive(Debug)]
pub struct Rows {
    lines: Vec<Line>,
    form: RowForm,
    rows: usize,
}

/// Tiles are read fastest where lines of theirs are lines of the cache.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([u32; LINE]);

impl Rows {
    /// Room for `rows` rows of up to `cols` columns.
    ///
    /// # Panics
    /// If that is more than an address can say.
    pub fn with_capacity(rows: usize, cols: usize) -> Self {
        let form = RowForm::new(Isa::Scalar, Dtype::F32, Activations::default(), cols);
        Self { lines: vec![Line::zeroed(); Self::lines_for(rows, cols)], form, rows: 0 }
    }

    /// Bytes that [`Rows::with_capacity`] takes.
    ///
    /// # Panics
    /// If that is more than an address can say.
    pub fn bytes_for(rows: usize, cols: usize) -> usize {
        Self::lines_for(rows, cols).checked_mul(size_of::<Line>()).expect("rows fit in memory")
    }

    /// Two terms for tiles are the longest of all forms.
    fn lines_for(rows: usize, cols: usize) -> usize {
        let of_row = 2 * words_of_stream(cols.div_ceil(2)) / LINE;
        of_row.checked_mul(rows).expect("rows fit in memory")
    }

    /// Prepares `x`, `[rows, cols]`, for weights of `dtype` on `isa`; `activations` rules only the products with BF16
    /// weights.
    ///
    /// # Panics
    /// If `x` is not whole rows, or more than there is room for.
    pub fn prepare(&mut self, isa: Isa, dtype: Dtype, activations: Activations, x: &[f32], cols: usize) {
        let rows = x.len().checked_div(cols).unwrap_or(0);
        assert_eq!(x.len(), rows * cols, "whole rows of {cols} columns");
        let (form, prepared) = self.start(isa, dtype, activations, rows, cols);
        if cols > 0 {
            for (x, out) in x.chunks_exact(cols).zip(prepared.chunks_exact_mut(form.words())) {
                form.prepare(x, out);
            }
        }
    }

    /// As [`Rows::prepare`], for many workers: each of the `rows` chunks of [`RowForm::words`]
    /// words is then to be filled by [`RowForm::prepare`].
    ///
    /// # Panics
    /// If there is no room for as many rows.
    pub fn start(
        &mut self,
        isa: Isa,
        dtype: Dtype,
        activations: Activations,
        rows: usize,
        cols: usize,
    ) -> (RowForm, &mut [u32]) {
        let form = RowForm::new(isa, dtype, activations, cols);
        let room: &mut [u32] = cast_slice_mut(&mut self.lines);
        let words = rows.checked_mul(form.words()).filter(|words| *words <= room.len());
        let Some(words) = words else { panic!("{rows} rows of {cols} columns in room for {} words", room.len()) };
        (self.form, self.rows) = (form, rows);
        (form, &mut room[..words])
    }

    /// How the rows are prepared.
    pub fn form(&self) -> RowForm {
        self.form
    }

    /// How many rows are prepared.
    pub fn len(&self) -> usize {
        self.rows
    }

    /// Whether no row is prepared.
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    pub(super) fn row(&self, row: u32) -> &[u32] {
        let row = row as usize;
        assert!(row < self.rows, "row {row} of {}", self.rows);
        &cast_slice(&self.lines)[row * self.form.words()..][..self.form.words()]
    }

    /// The words of the prepared rows from `first` on.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))] // no other ISA has tiles
    pub(super) fn rows_from(&self, first: u32, count: usize) -> &[u32] {
        let first = first as usize;
        assert!(first + count <= self.rows, "rows {first}..{} of {}", first + count, self.rows);
        &cast_slice(&self.lines)[first * self.form.words()..][..count * self.form.words()]
    }
}
