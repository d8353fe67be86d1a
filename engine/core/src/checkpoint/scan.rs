//! Looks for weights that are not numbers.

use simd::Dtype;
use simd::matmul::packed::{self, PackedError};
use simd::matmul::{MXFP4_SCALES, Matrix, PANEL};

/// Index and value of the first NaN or infinity, if any.
pub(super) fn first_non_finite(dtype: Dtype, bytes: &[u8]) -> Option<(usize, f32)> {
    // An exponent of all ones is exactly what NaN and infinity share, in each of the three types. Chunks are tested as
    // a whole, without a branch per weight, since every byte of a checkpoint passes here.
    const CHUNK: usize = 4096;
    let suspicious = |chunk: &[u8]| match dtype {
        Dtype::Bf16 => halves(chunk).fold(false, |found, bits| found | (bits & 0x7f80 == 0x7f80)),
        Dtype::F16 => halves(chunk).fold(false, |found, bits| found | (bits & 0x7c00 == 0x7c00)),
        Dtype::F32 => words(chunk).fold(false, |found, bits| found | (bits & 0x7f80_0000 == 0x7f80_0000)),
    };
    let (index, chunk) = bytes.chunks(CHUNK).enumerate().find(|(_, chunk)| suspicious(chunk))?;
    let mut values = vec![0.0; chunk.len() / dtype.size()];
    dtype.widen(chunk, &mut values);
    let at = values.iter().position(|value| !value.is_finite())?;
    Some((index * CHUNK / dtype.size() + at, values[at]))
}

/// As [`first_non_finite`], for panels of `cols` columns before which `before` bytes of others lie; the index is that in
/// the published matrix.
pub(super) fn plain_panels(dtype: Dtype, cols: usize, before: usize, bytes: &[u8]) -> Option<(usize, f32)> {
    let (index, value) = first_non_finite(dtype, bytes)?;
    let index = index + before / dtype.size();
    let panel = Matrix::one_panel_bytes(dtype, cols)? / dtype.size();
    let pair = if dtype == Dtype::Bf16 { 2 } else { 1 };
    let within = index % panel;
    let row = index / panel * PANEL + within / pair % PANEL;
    Some((row * cols + within / (pair * PANEL) * pair + within % pair, value))
}

/// As [`plain_panels`], for packed ones of the matrix whose bytes are `all`.
pub(super) fn packed_panels(
    [rows, cols]: [usize; 2],
    all: &[u8],
    before: usize,
    bytes: &[u8],
) -> Result<Option<(usize, f32)>, PackedError> {
    let panel_bytes = packed::panel_bytes(cols).ok_or(PackedError::Columns(cols))?;
    let panels = rows.div_ceil(PANEL);
    // The header was checked: there are so many bytes, and more.
    let index = packed::Index::new(&all[panels * panel_bytes..], panels)?;
    let bytes = &bytes[..bytes.len().min((panels * panel_bytes).saturating_sub(before))];
    let first = before / panel_bytes;
    index.check(first, cols, bytes)?;
    Ok(index.first_non_finite(first, cols, bytes).map(|([row, col], value)| (row * cols + col, value)))
}

/// Index and value of the first scale at which BF16 does not hold all weights of a block of MXFP4, if any.
pub(super) fn first_bad_scale(scales: &[u8]) -> Option<(usize, u8)> {
    let index = scales.iter().position(|scale| !MXFP4_SCALES.contains(scale))?;
    Some((index, scales[index]))
}

fn halves(bytes: &[u8]) -> impl Iterator<Item = u16> {
    bytes.as_chunks::<2>().0.iter().map(|bytes| u16::from_le_bytes(*bytes))
}

fn words(bytes: &[u8]) -> impl Iterator<Item = u32> {
    bytes.as_chunks::<4>().0.iter().map(|bytes| u32::from_le_bytes(*bytes))
}
