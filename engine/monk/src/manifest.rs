//! What names a run and a step: hashes of all that decides their bytes.
//!
//! A run's manifest is kept as JSON, so that a person can see in the store what differed; a step's is only its hash,
//! because it would hold the note.

use crate::generator::{Prompt, PromptRequest};
use crate::notes::{Note, Notes};
use crate::recipe::{Job, Phase};
use crate::report;

/// The manifest of a run: JSON, without note text.
pub(crate) fn of_run(job: &Job, notes: &Notes, fingerprint: &str, context_size: usize) -> String {
    let Job { recipe, sampling, .. } = job;
    let phase = |phase: &Phase| {
        let sources = serde_json::json!(phase.template.sources()).to_string();
        serde_json::json!({ "template": hash("nightmonk 2026-11 template", &sources), "max_tokens": phase.max_tokens })
    };
    let notes: Vec<_> = notes.iter().map(|Note { path, hash, .. }| (path, hash)).collect();
    serde_json::json!({
        "generator": fingerprint,
        "context_size": context_size,
        "model": report::model_name(&job.model),
        "recipe": recipe.name,
        "map": phase(&recipe.map),
        "reduce": phase(&recipe.reduce),
        "title": job.title,
        "language": job.language,
        "seed": job.seed,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "notes": notes,
    })
    .to_string()
}

/// A run's name in its report: 16 hexadecimal digits.
pub(crate) fn short_hash(manifest: &str) -> String {
    hash("nightmonk 2026-11 manifest", manifest)[..16].to_owned()
}

/// A step's name: the hash of all that decides its answer's bytes.
pub(crate) fn of_step(fingerprint: &str, request: &PromptRequest) -> String {
    let PromptRequest { prompt: Prompt { system, user }, max_tokens, sampling, seed } = request;
    let (temperature, top_p, min_p) =
        (sampling.temperature.to_bits(), sampling.top_p.to_bits(), sampling.min_p.to_bits());
    let content =
        serde_json::json!([fingerprint, system, user, max_tokens, temperature, sampling.top_k, top_p, min_p, seed]);
    hash("nightmonk 2026-11 step", &content.to_string())
}

fn hash(context: &str, content: &str) -> String {
    blake3::Hash::from_bytes(blake3::derive_key(context, content.as_bytes())).to_hex().to_string()
}
