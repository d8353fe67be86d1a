//! Checkpoints with the exact layer shapes of published models and random weights, so that speed can be measured
//! without hundreds of gigabytes and without anybody's licence: a decoder's speed depends on shapes, not on values.
//!
//! Weights are BF16 from N(0, 0.02²), the initialisation of these families, or MXFP4 of about that size where a model is
//! published so; norms are 1. The same seed gives the same bytes on any number of threads. The program is `main.rs`; benches write their small checkpoints through this library.
#![forbid(unsafe_code)]

mod normal;
pub mod shapes;

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

use engine_core::config::{ModelConfig, TensorKind, TensorSpec};
use rayon::prelude::*;
use serde_json::Value;

use normal::Normal;

const STANDARD_DEVIATION: f64 = 0.02;
/// Values that are generated and written together.
const CHUNK: usize = 1 << 20;

/// Writes config.json and one shard with every tensor that `config` asks for. `progress` is told bytes written and
/// bytes in all, after each tensor.
///
/// # Errors
/// Says which file could not be written, or what is wrong with `config`.
pub fn write_checkpoint(
    config: &Value,
    folder: &Path,
    seed: u64,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<(), String> {
    let text = serde_json::to_string_pretty(config).map_err(|error| error.to_string())?;
    let parsed = ModelConfig::from_json(&folder.join("config.json"), text.as_bytes()).map_err(|e| e.to_string())?;
    let named = |path: &Path, error: std::io::Error| format!("{}: {error}", path.display());
    fs::create_dir_all(folder).map_err(|error| named(folder, error))?;

    let weights = folder.join("model.safetensors");
    let unfinished = folder.join("model.safetensors.unfinished");
    write_shard(&unfinished, &parsed.tensors(), seed, progress).map_err(|error| named(&unfinished, error))?;
    fs::rename(&unfinished, &weights).map_err(|error| named(&weights, error))?;
    let path = folder.join("config.json");
    fs::write(&path, text).map_err(|error| named(&path, error))
}

fn write_shard(
    path: &Path,
    tensors: &[TensorSpec],
    seed: u64,
    progress: &mut dyn FnMut(usize, usize),
) -> std::io::Result<()> {
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for TensorSpec { name, shape, kind } in tensors {
        let start = end;
        end += shape.iter().product::<usize>() * element_bytes(*kind);
        let dtype = if kind.is_numbers() { "BF16" } else { "U8" };
        let entry = serde_json::json!({ "dtype": dtype, "shape": shape, "data_offsets": [start, end] });
        header.insert(name.clone(), entry);
    }
    let mut header = serde_json::Value::Object(header).to_string();
    while !(8 + header.len()).is_multiple_of(64) {
        header.push(' ');
    }
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(header.as_bytes())?;

    let normal = Normal::new(STANDARD_DEVIATION);
    let chunks_at_once = rayon::current_num_threads() * 4;
    let mut buffers = vec![vec![0; CHUNK * 2]; chunks_at_once];
    let mut done = 0;
    for (index, TensorSpec { name, shape, kind }) in tensors.iter().enumerate() {
        let count: usize = shape.iter().product();
        let size = element_bytes(*kind);
        let is_norm = name.ends_with("norm.weight");
        let starts: Vec<usize> = (0..count).step_by(CHUNK).collect();
        for starts in starts.chunks(chunks_at_once) {
            let work: Vec<_> = starts.iter().zip(&mut buffers).collect();
            work.into_par_iter().for_each(|(start, buffer)| {
                let out = &mut buffer[..CHUNK.min(count - start) * size];
                let (tensor, start) = (index as u64, *start as u64);
                match kind {
                    TensorKind::Mxfp4Blocks { .. } => normal::nibbles(seed, tensor, start, out),
                    TensorKind::Mxfp4Scales => normal::scales(seed, tensor, start, out),
                    TensorKind::Vector if is_norm => normal::ones(out),
                    TensorKind::Matrix | TensorKind::Vector | TensorKind::Stack { .. } => {
                        normal.fill(seed, tensor, start, out)
                    }
                }
            });
            for (start, buffer) in starts.iter().zip(&buffers) {
                file.write_all(&buffer[..CHUNK.min(count - start) * size])?;
            }
        }
        done += count * size;
        progress(done, end);
    }
    file.into_inner()?.sync_all()
}

fn element_bytes(kind: TensorKind) -> usize {
    if kind.is_numbers() { 2 } else { 1 }
}

#[cfg(test)]
mod tests {
    use engine_core::checkpoint::Checkpoint;

    use super::*;

    #[test]
    fn the_engine_takes_what_was_written_and_the_same_seed_gives_the_same_bytes() {
        let config = serde_json::json!({
            "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 32, "head_dim": 16,
            "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48, "num_hidden_layers": 2,
            "rope_theta": 1e6, "rms_norm_eps": 1e-6, "vocab_size": 100, "tie_word_embeddings": false,
            "max_position_embeddings": 128, "torch_dtype": "bfloat16",
        });
        let folders = [1, 1, 2].map(|seed| {
            let folder = tempfile::tempdir().unwrap();
            let mut last = (0, 1);
            write_checkpoint(&config, folder.path(), seed, &mut |done, all| last = (done, all)).unwrap();
            assert_eq!(last.0, last.1);
            (Checkpoint::open(folder.path()).unwrap(), folder)
        });
        let embedding = |at: usize| folders[at].0.tensor("model.embed_tokens.weight").bytes;
        assert_eq!(embedding(0), embedding(1));
        assert_ne!(embedding(0), embedding(2));
        assert!(folders[0].0.tensor("model.norm.weight").bytes.chunks(2).all(|one| one == [0x80, 0x3f]));
    }
}
