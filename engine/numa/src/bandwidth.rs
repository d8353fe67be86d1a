//! How fast this machine reads memory with the pool that does the work.
//!
//! Every speed is printed beside this number, measured in the same process with the same threads, so that "fast" means
//! a fraction of what the machine can do.

use std::hint::black_box;
use std::ops::Range;
use std::time::Instant;

use crate::pool::Pool;

/// Bytes per second at which `pool` reads `region`: the best of `passes`.
///
/// Every worker reads a contiguous share of its own from front to back, always the same one, with `read`, whose result
/// (a checksum, say) only keeps the reads from being optimised away. The best pass, because all that disturbs one makes
/// it slower: it comes nearest to the machine's limit, and a fraction of it flatters nobody.
///
/// The region should be filled with pages already and several times larger than all caches together; of an empty
/// region, or with no pass, nothing is read and the answer is 0.
pub fn read_bandwidth(pool: &mut Pool, region: &[u8], passes: usize, read: impl Fn(&[u8]) -> u64 + Sync) -> f64 {
    let threads = pool.threads();
    let mut checksums = vec![0_u64; threads];
    let mut best = 0.0_f64;
    for _ in 0..if region.is_empty() { 0 } else { passes } {
        let start = Instant::now();
        pool.broadcast(&mut checksums, |checksum, worker| {
            *checksum = read(&region[share(region.len(), worker, threads)]);
        });
        let seconds = start.elapsed().as_secs_f64();
        black_box(&checksums);
        best = best.max(region.len() as f64 / seconds);
    }
    best
}

/// Share of a worker, in whole pages of 4 KiB but for the last: no two workers read one page.
fn share(bytes: usize, worker: usize, workers: usize) -> Range<usize> {
    const PAGE: usize = 4096;
    let pages = bytes.div_ceil(PAGE);
    let cut = |worker: usize| (pages / workers * worker + (pages % workers).min(worker)) * PAGE;
    cut(worker).min(bytes)..cut(worker + 1).min(bytes)
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;
    use std::sync::Mutex;

    use super::*;
    use crate::pool::Pinning;

    #[test]
    fn shares_cover_the_region_once_and_differ_by_a_page_at_most() {
        for bytes in [0, 1, 4095, 4096, 4097, 100_000, 1 << 20] {
            for workers in 1..9 {
                let shares: Vec<_> = (0..workers).map(|worker| share(bytes, worker, workers)).collect();
                assert_eq!((shares[0].start, shares[workers - 1].end), (0, bytes));
                assert!(shares.windows(2).all(|pair| pair[0].end == pair[1].start));
                let pages = |range: &Range<usize>| range.len().div_ceil(4096);
                let (least, most) = (shares.iter().map(pages).min(), shares.iter().map(pages).max());
                assert!(most.unwrap() - least.unwrap() <= 1, "{bytes} bytes, {workers} workers: {shares:?}");
            }
        }
    }

    #[test]
    fn every_byte_is_read_once_in_each_pass() {
        let region = vec![1_u8; 50_000];
        for threads in [1, 2, 5] {
            let mut pool = Pool::new(NonZeroUsize::new(threads).unwrap(), Pinning::Free).unwrap();
            let lengths = Mutex::new(vec![]);
            let speed = read_bandwidth(&mut pool, &region, 3, |share| {
                lengths.lock().unwrap().push(share.len());
                share.iter().map(|&byte| u64::from(byte)).sum()
            });
            assert!(speed.is_finite() && speed > 0.0);
            let lengths = lengths.into_inner().unwrap();
            assert_eq!((lengths.len(), lengths.iter().sum::<usize>()), (3 * threads, 150_000));
        }
    }

    #[test]
    fn nothing_read_is_no_speed() {
        let mut pool = Pool::new(NonZeroUsize::MIN, Pinning::Free).unwrap();
        assert_eq!(read_bandwidth(&mut pool, &[], 3, |_| unreachable!()), 0.0);
        assert_eq!(read_bandwidth(&mut pool, &[1], 0, |_| unreachable!()), 0.0);
    }
}
