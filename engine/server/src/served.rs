//! What is served, and all that handlers share.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

use engine_core::config::ModelConfig;
use engine_core::constraint::{ConstraintCompiler, ConstraintError};
use engine_core::sampler::SamplingParams;
use engine_core::text::{ChatTemplate, RenderOptions, SpeechFormat, Tokenizer};
use tokio::sync::Semaphore;

use crate::config::ServerConfig;
use crate::digest::{ComputeDigest, Digest};
use crate::engine_thread::EngineHandle;
use crate::error::ApiError;
use crate::openai::responses::Store;

/// A model as requests need to know it. It is there before its weights are.
pub struct ServedModel {
    /// Names under which clients ask for it; the first is told.
    pub names: Vec<String>,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Tokens that end a sequence, as the engine has them.
    pub eos: Vec<u32>,
    /// Its chat template; a base model has none.
    pub template: Option<ChatTemplate>,
    /// Its config, dials turned.
    pub config: ModelConfig,
    /// Its parameters.
    pub parameters: u64,
    /// How tokens are drawn where a request does not say.
    pub sampling: SamplingParams,
    /// Most tokens of an answer where a request does not say; without it, until the context is full.
    pub max_tokens: Option<usize>,
    /// Positions of a sequence.
    pub ctx_size: usize,
    /// Sequences that run side by side.
    pub width: usize,
    /// Adapters that the engine starts with, with the factors that requests get where they do not say.
    pub adapters: Vec<ServedAdapter>,
    /// All that decides bytes, in words: type of activations, ISA, dials.
    pub settings: String,
    /// Of these, what turns the model: a file of counted experts names it.
    pub dials: String,
    /// The digest of the model's files.
    pub digest: ComputeDigest,
    /// Bytes of a run by what they are for, as the plan has them.
    pub arenas: Vec<(&'static str, u64)>,
    /// The model folder, as it was named.
    pub path: String,
}

impl ServedModel {
    fn speech_format(&self) -> SpeechFormat {
        let format = self.template.as_ref().and_then(|template| template.speech_format(&RenderOptions::default()).ok());
        format.unwrap_or(SpeechFormat::PLAIN)
    }

    /// Whether its template knows calls of tools that are read here.
    pub(crate) fn knows_tools(&self) -> bool {
        matches!(self.speech_format(), SpeechFormat::Harmony | SpeechFormat::Tagged { calls: Some(_), .. })
    }

    /// Whether its template knows thoughts.
    pub(crate) fn thinks(&self) -> bool {
        matches!(self.speech_format(), SpeechFormat::Harmony | SpeechFormat::Tagged { thinks: true, .. })
    }
}

/// An adapter that is loaded.
#[derive(Clone, Debug)]
pub struct ServedAdapter {
    /// Its name, which may be asked for as a model.
    pub name: String,
    /// Its folder.
    pub path: String,
    /// Factor of what it adds to requests that do not say.
    pub scale: f32,
}

/// Prompts that are put into templates and tokenised side by side. Each may take a core and some hundred megabytes.
const PROMPTS_AT_ONCE: usize = 2;

/// What handlers share.
pub(crate) struct Shared {
    pub(crate) model: ServedModel,
    pub(crate) engine: EngineHandle,
    pub(crate) config: ServerConfig,
    pub(crate) digest: Digest,
    pub(crate) adapters: Mutex<Vec<ServedAdapter>>,
    pub(crate) prompts: Arc<Semaphore>,
    pub(crate) created: u64,
    /// Random; with a count it makes ids that no other start has.
    id_base: u64,
    ids: AtomicU64,
    pub(crate) fingerprint: String,
    pub(crate) counters: Counters,
    /// Answers of `/v1/responses` that can be asked for again.
    pub(crate) responses: Store,
    /// Made when the first request asks: it reads the whole vocabulary.
    compiler: OnceLock<Result<ConstraintCompiler, ConstraintError>>,
}

/// What is counted of requests.
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) requests: AtomicU64,
    pub(crate) prompt_tokens: AtomicU64,
    pub(crate) prompt_micros: AtomicU64,
    pub(crate) predicted_tokens: AtomicU64,
    pub(crate) predicted_micros: AtomicU64,
    pub(crate) tokens_max: AtomicU64,
}

impl Shared {
    pub(crate) fn new(model: ServedModel, engine: EngineHandle, config: ServerConfig, digest: Digest) -> Self {
        let words = format!("{} {} {}", model.path, env!("CARGO_PKG_VERSION"), model.settings);
        let fingerprint = format!("fp_{}", &blake3::hash(words.as_bytes()).to_hex()[..12]);
        let adapters = Mutex::new(model.adapters.clone());
        Self {
            model,
            engine,
            config,
            digest,
            adapters,
            prompts: Arc::new(Semaphore::new(PROMPTS_AT_ONCE)),
            created: unix_seconds(),
            id_base: random(),
            ids: AtomicU64::new(0),
            fingerprint,
            counters: Counters::default(),
            responses: Store::default(),
            compiler: OnceLock::new(),
        }
    }

    /// An id like `chatcmpl-…`.
    pub(crate) fn new_id(&self, prefix: &str) -> String {
        format!("{prefix}{:016x}{:08x}", self.id_base, self.ids.fetch_add(1, Relaxed))
    }

    /// What makes constraints for this model.
    pub(crate) fn compiler(&self) -> Result<&ConstraintCompiler, ConstraintError> {
        let made = self.compiler.get_or_init(|| ConstraintCompiler::new(&self.model.tokenizer, &self.model.eos));
        made.as_ref().map_err(Clone::clone)
    }

    /// The loaded adapters.
    pub(crate) fn adapters(&self) -> Vec<ServedAdapter> {
        self.adapters.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }

    /// The adapters that a request for `model` goes through: those that all do, or the one that it names.
    pub(crate) fn adapters_of(&self, model: Option<&str>) -> Result<Vec<(String, f32)>, ApiError> {
        let adapters = self.adapters();
        let model = model.unwrap_or_default();
        // Ollama's clients write a tag behind the name.
        let untagged = model.strip_suffix(":latest").unwrap_or(model);
        let is_base = model.is_empty()
            || self.model.names.iter().any(|name| name == model || name == untagged)
            || model == self.model.path;
        if is_base {
            let all = adapters.into_iter().filter(|adapter| adapter.scale != 0.0);
            return Ok(all.map(|adapter| (adapter.name, adapter.scale)).collect());
        }
        match adapters.iter().find(|adapter| adapter.name == model || adapter.name == untagged) {
            Some(adapter) => Ok(vec![(adapter.name.clone(), 1.0)]),
            None => {
                let names = self.model.names.iter().chain(adapters.iter().map(|adapter| &adapter.name));
                let known = names.map(String::as_str).collect::<Vec<_>>().join(", ");
                Err(ApiError::no_model(model, &known))
            }
        }
    }

    /// The name that answers tell.
    pub(crate) fn name(&self) -> &str {
        self.model.names.first().map_or("", String::as_str)
    }
}

/// Seconds since 1970.
pub(crate) fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// A number that nobody foresees; the time where the system has none.
pub(crate) fn random() -> u64 {
    let mut bytes = [0; 8];
    match rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty()) {
        Ok(8) => u64::from_ne_bytes(bytes),
        _ => SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64),
    }
}
