//! What benches measure on: matrices far larger than any cache, touched before a clock starts.
//!
//! Decode reads every weight once, so a matrix that stays in a cache would flatter its kernel, and memory that the
//! system has yet to hand out would slander it.
#![forbid(unsafe_code)]

pub mod decoder;

use simd::matmul::Matrix;
use simd::{Dtype, Isa};

/// A cache line: where weights begin, as they do in a checkpoint that is mapped or loaded.
const LINE_BYTES: usize = 64;

/// Bytes of weights, aligned to a cache line.
pub struct Weights {
    bytes: Vec<u8>,
    skip: usize,
}

impl Weights {
    fn zeroed(len: usize) -> Self {
        let bytes = vec![0; len + LINE_BYTES];
        let skip = bytes.as_ptr().align_offset(LINE_BYTES);
        assert!(skip < LINE_BYTES, "a byte can be aligned to a cache line");
        Self { bytes, skip }
    }

    /// `count` random weights of `dtype`.
    pub fn random(dtype: Dtype, count: usize) -> Self {
        const BLOCK: usize = 4096;
        let mut weights = Self::zeroed(count * dtype.size());
        for (seed, block) in weights.bytes_mut().chunks_mut(BLOCK * dtype.size()).enumerate() {
            dtype.narrow(&random(block.len() / dtype.size(), seed as u64), block);
        }
        weights
    }

    /// The weights of `matrix`, laid into panels.
    pub fn panels(matrix: &Matrix) -> Self {
        let panel_bytes = matrix.bytes_of_panel();
        let mut weights = Self::zeroed(matrix.panel_count() * panel_bytes);
        for (panel, out) in weights.bytes_mut().chunks_exact_mut(panel_bytes).enumerate() {
            matrix.pack_panel(panel, out);
        }
        weights
    }

    /// The bytes, and nothing of what aligns them.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[self.skip..][..self.bytes.len() - LINE_BYTES]
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        let len = self.bytes.len() - LINE_BYTES;
        &mut self.bytes[self.skip..][..len]
    }
}

/// `count` numbers in -1..1, the same for the same seed.
pub fn random(count: usize, seed: u64) -> Vec<f32> {
    let number = |index: u64| {
        // SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014).
        let mut z = (seed << 32 | index).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count as u64).map(number).collect()
}

/// The ISA that `NIGHTMONK_ISA` names, or else the best of this CPU.
///
/// # Panics
/// If the name is unknown, or this CPU lacks the ISA.
pub fn isa() -> Isa {
    match std::env::var("NIGHTMONK_ISA") {
        Ok(name) => Isa::by_name(&name).unwrap_or_else(|error| panic!("NIGHTMONK_ISA: {error}")),
        Err(_) => Isa::detect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_begin_on_a_cache_line_and_are_finite() {
        for dtype in [Dtype::Bf16, Dtype::F16, Dtype::F32] {
            let weights = Weights::random(dtype, 10_000);
            assert_eq!(weights.bytes().len(), 10_000 * dtype.size());
            assert_eq!(weights.bytes().as_ptr().addr() % LINE_BYTES, 0);
            let mut numbers = vec![f32::NAN; 10_000];
            dtype.widen(weights.bytes(), &mut numbers);
            assert!(numbers.iter().all(|x| (-1.0..=1.0).contains(x)));
            assert!(numbers.iter().any(|x| *x < -0.9) && numbers.iter().any(|x| *x > 0.9));
        }
    }

    #[test]
    fn panels_hold_the_weights_of_the_matrix() {
        let weights = Weights::random(Dtype::F32, 16 * 3);
        let matrix = Matrix::row_major(Dtype::F32, weights.bytes(), [16, 3]).unwrap();
        let panels = Weights::panels(&matrix);
        let (row_major, panels) = (weights.bytes().as_chunks::<4>().0, panels.bytes().as_chunks::<4>().0);
        for (row, col) in (0..16).flat_map(|row| (0..3).map(move |col| (row, col))) {
            assert_eq!(panels[col * 16 + row], row_major[row * 3 + col], "row {row}, column {col}");
        }
    }
}
