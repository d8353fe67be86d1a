//! Everything between the matrix products, with the same bits on every ISA.
//!
//! Each is portable code on float32, compiled once per ISA: multiplications and additions round separately, and what is
//! summed is summed in 16 lanes, element `i` in lane `i % 16`, which meet over a fixed tree. So an ISA changes only how
//! many lanes are worked on at once.

mod exp;
mod norm;
mod rope;
mod sum;

pub use exp::{clamped_silu_mul, exp, silu_mul, softmax};
pub use norm::rms_norm;
pub use rope::rope;
pub use sum::{add_assign, add_scaled, all_finite, read_all};

pub(crate) use sum::sum_of_lanes;

/// Declares a function that runs its body compiled for the ISA that it takes first. Borrows are written `&'a`.
macro_rules! per_isa {
    ($(#[$doc:meta])* pub fn $name:ident($($argument:ident: $type:ty),*) $(-> $output:ty)? $body:block) => {
        $(#[$doc])*
        pub fn $name<'a>(isa: $crate::Isa, $($argument: $type),*) $(-> $output)? {
            struct Work<'a> {
                $($argument: $type),*
            }

            impl<'a> $crate::arch::Compute for Work<'a> {
                type Output = per_isa!(@ $($output)?);

                #[inline(always)]
                fn compute(self) -> Self::Output {
                    let Self { $($argument),* } = self;
                    $body
                }
            }

            isa.compute(Work { $($argument),* })
        }
    };
    (@) => { () };
    (@ $output:ty) => { $output };
}
use per_isa;

#[cfg(test)]
mod tests;
