//! Writes checkpoints with the exact layer shapes of published models and random weights, so that speed can be measured
//! without hundreds of gigabytes and without anybody's licence: a decoder's speed depends on shapes, not on values.
//!
//! Weights are BF16 from N(0, 0.02²), the initialisation of these families, or MXFP4 of about that size where a model is
//! published so; norms are 1. The same seed gives the same bytes on any number of threads.
#![forbid(unsafe_code)]

mod normal;
mod shapes;

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use engine_core::config::{ModelConfig, TensorKind, TensorSpec};
use rayon::prelude::*;

use normal::Normal;

/// Writes a checkpoint with a published model's layer shape and random weights.
#[derive(Parser)]
#[command(name = "cargo tools synth")]
struct Arguments {
    /// Shape: one of the names that an unknown one lists
    #[arg(long)]
    shape: String,
    /// Decoder layers; without it, as many as the model has
    #[arg(long)]
    layers: Option<usize>,
    /// Seed of the weights
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Folder to write
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
}

const STANDARD_DEVIATION: f64 = 0.02;
/// Values that are generated and written together.
const CHUNK: usize = 1 << 20;

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("synth: {why}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), String> {
    let config = shapes::config(&arguments.shape, arguments.layers)?;
    let text = serde_json::to_string_pretty(&config).map_err(|error| error.to_string())?;
    let folder = &arguments.output;
    let parsed = ModelConfig::from_json(&folder.join("config.json"), text.as_bytes()).map_err(|e| e.to_string())?;
    let named = |path: &Path, error: std::io::Error| format!("{}: {error}", path.display());
    fs::create_dir_all(folder).map_err(|error| named(folder, error))?;

    let weights = folder.join("model.safetensors");
    let unfinished = folder.join("model.safetensors.unfinished");
    write(&unfinished, &parsed.tensors(), arguments.seed).map_err(|error| named(&unfinished, error))?;
    fs::rename(&unfinished, &weights).map_err(|error| named(&weights, error))?;
    let path = folder.join("config.json");
    fs::write(&path, text).map_err(|error| named(&path, error))
}

fn write(path: &Path, tensors: &[TensorSpec], seed: u64) -> std::io::Result<()> {
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
                    TensorKind::Matrix | TensorKind::Vector => normal.fill(seed, tensor, start, out),
                }
            });
            for (start, buffer) in starts.iter().zip(&buffers) {
                file.write_all(&buffer[..CHUNK.min(count - start) * size])?;
            }
        }
        let tenths = |bytes: usize| bytes * 10 / end;
        let before = done;
        done += count * size;
        if tenths(done) > tenths(before) {
            eprintln!("{} of {} MB", done / 1_000_000, end / 1_000_000);
        }
    }
    file.into_inner()?.sync_all()
}

fn element_bytes(kind: TensorKind) -> usize {
    if kind.is_numbers() { 2 } else { 1 }
}
