//! `logits`: token ids in, float32 logits out, and what the routers of a mixture of experts said.

use std::collections::BTreeMap;
use std::io;
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

/// A file for what routers say, asked for by a flag.
struct RouterFile<'a> {
    flag: &'static str,
    path: &'a Path,
    what: RouterArray,
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
        let file = |(flag, path, what): (_, &'a Option<PathBuf>, _)| Some(Self { flag, path: path.as_ref()?, what });
        files.into_iter().filter_map(file).collect()
    }
}

/// The files that were asked for, written while the tokens go through the layers: an array of all layers and tokens would
/// take memory that no plan counts.
struct RouterArrays<'a> {
    arrays: Vec<(RouterFile<'a>, npy::Array)>,
    /// Place in the arrays, and rows that have come, of each layer that has experts.
    layers: BTreeMap<usize, (u64, u64)>,
    tokens: u64,
    num_experts: usize,
    /// What went wrong first: an observer cannot end the step.
    broken: Option<io::Error>,
}

impl<'a> RouterArrays<'a> {
    fn create(files: Vec<RouterFile<'a>>, tokens: usize, config: &ModelConfig) -> io::Result<Self> {
        let of_layers = |size: fn(&Sparse) -> usize| config.sparse_layers().map(|(_, s)| size(s)).max().unwrap_or(0);
        let (most, num_experts) = (of_layers(|sparse| sparse.most_experts_per_tok), of_layers(|s| s.num_experts));
        let layers: BTreeMap<_, _> =
            config.sparse_layers().map(|(layer, _)| layer).zip((0..).map(|at| (at, 0))).collect();
        let create = |file: RouterFile<'a>| {
            let (kind, width) = match file.what {
                RouterArray::Experts => (npy::Kind::Int32, most),
                RouterArray::Weights => (npy::Kind::Float32, most),
                RouterArray::Logits => (npy::Kind::Float32, num_experts),
            };
            let array = npy::Array::create(file.path, kind, &[layers.len(), tokens, width]);
            array.map_err(|error| named(file.path, error)).map(|array| (file, array))
        };
        let arrays = files.into_iter().map(create).collect::<io::Result<_>>()?;
        Ok(Self { arrays, layers, tokens: tokens as u64, num_experts, broken: None })
    }

    fn put(&mut self, layer: usize, logits: &[f32], choices: &[Choice]) -> io::Result<()> {
        let rows = logits.len() / self.num_experts.max(1);
        let (place, seen) = self.layers.get_mut(&layer).expect("the layers with experts are those of the config");
        let row = *place * self.tokens + *seen;
        *seen += rows as u64;
        let k = (choices.len() / rows.max(1)) as u64;
        for (RouterFile { path, what, .. }, array) in &mut self.arrays {
            let written = match what {
                RouterArray::Experts => array.put(row * k, choices.iter().map(|choice| choice.expert.to_le_bytes())),
                RouterArray::Weights => array.put(row * k, choices.iter().map(|choice| choice.weight.to_le_bytes())),
                RouterArray::Logits => {
                    array.put(row * self.num_experts as u64, logits.iter().map(|logit| logit.to_le_bytes()))
                }
            };
            written.map_err(|error| named(path, error))?;
        }
        Ok(())
    }

    fn finish(self) -> io::Result<()> {
        let mut arrays = self.arrays.into_iter();
        arrays.try_for_each(|(file, array)| array.finish().map_err(|error| named(file.path, error)))
    }
}

impl Observer for RouterArrays<'_> {
    fn routed(&mut self, layer: usize, logits: &[f32], choices: &[Choice]) {
        if self.broken.is_none() {
            self.broken = self.put(layer, logits, choices).err();
        }
    }
}

fn named(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot write {}: {error}", path.display()))
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
    let router_files = RouterFile::asked_for(arguments);
    let mut names = vec![("--output", arguments.output.as_path())];
    for RouterFile { flag, path, .. } in &router_files {
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

    let mut routers = RouterArrays::create(router_files, tokens.len(), config)?;
    let failed = |error| Failure::from(named(&arguments.output, error));
    let shape = [tokens.len(), config.vocab_size];
    let mut out = npy::Array::create(&arguments.output, npy::Kind::Float32, &shape).map_err(failed)?;
    let mut progress = Progress::new("logits", Unit::Tokens, tokens.len() as u64);
    let mut first_broken = None;
    let fed = evaluator.feed(&tokens, &mut routers, |position, logits| {
        progress.set(position as u64 + 1);
        if !simd::elementwise::all_finite(model.options().isa, logits) {
            first_broken.get_or_insert(position);
        }
        out.push(logits.iter().map(|logit| logit.to_le_bytes())).map_err(failed)
    });
    fed?;
    if let Some(error) = routers.broken {
        return Err(error.into());
    }
    out.finish().map_err(failed)?;
    routers.finish()?;

    if let Some(position) = first_broken {
        eprintln!(
            "note: logits from position {position} on are not all finite; a cache of float32 has a wider range (-ctk f32)"
        );
    }
    Ok(())
}
