//! Sums and what else passes once over a slice.

use super::per_isa;
use crate::Isa;
use crate::arch::step::PREFETCH_BYTES;
use crate::arch::{Compute, Lanes};
use crate::isa::with_lanes;

/// Sixteen lanes over a tree: 8 apart, 4 apart, 2 apart, neighbours.
#[inline(always)]
pub(crate) fn sum_of_lanes(mut lanes: [f32; 16]) -> f32 {
    let mut width = 8;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

per_isa! {
    /// `out += x`.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn add_assign(out: &'a mut [f32], x: &'a [f32]) {
        assert_eq!(out.len(), x.len(), "lengths");
        for (out, x) in out.iter_mut().zip(x) {
            *out += x;
        }
    }
}

per_isa! {
    /// `out += x * w`.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn add_scaled(out: &'a mut [f32], x: &'a [f32], w: f32) {
        assert_eq!(out.len(), x.len(), "lengths");
        for (out, x) in out.iter_mut().zip(x) {
            *out += x * w;
        }
    }
}

per_isa! {
    /// Whether nothing is infinite or NaN.
    pub fn all_finite(x: &'a [f32]) -> bool {
        let mut all = true;
        for x in x {
            all &= x.is_finite();
        }
        all
    }
}

/// Reads every byte once, with the widest loads, and does next to nothing with it: for measuring how fast memory can be
/// read. Memory is asked for ahead, as by the kernels that wait for it. The checksum, of 64-bit words and of what is left
/// byte by byte, keeps the reads from being optimised away.
pub fn read_all(isa: Isa, bytes: &[u8]) -> u64 {
    with_lanes!(isa, lanes => lanes.vectorize(ReadAll { lanes, bytes }))
}

struct ReadAll<'a, L> {
    lanes: L,
    bytes: &'a [u8],
}

impl<L: Lanes> Compute for ReadAll<'_, L> {
    type Output = u64;

    #[inline(always)]
    fn compute(self) -> u64 {
        // Two streams, as many as a tile of panels has.
        let (blocks, rest) = self.bytes.as_chunks::<256>();
        let (first, second) = blocks.split_at(blocks.len() / 2);
        let mut sums = [0_u64; 32];
        let mut add = |block: &[u8; 256]| {
            for line in 0..4 {
                self.lanes.prefetch(block, PREFETCH_BYTES + line * 64);
            }
            let (words, _) = block.as_chunks();
            for (sum, word) in sums.iter_mut().zip(words) {
                *sum = sum.wrapping_add(u64::from_le_bytes(*word));
            }
        };
        for (first, second) in first.iter().zip(second) {
            add(first);
            add(second);
        }
        second[first.len()..].iter().for_each(add);
        let mut sum = 0_u64;
        for word in sums {
            sum = sum.wrapping_add(word);
        }
        for byte in rest {
            sum = sum.wrapping_add(u64::from(*byte));
        }
        sum
    }
}
