//! Matrix products on one thread: bytes a second for one row, which decode waits for, and FLOP a second for 32 rows,
//! which prefill waits for.
//!
//! Beside them stand two yardsticks that know nothing of Nightmonk: how fast this machine reads the same bytes, and what
//! the float32 product of ndarray (the `matrixmultiply` crate) takes for the same shape. Benches measure and never fail
//! for being slow. `NIGHTMONK_ISA` lowers the ISA; `cargo bench -p benches -- REGEX` picks some.
#![forbid(unsafe_code)]

use std::hint::black_box;

use benches::{Weights, isa, random};
use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use ndarray::{Array2, linalg::general_mat_mul};
use simd::matmul::{Activations, MXFP4_BLOCK, Matrix, PANEL, PanelScratch, Rows, multiply};
use simd::{Dtype, Isa};

/// Several times the last-level cache of one core's complex.
const WEIGHT_BYTES: usize = 128 << 20;
const COLS: usize = 4096;
const ROWS: [usize; 2] = [1, 32];

fn matmul(c: &mut Criterion) {
    let isa = isa();
    for dtype in [Dtype::Bf16, Dtype::F16, Dtype::F32] {
        let shape @ [rows, cols] = [WEIGHT_BYTES / COLS / dtype.size(), COLS];
        let row_major = Weights::random(dtype, rows * cols);
        let row_major = Matrix::row_major(dtype, row_major.bytes(), shape).expect("the shape is that of the bytes");
        let panels = Weights::panels(&row_major);
        let panels = Matrix::panels(dtype, panels.bytes(), shape).expect("the shape is that of the bytes");
        let activations: &[Activations] = match dtype {
            Dtype::Bf16 => &[Activations::Bf16x2, Activations::Bf16],
            _ => &[Activations::Bf16x2], // other weights meet activations as they are
        };
        for activations in activations {
            let run = match dtype {
                Dtype::Bf16 => format!("{dtype} by {activations}"),
                _ => dtype.to_string(),
            };
            product(c, isa, &format!("{isa}, {run}, panels"), &panels, WEIGHT_BYTES, *activations);
            product(c, isa, &format!("{isa}, {run}, row-major"), &row_major, WEIGHT_BYTES, *activations);
        }
    }
}

/// Experts as GPT-OSS publishes them; any bits are weights.
fn mxfp4(c: &mut Criterion) {
    let (isa, cols) = (isa(), COLS);
    let rows = WEIGHT_BYTES / (cols / MXFP4_BLOCK * (MXFP4_BLOCK / 2 + 1));
    let blocks = Weights::random(Dtype::Bf16, rows * cols / 4);
    let scales = vec![120; rows * cols / MXFP4_BLOCK];
    let published = Matrix::mxfp4_row_major(blocks.bytes(), &scales, [rows, cols]).expect("whole blocks");
    let panels = Weights::panels(&published);
    let panels = Matrix::mxfp4_panels(panels.bytes(), [rows, cols]).expect("the shape is that of the bytes");
    for activations in [Activations::Bf16x2, Activations::Bf16] {
        product(c, isa, &format!("{isa}, mxfp4 by {activations}, panels"), &panels, WEIGHT_BYTES, activations);
        product(c, isa, &format!("{isa}, mxfp4 by {activations}, published"), &published, WEIGHT_BYTES, activations);
    }
}

fn product(c: &mut Criterion, isa: Isa, name: &str, w: &Matrix, bytes: usize, activations: Activations) {
    for count in ROWS {
        let mut x = Rows::with_capacity(count, w.cols());
        x.prepare(isa, w.dtype(), activations, &random(count * w.cols(), 1), w.cols());
        let select: Vec<u32> = (0..count as u32).collect();
        let mut scratch = PanelScratch::with_capacity(Some(w.dtype()), w.cols()).expect("a tile fits in memory");
        let mut sums = vec![[0.0; PANEL]; w.panel_count() * count];
        measure(c, name, count, [w.rows(), w.cols()], bytes, || {
            multiply(isa, w, 0..w.panel_count(), &x, &select, &mut scratch, &mut sums);
            black_box(&mut sums);
        });
    }
}

/// ndarray's float32 product for the shape that float32 weights have above.
fn yardstick_product(c: &mut Criterion) {
    let shape @ [rows, cols] = [WEIGHT_BYTES / COLS / size_of::<f32>(), COLS];
    let w = Array2::from_shape_vec(shape, random(rows * cols, 0)).expect("the shape is that of the numbers");
    for count in ROWS {
        let x =
            Array2::from_shape_vec([count, cols], random(count * cols, 1)).expect("the shape is that of the numbers");
        let mut y = Array2::zeros([rows, count]);
        measure(c, "ndarray, f32", count, shape, WEIGHT_BYTES, || {
            general_mat_mul(1.0, &w, &x.t(), 0.0, &mut y);
            black_box(&mut y);
        });
    }
}

/// One product of `[rows, cols]` weights, which have `bytes`, with `count` rows of activations.
fn measure(c: &mut Criterion, name: &str, count: usize, [rows, cols]: [usize; 2], bytes: usize, run: impl FnMut()) {
    let mut group = c.benchmark_group(format!("matmul, rows of activations: {count}"));
    group.sample_size(10).sampling_mode(SamplingMode::Flat).throughput(match count {
        1 => Throughput::BytesDecimal(bytes as u64),
        _ => Throughput::Elements((2 * rows * cols * count) as u64), // a multiplication and an addition
    });
    let mut run = run;
    group.bench_function(BenchmarkId::from_parameter(name), |bencher| bencher.iter(&mut run));
    group.finish();
}

/// How fast one thread reads as many bytes as the weights have.
fn yardstick_read(c: &mut Criterion) {
    let weights = Weights::random(Dtype::F32, WEIGHT_BYTES / size_of::<f32>());
    let mut group = c.benchmark_group("read");
    group.sample_size(10).sampling_mode(SamplingMode::Flat).throughput(Throughput::BytesDecimal(WEIGHT_BYTES as u64));
    group.bench_function("one thread", |bencher| bencher.iter(|| sum(black_box(weights.bytes()))));
    group.finish();
}

/// Cheap enough that memory is what it waits for: 16 sums that need not wait for each other.
fn sum(bytes: &[u8]) -> [u32; 16] {
    let mut sums = [0_u32; 16];
    for line in bytes.as_chunks::<64>().0 {
        for (sum, word) in sums.iter_mut().zip(line.as_chunks::<4>().0) {
            *sum = sum.wrapping_add(u32::from_le_bytes(*word));
        }
    }
    sums
}

criterion_group!(kernels, yardstick_read, yardstick_product, matmul, mxfp4);
criterion_main!(kernels);
