//! `selftest numerics`: what the kernels of this machine lose, beside what BF16 arithmetic loses.
//!
//! The bounds are those of the repository's own tests. A machine whose instructions none of them ran on is tried here.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use engine_core::checkpoint::{Checkpoint, CheckpointError};
use engine_core::model::{Load, Model, ModelOptions};
use engine_core::session::Evaluator;
use numa::{Pinning, Pool};
use serde_json::json;
use simd::matmul::Activations;
use simd::{Dtype, Isa};

use super::distance::Distance;
use super::golden::{self, Reference};
use crate::args::{Format, Numerics};
use crate::failure::Failure;
use crate::output::print;
use crate::progress::{Progress, Unit};

/// Most that logits may be off, root mean square over that of the logits.
const ERROR_MAX: f64 = 1e-4;
/// They are nearer to float32 than transformers in BF16 by this factor.
const GAIN_MIN: f64 = 20.0;

const GOLDEN: &str = "tests/golden";

/// How far logits are from those of transformers in float32.
struct Finding {
    family: String,
    error: f64,
    bf16_error: f64,
}

impl Finding {
    /// An error that is not a number keeps no bound.
    fn kept(&self) -> bool {
        self.error <= ERROR_MAX && self.error <= self.bf16_error / GAIN_MIN
    }

    fn gain(&self) -> f64 {
        self.bf16_error / self.error
    }
}

pub(crate) fn run(arguments: &Numerics) -> Result<(), Failure> {
    let folder = arguments.golden.clone().unwrap_or_else(|| PathBuf::from(GOLDEN));
    if !folder.is_dir() {
        let why =
            "golden data are in the folder tests/golden of the source repository: run there, or give `--golden DIR`";
        return Err(Failure::Usage(format!("{} is not a folder; {why}", folder.display())));
    }
    let families = golden::families(&folder)?;
    if families.is_empty() {
        let why = "holds no folder with config.json and reference.safetensors";
        return Err(Failure::Usage(format!("{} {why}; tests/golden of the source repository does", folder.display())));
    }
    let isa = arguments.isa.unwrap_or_else(Isa::detect);
    let activations = Activations::Bf16x2;
    eprintln!("isa {isa}, activations {activations}, keys and values f32");
    let mut progress = Progress::new("families", Unit::Steps, families.len() as u64);
    let mut findings = Vec::new();
    for family in &families {
        findings.push(measure(family, ModelOptions { isa, activations, load: Load::Resident, threads: 1 })?);
        progress.set(findings.len() as u64);
    }
    drop(progress);

    let missed = findings.iter().filter(|finding| !finding.kept()).count();
    match arguments.output.output {
        Format::Text => print(table(&findings))?,
        Format::Json => {
            let families: Vec<_> = findings
                .iter()
                .map(|finding| {
                    json!({
                        "family": finding.family,
                        "error": finding.error,
                        "bf16_error": finding.bf16_error,
                        "gain": finding.gain(),
                        "kept": finding.kept(),
                    })
                })
                .collect();
            let document = json!({
                "isa": isa.name(),
                "activations": activations.to_string(),
                "error_max": ERROR_MAX,
                "gain_min": GAIN_MIN,
                "families": families,
                "missed": missed,
            });
            print(format_args!("{document}\n"))?;
        }
    }
    match missed {
        0 => Ok(()),
        _ => Err(Failure::Failed(
            format!(
                "{missed} of {} families on {isa} are off by more than {ERROR_MAX:.0e}, or by more than 1/{GAIN_MIN} of BF16's error",
                findings.len()
            )
            .into(),
        )),
    }
}

/// Feeds the reference's tokens to the family's model.
fn measure(family: &Path, options: ModelOptions) -> Result<Finding, Failure> {
    let name = family.file_name().unwrap_or(family.as_os_str()).to_string_lossy().into_owned();
    let reference = Reference::of(family)?;
    let mut checkpoint = Checkpoint::open(family)?;
    let (tokens, vocab_size) = (&reference.token_ids, checkpoint.config().vocab_size);
    if vocab_size != reference.vocab_size {
        let why = format!("config.json has a vocabulary of {vocab_size}, the reference {}", reference.vocab_size);
        return Err(Failure::Failed(format!("{}: {why}", family.display()).into()));
    }
    checkpoint.for_context(tokens.len());
    let model = Model::from_checkpoint(checkpoint, options, &mut |_| {})?;
    let pool = Pool::new(NonZeroUsize::MIN, Pinning::Free)?;
    let mut evaluator = Evaluator::new(&model, pool, Dtype::F32, tokens.len(), tokens.len())?;
    let (mut ours, mut of_bf16) = (Distance::default(), Distance::default());
    evaluator.feed(tokens, &mut (), |position, logits| {
        ours.add(logits, &reference.logits[position * vocab_size..][..vocab_size]);
        Ok::<_, CheckpointError>(())
    })?;
    of_bf16.add(&reference.logits_bf16, &reference.logits);
    Ok(Finding { family: name, error: ours.relative(), bf16_error: of_bf16.relative() })
}

fn table(findings: &[Finding]) -> String {
    let mut table = format!("{:<24}{:>12}{:>10}{:>14}{:>10}\n", "family", "rms error", "bound", "bf16's error", "gain");
    for finding in findings {
        let Finding { family, error, bf16_error } = finding;
        let bound = ERROR_MAX.min(bf16_error / GAIN_MIN);
        let missed = if finding.kept() { "" } else { "  missed" };
        let gain = finding.gain();
        table += &format!("{family:<24}{error:>12.2e}{bound:>10.0e}{bf16_error:>14.2e}{gain:>10.0}{missed}\n");
    }
    table
}
