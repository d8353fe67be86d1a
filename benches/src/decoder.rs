//! A synthetic model and all that a step of it needs, beside the bandwidth that its steps are judged by.
//!
//! Random weights of a small shape are written to a temporary folder and loaded as any checkpoint is, so that what is
//! measured is the engine's own way from a folder to logits.

use std::num::NonZeroUsize;
use std::ops::Range;
use std::path::Path;
use std::time::{Duration, Instant};

use engine_core::kv_cache::{BlockId, KvCache, KvShape, blocks_for};
use engine_core::model::{Batch, Load, Model, ModelOptions, Row, Workspace};
use numa::{Pinning, Pool, Region, Topology};
use serde_json::{Value, json};
use simd::matmul::Activations;
use simd::{Dtype, Isa};
use tempfile::TempDir;

/// Several times a core's own caches; a large shared cache may still flatter it, as it does the small models here.
const REGION_BYTES: usize = 256 << 20;

/// One layer as Qwen3-30B-A3B has them, with 16 of its 128 experts and a small vocabulary: 195 MB.
pub fn one_layer() -> Value {
    json!({
        "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "hidden_size": 2048, "head_dim": 128,
        "num_attention_heads": 32, "num_key_value_heads": 4, "num_experts": 16, "num_experts_per_tok": 8,
        "norm_topk_prob": true, "moe_intermediate_size": 768, "intermediate_size": 6144, "num_hidden_layers": 1,
        "decoder_sparse_step": 1, "mlp_only_layers": [], "rope_theta": 1e6, "rms_norm_eps": 1e-6, "vocab_size": 1024,
        "tie_word_embeddings": false, "max_position_embeddings": 40960, "torch_dtype": "bfloat16",
    })
}

/// Four layers that fit a core's caches: what a step costs beside its bytes.
pub fn tiny() -> Value {
    dense([256, 512, 4, 1024])
}

/// One dense layer between two large matrices: 290 MB, two thirds of them embedding and output.
pub fn to_load() -> Value {
    dense([2048, 8192, 1, 24_000])
}

fn dense([hidden, intermediate, layers, vocab]: [usize; 4]) -> Value {
    json!({
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": hidden, "head_dim": 64,
        "num_attention_heads": hidden / 64, "num_key_value_heads": 4, "intermediate_size": intermediate,
        "num_hidden_layers": layers, "rope_theta": 1e6, "rms_norm_eps": 1e-6, "vocab_size": vocab,
        "tie_word_embeddings": false, "max_position_embeddings": 40960, "torch_dtype": "bfloat16",
    })
}

/// A checkpoint in a folder that goes with it.
///
/// # Panics
/// If it cannot be written: there is nothing to measure then.
pub fn checkpoint(config: &Value, below: &Path) -> TempDir {
    let folder = tempfile::tempdir_in(below).expect("a temporary folder can be made");
    synth::write_checkpoint(config, folder.path(), 1, &mut |_, _| {}).expect("a small checkpoint can be written");
    folder
}

/// As many threads as this process has physical cores, and `isa`; everything else is the default of a run.
pub fn options(isa: Isa) -> ModelOptions {
    let threads = Topology::discover().map_or(1, |topology| topology.core_count().max(1));
    ModelOptions { isa, activations: Activations::default(), load: Load::Resident, threads }
}

/// A model in memory with its cache, buffers and workers.
pub struct Decoder {
    model: Model,
    kv: KvCache,
    space: Workspace,
    tables: Vec<Vec<BlockId>>,
    region: Region,
    tokens: u64,
    _folder: TempDir,
}

/// A step that was measured.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// What it took.
    pub time: Duration,
    /// Weights, keys and values that it read.
    pub bytes: usize,
}

impl Decoder {
    /// For `width` sequences of up to `positions` positions, and steps of up to `rows` rows.
    ///
    /// # Panics
    /// If the machine has no room for it.
    pub fn new(config: &Value, below: &Path, isa: Isa, width: usize, positions: usize, rows: usize) -> Self {
        let folder = checkpoint(config, below);
        let options = options(isa);
        let model = Model::load(folder.path(), options, &mut |_| {}).expect("a checkpoint just written loads");
        let threads = NonZeroUsize::new(options.threads).expect("at least one thread");
        let mut pool = Pool::new(threads, Pinning::Pinned).expect("workers start");
        let shape = KvShape::new(model.config(), Dtype::F16, width * blocks_for(positions));
        let mut kv = KvCache::new(shape, &mut pool).expect("a small cache has room");
        let tables = (0..width).map(|_| kv.take(blocks_for(positions)).expect("made for these tables")).collect();
        let mut region = Region::anonymous(REGION_BYTES).expect("256 MiB are there");
        region.prefault(Some(&mut pool)).expect("256 MiB are there");
        let space = Workspace::new(&model, pool, rows, width);
        Self { model, kv, space, tables, region, tokens: 1, _folder: folder }
    }

    /// Computes the positions `positions` of one sequence, with logits of the last one.
    pub fn prefill(&mut self, positions: Range<usize>) -> Step {
        let rows: Vec<Row> = positions
            .map(|position| Row { token: self.token(), position, sequence: 0, experts_per_token: None })
            .collect();
        self.step(&rows, &[rows.len() - 1])
    }

    /// Computes position `position` of `width` sequences, with logits. What lies before is zero, or of an earlier step;
    /// that changes no speed.
    pub fn decode(&mut self, position: usize, width: usize) -> Step {
        let rows: Vec<Row> = (0..width)
            .map(|sequence| Row { token: self.token(), position, sequence, experts_per_token: None })
            .collect();
        let all: Vec<usize> = (0..width).collect();
        self.step(&rows, &all)
    }

    /// Bytes a second at which the workers read memory now.
    pub fn read_bandwidth(&mut self) -> f64 {
        let isa = self.model.options().isa;
        let read = |bytes: &[u8]| simd::elementwise::read_all(isa, bytes);
        numa::read_bandwidth(self.space.pool(), self.region.as_slice(), 3, read)
    }

    fn step(&mut self, rows: &[Row], logits: &[usize]) -> Step {
        let batch = Batch { rows, tables: &self.tables, logits, adapters: &[] };
        let start = Instant::now();
        self.model.forward(&batch, &mut self.kv, &mut self.space, &mut ());
        Step { time: start.elapsed(), bytes: self.space.bytes_read() }
    }

    /// The next token of a fixed sequence: which experts are read depends on it.
    fn token(&mut self) -> u32 {
        self.tokens ^= self.tokens << 13;
        self.tokens ^= self.tokens >> 7;
        self.tokens ^= self.tokens << 17;
        (self.tokens % self.model.config().vocab_size as u64) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_says_the_bytes_that_it_read() {
        let below = tempfile::tempdir().unwrap();
        let mut decoder = Decoder::new(&tiny(), below.path(), Isa::detect(), 2, 64, 16);
        let weights = decoder.model.weights_per_token() * 2;
        let first = decoder.decode(0, 1).bytes;
        assert!(first >= weights && first < weights + weights / 8, "{first} for {weights} bytes of weights");
        assert!(decoder.decode(40, 1).bytes > first, "keys and values are read too");
        let both = decoder.decode(0, 2).bytes;
        assert!(both < first + first / 2, "{both}: weights are read once for both sequences");
        assert!(decoder.prefill(0..16).time > Duration::ZERO);
        assert!(decoder.read_bandwidth() > 0.0);
    }
}
