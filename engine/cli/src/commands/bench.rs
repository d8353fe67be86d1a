//! `bench`: prefill and decode as llama-bench measures them, each beside what this machine could do at most.
//!
//! The limit is measured in the same run with the same workers, right before each test: reading anonymous memory in
//! pages of 2 MiB, and multiplying in registers. Tokens come from a fixed generator: speed does not depend on them, but
//! which experts are read does, so they are not all equal. Positions before a test's depth hold zeros as keys and
//! values; their content changes no speed.

use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use engine_core::adapter::AdapterSet;
use engine_core::kv_cache::{BlockId, KvCache, KvShape, blocks_for};
use engine_core::model::{AdapterRoom, Batch, Model, Row, Workspace};
use numa::{MemoryFacts, Pinning, Pool, ProcessMemory, Region};
use serde::Serialize;

use crate::args::{Bench, Format};
use crate::failure::Failure;
use crate::limits::peak_flops;
use crate::load_choice::Work;
use crate::model::{self, Loaded, LogitRows, Opened};
use crate::nodes;
use crate::output::print;

/// Beyond the last-level cache of most machines; half of what the model leaves where that is less.
const REGION_BYTES: usize = 2 << 30;

/// One row of the table, under the names that scripts know.
#[derive(Serialize)]
struct Figures {
    test: String,
    n_prompt: usize,
    n_gen: usize,
    n_depth: usize,
    width: usize,
    threads: usize,
    isa: &'static str,
    activations: String,
    load: String,
    kv_type: &'static str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    adapters: Vec<String>,
    tokens_per_second: f64,
    samples: Vec<f64>,
    bytes_per_token: f64,
    read_bandwidth: f64,
    fraction_of_bandwidth: f64,
    flops_per_token: f64,
    peak_flops: f64,
    fraction_of_peak: f64,
    peak_rss_bytes: u64,
    load_seconds: f64,
}

/// Loading beside plain reading, with `--load-test`.
#[derive(Serialize)]
struct LoadFigures {
    test: &'static str,
    threads: usize,
    load: String,
    load_bytes: usize,
    /// Those of them that were not in the page cache.
    disk_bytes: usize,
    load_seconds: f64,
    load_bytes_per_second: f64,
    /// Bytes a second of direct reads alone, by as many threads, right before, into a few buffers.
    direct_read: f64,
    /// Bytes a second at which memory for the weights is taken by as many threads, and nothing done with it.
    first_touch: f64,
    fraction_of_direct_read: f64,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Measured {
    Load(LoadFigures),
    Speed(Figures),
}

#[derive(Clone, Copy)]
struct Test {
    n_prompt: usize,
    n_gen: usize,
    depth: usize,
    width: usize,
}

struct Bencher<'m> {
    model: &'m Model,
    kv: KvCache,
    space: Workspace,
    tables: Vec<Vec<BlockId>>,
    /// Of each sequence.
    adapters: Vec<AdapterSet>,
    ubatch_size: usize,
    random: u64,
}

pub(crate) fn run(arguments: &Bench) -> Result<(), Failure> {
    model::check_folder(&arguments.model)?;
    let tests = tests(arguments);
    if tests.is_empty() && !arguments.load_test {
        return Err(Failure::Usage("nothing to measure: `--n-prompt` and `--n-gen` are both 0".into()));
    }
    let positions = |test: &Test| test.depth.saturating_add(test.n_prompt.max(test.n_gen));
    let ctx_size = tests.iter().map(positions).max().unwrap_or(1);
    if let Some(asked) = arguments.run.ctx_size.filter(|asked| asked.get() < ctx_size) {
        return Err(Failure::Usage(format!(
            "`--ctx-size {asked}` has no room for the {ctx_size} positions of the longest test"
        )));
    }
    let width = tests.iter().map(|test| test.width).max().unwrap_or(1);
    let run = arguments.run.with_ctx_size(NonZeroUsize::new(ctx_size).unwrap_or(NonZeroUsize::MIN));
    let mut start = Instant::now();
    let opened = Opened::new(&arguments.model, &run, width, LogitRows::Last, work(&tests, arguments))?;
    let request = opened.request;
    let mut rows = Vec::new();
    let mut yardsticks = None;
    if arguments.load_test {
        let before = Instant::now();
        yardsticks = Some(Yardsticks::measure(&opened)?);
        start += before.elapsed(); // not a part of loading
    }
    let loaded = opened.load()?;
    if let Some(yardsticks) = yardsticks {
        let row = load_figures(&loaded, &yardsticks);
        if arguments.output.output == Format::Text {
            print(load_line(&row))?;
        }
        rows.push(Measured::Load(row));
    }
    let adapters = loaded.adapter_set()?;
    let Loaded { model, mut pool, .. } = loaded;
    let _pin = nodes::pin_caller(&pool)?;
    let shape = KvShape::new(model.config(), request.kv_dtype, width * blocks_for(ctx_size));
    let mut kv = KvCache::on_nodes(shape, model.homes(), &mut pool)?;
    nodes::report_placement(model.placement(), kv.placement());
    let load_seconds = start.elapsed().as_secs_f64();

    let tables =
        (0..width).map(|_| kv.take(blocks_for(ctx_size)).expect("the cache was made for these tables")).collect();
    let mut space = Workspace::new(&model, pool, request.ubatch_size.max(width), width);
    space.make_room(AdapterRoom { adapters: request.adapters.count, rank: request.adapters.rank });
    let mut bencher = Bencher {
        model: &model,
        kv,
        space,
        tables,
        adapters: if adapters.is_empty() { Vec::new() } else { vec![adapters; width] },
        ubatch_size: request.ubatch_size,
        random: 0x9E37_79B9_7F4A_7C15,
    };
    let spare = MemoryFacts::discover()?.usable_ram() / 2;
    let mut region = Region::anonymous(REGION_BYTES.min(spare as usize))?;
    region.prefault(Some(bencher.space.pool()))?;

    for test in &tests {
        let row = bencher.measure(*test, arguments.repetitions.get(), &region, load_seconds)?;
        if arguments.output.output == Format::Text {
            print(line(&row))?;
        }
        rows.push(Measured::Speed(row));
    }
    if arguments.output.output == Format::Json {
        print(format_args!("{}\n", serde_json::to_string(&rows)?))?;
    }
    Ok(())
}

/// llama-bench's grid: every prompt length and every generation length at every depth, generations at every width.
fn tests(arguments: &Bench) -> Vec<Test> {
    let mut tests = Vec::new();
    for depth in &arguments.depth {
        for n_prompt in arguments.prompt.iter().filter(|n| **n > 0) {
            tests.push(Test { n_prompt: *n_prompt, n_gen: 0, depth: *depth, width: 1 });
        }
        for n_gen in arguments.generate.iter().filter(|n| **n > 0) {
            for width in &arguments.width {
                tests.push(Test { n_prompt: 0, n_gen: *n_gen, depth: *depth, width: width.get() });
            }
        }
    }
    tests
}

/// All tokens of all tests, repeated and once before.
fn work(tests: &[Test], arguments: &Bench) -> Work {
    let times = arguments.repetitions.get().saturating_add(1);
    let all = |of: fn(&Test) -> usize| tests.iter().map(of).fold(0, usize::saturating_add).saturating_mul(times);
    Work::Tokens { prompt: all(|test| test.n_prompt), generate: all(|test| test.n_gen.saturating_mul(test.width)) }
}

/// What loading is compared with.
struct Yardsticks {
    direct_read: f64,
    first_touch: f64,
}

impl Yardsticks {
    /// Memory is taken between two readings: that which lies free for some seconds a virtual machine's host takes back, and
    /// lends it anew page by page, slower than most disks. So loading, which follows, finds it as this did.
    fn measure(opened: &Opened) -> Result<Self, Failure> {
        let threads = NonZeroUsize::new(opened.request.threads).unwrap_or(NonZeroUsize::MIN);
        let mut reading = Duration::ZERO;
        let mut read = || -> Result<u64, Failure> {
            let start = Instant::now();
            let bytes = engine_core::model::read_only(&opened.checkpoint, threads.get())?;
            reading += start.elapsed();
            Ok(bytes)
        };
        let mut bytes = read()?;
        let first_touch = {
            let mut pool = Pool::new(threads, Pinning::Free)?;
            let mut region = Region::anonymous(opened.plan.weight_bytes as usize)?;
            let start = Instant::now();
            region.prefault(Some(&mut pool))?;
            region.as_slice().len() as f64 / start.elapsed().as_secs_f64()
        };
        bytes += read()?;
        Ok(Self { direct_read: bytes as f64 / reading.as_secs_f64(), first_touch })
    }
}

fn load_figures(loaded: &Loaded, &Yardsticks { direct_read, first_touch }: &Yardsticks) -> LoadFigures {
    let model = &loaded.model;
    let load_seconds = loaded.time.as_secs_f64();
    let load_bytes_per_second = loaded.bytes as f64 / load_seconds;
    LoadFigures {
        test: "load",
        threads: model.options().threads,
        load: model.options().load.to_string(),
        load_bytes: loaded.bytes,
        disk_bytes: loaded.disk_bytes,
        load_seconds,
        load_bytes_per_second,
        direct_read,
        first_touch,
        fraction_of_direct_read: load_bytes_per_second / direct_read,
    }
}

fn load_line(row: &LoadFigures) -> String {
    let gigabytes = |bytes: usize| bytes as f64 / 1e9;
    format!(
        "{:<8} {:.1} s, {:.2} GB/s, {:.3} of {:.2} GB/s of direct reads, memory alone comes at {:.2} GB/s; {:.1} GB from the disk, {:.1} GB from the page cache\n",
        row.test,
        row.load_seconds,
        row.load_bytes_per_second / 1e9,
        row.fraction_of_direct_read,
        row.direct_read / 1e9,
        row.first_touch / 1e9,
        gigabytes(row.disk_bytes),
        gigabytes(row.load_bytes - row.disk_bytes),
    )
}

impl Bencher<'_> {
    fn measure(
        &mut self,
        test: Test,
        repetitions: usize,
        region: &Region,
        load_seconds: f64,
    ) -> Result<Figures, Failure> {
        let options = *self.model.options();
        let tokens = (test.n_prompt + test.n_gen) * test.width;
        self.run(test); // the first run wakes workers and fills caches
        let mut samples = Vec::with_capacity(repetitions);
        let (mut bandwidths, mut peaks) = (Vec::new(), Vec::new());
        let mut bytes = 0;
        for _ in 0..repetitions {
            let isa = options.isa;
            bandwidths.push(numa::read_bandwidth(self.space.pool(), region.as_slice(), 1, |bytes| {
                simd::elementwise::read_all(isa, bytes)
            }));
            peaks.push(peak_flops(self.space.pool(), isa));
            let start = Instant::now();
            bytes = self.run(test);
            samples.push(tokens as f64 / start.elapsed().as_secs_f64());
        }
        self.model.check_intact()?;
        let (tokens_per_second, read_bandwidth, peak_flops) = (median(&samples), median(&bandwidths), median(&peaks));
        let bytes_per_token = bytes as f64 / tokens as f64;
        let flops_per_token = self.flops_per_token(test);
        let name = if test.n_prompt > 0 { format!("pp{}", test.n_prompt) } else { format!("tg{}", test.n_gen) };
        Ok(Figures {
            test: name,
            n_prompt: test.n_prompt,
            n_gen: test.n_gen,
            n_depth: test.depth,
            width: test.width,
            threads: self.space.pool().threads(),
            isa: options.isa.name(),
            activations: options.activations.to_string(),
            load: options.load.to_string(),
            kv_type: self.kv.shape().dtype.name(),
            adapters: self
                .adapters
                .first()
                .map_or(Vec::new(), |set| set.iter().map(|(own, _)| own.name().into()).collect()),
            tokens_per_second,
            samples,
            bytes_per_token,
            read_bandwidth,
            fraction_of_bandwidth: tokens_per_second * bytes_per_token / read_bandwidth,
            flops_per_token,
            peak_flops,
            fraction_of_peak: tokens_per_second * flops_per_token / peak_flops,
            peak_rss_bytes: ProcessMemory::now()?.peak_resident_bytes,
            load_seconds,
        })
    }

    /// One repetition; returns the bytes of weights, keys and values that it read.
    fn run(&mut self, test: Test) -> usize {
        let vocab_size = self.model.config().vocab_size as u64;
        let mut random = || {
            self.random ^= self.random << 13;
            self.random ^= self.random >> 7;
            self.random ^= self.random << 17;
            (self.random % vocab_size) as u32
        };
        let tables = &self.tables[..test.width];
        let mut bytes = 0;
        let mut rows = Vec::with_capacity(self.ubatch_size.max(test.width));
        let prompt: Vec<usize> = (test.depth..test.depth + test.n_prompt).collect();
        for chunk in prompt.chunks(self.ubatch_size) {
            rows.clear();
            rows.extend(chunk.iter().map(|position| Row {
                token: random(),
                position: *position,
                sequence: 0,
                experts_per_token: None,
            }));
            let last = [rows.len() - 1];
            let is_last = chunk.last() == prompt.last();
            let batch =
                Batch { rows: &rows, tables, logits: if is_last { &last } else { &[] }, adapters: &self.adapters };
            self.model.forward(&batch, &mut self.kv, &mut self.space, &mut ());
            bytes += self.space.bytes_read();
        }
        let all: Vec<usize> = (0..test.width).collect();
        for position in test.depth..test.depth + test.n_gen {
            rows.clear();
            rows.extend((0..test.width).map(|sequence| Row {
                token: random(),
                position,
                sequence,
                experts_per_token: None,
            }));
            let batch = Batch { rows: &rows, tables, logits: &all, adapters: &self.adapters };
            self.model.forward(&batch, &mut self.kv, &mut self.space, &mut ());
            bytes += self.space.bytes_read();
        }
        bytes
    }

    /// Two operations a weight that a token meets, and four a visible position, head and dimension. Two-term
    /// activations do more; what they are for is counted once.
    fn flops_per_token(&self, test: Test) -> f64 {
        let config = self.model.config();
        let mean_context = test.depth as f64 + (test.n_prompt.max(test.n_gen) as f64 + 1.0) / 2.0;
        let visible = |window: Option<usize>| window.map_or(mean_context, |window| mean_context.min(window as f64));
        let attention = 4.0 * config.query_size() as f64;
        let attention: f64 = config.layers.iter().map(|layer| attention * visible(layer.window)).sum();
        // The logits of a prompt are computed once.
        let lm_head = (config.vocab_size * config.hidden_size) as f64;
        let skipped = if test.n_prompt > 0 { lm_head * (1.0 - 1.0 / test.n_prompt as f64) } else { 0.0 };
        2.0 * (self.model.weights_per_token() as f64 - skipped) + attention
    }
}

fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len().is_multiple_of(2) { (sorted[middle - 1] + sorted[middle]) / 2.0 } else { sorted[middle] }
}

fn line(row: &Figures) -> String {
    format!(
        "{:<8} depth {:<6} width {:<3} {:>9.2} tok/s   {:>6.1} MB/token, {:.3} of {:.1} GB/s   {:.3} of {:.0} GFLOP/s\n",
        row.test,
        row.n_depth,
        row.width,
        row.tokens_per_second,
        row.bytes_per_token / 1e6,
        row.fraction_of_bandwidth,
        row.read_bandwidth / 1e9,
        row.fraction_of_peak,
        row.peak_flops / 1e9,
    )
}
