//! From flags to a model in memory: plan first, then load, then say what runs.

use std::num::NonZeroUsize;
use std::path::Path;

use engine_core::checkpoint::Checkpoint;
use engine_core::config::ModelConfig;
use engine_core::model::{Model, ModelOptions};
use engine_core::plan::{Plan, PlanRequest};
use engine_core::session::{Engine, EngineOptions};
use engine_core::text::{GenerationDefaults, TextError, Tokenizer};
use numa::{MemoryFacts, Topology};
use simd::{Dtype, Isa};

use crate::args::{Gpu, Run};
use crate::failure::Failure;
use crate::progress::{Progress, Unit};

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

/// Checks the flags that the machine or this version cannot honour, and completes the others.
pub(crate) fn plan_request(run: &Run, config: &ModelConfig, width: usize) -> Result<PlanRequest, Failure> {
    if run.gpu == Gpu::Require {
        let why = "`--gpu require`: this version computes on the CPU alone; leave the flag out";
        return Err(Failure::Usage(why.into()));
    }
    if run.cache_type_v.is_some_and(|values| values != run.cache_type_k) {
        let why = "`--cache-type-v` differs from `--cache-type-k`; in this version keys and values have one type";
        return Err(Failure::Usage(why.into()));
    }
    let longest = config.max_position_embeddings;
    let ctx_size = run.ctx_size.map_or(longest.min(DEFAULT_CTX_SIZE_MAX), NonZeroUsize::get);
    if ctx_size > longest {
        let why = format!("`--ctx-size {ctx_size}` is beyond the {longest} positions that this model was made for");
        return Err(Failure::Usage(why));
    }
    if width > WIDTH_MAX {
        return Err(Failure::Usage(format!("`--width {width}`: at most {WIDTH_MAX} sequences run side by side")));
    }
    Ok(PlanRequest {
        ctx_size,
        width,
        logits: width,
        ubatch_size: run.ubatch_size.get().min(ctx_size),
        threads: threads(run.threads)?.get(),
        kv_dtype: run.cache_type_k,
        load: run.load,
    })
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

/// Counts the bytes of a run and refuses it where this machine has fewer.
pub(crate) fn check_plan(
    config: &ModelConfig,
    dtype_of: impl Fn(&str) -> Dtype,
    request: &PlanRequest,
    ram: Option<u64>,
) -> Result<Plan, Failure> {
    let available = match ram {
        Some(bytes) => bytes,
        None => MemoryFacts::discover()?.usable_ram(),
    };
    Plan::fit(config, dtype_of, request, available).map_err(|refusal| Failure::Refused(refusal))
}

/// Which rows of a step get logits.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum LogitRows {
    /// The last one of each sequence.
    Last,
    /// All of a prompt.
    All,
}

/// Opens a folder, plans, loads, and prints the run's first line.
pub(crate) fn load(folder: &Path, run: &Run, width: usize, logits: LogitRows) -> Result<(Model, PlanRequest), Failure> {
    let checkpoint = Checkpoint::open(folder)?;
    let mut request = plan_request(run, checkpoint.config(), width)?;
    if logits == LogitRows::All {
        request.logits = request.ubatch_size;
    }
    let plan = check_plan(checkpoint.config(), |name| checkpoint.tensor(name).dtype, &request, None)?;
    let options = ModelOptions {
        isa: run.isa.unwrap_or_else(Isa::detect),
        activations: run.activations,
        load: run.load,
        threads: request.threads,
    };
    let name = folder.file_name().unwrap_or(folder.as_os_str()).to_string_lossy().into_owned();
    eprintln!(
        "{name}: {:.2} billion parameters, isa {}, activations {}, keys and values {}, {} weights, {} threads, {} x {} tokens, {}",
        plan.parameters as f64 / 1e9,
        options.isa,
        options.activations,
        request.kv_dtype.name(),
        options.load,
        request.threads,
        request.width,
        request.ctx_size,
        engine_core::plan::bytes(plan.total_bytes),
    );
    let mut progress = Progress::new("loading", Unit::Bytes, plan.checkpoint_bytes);
    let model = Model::from_checkpoint(checkpoint, options, &mut |at| progress.set(at.done_bytes as u64))?;
    Ok((model, request))
}

/// As [`load`], with text around it.
pub(crate) fn engine<'t>(folder: &Path, run: &Run, width: usize, text: &'t ModelText) -> Result<Engine<'t>, Failure> {
    let (model, request) = load(folder, run, width, LogitRows::Last)?;
    let options = EngineOptions {
        threads: NonZeroUsize::new(request.threads).unwrap_or(NonZeroUsize::MIN),
        kv_dtype: request.kv_dtype,
        ctx_size: request.ctx_size,
        width,
        ubatch_size: request.ubatch_size,
    };
    Ok(Engine::new(model, &text.tokenizer, text.eos.clone(), options)?)
}
