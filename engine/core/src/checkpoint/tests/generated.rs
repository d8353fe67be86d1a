//! Damages by the hundred thousand: every header cut at every byte, every bit turned, every number replaced.
//!
//! Whatever comes in, a checkpoint opens and every tensor of it can be read, or it is refused with an error.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::sample::{SHARD, joined, split, tiny_config, tiny_shard};
use crate::checkpoint::{Checkpoint, MappedFile, Shard};
use crate::config::ModelConfig;

struct Seed {
    config: ModelConfig,
    file: Vec<u8>,
}

fn seeds() -> Vec<Seed> {
    [
        ("LlamaForCausalLM", "BF16"),
        ("LlamaForCausalLM", "F32"),
        ("Qwen2ForCausalLM", "F16"),
        ("Qwen3ForCausalLM", "BF16"),
        ("MixtralForCausalLM", "F16"),
        ("Qwen3MoeForCausalLM", "F32"),
        ("GptOssForCausalLM", "BF16"),
    ]
    .map(|(architecture, dtype)| {
        let json: Value = tiny_config(architecture);
        let config = ModelConfig::from_json(Path::new("config.json"), json.to_string().as_bytes()).unwrap();
        Seed { config, file: tiny_shard(&json, dtype) }
    })
    .into()
}

#[derive(Default)]
struct Tally {
    opened: usize,
    refused: usize,
    slowest: Duration,
}

impl Tally {
    fn open(&mut self, seed: &Seed, file: &[u8]) {
        let start = Instant::now();
        let shard = Shard { path: SHARD.into(), map: MappedFile::anonymous(file) };
        match Checkpoint::from_shards(Path::new("folder"), seed.config.clone(), vec![shard], &BTreeMap::new()) {
            Ok(checkpoint) => {
                self.opened += 1;
                assert_consistent(&checkpoint);
            }
            Err(error) => {
                self.refused += 1;
                assert!(!error.to_string().contains(char::is_control), "{error:?}");
            }
        }
        self.slowest = self.slowest.max(start.elapsed());
    }
}

/// Every tensor that the model needs can be read by its name, and no two of them share a byte.
fn assert_consistent(checkpoint: &Checkpoint) {
    let mut places = Vec::new();
    for spec in checkpoint.config().tensors() {
        let bytes = checkpoint.bytes(&checkpoint.location(&spec.name));
        let elements = spec.shape.iter().product::<usize>();
        if spec.kind.is_numbers() {
            let tensor = checkpoint.tensor(&spec.name);
            assert_eq!(tensor.shape, spec.shape, "{}", spec.name);
            assert_eq!(tensor.bytes.len(), elements * tensor.dtype.size(), "{}", spec.name);
            assert_eq!(tensor.bytes.as_ptr() as usize % tensor.dtype.size(), 0, "{}", spec.name);
            assert_eq!(tensor.bytes, bytes, "{}", spec.name);
        }
        assert!(bytes.len() >= elements, "{}", spec.name);
        checkpoint.check_finite(&spec.name).unwrap();
        places.push(bytes.as_ptr_range());
    }
    places.sort_by_key(|place| place.start);
    assert!(places.windows(2).all(|pair| pair[0].end <= pair[1].start), "tensors overlap");
}

/// 2^k - 1, 2^k and 2^k + 1 for every k up to 64.
fn numbers() -> Vec<String> {
    let powers = (0..=64).map(|k| 1u128 << k);
    let mut numbers: Vec<u128> = powers.flat_map(|power| [power - 1, power, power + 1]).collect();
    numbers.sort_unstable();
    numbers.dedup();
    numbers.iter().map(u128::to_string).collect()
}

/// Runs of digits in a text.
fn digits(text: &str) -> Vec<std::ops::Range<usize>> {
    let mut runs: Vec<std::ops::Range<usize>> = Vec::new();
    for (at, _) in text.bytes().enumerate().filter(|(_, byte)| byte.is_ascii_digit()) {
        match runs.last_mut() {
            Some(run) if run.end == at => run.end += 1,
            _ => runs.push(at..at + 1),
        }
    }
    runs
}

#[test]
fn a_hundred_thousand_damaged_headers_open_whole_or_are_refused() {
    let mut tally = Tally::default();
    let numbers = numbers();
    for seed in seeds() {
        let mut undamaged = Tally::default();
        undamaged.open(&seed, &seed.file);
        assert_eq!(undamaged.opened, 1);

        let (header, data) = split(&seed.file);
        let header_end = seed.file.len() - data.len();
        for end in 0..header_end {
            tally.open(&seed, &seed.file[..end]);
        }
        let mut file = seed.file.clone();
        for bit in 0..header_end * 8 {
            file[bit / 8] ^= 1 << (bit % 8);
            tally.open(&seed, &file);
            file[bit / 8] ^= 1 << (bit % 8);
        }
        for number in &numbers {
            if let Ok(size) = number.parse::<u64>() {
                file[..8].copy_from_slice(&size.to_le_bytes());
                tally.open(&seed, &file);
            }
            for run in digits(&header) {
                let changed = [&header[..run.start], number, &header[run.end..]].concat();
                tally.open(&seed, &joined(&changed, &data));
            }
        }
    }
    let Tally { opened, refused, slowest } = tally;
    println!("{refused} refused, {opened} opened, the slowest in {slowest:?}");
    assert!(opened + refused >= 100_000, "{opened} opened, {refused} refused");
    // What opens had its metadata changed, or a number replaced by itself.
    assert!(opened > 0 && opened * 100 < refused, "{opened} opened, {refused} refused");
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
}
