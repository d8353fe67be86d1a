//! What this machine can do: how fast its workers read memory, and how fast they multiply.

use std::num::NonZeroUsize;
use std::time::Instant;

use engine_core::plan::Limits;
use numa::{MemoryFacts, Pinning, Pool, Region};
use simd::{Dtype, Isa};

use crate::failure::Failure;

/// Larger than most last-level caches, and read in a fraction of a second.
const REGION_BYTES: usize = 512 << 20;

/// Measures both limits with `threads` workers; it takes about a second.
pub(crate) fn measure(threads: usize, isa: Isa) -> Result<Limits, Failure> {
    let mut pool = Pool::new(NonZeroUsize::new(threads).unwrap_or(NonZeroUsize::MIN), Pinning::Pinned)?;
    let spare = MemoryFacts::discover()?.usable_ram() / 4;
    let mut region = Region::anonymous(REGION_BYTES.min(spare as usize))?;
    region.prefault(Some(&mut pool))?;
    let read = |bytes: &[u8]| simd::elementwise::read_all(isa, bytes);
    let read_bandwidth = numa::read_bandwidth(&mut pool, region.as_slice(), 3, read);
    Ok(Limits { read_bandwidth, peak_flops: peak_flops(&mut pool, isa) })
}

/// Floating-point operations of all workers, a second, on BF16 numbers in registers.
pub(crate) fn peak_flops(pool: &mut Pool, isa: Isa) -> f64 {
    const ROUNDS: usize = 1 << 21;
    let mut flops = vec![0.0; pool.threads()];
    let start = Instant::now();
    pool.broadcast(&mut flops, |flops, _| {
        *flops = simd::matmul::spin_at_peak(isa, Dtype::Bf16, ROUNDS);
    });
    flops.iter().sum::<f64>() / start.elapsed().as_secs_f64()
}
