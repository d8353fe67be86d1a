//! The tokenizers of Qwen3 and gpt-oss on ten thousand lines of everything, against the ids that transformers gives.
//!
//! The files are too large for the repository: `tools/golden/fetch_tokenizers.py` brings them by npm into the target
//! folder, and with `NIGHTMONK_REQUIRE_TOKENIZERS=1` they may not be missing. Lines are made as `tools/golden/token_ids.py`
//! makes them, so the repository keeps fragments and digests only.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use engine_core::text::Tokenizer;
use serde::Deserialize;

use crate::models::golden;

const LINES: u64 = 10_000;
const LINES_A_DIGEST: usize = 100;

#[derive(Deserialize)]
struct Expected {
    lines: String,
    models: HashMap<String, OfModel>,
}

#[derive(Deserialize)]
struct OfModel {
    tokens: usize,
    digests: Vec<String>,
}

#[derive(Deserialize)]
struct Fragments {
    fragments: Vec<String>,
    ranges: Vec<(u32, u32)>,
}

struct SplitMix64(u64);

impl SplitMix64 {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % limit
    }

    fn choose<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len() as u64) as usize]
    }
}

impl Fragments {
    fn line(&self, index: u64) -> String {
        let mut random = SplitMix64(index);
        let mut text = String::new();
        for _ in 0..1 + random.below(16) {
            match random.below(16) {
                0 => {
                    let (first, last) = *random.choose(&self.ranges);
                    let code = first + random.below(u64::from(last - first) + 1) as u32;
                    text.push(char::from_u32(code).unwrap());
                }
                kind => {
                    text.push_str(if kind < 8 { " " } else { "" });
                    text.push_str(random.choose::<String>(&self.fragments));
                }
            }
        }
        text
    }
}

/// 64-bit FNV-1a.
struct Digest(u64);

impl Digest {
    fn new() -> Self {
        Self(0xCBF2_9CE4_8422_2325)
    }

    fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x100_0000_01B3);
        }
    }

    fn add_ids(&mut self, ids: &[u32]) {
        self.add(&(ids.len() as u32).to_le_bytes());
        ids.iter().for_each(|id| self.add(&id.to_le_bytes()));
    }

    fn text(&self) -> String {
        format!("{:016x}", self.0)
    }
}

fn read<T: serde::de::DeserializeOwned>(file: &str) -> T {
    serde_json::from_slice(&std::fs::read(golden().join("tokenizers").join(file)).unwrap()).unwrap()
}

/// The tokenizer's folder. `None`, said loudly, where it is missing.
fn folder(model: &str) -> Option<PathBuf> {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let folder = target.join("tokenizers").join(model);
    if folder.join("tokenizer.json").is_file() {
        return Some(folder);
    }
    let required = std::env::var_os("NIGHTMONK_REQUIRE_TOKENIZERS").is_some_and(|value| value == "1");
    assert!(!required, "NIGHTMONK_REQUIRE_TOKENIZERS=1, but {} has no tokenizer.json", folder.display());
    eprintln!("*** NOT TESTED: the tokenizer of {model}. tools/golden/fetch_tokenizers.py brings it. ***");
    None
}

fn assert_ids_are_those_of_transformers(model: &str) {
    let Some(folder) = folder(model) else { return };
    let expected: Expected = read("expected.json");
    let fragments: Fragments = read("fragments.json");
    let lines: Vec<String> = (0..LINES).map(|index| fragments.line(index)).collect();
    let mut digest = Digest::new();
    lines.iter().for_each(|line| digest.add(line.as_bytes()));
    assert_eq!(digest.text(), expected.lines, "these are not the lines that transformers got");

    let tokenizer = Tokenizer::from_dir(&folder).unwrap();
    let OfModel { tokens, digests } = &expected.models[model];
    let chunks = lines.chunks(LINES_A_DIGEST);
    assert_eq!(chunks.len(), digests.len());
    let mut count = 0;
    for (index, (chunk, want)) in chunks.zip(digests).enumerate() {
        let mut digest = Digest::new();
        for line in chunk {
            let ids = tokenizer.encode(line, false).unwrap();
            digest.add_ids(&ids);
            count += ids.len();
        }
        let first = index * LINES_A_DIGEST;
        assert_eq!(digest.text(), *want, "{model}: ids differ in lines {first}..{}", first + LINES_A_DIGEST);
    }
    assert_eq!(count, *tokens);
}

#[test]
fn qwen3_gives_ten_thousand_lines_the_ids_of_transformers() {
    assert_ids_are_those_of_transformers("qwen3");
}

#[test]
fn gpt_oss_gives_ten_thousand_lines_the_ids_of_transformers() {
    assert_ids_are_those_of_transformers("gpt_oss");
}
