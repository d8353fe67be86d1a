//! `experts record`: a text through the model, in windows, for what its routers choose.

use std::fs::File;
use std::io::Read;
use std::num::NonZeroUsize;
use std::path::Path;

use engine_core::config::ModelConfig;
use engine_core::expert_counts::{CountsError, ExpertCounts};
use engine_core::model::{Choice, Observer};
use engine_core::session::Evaluator;
use engine_core::text::Tokenizer;
use simd::Isa;

use super::super::token_ids;
use super::summary;
use crate::args::ExpertsRecord;
use crate::failure::{Failure, wrong_dial};
use crate::load_choice::Work;
use crate::model::{self, Loaded, LogitRows, OpenAdapter, Opened};
use crate::nodes;
use crate::output::print;
use crate::progress::{Progress, Unit};

const TEXT_BYTES_MAX: u64 = 64 << 20;

pub(super) fn run(arguments: &ExpertsRecord) -> Result<(), Failure> {
    model::check_folder(&arguments.model)?;
    let mut config = ModelConfig::from_file(&arguments.model.join("config.json"))?;
    arguments.run.dials.dials().turn(&mut config).map_err(|error| wrong_dial(&error))?;
    let workload = workload(arguments);
    let usage = |error: CountsError| Failure::Usage(format!("{}: {error}", arguments.model.display()));
    // Refused before a text is cut into tokens and a model is read.
    ExpertCounts::new(&config, String::new(), String::new(), &workload).map_err(usage)?;
    let tokens = tokens(arguments)?;
    token_ids::check(&tokens, config.vocab_size)?;

    let window = model::plan_request(&arguments.run, &config, 1)?.0.ctx_size.min(tokens.len());
    let run = arguments.run.with_ctx_size(NonZeroUsize::new(window).unwrap_or(NonZeroUsize::MIN));
    let work = Work::Tokens { prompt: tokens.len(), generate: 0 };
    let opened = Opened::new(&arguments.model, &run, 1, LogitRows::All, work)?;
    let request = opened.request;
    let digest = opened.checkpoint.digest(request.threads)?;
    let settings = settings(&opened.dials, &opened.adapters);
    let counts = ExpertCounts::new(opened.checkpoint.config(), digest, settings, &workload).map_err(usage)?;

    let loaded = opened.load()?;
    let adapters = loaded.adapter_set()?;
    let Loaded { model, pool, .. } = loaded;
    let _pin = nodes::pin_caller(&pool)?;
    let mut evaluator = Evaluator::new(&model, pool, request.kv_dtype, window, request.ubatch_size)?;
    evaluator.choose_adapters(adapters);
    nodes::report_placement(model.placement(), evaluator.kv_placement());

    let progress = Progress::new("experts", Unit::Tokens, tokens.len() as u64);
    let mut recording = Recording { counts, isa: model.options().isa, progress, broken: None };
    for window in tokens.chunks(window) {
        evaluator.restart();
        evaluator.observe(window, &mut recording)?;
        if let Some(layer) = recording.broken {
            let why = format!(
                "the router's logits in layer {layer} are not all finite, so what it chose says nothing; a cache of float32 has a wider range (-ctk f32)"
            );
            return Err(std::io::Error::other(why).into());
        }
    }
    let Recording { counts, progress, .. } = recording;
    drop(progress);
    counts.write(&arguments.output)?;
    print(format_args!("{}\n", summary(&counts)))
}

/// Counts, and what is said and checked meanwhile.
struct Recording {
    counts: ExpertCounts,
    isa: Isa,
    progress: Progress,
    /// The first layer whose router's logits were no numbers.
    broken: Option<usize>,
}

impl Observer for Recording {
    fn routed(&mut self, layer: usize, logits: &[f32], choices: &[Choice]) {
        if !simd::elementwise::all_finite(self.isa, logits) {
            self.broken.get_or_insert(layer);
        }
        self.counts.routed(layer, logits, choices);
        self.progress.set(self.counts.tokens());
    }
}

/// The name that was given, or that of the file.
fn workload(arguments: &ExpertsRecord) -> String {
    let file = arguments.file.as_ref().or(arguments.tokens.as_ref()).and_then(|file| file.file_stem());
    let named = || file.unwrap_or_default().to_string_lossy().into_owned();
    arguments.workload.clone().unwrap_or_else(named)
}

fn tokens(arguments: &ExpertsRecord) -> Result<Vec<u32>, Failure> {
    match (&arguments.tokens, &arguments.file) {
        (Some(file), _) => token_ids::read(file),
        (None, Some(file)) => tokens_of_text(file, &arguments.model),
        (None, None) => Err(Failure::Usage("give a text by `--file`, or token ids by `--tokens`".into())),
    }
}

fn tokens_of_text(path: &Path, model: &Path) -> Result<Vec<u32>, Failure> {
    let usage = |why: String| Failure::Usage(format!("{}: {why}", path.display()));
    let mut text = Vec::new();
    let file = File::open(path).map_err(|error| usage(error.to_string()))?;
    file.take(TEXT_BYTES_MAX + 1).read_to_end(&mut text).map_err(|error| usage(error.to_string()))?;
    if text.len() as u64 > TEXT_BYTES_MAX {
        let why = "cut it, record the parts and merge what was counted";
        return Err(usage(format!("it has more than the {TEXT_BYTES_MAX} bytes that are read; {why}")));
    }
    let text = String::from_utf8(text).map_err(|error| usage(format!("it is no UTF-8 text: {error}")))?;
    let tokens = Tokenizer::from_dir(model)?.encode(&text, true)?;
    if text.is_empty() || tokens.is_empty() { Err(usage("the text is empty".into())) } else { Ok(tokens) }
}

/// What of a run changes the routing, the same words for the same things in any order.
fn settings(dials: &str, adapters: &[OpenAdapter]) -> String {
    let mut adapters: Vec<_> =
        adapters.iter().map(|own| format!("adapter {} x {}", own.folder.digest(), own.scale)).collect();
    adapters.sort();
    let dials = Some(dials.to_owned()).filter(|dials| !dials.is_empty());
    dials.into_iter().chain(adapters).collect::<Vec<_>>().join(", ")
}
