//! What llama.cpp's own benches say.

use std::path::PathBuf;
use std::process::Command;

use serde::Deserialize;

use super::build::Build;
use super::report::Test;
use crate::shell;

/// Runs of llama-batched-bench until it has said all.
const ATTEMPTS: usize = 10;

/// The programs, and the weights that they run on.
pub(super) struct LlamaCpp {
    pub(super) build: Build,
    weights: PathBuf,
}

/// A speed that llama.cpp measured in one round.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Sample {
    pub(super) test: Test,
    /// The settings that a reader could choose otherwise, as in `-fa on -lm none`.
    pub(super) setting: String,
    /// Tokens a second: the median where there were repetitions.
    pub(super) speeds: Vec<f64>,
}

/// Sequences side by side.
pub(super) struct Batch<'a> {
    /// Positions before each of them.
    pub(super) depth: usize,
    /// Lengths of generations.
    pub(super) generate: &'a [usize],
    /// How many sequences.
    pub(super) width: &'a [usize],
}

impl Batch<'_> {
    fn is_measured(&self, samples: &[Sample]) -> bool {
        let mut tests = self.generate.iter().flat_map(|n_gen| self.width.iter().map(move |width| (*n_gen, *width)));
        tests.all(|test| samples.iter().any(|sample| (sample.test.n_gen, sample.test.width) == test))
    }
}

/// An element of llama-bench's JSON.
#[derive(Deserialize)]
struct Single {
    n_prompt: usize,
    n_gen: usize,
    n_depth: usize,
    /// llama.cpp's number: 0 off, 1 on.
    flash_attn: i32,
    load_mode: String,
    repack: bool,
    n_ubatch: usize,
    type_k: String,
    samples_ts: Vec<f64>,
}

/// A line of llama-batched-bench's JSON.
#[derive(Deserialize)]
struct Batched {
    tg: usize,
    pl: usize,
    n_ubatch: usize,
    speed_tg: f64,
}

impl LlamaCpp {
    pub(super) fn new(build: Build, weights: PathBuf) -> Self {
        Self { build, weights }
    }

    /// Runs llama-bench, which loads the weights once for several settings of flash attention.
    pub(super) fn bench(
        &self,
        flash_attention: &[String],
        cache_type: &str,
        flags: &[String],
    ) -> Result<Vec<Sample>, String> {
        let mut command = Command::new(self.build.folder.join("llama-bench"));
        command.arg("-m").arg(&self.weights).args(flags).args(["-ctk", cache_type, "-ctv", cache_type]);
        command.args(["-fa", &flash_attention.join(","), "-o", "json"]);
        let json = shell::output(&mut command)?;
        singles(&json).map_err(|why| format!("{}: {why}", shell::line(&command)))
    }

    /// Runs llama-batched-bench; each sequence has at least one position behind it.
    pub(super) fn batched(
        &self,
        flash_attention: &str,
        cache_type: &str,
        batch: &Batch,
        flags: &[String],
    ) -> Result<Vec<Sample>, String> {
        let behind = batch.depth.max(1);
        let positions = behind + batch.generate.iter().max().unwrap_or(&0);
        // llama.cpp gives each sequence a part of the context that is a multiple of 256.
        let context = batch.width.iter().max().unwrap_or(&1) * positions.next_multiple_of(256);
        let mut command = Command::new(self.build.folder.join("llama-batched-bench"));
        command.arg("-m").arg(&self.weights).args(flags).args(["-ctk", cache_type, "-ctv", cache_type]);
        command.args(["-fa", flash_attention, "-c", &context.to_string(), "-npp", &behind.to_string()]);
        command.args(["-ntg", &super::list(batch.generate), "-npl", &super::list(batch.width)]);
        command.args(["--output-format", "jsonl"]);
        let setting = format!("-fa {flash_attention} {} -ctk {cache_type}", flags.join(" "));
        // It prints by a thread that it does not wait for at its end, so the last lines can be missing.
        for _ in 0..ATTEMPTS {
            let lines = shell::output(&mut command)?;
            let samples =
                batched(batch.depth, &setting, &lines).map_err(|why| format!("{}: {why}", shell::line(&command)))?;
            if batch.is_measured(&samples) {
                return Ok(samples);
            }
        }
        Err(format!("{}: {ATTEMPTS} runs have not printed all of their figures", shell::line(&command)))
    }
}

fn singles(json: &str) -> Result<Vec<Sample>, String> {
    let singles: Vec<Single> = serde_json::from_str(json).map_err(|error| error.to_string())?;
    let sample = |single: Single| Sample {
        test: Test { n_prompt: single.n_prompt, n_gen: single.n_gen, n_depth: single.n_depth, width: 1 },
        setting: format!(
            "-fa {} -lm {}{} -ub {} -ctk {}",
            match single.flash_attn {
                0 => "off",
                1 => "on",
                _ => "auto",
            },
            single.load_mode,
            if single.repack { "" } else { " --repack 0" },
            single.n_ubatch,
            single.type_k
        ),
        speeds: single.samples_ts,
    };
    Ok(singles.into_iter().map(sample).collect())
}

fn batched(n_depth: usize, setting: &str, lines: &str) -> Result<Vec<Sample>, String> {
    let lines = lines.lines().filter(|line| line.starts_with('{'));
    lines
        .map(|line| {
            let batched: Batched = serde_json::from_str(line).map_err(|error| error.to_string())?;
            Ok(Sample {
                test: Test { n_prompt: 0, n_gen: batched.tg, n_depth, width: batched.pl },
                setting: format!("{setting} -ub {}", batched.n_ubatch),
                speeds: vec![batched.speed_tg],
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_programs_are_understood() {
        let json = r#"[{"n_prompt": 0, "n_gen": 8, "n_depth": 128, "flash_attn": 1, "load_mode": "none", "repack": true,
            "n_ubatch": 512, "type_k": "f16", "avg_ts": 2.5, "samples_ts": [2.0, 3.0]}]"#;
        let test = Test { n_prompt: 0, n_gen: 8, n_depth: 128, width: 1 };
        let setting = "-fa on -lm none -ub 512 -ctk f16".to_owned();
        assert_eq!(singles(json).unwrap(), [Sample { test, setting, speeds: vec![2.0, 3.0] }]);
        assert!(singles("[{}]").is_err());

        let lines = "\n{\"n_kv_max\": 1024, \"n_ubatch\": 512, \"pp\": 1, \"tg\": 8, \"pl\": 4, \"speed_tg\": 134.5}\n";
        let test = Test { n_prompt: 0, n_gen: 8, n_depth: 0, width: 4 };
        let setting = "-fa off -t 2 -ub 512".to_owned();
        assert_eq!(batched(0, "-fa off -t 2", lines).unwrap(), [Sample { test, setting, speeds: vec![134.5] }]);
        assert!(batched(0, "", "{\"tg\": 8}").is_err());

        let samples = batched(0, "", lines).unwrap();
        let batch = Batch { depth: 0, generate: &[8], width: &[4] };
        assert!(batch.is_measured(&samples) && !batch.is_measured(&[]));
        assert!(!Batch { width: &[4, 32], ..batch }.is_measured(&samples));
    }
}
