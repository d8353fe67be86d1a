//! Looks for weights that are not numbers.

use simd::Dtype;
use simd::matmul::MXFP4_SCALES;

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
