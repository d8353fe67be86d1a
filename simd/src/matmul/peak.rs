//! The arithmetic limit of a core: the tile's steps on numbers that never leave the registers.

use std::hint::black_box;

use crate::arch::Compute;
use crate::arch::step::{self, Step};
use crate::isa::with_lanes;
use crate::matmul::PANEL;
use crate::{Dtype, Isa};

/// Does `rounds` rounds of a full tile's steps with weights of `dtype`, as [`multiply`](super::multiply) would on this
/// ISA, and returns the floating-point operations done. Time it to know the peak of one core.
pub fn spin_at_peak(isa: Isa, dtype: Dtype, rounds: usize) -> f64 {
    match (isa, dtype) {
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx512(token), Dtype::Bf16) => spin::<_, 32>(token, rounds),
        #[cfg(target_arch = "x86_64")]
        (Isa::Amx(token), Dtype::Bf16) => token.spin(rounds),
        (_, Dtype::Bf16) => with_lanes!(isa, lanes => spin::<_, 32>(step::Bf16Pairs(lanes), rounds)),
        (_, Dtype::F16) => with_lanes!(isa, lanes => spin::<_, 16>(step::F16(lanes), rounds)),
        (_, Dtype::F32) => with_lanes!(isa, lanes => spin::<_, 16>(step::F32(lanes), rounds)),
    }
}

/// `PRODUCTS` are the products of one step, over all lanes.
fn spin<T: Step, const PRODUCTS: usize>(step: T, rounds: usize) -> f64 {
    /// Independent chains: more than latency times throughput on any core, fewer than its registers.
    const CHAINS: usize = 12;

    struct Spin<T> {
        step: T,
        rounds: usize,
    }

    impl<T: Step> Compute for Spin<T> {
        type Output = [f32; PANEL];

        #[inline(always)]
        fn compute(self) -> [f32; PANEL] {
            let weights = self.step.weights(black_box(&bytemuck::Zeroable::zeroed()));
            let x: T::X = bytemuck::Zeroable::zeroed();
            let x = black_box(x);
            let mut sums = [self.step.zero(); CHAINS];
            for _ in 0..self.rounds {
                for sums in &mut sums {
                    *sums = self.step.step(weights, &x, *sums);
                }
            }
            let mut out = [0.0; PANEL];
            for sums in sums {
                for (out, sum) in out.iter_mut().zip(self.step.to_array(sums)) {
                    *out += sum;
                }
            }
            out
        }
    }

    black_box(step.vectorize(Spin { step, rounds }));
    (rounds * CHAINS * PRODUCTS * 2) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_isa_counts_two_operations_a_product() {
        for isa in Isa::available() {
            let products = if isa.has_tiles() { 4.0 * 16.0 * 16.0 * 32.0 } else { 12.0 * 32.0 };
            assert_eq!(spin_at_peak(isa, Dtype::Bf16, 10), 10.0 * products * 2.0);
            assert_eq!(spin_at_peak(isa, Dtype::F32, 10), 10.0 * 12.0 * 32.0);
        }
    }
}
