//! Blocks become the `f32` values that they stand for.
//!
//! A block holds small integers and one or two scales; expanding it is exact up to the one rounding
//! that ggml itself does (products of a half-precision scale with such small integers fit a
//! `f32`, only the final sum of Q4_1 and Q4_K may round). So the values are those that every other
//! reader of the file computes with, bit by bit (`tests/values.rs`).
//!
//! Layouts: `ggml-common.h` and `ggml-quants.c` of ggml-org/ggml.

use half::{bf16, f16};

use super::gguf::TensorType;

/// Expands whole blocks: `values.len()` must be the number of values in `blocks`.
///
/// # Panics
/// When the lengths do not belong together, which is a caller's mistake and cannot come from a file.
pub fn dequantize(kind: TensorType, blocks: &[u8], values: &mut [f32]) {
    assert_eq!(blocks.len() % kind.block_bytes(), 0, "not whole blocks");
    assert_eq!(blocks.len() / kind.block_bytes() * kind.block_len(), values.len(), "lengths do not belong together");
    match kind {
        TensorType::F32 => each(blocks, values, |block: &[u8; 4], [value]: &mut [f32; 1]| {
            *value = f32::from_le_bytes(*block);
        }),
        TensorType::F16 => each(blocks, values, |block: &[u8; 2], [value]: &mut [f32; 1]| *value = half_at(block, 0)),
        TensorType::BF16 => each(blocks, values, |block: &[u8; 2], [value]: &mut [f32; 1]| {
            *value = bf16::from_le_bytes(*block).to_f32();
        }),
        TensorType::Q4_0 => each(blocks, values, q4_0),
        TensorType::Q4_1 => each(blocks, values, q4_1),
        TensorType::Q8_0 => each(blocks, values, q8_0),
        TensorType::Q4K => each(blocks, values, q4_k),
        TensorType::Q6K => each(blocks, values, q6_k),
    }
}

fn each<const BYTES: usize, const LEN: usize>(
    blocks: &[u8],
    values: &mut [f32],
    expand: impl Fn(&[u8; BYTES], &mut [f32; LEN]),
) {
    for (block, values) in blocks.as_chunks().0.iter().zip(values.as_chunks_mut().0) {
        expand(block, values);
    }
}

fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// Scale, then 16 bytes: the low halves are values 0-15, the high halves 16-31, each less 8.
fn q4_0(block: &[u8; 18], values: &mut [f32; 32]) {
    let scale = half_at(block, 0);
    for (i, byte) in block[2..].iter().enumerate() {
        values[i] = scale * (f32::from(byte & 15) - 8.0);
        values[i + 16] = scale * (f32::from(byte >> 4) - 8.0);
    }
}

/// Scale and minimum, then 16 bytes as in [`q4_0`] without the 8.
fn q4_1(block: &[u8; 20], values: &mut [f32; 32]) {
    let (scale, min) = (half_at(block, 0), half_at(block, 2));
    for (i, byte) in block[4..].iter().enumerate() {
        values[i] = scale * f32::from(byte & 15) + min;
        values[i + 16] = scale * f32::from(byte >> 4) + min;
    }
}

/// Scale, then 32 signed bytes.
fn q8_0(block: &[u8; 34], values: &mut [f32; 32]) {
    let scale = half_at(block, 0);
    for (value, byte) in values.iter_mut().zip(&block[2..]) {
        *value = scale * f32::from(*byte as i8);
    }
}

/// Two half-precision factors, 8 scales and 8 minima of 6 bits in 12 bytes, 256 values of 4 bits.
///
/// Each 32 bytes are 64 values: low halves with one scale and minimum, high halves with the next.
fn q4_k(block: &[u8; 144], values: &mut [f32; 256]) {
    let (scale, min) = (half_at(block, 0), half_at(block, 2));
    let packed = &block[4..16];
    // The first four of each are the low six bits of bytes 0-3 and 4-7. The last four have their low
    // four bits in bytes 8-11 and their high two bits on top of the first ones.
    let factors = |i: usize| {
        let (scale6, min6) = if i < 4 {
            (packed[i] & 63, packed[i + 4] & 63)
        } else {
            ((packed[i + 4] & 15) | (packed[i - 4] >> 6) << 4, (packed[i + 4] >> 4) | (packed[i] >> 6) << 4)
        };
        (scale * f32::from(scale6), min * f32::from(min6))
    };
    for (group, (bytes, values)) in block[16..].chunks(32).zip(values.chunks_mut(64)).enumerate() {
        let ((scale_low, min_low), (scale_high, min_high)) = (factors(2 * group), factors(2 * group + 1));
        for (i, byte) in bytes.iter().enumerate() {
            values[i] = scale_low * f32::from(byte & 15) - min_low;
            values[i + 32] = scale_high * f32::from(byte >> 4) - min_high;
        }
    }
}

/// 128 bytes of low halves, 64 bytes of two high bits, 16 signed scales, one half-precision factor.
///
/// Two halves of 128 values; value `i + 32 * k` of a half takes its high bits from byte `i` at bit `2 * k`.
fn q6_k(block: &[u8; 210], values: &mut [f32; 256]) {
    let scale = half_at(block, 208);
    let scales: &[u8] = &block[192..208];
    for (half, values) in values.chunks_mut(128).enumerate() {
        let (low, high) = (&block[half * 64..][..64], &block[128 + half * 32..][..32]);
        let scales = &scales[half * 8..][..8];
        for (i, value) in values.iter_mut().enumerate() {
            let (column, k) = (i % 32, i / 32);
            let nibble = low[column + 32 * (k % 2)] >> (4 * (k / 2)) & 15;
            let quant = i32::from(nibble | (high[column] >> (2 * k) & 3) << 4) - 32;
            *value = scale * f32::from(scales[i / 16] as i8) * quant as f32;
        }
    }
}
