//! Two engines on the same weights, in alternating rounds.
//!
//! What neighbours do to the memory moves a speed by a third within minutes, so neither engine is measured in one piece:
//! each round runs both, every other round in the opposite order, and a ratio is one of figures of the same round.
//! llama.cpp runs each test with and without flash attention and counts by its best setting.

mod build;
mod llama_cpp;
mod report;

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use engine_core::checkpoint::Checkpoint;

use crate::figures::Figures;
use crate::nightmonk::Nightmonk;
use crate::{gguf, record, shell};
use llama_cpp::{LlamaCpp, Sample};
use report::{Report, Test};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Model folder
    #[arg(short, long, value_name = "DIR")]
    model: PathBuf,
    /// Lengths of prompts
    #[arg(short = 'p', long = "n-prompt", value_name = "N,…", value_delimiter = ',', default_value = "512")]
    prompt: Vec<usize>,
    /// Lengths of generations
    #[arg(short = 'n', long = "n-gen", value_name = "N,…", value_delimiter = ',', default_value = "64")]
    generate: Vec<usize>,
    /// Positions before them; llama.cpp computes these each time
    #[arg(short = 'd', long = "n-depth", value_name = "DEPTH,…", value_delimiter = ',', default_value = "0")]
    depth: Vec<usize>,
    /// Sequences that decode side by side
    #[arg(long, value_name = "W,…", value_delimiter = ',', default_value = "1")]
    width: Vec<NonZeroUsize>,
    /// Rounds of both engines
    #[arg(long, value_name = "R", default_value = "5")]
    rounds: NonZeroUsize,
    /// Repetitions of each test within a round
    #[arg(short, long, value_name = "R", default_value = "1")]
    repetitions: NonZeroUsize,
    /// Threads of both; without it, as many as Nightmonk takes
    #[arg(short, long, value_name = "N")]
    threads: Option<NonZeroUsize>,
    /// Flash attention of llama.cpp: settings to try
    #[arg(long, value_name = "off,on", value_delimiter = ',', default_value = "off,on",
          value_parser = ["off", "on"])]
    flash_attention: Vec<String>,
    /// Further flags of llama-bench and llama-batched-bench, in one argument; `-lm mmap` maps the weights
    #[arg(long, value_name = "FLAGS", default_value = "-lm none", allow_hyphen_values = true)]
    llama_flags: String,
    /// GGUF file of the same weights; without it one is written to the target folder, and kept
    #[arg(long, value_name = "FILE")]
    gguf: Option<PathBuf>,
    /// Format of standard output
    #[arg(short, long, value_name = "text|json", default_value = "text", value_parser = ["text", "json"])]
    output: String,
    /// Flags of `nightmonk bench`, as in `-- --load mapped`
    #[arg(last = true, value_name = "FLAGS")]
    bench: Vec<String>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), String> {
    let checkpoint = Checkpoint::open(&arguments.model).map_err(|error| error.to_string())?;
    let nightmonk = Nightmonk::build()?;
    let folder = nightmonk.target()?.join("versus");
    let llama = LlamaCpp::new(build::llama_cpp(&folder)?, weights(arguments, &checkpoint, &folder)?);
    drop(checkpoint);

    let mut report = Report {
        shape: record::shape_of(&arguments.model)?,
        commit: shell::commit()?,
        llama_cpp: llama.build.clone(),
        nightmonk_flags: nightmonk_flags(arguments),
        llama_cpp_flags: words(&arguments.llama_flags),
        rounds: arguments.rounds.get(),
        tests: Vec::new(),
    };
    let mut threads = arguments.threads.map(NonZeroUsize::get);
    for round in 0..arguments.rounds.get() {
        eprintln!("round {} of {}", round + 1, arguments.rounds);
        // The first round begins with Nightmonk, which says how many threads it takes.
        let (ours, theirs) = if round % 2 == 0 {
            let ours = nightmonk.bench(&arguments.model, &report.nightmonk_flags)?;
            threads = threads.or_else(|| ours.first().map(|figures| figures.threads));
            (ours, llama_round(arguments, &llama, threads)?)
        } else {
            let theirs = llama_round(arguments, &llama, threads)?;
            (nightmonk.bench(&arguments.model, &report.nightmonk_flags)?, theirs)
        };
        report.add(ours, theirs)?;
    }
    match arguments.output.as_str() {
        "json" => println!("{}", serde_json::to_string(&report.summary()).map_err(|error| error.to_string())?),
        _ => print!("{}", report.text()),
    }
    Ok(())
}

/// The GGUF file: the one given, or one that is newer than the checkpoint, or one that is written now.
fn weights(arguments: &Arguments, checkpoint: &Checkpoint, folder: &Path) -> Result<PathBuf, String> {
    if let Some(path) = &arguments.gguf
        && path.exists()
    {
        return Ok(path.clone());
    }
    let named = |path: &Path, error: std::io::Error| format!("{}: {error}", path.display());
    let path = match &arguments.gguf {
        Some(path) => path.clone(),
        None => {
            let model = arguments.model.canonicalize().map_err(|error| named(&arguments.model, error))?;
            let name = model.file_name().unwrap_or_default().to_string_lossy().into_owned();
            folder.join("gguf").join(format!("{name}.gguf"))
        }
    };
    let modified = |path: &Path| path.metadata().and_then(|facts| facts.modified()).map_err(|error| named(path, error));
    let config = arguments.model.join("config.json");
    let sources = checkpoint.shards().map(|(path, _)| path).chain([config.as_path()]);
    let newest = sources.map(modified).collect::<Result<Vec<_>, _>>()?.into_iter().max();
    if !path.exists() || Some(modified(&path)?) <= newest {
        eprintln!("writing {}", path.display());
        gguf::write(checkpoint, &path)?;
    }
    Ok(path)
}

fn nightmonk_flags(arguments: &Arguments) -> Vec<String> {
    let mut flags = vec![];
    let mut set = |flag: &str, value: String| flags.extend([flag.to_owned(), value]);
    set("-p", list(&arguments.prompt));
    set("-n", list(&arguments.generate));
    set("-d", list(&arguments.depth));
    set("--width", list(&arguments.width));
    set("-r", arguments.repetitions.to_string());
    if let Some(threads) = arguments.threads {
        set("-t", threads.to_string());
    }
    flags.extend(arguments.bench.iter().cloned());
    flags
}

/// One sequence by llama-bench, several side by side by llama-batched-bench.
fn llama_round(arguments: &Arguments, llama: &LlamaCpp, threads: Option<usize>) -> Result<Vec<Sample>, String> {
    let mut flags = words(&arguments.llama_flags);
    if let Some(threads) = threads {
        flags.extend(["-t".to_owned(), threads.to_string()]);
    }
    let wide: Vec<usize> = arguments.width.iter().map(|width| width.get()).filter(|width| *width > 1).collect();
    let generate: Vec<usize> = arguments.generate.iter().copied().filter(|length| *length > 0).collect();
    let is_single = arguments.width.iter().any(|width| width.get() == 1);
    let single = if is_single { list(&generate) } else { String::new() };
    let prompt: Vec<usize> = arguments.prompt.iter().copied().filter(|length| *length > 0).collect();
    let mut samples = Vec::new();
    if !prompt.is_empty() || !single.is_empty() {
        let repetitions = arguments.repetitions.to_string();
        let tests = ["-p", &or_zero(list(&prompt)), "-n", &or_zero(single)].map(str::to_owned);
        let more = ["-d", &list(&arguments.depth), "-r", &repetitions].map(str::to_owned);
        samples.extend(llama.bench(&arguments.flash_attention, &[&flags[..], &tests, &more].concat())?);
    }
    if !wide.is_empty() && !generate.is_empty() {
        for (flash_attention, depth) in
            arguments.flash_attention.iter().flat_map(|on| arguments.depth.iter().map(move |depth| (on, *depth)))
        {
            samples.extend(llama.batched(flash_attention, depth, &generate, &wide, &flags)?);
        }
    }
    Ok(samples)
}

fn words(flags: &str) -> Vec<String> {
    flags.split_whitespace().map(str::to_owned).collect()
}

fn list(numbers: &[impl ToString]) -> String {
    numbers.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

fn or_zero(list: String) -> String {
    if list.is_empty() { "0".into() } else { list }
}

/// The test that some figures of ours are of.
fn test_of(figures: &Figures) -> Test {
    Test { n_prompt: figures.n_prompt, n_gen: figures.n_gen, n_depth: figures.n_depth, width: figures.width }
}
