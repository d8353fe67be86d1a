//! Steps of small models through the engine as it is used, and loading: with the fraction of the read bandwidth that each
//! reaches.
//!
//! `layer` is one layer of a mixture of experts, larger than a core's caches; `token` is a model so small that
//! what a step costs beside its bytes stands out; `load` brings a checkpoint from the page cache into panels. Criterion
//! has no column for a fraction, so a line of its own follows each measurement. Benches measure and never fail for being
//! slow. `NIGHTMONK_ISA` lowers the ISA; `cargo bench -p benches --bench engine -- REGEX` picks some.
#![forbid(unsafe_code)]

use std::path::Path;
use std::time::{Duration, Instant};

use benches::decoder::{Decoder, Step, checkpoint, one_layer, options, tiny, to_load};
use benches::isa;
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use engine_core::model::Model;

/// On the disk that everything is built on.
const FOLDER: &str = env!("CARGO_TARGET_TMPDIR");
const WIDTH: usize = 8;
const CHUNK: usize = 256;
const DEPTH: usize = 4096;

fn layer(c: &mut Criterion) {
    let mut decoder = Decoder::new(&one_layer(), Path::new(FOLDER), isa(), WIDTH, DEPTH + 1, CHUNK);
    let mut group = c.benchmark_group("layer");
    group.sample_size(10).sampling_mode(SamplingMode::Flat).measurement_time(Duration::from_secs(3));
    steps(&mut group, &mut decoder, "decode", 1, |decoder| decoder.decode(0, 1));
    steps(&mut group, &mut decoder, "decode at 4096", 1, |decoder| decoder.decode(DEPTH, 1));
    steps(&mut group, &mut decoder, "decode 8 side by side", WIDTH, |decoder| decoder.decode(0, WIDTH));
    steps(&mut group, &mut decoder, "prefill of 256", CHUNK, |decoder| decoder.prefill(0..CHUNK));
    group.finish();
}

fn token(c: &mut Criterion) {
    let mut decoder = Decoder::new(&tiny(), Path::new(FOLDER), isa(), 1, CHUNK, CHUNK);
    let mut group = c.benchmark_group("token");
    group.sample_size(20).measurement_time(Duration::from_secs(2));
    steps(&mut group, &mut decoder, "decode", 1, |decoder| decoder.decode(0, 1));
    steps(&mut group, &mut decoder, "prefill of 64", 64, |decoder| decoder.prefill(0..64));
    group.finish();
}

/// Measures steps of `tokens` tokens, and prints beside them what share of the read bandwidth they had.
fn steps(
    group: &mut BenchmarkGroup<WallTime>,
    decoder: &mut Decoder,
    name: &str,
    tokens: usize,
    mut step: impl FnMut(&mut Decoder) -> Step,
) {
    let mut rates = Vec::new();
    group.throughput(Throughput::Elements(tokens as u64));
    group.bench_function(name, |bencher| {
        bencher.iter_custom(|count| {
            let mut total = Duration::ZERO;
            for _ in 0..count {
                let Step { time, bytes } = step(decoder);
                rates.push(bytes as f64 / time.as_secs_f64());
                total += time;
            }
            total
        });
    });
    print_fraction(name, &mut rates, decoder.read_bandwidth());
}

fn load(c: &mut Criterion) {
    let folder = checkpoint(&to_load(), Path::new(FOLDER));
    let bytes = folder.path().join("model.safetensors").metadata().expect("it was just written").len();
    let options = options(isa());
    let mut rates = Vec::new();
    let mut group = c.benchmark_group("load");
    group.sample_size(10).sampling_mode(SamplingMode::Flat).throughput(Throughput::BytesDecimal(bytes));
    group.bench_function("resident, from the page cache", |bencher| {
        bencher.iter_custom(|count| {
            let mut total = Duration::ZERO;
            for _ in 0..count {
                let start = Instant::now();
                let model = Model::load(folder.path(), options, &mut |_| {}).expect("a checkpoint just written loads");
                let time = start.elapsed();
                drop(model); // giving memory back is no part of loading
                rates.push(bytes as f64 / time.as_secs_f64());
                total += time;
            }
            total
        });
    });
    group.finish();
    let mut decoder = Decoder::new(&tiny(), Path::new(FOLDER), isa(), 1, 1, 1);
    print_fraction("load", &mut rates, decoder.read_bandwidth());
}

/// The median rate beside the bandwidth, both measured within seconds. Nothing is printed of what a filter left out.
fn print_fraction(name: &str, rates: &mut [f64], bandwidth: f64) {
    rates.sort_by(f64::total_cmp);
    if let Some(rate) = rates.get(rates.len() / 2) {
        let (gigabytes, limit) = (rate / 1e9, bandwidth / 1e9);
        println!(
            "{name}: {gigabytes:.1} GB/s, {:.2} of the {limit:.1} GB/s that the same threads read\n",
            rate / bandwidth
        );
    }
}

criterion_group!(engine, layer, token, load);
criterion_main!(engine);
