//! Flags: llama.cpp's spellings where it has them, each with an environment mirror `NIGHTMONK_…`.

mod serve;
mod values;

use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::builder::BoolishValueParser;
use clap::{Args, Parser, Subcommand, ValueEnum};
use numa::Topology;
use simd::matmul::Activations;
use simd::{Dtype, Isa};

use crate::chat_flags::ChatFlags;
use crate::commands::context::Language;
use crate::dials::DialFlags;
use crate::text_form::TextForm;
pub(crate) use serve::Serve;
pub(crate) use values::Depths;
use values::{cache_type, depths, isa, numa, positive, scaled, size};

/// Runs large language models at full precision on this machine, and works through the night on private notes.
#[derive(Parser)]
#[command(name = "nightmonk", version, propagate_version = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Complete one prompt
    Generate(Box<Generate>),
    /// Write the logits of given token ids
    Logits(Logits),
    /// See which experts texts are routed to
    Experts(Experts),
    /// Measure how well the model foretells a text, in windows of --ctx-size tokens (512 without it)
    Perplexity(Perplexity),
    /// Work through notes with a recipe
    Night(Night),
    /// Answer clients over HTTP, as OpenAI's, Ollama's and llama-server's do
    Serve(Box<Serve>),
    /// Turn a GGUF file into a model folder
    Import(Import),
    /// Write a model folder with matrices as the kernels read them, BF16 in 12 bits without loss
    Pack(Pack),
    /// Count the bytes of a run before anything is loaded
    Plan(Plan),
    /// Measure prefill and decode beside this machine's limits
    Bench(Bench),
    /// Look at this machine
    Doctor(Doctor),
    /// Check this machine's arithmetic
    Selftest(Selftest),
    /// Print a script that completes commands and flags in a shell
    Completions(Completions),
    /// Write manual pages: one for the program and one for each command
    Man(Man),
}

#[derive(Args)]
pub(crate) struct Completions {
    /// bash, elvish, fish, powershell or zsh
    #[arg(value_name = "SHELL")]
    pub(crate) shell: clap_complete::Shell,
}

#[derive(Args)]
pub(crate) struct Man {
    /// Folder for the pages; it is made if it is not there
    #[arg(short, long, value_name = "DIR")]
    pub(crate) output: PathBuf,
}

#[derive(Args)]
pub(crate) struct Generate {
    /// Model folder
    #[arg(short, long, env = "NIGHTMONK_MODEL", value_name = "DIR")]
    pub(crate) model: PathBuf,
    /// Prompt
    #[arg(
        short,
        long,
        value_name = "TEXT",
        required_unless_present = "file",
        conflicts_with = "file",
        allow_hyphen_values = true
    )]
    pub(crate) prompt: Option<String>,
    /// File with the prompt; `-` is standard input
    #[arg(short, long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) chat: ChatFlags,
    /// Most tokens to generate; without it, until the model ends or the context is full
    #[arg(short = 'n', long = "predict", alias = "n-predict", env = "NIGHTMONK_PREDICT", value_name = "N")]
    pub(crate) predict: Option<usize>,
    /// Text that ends the generation; may be given several times
    #[arg(short = 'r', long = "stop", alias = "reverse-prompt", value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) stop: Vec<String>,
    #[command(flatten)]
    pub(crate) sampling: Sampling,
    #[command(flatten)]
    pub(crate) form: TextForm,
    #[command(flatten)]
    pub(crate) run: Run,
    #[command(flatten)]
    pub(crate) output: OutputFormat,
}

/// How tokens are drawn, and the seed that they are drawn with.
#[derive(Args)]
pub(crate) struct Sampling {
    #[command(flatten)]
    pub(crate) draw: Draw,
    /// Seed of the counter-based generator
    #[arg(long, short, env = "NIGHTMONK_SEED", value_name = "S", default_value_t = 0)]
    pub(crate) seed: u64,
}

/// Where a flag is absent, generation_config.json of the model decides, and where that is silent, its own distribution.
#[derive(Args)]
pub(crate) struct Draw {
    /// Temperature; 0 takes the most probable token
    #[arg(long, env = "NIGHTMONK_TEMP", value_name = "T", allow_negative_numbers = true)]
    pub(crate) temp: Option<f32>,
    /// Draw among this many most probable tokens; 0 is off
    #[arg(long, env = "NIGHTMONK_TOP_K", value_name = "K")]
    pub(crate) top_k: Option<usize>,
    /// Draw among the fewest tokens that reach this probability; 1 is off
    #[arg(long, env = "NIGHTMONK_TOP_P", value_name = "P")]
    pub(crate) top_p: Option<f32>,
    /// Draw among tokens at least this fraction as probable as the best; 0 is off
    #[arg(long, env = "NIGHTMONK_MIN_P", value_name = "P")]
    pub(crate) min_p: Option<f32>,
    /// Divides the logits of tokens that were there, in the prompt or since; 1 is off
    #[arg(long, env = "NIGHTMONK_REPEAT_PENALTY", value_name = "P")]
    pub(crate) repeat_penalty: Option<f32>,
    /// Taken once from the logits of tokens that were generated; 0 is off
    #[arg(long, env = "NIGHTMONK_PRESENCE_PENALTY", value_name = "P", allow_negative_numbers = true)]
    pub(crate) presence_penalty: Option<f32>,
    /// Taken from the logits of tokens as often as they were generated; 0 is off
    #[arg(long, env = "NIGHTMONK_FREQUENCY_PENALTY", value_name = "P", allow_negative_numbers = true)]
    pub(crate) frequency_penalty: Option<f32>,
}

/// What decides bytes (isa, activations, cache types, dials) and what decides speed and memory (the rest).
#[derive(Args, Clone)]
pub(crate) struct Run {
    /// Positions of a sequence; without it, the model's own, up to 8192
    #[arg(short, long, env = "NIGHTMONK_CTX_SIZE", value_name = "N")]
    pub(crate) ctx_size: Option<NonZeroUsize>,
    /// Workers; without it, the physical cores
    #[arg(short, long, env = "NIGHTMONK_THREADS", value_name = "N")]
    pub(crate) threads: Option<NonZeroUsize>,
    /// Instructions: scalar, avx2, avx512f, avx512, amx; without it, the best that this CPU has
    #[arg(long, env = "NIGHTMONK_ISA", value_name = "ISA", value_parser = isa)]
    pub(crate) isa: Option<Isa>,
    /// Terms of the activations in products with BF16 weights: bf16x2 or bf16
    #[arg(long, env = "NIGHTMONK_ACTIVATIONS", value_name = "FORM", default_value = "bf16x2")]
    pub(crate) activations: Activations,
    /// Where weights live; the run's first line says what auto chose, and why
    #[arg(long, env = "NIGHTMONK_LOAD", value_name = "MODE", default_value = "auto")]
    pub(crate) load: LoadMode,
    /// Lock the weights in memory, so that the system neither swaps them out nor drops them from the page cache; fails
    /// where the limit for locked memory is too low [llama.cpp: --mlock]
    #[arg(long, env = "NIGHTMONK_MLOCK", value_parser = BoolishValueParser::new())]
    pub(crate) mlock: bool,
    /// Compute every prompt from its beginning, where prompts that begin alike share what was computed of it; changes no byte
    #[arg(long, env = "NIGHTMONK_NO_PREFIX_CACHE", value_parser = BoolishValueParser::new())]
    pub(crate) no_prefix_cache: bool,
    /// Memory on machines with several nodes: slice cuts every large matrix over them, off takes the machine as one, auto
    /// slices resident weights where it can; changes no byte
    #[arg(long, env = "NIGHTMONK_NUMA", value_name = "MODE", default_value = "auto", value_parser = numa)]
    pub(crate) numa: NumaMode,
    /// Type of keys in the cache: f16, bf16 or f32 [llama.cpp: -ctk]
    #[arg(long, env = "NIGHTMONK_CACHE_TYPE_K", value_name = "TYPE", default_value = "f16", value_parser = cache_type)]
    pub(crate) cache_type_k: Dtype,
    /// Type of values in the cache; must be that of the keys [llama.cpp: -ctv]
    #[arg(long, env = "NIGHTMONK_CACHE_TYPE_V", value_name = "TYPE", value_parser = cache_type)]
    pub(crate) cache_type_v: Option<Dtype>,
    /// Rows of prompts in a step [llama.cpp: -ub]
    #[arg(long, env = "NIGHTMONK_UBATCH_SIZE", value_name = "N", default_value = "256")]
    pub(crate) ubatch_size: NonZeroUsize,
    /// LoRA adapter, a folder as PEFT writes it; may be given several times, or with commas
    #[arg(long, env = "NIGHTMONK_LORA", value_name = "DIR", value_delimiter = ',')]
    pub(crate) lora: Vec<PathBuf>,
    /// The same, with a factor of what it adds
    #[arg(long, env = "NIGHTMONK_LORA_SCALED", value_name = "DIR:SCALE", value_delimiter = ',', value_parser = scaled)]
    pub(crate) lora_scaled: Vec<(PathBuf, f32)>,
    /// Use a GPU: auto, off or require; this version computes on the CPU alone
    #[arg(long, env = "NIGHTMONK_GPU", value_name = "USE", default_value = "auto")]
    pub(crate) gpu: Gpu,
    #[command(flatten)]
    pub(crate) dials: DialFlags,
}

impl Run {
    /// The same with another context.
    pub(crate) fn with_ctx_size(&self, ctx_size: NonZeroUsize) -> Self {
        Self { ctx_size: Some(ctx_size), ..self.clone() }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LoadMode {
    /// Resident where it fits and the work is long enough to repay it, else mapped
    Auto,
    /// The published files, in the page cache: starts sooner, steps take about a quarter longer
    Mapped,
    /// Panels in memory of their own, read past the page cache
    Resident,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NumaMode {
    Auto,
    Off,
    Slice,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Gpu {
    Auto,
    Off,
    Require,
}

#[derive(Args)]
pub(crate) struct OutputFormat {
    /// Format of standard output
    #[arg(short, long = "output", value_name = "FORMAT", default_value = "text")]
    pub(crate) output: Format,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Text,
    Json,
}

#[derive(Args)]
pub(crate) struct Logits {
    /// Model folder
    #[arg(short, long, env = "NIGHTMONK_MODEL", value_name = "DIR")]
    pub(crate) model: PathBuf,
    /// JSON file with a list of token ids
    #[arg(long, value_name = "FILE.json")]
    pub(crate) tokens: PathBuf,
    /// Logits: float32 [tokens, vocab]
    #[arg(short, long, value_name = "OUT.npy")]
    pub(crate) output: PathBuf,
    /// Chosen experts: int32 [layers with experts, tokens, k], best first
    #[arg(long, value_name = "OUT.npy")]
    pub(crate) router: Option<PathBuf>,
    /// Factors of their outputs: float32 [layers with experts, tokens, k], in the same order
    #[arg(long, value_name = "OUT.npy")]
    pub(crate) router_weights: Option<PathBuf>,
    /// Logits of the router: float32 [layers with experts, tokens, experts]
    #[arg(long, value_name = "OUT.npy")]
    pub(crate) router_logits: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) run: Run,
}

#[derive(Args)]
pub(crate) struct Experts {
    #[command(subcommand)]
    pub(crate) command: ExpertsCommand,
}

#[derive(Subcommand)]
pub(crate) enum ExpertsCommand {
    /// Count which experts the tokens of a text go through
    Record(Box<ExpertsRecord>),
    /// Add counts of the same model up
    Merge(ExpertsMerge),
    /// Entropy and coverage of each layer, and a heat map
    Show(ExpertsShow),
}

#[derive(Args)]
pub(crate) struct ExpertsRecord {
    /// Model folder
    #[arg(short, long, env = "NIGHTMONK_MODEL", value_name = "DIR")]
    pub(crate) model: PathBuf,
    /// File with the text; it goes through the model in windows of the context's size, one after the other
    #[arg(short, long, value_name = "TEXT", required_unless_present = "tokens", conflicts_with = "tokens")]
    pub(crate) file: Option<PathBuf>,
    /// JSON file with a list of token ids, in place of a text
    #[arg(long, value_name = "FILE.json")]
    pub(crate) tokens: Option<PathBuf>,
    /// File of counts to write
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: PathBuf,
    /// What kind of text it is, like `code`; without it, the name of its file
    #[arg(long, value_name = "NAME")]
    pub(crate) workload: Option<String>,
    #[command(flatten)]
    pub(crate) run: Run,
}

#[derive(Args)]
pub(crate) struct ExpertsMerge {
    /// Files of counts
    #[arg(required = true, value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
    /// File of counts to write
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: PathBuf,
}

#[derive(Args)]
pub(crate) struct ExpertsShow {
    /// File of counts
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// Draw the heat map into this file
    #[arg(long, value_name = "OUT.svg")]
    pub(crate) svg: Option<PathBuf>,
    /// Columns of the terminal that the heat map may take; where experts do not fit, neighbours share one
    #[arg(long, value_name = "N", default_value = "80")]
    pub(crate) columns: NonZeroUsize,
    #[command(flatten)]
    pub(crate) output: OutputFormat,
}

#[derive(Args)]
pub(crate) struct Perplexity {
    /// Model folder
    #[arg(short, long, env = "NIGHTMONK_MODEL", value_name = "DIR")]
    pub(crate) model: PathBuf,
    /// Text, in UTF-8
    #[arg(short, long, value_name = "TEXT")]
    pub(crate) file: PathBuf,
    /// Windows overlap: each begins N tokens after the one before, and its last N tokens are scored. Without it windows
    /// follow each other, and the second half of each is scored [llama.cpp: --ppl-stride]
    #[arg(long, alias = "ppl-stride", value_name = "N")]
    pub(crate) stride: Option<NonZeroUsize>,
    #[command(flatten)]
    pub(crate) run: Run,
    #[command(flatten)]
    pub(crate) output: OutputFormat,
}

#[derive(Args)]
pub(crate) struct Night {
    #[command(subcommand)]
    pub(crate) command: NightCommand,
}

#[derive(Subcommand)]
pub(crate) enum NightCommand {
    /// Run these jobs until they are done; started again, a job goes on where it was
    Run(NightRun),
}

#[derive(Args)]
pub(crate) struct NightRun {
    /// Job files
    #[arg(required = true, value_name = "JOB.toml")]
    pub(crate) jobs: Vec<PathBuf>,
    /// Model folder, in place of the jobs' own. (No environment mirror: a variable set for other commands would quietly
    /// give every job another model.)
    #[arg(short, long, value_name = "DIR")]
    pub(crate) model: Option<PathBuf>,
    /// Sequences side by side
    #[arg(long, env = "NIGHTMONK_WIDTH", value_name = "N", default_value = "4")]
    pub(crate) width: NonZeroUsize,
    /// Folder of the store; without it, `.nightmonk` beside the report
    #[arg(long, env = "NIGHTMONK_STORE", value_name = "DIR")]
    pub(crate) store: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) run: Run,
}

#[derive(Args)]
pub(crate) struct Import {
    /// GGUF file
    #[arg(value_name = "FILE.gguf")]
    pub(crate) file: PathBuf,
    /// Folder to write
    #[arg(short, long, value_name = "DIR")]
    pub(crate) output: PathBuf,
    /// Type for quantised tensors: f32 keeps every value, f16 and bf16 round
    #[arg(long, value_name = "TYPE", default_value = "f32", value_parser = cache_type)]
    pub(crate) expand_to: Dtype,
}

#[derive(Args)]
pub(crate) struct Pack {
    /// Model folder, as published
    #[arg(short, long, env = "NIGHTMONK_MODEL", value_name = "DIR")]
    pub(crate) model: PathBuf,
    /// Folder to write; started again after whatever ended it, the same command goes on
    #[arg(short, long, value_name = "DIR")]
    pub(crate) output: PathBuf,
    /// Write plain panels of the published types, nothing in 12 bits
    #[arg(long)]
    pub(crate) plain: bool,
    /// Size that a shard is planned for before it shrinks, like 5GB; larger tensors get a shard of their own
    #[arg(long, value_name = "SIZE", default_value = "5GB", value_parser = size)]
    pub(crate) max_shard_size: u64,
    /// Threads that pack; without it, the physical cores
    #[arg(short, long, env = "NIGHTMONK_THREADS", value_name = "N")]
    pub(crate) threads: Option<NonZeroUsize>,
}

#[derive(Args)]
pub(crate) struct Plan {
    /// Model folder, or a config.json alone
    #[arg(short, long, env = "NIGHTMONK_MODEL", value_name = "DIR|config.json")]
    pub(crate) model: PathBuf,
    /// Memory to plan for, like 768GiB; without it, what this machine has
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(crate) ram: Option<u64>,
    /// Memory of a GPU, like 96GiB: what of the model would fit it
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(crate) vram: Option<u64>,
    /// Nodes that share the model; without it, those of this machine
    #[arg(long, value_name = "N", conflicts_with = "topology")]
    pub(crate) nodes: Option<NonZeroUsize>,
    /// Nodes of another machine: NODESxCORESxGIB, with cores and memory of each, or a JSON file; each has to have room for
    /// its share
    #[arg(long, value_name = "2x32x384|FILE", value_parser = Topology::from_argument)]
    pub(crate) topology: Option<Topology>,
    /// Bytes that the machine reads from memory in a second, in GB/s; without it, measured, but not for a machine that is
    /// only described
    #[arg(long, value_name = "GB/S", requires = "peak", value_parser = positive)]
    pub(crate) bandwidth: Option<f64>,
    /// Operations on BF16 numbers in a second, in GFLOP/s
    #[arg(long, value_name = "GFLOP/S", requires = "bandwidth", value_parser = positive)]
    pub(crate) peak: Option<f64>,
    /// Sequences side by side
    #[arg(long, value_name = "N", default_value = "1")]
    pub(crate) width: NonZeroUsize,
    #[command(flatten)]
    pub(crate) run: Run,
    #[command(flatten)]
    pub(crate) output: OutputFormat,
}

#[derive(Args)]
pub(crate) struct Bench {
    /// Model folder
    #[arg(short, long, env = "NIGHTMONK_MODEL", value_name = "DIR")]
    pub(crate) model: PathBuf,
    /// Lengths of prompts
    #[arg(short = 'p', long = "n-prompt", value_name = "N,…", value_delimiter = ',', default_value = "512")]
    pub(crate) prompt: Vec<usize>,
    /// Lengths of generations
    #[arg(short = 'n', long = "n-gen", value_name = "N,…", value_delimiter = ',', default_value = "128")]
    pub(crate) generate: Vec<usize>,
    /// Positions before them
    #[arg(short = 'd', long = "n-depth", value_name = "DEPTH,…", value_delimiter = ',', default_value = "0")]
    pub(crate) depth: Vec<usize>,
    /// Sequences that decode side by side
    #[arg(long, value_name = "W,…", value_delimiter = ',', default_value = "1")]
    pub(crate) width: Vec<NonZeroUsize>,
    /// Repetitions, of which the median counts
    #[arg(short, long, value_name = "R", default_value = "5")]
    pub(crate) repetitions: NonZeroUsize,
    /// Before loading drop the model from the page cache and read it with direct reads, twice, and in between take memory
    /// for it, all with as many threads as load it; a row `load` compares loading with both
    #[arg(long)]
    pub(crate) load_test: bool,
    #[command(flatten)]
    pub(crate) run: Run,
    #[command(flatten)]
    pub(crate) output: OutputFormat,
}

#[derive(Args)]
pub(crate) struct Doctor {
    /// Workers for measuring the bandwidth; without it, the physical cores
    #[arg(short, long, env = "NIGHTMONK_THREADS", value_name = "N")]
    pub(crate) threads: Option<NonZeroUsize>,
    #[command(flatten)]
    pub(crate) output: OutputFormat,
}

#[derive(Args)]
pub(crate) struct Selftest {
    #[command(subcommand)]
    pub(crate) command: SelftestCommand,
}

#[derive(Subcommand)]
pub(crate) enum SelftestCommand {
    /// Compare logits of the golden families with those of transformers in float32, and with what BF16 arithmetic loses
    Numerics(Numerics),
    /// Ask for facts that are planted in texts of growing length, and see that a stretched context changes the logits
    Context(Box<Context>),
}

#[derive(Args)]
pub(crate) struct Numerics {
    /// Instructions: scalar, avx2, avx512f, avx512, amx; without it, the best that this CPU has
    #[arg(long, env = "NIGHTMONK_ISA", value_name = "ISA", value_parser = isa)]
    pub(crate) isa: Option<Isa>,
    /// Folder of golden data; without it, tests/golden in the working directory
    #[arg(long, value_name = "DIR")]
    pub(crate) golden: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) output: OutputFormat,
}

#[derive(Args)]
pub(crate) struct Context {
    /// Model folder
    #[arg(short, long, env = "NIGHTMONK_MODEL", value_name = "DIR")]
    pub(crate) model: PathBuf,
    /// Tokens of a sequence: text, question and room for the answer; without it, powers of two from 1024 to the context
    #[arg(long, value_name = "N,…", value_delimiter = ',')]
    pub(crate) lengths: Vec<NonZeroUsize>,
    /// How many even depths, or percents like `0,50,100`
    #[arg(long, value_name = "N|P,…", default_value = "5", value_parser = depths)]
    pub(crate) depths: Depths,
    /// Facts in one text, at depths as far apart as can be; without it, one at every depth. Questions about one text
    /// share its reading
    #[arg(long, value_name = "N")]
    pub(crate) facts_per_context: Option<NonZeroUsize>,
    /// Rounds, each with another text and other facts: a score of a depth and length is out of so many questions
    #[arg(long, value_name = "N", default_value = "1")]
    pub(crate) rounds: NonZeroUsize,
    /// Language of text and questions
    #[arg(long, value_name = "LANGUAGE", default_value = "en")]
    pub(crate) language: Language,
    /// Seed of text and facts
    #[arg(long, short, env = "NIGHTMONK_SEED", value_name = "S", default_value_t = 0)]
    pub(crate) seed: u64,
    /// Most tokens of an answer, thoughts included
    #[arg(long, value_name = "N", default_value = "64")]
    pub(crate) max_tokens: NonZeroUsize,
    /// Draw the scores into this file
    #[arg(long, value_name = "OUT.svg")]
    pub(crate) svg: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) run: Run,
    #[command(flatten)]
    pub(crate) output: OutputFormat,
}

/// Spells llama.cpp's short flags of several letters out, which clap does not know.
pub(crate) fn spelled_out(arguments: impl Iterator<Item = OsString>) -> impl Iterator<Item = OsString> {
    arguments.map(|argument| match argument.to_str() {
        Some("-ctk") => "--cache-type-k".into(),
        Some("-ctv") => "--cache-type-v".into(),
        Some("-ub") => "--ubatch-size".into(),
        Some("-np") => "--parallel".into(),
        Some("-to") => "--timeout".into(),
        _ => argument,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_flags_are_consistent() {
        Arguments::command().debug_assert();
    }
}
