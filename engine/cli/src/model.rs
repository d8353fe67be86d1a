//! From flags to a model in memory: plan first, then load, then say what runs.

use std::io;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use engine_core::adapter::{Adapter, AdapterError, AdapterFolder, AdapterNeeds, AdapterSet, AdapterSetError};
use engine_core::checkpoint::{Checkpoint, TensorForm};
use engine_core::config::ModelConfig;
use engine_core::homes::Homes;
use engine_core::model::{Load, LoadError, LoadProgress, Model, ModelOptions};
use engine_core::plan::{Plan, PlanRequest, Room};
use engine_core::session::{Engine, EngineError, EngineOptions};
use engine_core::text::{GenerationDefaults, TextError, Tokenizer};
use numa::{CallerPin, MemoryFacts, Pool, Topology};
use simd::Isa;

use crate::args::{Gpu, LoadMode, Run};
use crate::failure::{Failure, wrong_dial};
use crate::load_choice::{self, Choice, Work};
use crate::nodes::{self, Nodes};
use crate::progress::{Progress, Unit};

/// What a plan leaves to tokenizer, stacks, page tables and the rest of the machine: a plan that fits to the byte is
/// killed for lack of memory in the middle of the night.
const RESERVE_BYTES_MIN: u64 = 256 << 20;
const RESERVE_FRACTION: u64 = 50;

/// A context that nobody asked for is no larger than this: keys and values are allocated at the start.
const DEFAULT_CTX_SIZE_MAX: usize = 8192;

/// Beyond any machine and any night; sizes that are multiplied with these stay far below 2^64.
const THREADS_MAX: usize = 4096;
const WIDTH_MAX: usize = 65_536;

/// What a model folder says about text.
pub(crate) struct ModelText {
    pub(crate) tokenizer: Tokenizer,
    pub(crate) defaults: GenerationDefaults,
    pub(crate) eos: Vec<u32>,
}

impl ModelText {
    pub(crate) fn from_dir(folder: &Path) -> Result<Self, TextError> {
        let tokenizer = Tokenizer::from_dir(folder)?;
        let defaults = GenerationDefaults::from_dir(folder)?;
        let eos = defaults.stop_token_ids(&tokenizer);
        Ok(Self { tokenizer, defaults, eos })
    }
}

/// Says of a folder that is not there that it is not there, rather than what of it is missing.
pub(crate) fn check_folder(folder: &Path) -> Result<(), Failure> {
    match folder.is_dir() {
        true => Ok(()),
        false => Err(Failure::Usage(format!(
            "{} is not a folder; a model is a folder with config.json, tokenizer.json and *.safetensors",
            folder.display()
        ))),
    }
}

/// Checks the flags that the machine or this version cannot honour, and completes the others. Where the weights are to
/// live is decided later, by [`choose_plan`].
pub(crate) fn plan_request(run: &Run, config: &ModelConfig, width: usize) -> Result<(PlanRequest, Nodes), Failure> {
    if run.gpu == Gpu::Require {
        let why = "`--gpu require`: this version computes on the CPU alone; leave the flag out";
        return Err(Failure::Usage(why.into()));
    }
    if run.cache_type_v.is_some_and(|values| values != run.cache_type_k) {
        let why = "`--cache-type-v` differs from `--cache-type-k`; in this version keys and values have one type";
        return Err(Failure::Usage(why.into()));
    }
    let longest = config.longest_context();
    let of_model = config.max_position_embeddings.min(DEFAULT_CTX_SIZE_MAX);
    let ctx_size = run.ctx_size.map_or(of_model, NonZeroUsize::get);
    if ctx_size > longest {
        let why = format!(
            "`--ctx-size {ctx_size}` is beyond the {longest} positions that this model was made for; `--rope-scaling yarn --rope-scale F` stretches them"
        );
        return Err(Failure::Usage(why));
    }
    if width > WIDTH_MAX {
        return Err(Failure::Usage(format!("`--width {width}`: at most {WIDTH_MAX} sequences run side by side")));
    }
    let nodes = Nodes::choose(run.numa, run.threads, Topology::discover()?);
    let request = PlanRequest {
        ctx_size,
        width,
        logits: width,
        ubatch_size: run.ubatch_size.get().min(ctx_size),
        threads: threads(run.threads.or(nodes.cores().and_then(NonZeroUsize::new)))?.get(),
        kv_dtype: run.cache_type_k,
        load: Load::Resident,
        nodes: nodes.count(),
        adapters: AdapterNeeds::default(),
    };
    Ok((request, nodes))
}

/// The threads asked for, or the physical cores that this process may use.
pub(crate) fn threads(asked: Option<NonZeroUsize>) -> Result<NonZeroUsize, Failure> {
    match asked {
        Some(threads) if threads.get() > THREADS_MAX => {
            Err(Failure::Usage(format!("`--threads {threads}`: at most {THREADS_MAX} are started")))
        }
        Some(threads) => Ok(threads),
        None => Ok(NonZeroUsize::new(Topology::discover()?.core_count()).unwrap_or(NonZeroUsize::MIN)),
    }
}

/// Counts the bytes of a run, decides where the weights are to live, and refuses what there is no room for.
pub(crate) fn choose_plan<F: Into<TensorForm>>(
    config: &ModelConfig,
    form_of: impl Fn(&str) -> F,
    request: PlanRequest,
    mode: LoadMode,
    work: Work,
    room: Room,
) -> Result<Choice, Failure> {
    let fit = |request: &PlanRequest| Plan::fit(config, &form_of, request, room.clone()).map_err(Failure::Refused);
    load_choice::choose(mode, work, request, fit)
}

/// What a plan may count on of so much memory.
pub(crate) fn beside_reserve(bytes: u64) -> u64 {
    bytes.saturating_sub(RESERVE_BYTES_MIN.max(bytes / RESERVE_FRACTION))
}

/// What this machine has for a run.
pub(crate) fn available_bytes() -> Result<u64, Failure> {
    Ok(beside_reserve(MemoryFacts::discover()?.usable_ram()))
}

/// An adapter that was asked for, and whose folder fits the model.
pub(crate) struct OpenAdapter {
    pub(crate) name: String,
    pub(crate) scale: f32,
    pub(crate) folder: AdapterFolder,
}

/// Opens the adapters that the flags name.
pub(crate) fn open_adapters(run: &Run, config: &ModelConfig) -> Result<Vec<OpenAdapter>, Failure> {
    let scaled = run.lora_scaled.iter().map(|(path, scale)| (path, *scale));
    let mut adapters: Vec<OpenAdapter> = Vec::new();
    for (path, scale) in run.lora.iter().map(|path| (path, 1.0)).chain(scaled) {
        let folder = AdapterFolder::open(path, config)?;
        if let Some(other) = adapters.iter().find(|other| other.folder.digest() == folder.digest()) {
            let why = format!("adapter {} is `{}` again; add the two scales", path.display(), other.name);
            return Err(Failure::Usage(why));
        }
        adapters.push(OpenAdapter { name: path.display().to_string(), scale, folder });
    }
    Ok(adapters)
}

/// What these adapters ask of a run.
pub(crate) fn needs(adapters: &[OpenAdapter]) -> AdapterNeeds {
    adapters.iter().fold(AdapterNeeds::default(), |needs, adapter| needs.and(&adapter.folder))
}

/// Which rows of a step get logits.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum LogitRows {
    /// The last one of each sequence.
    Last,
    /// All of a prompt.
    All,
}

/// A folder that is open and fits: all that can be wrong short of its weights was found.
pub(crate) struct Opened {
    pub(crate) checkpoint: Checkpoint,
    pub(crate) request: PlanRequest,
    pub(crate) options: ModelOptions,
    /// What was turned of the model; empty where nothing was.
    pub(crate) dials: String,
    pub(crate) adapters: Vec<OpenAdapter>,
    pub(crate) plan: Plan,
    nodes: Nodes,
    /// Whether weights are locked in memory.
    lock: bool,
    prefix_cache: bool,
    /// Why the weights live where they do, where nobody asked for it.
    reason: Option<String>,
}

impl Opened {
    pub(crate) fn new(folder: &Path, run: &Run, width: usize, logits: LogitRows, work: Work) -> Result<Self, Failure> {
        let mut checkpoint = Checkpoint::open(folder)?;
        let dials = run.dials.dials();
        checkpoint.turn(&dials).map_err(|error| wrong_dial(&error))?;
        let (mut request, nodes) = plan_request(run, checkpoint.config(), width)?;
        if logits == LogitRows::All {
            request.logits = request.ubatch_size;
        }
        let adapters = open_adapters(run, checkpoint.config())?;
        request.adapters = needs(&adapters);
        let form_of = |name: &str| checkpoint.form(name);
        let Choice { request, plan, reason } =
            choose_plan(checkpoint.config(), form_of, request, run.load, work, nodes.room(available_bytes()?))?;
        let options = ModelOptions {
            isa: run.isa.unwrap_or_else(Isa::detect),
            activations: run.activations,
            load: request.load,
            threads: request.threads,
        };
        let nodes = if Model::can_be_cut(&checkpoint, request.load) { nodes } else { nodes.whole() };
        checkpoint.for_context(request.ctx_size);
        let dials = dials.words(checkpoint.config());
        let (lock, prefix_cache) = (run.mlock, !run.no_prefix_cache);
        Ok(Self { checkpoint, request, options, dials, adapters, plan, nodes, lock, prefix_cache, reason })
    }

    /// Starts workers and loads the weights, after the run's first line.
    pub(crate) fn load(self) -> Result<Loaded, EngineFailure> {
        let Self { checkpoint, request, options, dials, adapters, plan, nodes, lock, reason, .. } = self;
        if lock {
            // Before minutes go into loading.
            let bytes = plan.weight_bytes.saturating_add(plan.mapped_bytes);
            numa::check_lockable(usize::try_from(bytes).unwrap_or(usize::MAX)).map_err(EngineFailure::Lock)?;
        }
        let pool = nodes
            .pool(NonZeroUsize::new(request.threads).unwrap_or(NonZeroUsize::MIN))
            .map_err(|source| EngineError::Workers { threads: request.threads, source })?;
        let folder = checkpoint.folder();
        let name = folder.file_name().unwrap_or(folder.as_os_str()).to_string_lossy().into_owned();
        eprintln!(
            "{name}: {:.2} billion parameters{}, isa {}, activations {}, keys and values {}, {} weights{}, {}, {} threads, {} x {} tokens, {}",
            plan.parameters as f64 / 1e9,
            if dials.is_empty() { String::new() } else { format!(", {dials}") },
            options.isa,
            options.activations,
            request.kv_dtype.name(),
            options.load,
            reason.map_or(String::new(), |reason| format!(" ({reason})")) + if lock { ", locked" } else { "" },
            nodes.words(),
            request.threads,
            request.width,
            request.ctx_size,
            engine_core::plan::bytes(plan.total_bytes),
        );
        for OpenAdapter { name, scale, folder } in &adapters {
            let (rank, bytes) = (folder.rank(), engine_core::plan::bytes(folder.bytes() as u64));
            eprintln!("adapter {name}: scale {scale}, rank {rank}, {bytes}");
        }
        let start = Instant::now();
        let mut progress = Progress::new("loading", Unit::Bytes, plan.checkpoint_bytes);
        let mut last = LoadProgress::default();
        let model = Model::on_nodes(checkpoint, options, Homes::of(&pool), &mut |at| {
            progress.set(at.done_bytes as u64);
            last = at;
        })?;
        if lock {
            model.lock().map_err(EngineFailure::Lock)?;
        }
        let (bytes, disk_bytes) = (last.done_bytes, last.disk_bytes);
        let loaded = Loaded { model, pool, adapters, bytes, disk_bytes, time: start.elapsed() };
        progress.line(&loaded.line());
        Ok(loaded)
    }

    /// Loads the weights and starts an engine around them. The calling thread has to keep the pin while it drives it.
    pub(crate) fn engine(self, text: &ModelText) -> Result<(Engine<'_>, Option<CallerPin>), EngineFailure> {
        self.engine_around(&text.tokenizer, text.eos.clone())
    }

    /// The same, around a tokenizer and the tokens that end a sequence.
    pub(crate) fn engine_around(
        self,
        tokenizer: &Tokenizer,
        eos: Vec<u32>,
    ) -> Result<(Engine<'_>, Option<CallerPin>), EngineFailure> {
        let request = self.request;
        let options = EngineOptions {
            threads: NonZeroUsize::new(request.threads).unwrap_or(NonZeroUsize::MIN),
            kv_dtype: request.kv_dtype,
            ctx_size: request.ctx_size,
            width: request.width,
            ubatch_size: request.ubatch_size,
            prefix_cache: self.prefix_cache,
        };
        let Loaded { model, pool, adapters, .. } = self.load()?;
        let failed = |source| EngineError::Workers { threads: request.threads, source };
        let pin = nodes::pin_caller(&pool).map_err(failed)?;
        let mut engine = Engine::with_pool(model, pool, tokenizer, eos, options)?;
        for OpenAdapter { name, folder, .. } in &adapters {
            engine.load_adapter_folder(name, folder)?;
        }
        nodes::report_placement(engine.model().placement(), engine.kv_placement());
        Ok((engine, pin))
    }
}

/// A model, its workers, what loading took, and which way the bytes came.
pub(crate) struct Loaded {
    pub(crate) model: Model,
    pub(crate) pool: Pool,
    pub(crate) adapters: Vec<OpenAdapter>,
    pub(crate) bytes: usize,
    pub(crate) disk_bytes: usize,
    pub(crate) time: Duration,
}

impl Loaded {
    /// The adapters together, in memory.
    pub(crate) fn adapter_set(&self) -> Result<AdapterSet, EngineFailure> {
        let load = |adapter: &OpenAdapter| -> Result<_, EngineFailure> {
            let OpenAdapter { name, scale, folder } = adapter;
            Ok((Arc::new(Adapter::load(name, folder, self.model.options().isa)?), *scale))
        };
        Ok(AdapterSet::new(self.adapters.iter().map(load).collect::<Result<_, _>>()?)?)
    }

    fn line(&self) -> String {
        let bytes = |n: usize| engine_core::plan::bytes(n as u64);
        let (seconds, rate) = (self.time.as_secs_f64(), self.bytes as f64 / self.time.as_secs_f64() / 1e9);
        let (disk, cached) = (bytes(self.disk_bytes), bytes(self.bytes - self.disk_bytes));
        format!("loaded in {seconds:.1} s, {rate:.2} GB/s: {disk} from the disk, {cached} from the page cache")
    }
}

/// Why there is no engine though the folder is open.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EngineFailure {
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error("`--mlock`: {0}; or leave the flag out")]
    Lock(io::Error),
    #[error(transparent)]
    Start(#[from] EngineError),
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    #[error(transparent)]
    Adapters(#[from] AdapterSetError),
}
