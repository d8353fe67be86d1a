//! `logits`: token ids in, float32 logits out, and with `--router` the chosen experts.

use std::fs::File;
use std::io::{self, Read, Write};
use std::num::NonZeroUsize;

use engine_core::model::Observer;
use engine_core::session::Evaluator;

use super::npy;
use crate::args::Logits;
use crate::failure::Failure;
use crate::load_choice::Work;
use crate::model::{self, Loaded, LogitRows, Opened};
use crate::nodes;
use crate::progress::{Progress, Unit};

const TOKENS_BYTES_MAX: u64 = 64 << 20;

/// Chosen experts of each layer that has some, as they come chunk by chunk.
#[derive(Default)]
struct Chosen(std::collections::BTreeMap<usize, Vec<u32>>);

impl Observer for Chosen {
    fn routed(&mut self, layer: usize, _: &[f32], experts: &[u32]) {
        self.0.entry(layer).or_default().extend_from_slice(experts);
    }
}

pub(crate) fn run(arguments: &Logits) -> Result<(), Failure> {
    let tokens = tokens(arguments)?;
    model::check_folder(&arguments.model)?;
    // The context is the tokens' own, unless a smaller one was asked for, which then refuses them.
    let length = NonZeroUsize::new(tokens.len()).unwrap_or(NonZeroUsize::MIN);
    let run = match arguments.run.ctx_size {
        Some(_) => arguments.run.clone(),
        None => arguments.run.with_ctx_size(length),
    };
    let work = Work::Tokens { prompt: tokens.len(), generate: 0 };
    let opened = Opened::new(&arguments.model, &run, 1, LogitRows::All, work)?;
    let (config, request) = (opened.checkpoint.config(), opened.request);
    if let Some(token) = tokens.iter().find(|token| **token as usize >= config.vocab_size) {
        return Err(Failure::Usage(format!("token {token} is not in the vocabulary of {}", config.vocab_size)));
    }
    if tokens.len() > request.ctx_size {
        let why = format!("{} tokens do not fit `--ctx-size {}`", tokens.len(), request.ctx_size);
        return Err(Failure::Usage(why));
    }
    if arguments.router.is_some() && config.sparse_layers().next().is_none() {
        return Err(Failure::Usage("`--router`: this model has no experts".into()));
    }
    if arguments.router.as_ref() == Some(&arguments.output) {
        return Err(Failure::Usage("`--router` and `--output` name the same file".into()));
    }
    let loaded = opened.load()?;
    let adapters = loaded.adapter_set()?;
    let Loaded { model, pool, .. } = loaded;
    let config = model.config();
    let _pin = nodes::pin_caller(&pool)?;
    let mut evaluator = Evaluator::new(&model, pool, request.kv_dtype, tokens.len(), request.ubatch_size)?;
    evaluator.choose_adapters(adapters);
    nodes::report_placement(model.placement(), evaluator.kv_placement());

    let named = |path: &std::path::Path, error: io::Error| {
        io::Error::new(error.kind(), format!("cannot write {}: {error}", path.display()))
    };
    let shape = [tokens.len(), config.vocab_size];
    let mut out =
        npy::create(&arguments.output, npy::Kind::Float32, &shape).map_err(|e| named(&arguments.output, e))?;
    let mut progress = Progress::new("logits", Unit::Tokens, tokens.len() as u64);
    let mut chosen = Chosen::default();
    let mut first_broken = None;
    let fed = evaluator.feed(&tokens, &mut chosen, |position, logits| {
        progress.set(position as u64 + 1);
        if !simd::elementwise::all_finite(model.options().isa, logits) {
            first_broken.get_or_insert(position);
        }
        let written = logits.iter().try_for_each(|logit| out.write_all(&logit.to_le_bytes()));
        written.map_err(|error| Failure::from(named(&arguments.output, error)))
    });
    fed?;
    out.flush().map_err(|error| named(&arguments.output, error))?;

    if let Some(position) = first_broken {
        eprintln!(
            "note: logits from position {position} on are not all finite; a cache of float32 has a wider range (-ctk f32)"
        );
    }

    if let Some(path) = &arguments.router {
        let k = config.sparse_layers().map(|(_, sparse)| sparse.most_experts_per_tok).max().unwrap_or(0);
        let shape = [chosen.0.len(), tokens.len(), k];
        let write = || {
            let mut out = npy::create(path, npy::Kind::Int32, &shape)?;
            chosen.0.values().flatten().try_for_each(|expert| out.write_all(&expert.to_le_bytes()))?;
            out.flush()
        };
        write().map_err(|error| named(path, error))?;
    }
    Ok(())
}

fn tokens(arguments: &Logits) -> Result<Vec<u32>, Failure> {
    let path = &arguments.tokens;
    let usage = |why: String| Failure::Usage(format!("{}: {why}", path.display()));
    let mut text = Vec::new();
    // Not the length in the metadata: that is 0 for a pipe or a device.
    let file = File::open(path).map_err(|error| usage(error.to_string()))?;
    file.take(TOKENS_BYTES_MAX + 1).read_to_end(&mut text).map_err(|error| usage(error.to_string()))?;
    if text.len() as u64 > TOKENS_BYTES_MAX {
        return Err(usage(format!("it has more than the {TOKENS_BYTES_MAX} bytes that are read")));
    }
    let tokens: Vec<u32> = serde_json::from_slice(&text)
        .map_err(|error| usage(format!("it is not a JSON list of token ids like [1, 2, 3]: {error}")))?;
    if tokens.is_empty() { Err(usage("the list is empty".into())) } else { Ok(tokens) }
}
