//! Attention of one row of queries on one thread: bytes of keys and values a second, out of the second cache and out of
//! memory.
//!
//! Out of cache it is what the instructions reach, out of memory what decode gets; where the two are one behind the other
//! instead of side by side, the second falls below what `read` of the bench `kernels` gets. Rows are the query heads of
//! one KV head: 2 in small dense models, 8 in large ones. `NIGHTMONK_ISA` lowers the ISA.
#![forbid(unsafe_code)]

use std::hint::black_box;

use benches::{Weights, isa, random};
use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use simd::Dtype;
use simd::attention::{AttendScratch, KV_BLOCK, KV_RUN, attend_run, block_bytes};

const HEAD_DIM: usize = 128;
const RUN_BLOCKS: usize = KV_RUN / KV_BLOCK;
/// Beside the weights of `kernels`: as many bytes.
const KV_BYTES: usize = 128 << 20;

fn attention(c: &mut Criterion) {
    let isa = isa();
    for dtype in [Dtype::Bf16, Dtype::F16, Dtype::F32] {
        let cache = Weights::random(dtype, KV_BYTES / dtype.size());
        let block_bytes = block_bytes(dtype, HEAD_DIM).expect("a small head");
        let blocks: Vec<&[u8]> = cache.bytes().chunks_exact(block_bytes).collect();
        for (place, blocks) in [("cache", &blocks[..RUN_BLOCKS]), ("memory", &blocks[..])] {
            let bytes = blocks.len() * block_bytes;
            let mut group = c.benchmark_group(format!("attention out of {place}"));
            group.sample_size(10).sampling_mode(SamplingMode::Flat).throughput(Throughput::BytesDecimal(bytes as u64));
            for rows in [1, 2, 8] {
                let query = random(rows * HEAD_DIM, 1);
                let visible = vec![0..KV_RUN; rows];
                let mut scratch = AttendScratch::with_capacity(rows);
                let mut parts = vec![0.0; rows * (HEAD_DIM + 2)];
                group.bench_function(BenchmarkId::from_parameter(format!("{isa}, {dtype}, {rows} rows")), |bencher| {
                    bencher.iter(|| {
                        for (index, run) in blocks.chunks_exact(RUN_BLOCKS).enumerate() {
                            let next = blocks.chunks_exact(RUN_BLOCKS).nth(index + 1).unwrap_or(&[]);
                            let scale = 0.1;
                            attend_run(
                                isa,
                                &query,
                                HEAD_DIM,
                                scale,
                                dtype,
                                run,
                                next,
                                &visible,
                                &mut scratch,
                                &mut parts,
                            );
                            black_box(&mut parts);
                        }
                    });
                });
            }
            group.finish();
        }
    }
}

criterion_group!(benches_of_attention, attention);
criterion_main!(benches_of_attention);
