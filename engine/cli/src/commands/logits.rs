//! `logits`: token ids in, float32 logits out, and what the routers of a mixture of experts said.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use engine_core::config::{ModelConfig, Sparse};
use engine_core::model::{Choice, Observer};
use engine_core::session::Evaluator;

use super::{npy, token_ids};
use crate::args::Logits;
use crate::failure::Failure;
use crate::load_choice::Work;
use crate::model::{self, Loaded, LogitRows, Opened};
use crate::nodes;
use crate::progress::{Progress, Unit};

/// A file for what routers say.
struct RouterFile<'a> {
    flag: &'static str,
    path: &'a Path,
    what: RouterArray,
    /// Its values in each layer that has experts, as they come chunk by chunk.
    layers: BTreeMap<usize, Vec<[u8; 4]>>,
}

#[derive(Clone, Copy)]
enum RouterArray {
    Experts,
    Weights,
    Logits,
}

impl<'a> RouterFile<'a> {
    fn asked_for(arguments: &'a Logits) -> Vec<Self> {
        let files = [
            ("--router", &arguments.router, RouterArray::Experts),
            ("--router-weights", &arguments.router_weights, RouterArray::Weights),
            ("--router-logits", &arguments.router_logits, RouterArray::Logits),
        ];
        let file = |(flag, path, what): (_, &'a Option<PathBuf>, _)| {
            Some(Self { flag, path: path.as_ref()?, what, layers: BTreeMap::new() })
        };
        files.into_iter().filter_map(file).collect()
    }

    fn write(&self, tokens: usize, config: &ModelConfig) -> io::Result<()> {
        let of_layers = |size: fn(&Sparse) -> usize| config.sparse_layers().map(|(_, s)| size(s)).max().unwrap_or(0);
        let (kind, width) = match self.what {
            RouterArray::Experts => (npy::Kind::Int32, of_layers(|sparse| sparse.most_experts_per_tok)),
            RouterArray::Weights => (npy::Kind::Float32, of_layers(|sparse| sparse.most_experts_per_tok)),
            RouterArray::Logits => (npy::Kind::Float32, of_layers(|sparse| sparse.num_experts)),
        };
        let mut out = npy::create(self.path, kind, &[self.layers.len(), tokens, width])?;
        self.layers.values().try_for_each(|values| out.write_all(values.as_flattened()))?;
        out.flush()
    }
}

/// The files that were asked for.
struct RouterFiles<'a>(Vec<RouterFile<'a>>);

impl Observer for RouterFiles<'_> {
    fn routed(&mut self, layer: usize, logits: &[f32], choices: &[Choice]) {
        for file in &mut self.0 {
            let values = file.layers.entry(layer).or_default();
            match file.what {
                RouterArray::Experts => values.extend(choices.iter().map(|choice| choice.expert.to_le_bytes())),
                RouterArray::Weights => values.extend(choices.iter().map(|choice| choice.weight.to_le_bytes())),
                RouterArray::Logits => values.extend(logits.iter().map(|logit| logit.to_le_bytes())),
            }
        }
    }
}

pub(crate) fn run(arguments: &Logits) -> Result<(), Failure> {
    let tokens = token_ids::read(&arguments.tokens)?;
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
    token_ids::check(&tokens, config.vocab_size)?;
    if tokens.len() > request.ctx_size {
        let why = format!("{} tokens do not fit `--ctx-size {}`", tokens.len(), request.ctx_size);
        return Err(Failure::Usage(why));
    }
    let mut routers = RouterFiles(RouterFile::asked_for(arguments));
    let mut names = vec![("--output", arguments.output.as_path())];
    for RouterFile { flag, path, .. } in &routers.0 {
        if config.sparse_layers().next().is_none() {
            return Err(Failure::Usage(format!("`{flag}`: this model has no experts")));
        }
        if let Some((other, _)) = names.iter().find(|(_, name)| name == path) {
            return Err(Failure::Usage(format!("`{flag}` and `{other}` name the same file")));
        }
        names.push((flag, path));
    }
    let loaded = opened.load()?;
    let adapters = loaded.adapter_set()?;
    let Loaded { model, pool, .. } = loaded;
    let config = model.config();
    let _pin = nodes::pin_caller(&pool)?;
    let mut evaluator = Evaluator::new(&model, pool, request.kv_dtype, tokens.len(), request.ubatch_size)?;
    evaluator.choose_adapters(adapters);
    nodes::report_placement(model.placement(), evaluator.kv_placement());

    let named = |path: &Path, error: io::Error| {
        io::Error::new(error.kind(), format!("cannot write {}: {error}", path.display()))
    };
    let shape = [tokens.len(), config.vocab_size];
    let mut out =
        npy::create(&arguments.output, npy::Kind::Float32, &shape).map_err(|e| named(&arguments.output, e))?;
    let mut progress = Progress::new("logits", Unit::Tokens, tokens.len() as u64);
    let mut first_broken = None;
    let fed = evaluator.feed(&tokens, &mut routers, |position, logits| {
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

    for file in &routers.0 {
        file.write(tokens.len(), config).map_err(|error| named(file.path, error))?;
    }
    Ok(())
}
