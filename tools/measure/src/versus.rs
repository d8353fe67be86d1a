//! Two engines on the same weights, in alternating rounds.
//!
//! What neighbours do to the memory moves a speed by a third within minutes, so nothing is measured in one piece: each
//! round runs all contenders, every other round in the opposite order, and a ratio is one of figures of the same round.
//! Nightmonk may contend several times, with a packed folder or other flags; llama.cpp runs each test with several
//! settings and counts by its best.

mod build;
mod llama_cpp;
mod record;
mod report;

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use engine_core::checkpoint::Checkpoint;

use crate::nightmonk::Nightmonk;
use crate::record::{folder_name, folder_of, machine_name, shape_of, today};
use crate::{gguf, shell};
use llama_cpp::{Batch, LlamaCpp, Sample};
use report::{Named, Report};

/// What the names of files with ratios end with, after the date.
pub(crate) const RECORD: &str = "-versus.csv";

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Model folder, as published
    #[arg(short, long, value_name = "DIR")]
    model: PathBuf,
    /// What `nightmonk pack` made of it, as a contender of its own
    #[arg(long, value_name = "DIR")]
    packed: Option<PathBuf>,
    /// Flags of `nightmonk bench` that make one more contender, in one argument, added to those after `--` or in place of
    /// the same ones; may be given several times, as in `--also '--activations bf16'`
    #[arg(long, value_name = "FLAGS", allow_hyphen_values = true)]
    also: Vec<String>,
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
    /// Rounds of all contenders
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
    /// Keys and values of llama.cpp: types to try
    #[arg(long, value_name = "f16,bf16,f32", value_delimiter = ',', default_value = "f16",
          value_parser = ["f16", "bf16", "f32"])]
    llama_cache_type: Vec<String>,
    /// Further flags of llama-bench and llama-batched-bench, in one argument; `-lm mmap` maps the weights
    #[arg(long, value_name = "FLAGS", default_value = "-lm none", allow_hyphen_values = true)]
    llama_flags: String,
    /// GGUF file of the same weights; without it one is written to the target folder, and kept
    #[arg(long, value_name = "FILE")]
    gguf: Option<PathBuf>,
    /// Append the ratios to benches/record, in the folder of this machine's name
    #[arg(long, value_name = "NAME", value_parser = machine_name)]
    machine: Option<String>,
    /// Format of standard output
    #[arg(short, long, value_name = "text|json", default_value = "text", value_parser = ["text", "json"])]
    output: String,
    /// Flags of `nightmonk bench`, as in `-- --load mapped`
    #[arg(last = true, value_name = "FLAGS")]
    bench: Vec<String>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), String> {
    // Asked first: a wrong machine or folder is no news for the end of an hour.
    let record = arguments.machine.as_deref().map(folder_of).transpose()?;
    let contenders = contenders(arguments)?;
    let checkpoint = Checkpoint::open(&arguments.model).map_err(|error| error.to_string())?;
    let nightmonk = Nightmonk::build()?;
    let folder = nightmonk.target()?.join("versus");
    let llama = LlamaCpp::new(build::llama_cpp(&folder)?, weights(arguments, &checkpoint, &folder)?);
    drop(checkpoint);

    let mut report = Report {
        shape: shape_of(&arguments.model)?,
        commit: shell::commit()?,
        llama_cpp: llama.build.clone(),
        llama_cpp_flags: words(&arguments.llama_flags),
        contenders: contenders.iter().map(|contender| contender.named.clone()).collect(),
        rounds: arguments.rounds.get(),
        tests: Vec::new(),
    };
    let mut threads = arguments.threads.map(NonZeroUsize::get);
    for round in 0..arguments.rounds.get() {
        eprintln!("round {} of {}", round + 1, arguments.rounds);
        let mut ours = vec![Vec::new(); contenders.len()];
        let mut theirs = Vec::new();
        // The first round begins with Nightmonk, which says how many threads it takes.
        for turn in turns(contenders.len(), round) {
            match turn {
                Some(contender) => {
                    let Contender { named, model } = &contenders[contender];
                    ours[contender] = nightmonk.bench(model, &named.flags)?;
                    threads = threads.or_else(|| ours[contender].first().map(|figures| figures.threads));
                }
                None => theirs = llama_round(arguments, &llama, threads)?,
            }
        }
        report.add(ours, &theirs)?;
    }
    match arguments.output.as_str() {
        "json" => println!("{}", serde_json::to_string(&report.summary()).map_err(|error| error.to_string())?),
        _ => print!("{}", report.text()),
    }
    if let Some(folder) = record {
        let path = folder.join(format!("{}{RECORD}", today()?));
        record::write(&report, &path)?;
        eprintln!("{}", path.display());
    }
    Ok(())
}

/// Nightmonk with a folder and flags.
struct Contender {
    named: Named,
    model: PathBuf,
}

/// The model folder first, then what it is compared with besides llama.cpp.
fn contenders(arguments: &Arguments) -> Result<Vec<Contender>, String> {
    let flags = nightmonk_flags(arguments);
    let contender = |name: &str, model: &Path, flags: &[String]| {
        let named = Named { name: name.into(), model: folder_name(model)?, flags: flags.into() };
        Ok::<_, String>(Contender { named, model: model.into() })
    };
    let mut contenders = vec![contender("Nightmonk", &arguments.model, &flags)?];
    if let Some(folder) = &arguments.packed {
        check_packed(folder, &arguments.model)?;
        contenders.push(contender("packed", folder, &flags)?);
    }
    for more in &arguments.also {
        contenders.push(contender(more, &arguments.model, &with(&flags, &words(more)))?);
    }
    Ok(contenders)
}

/// `flags` without those, and their values, that `more` gives anew; and `more`.
fn with(flags: &[String], more: &[String]) -> Vec<String> {
    let mut kept = Vec::new();
    let mut dropping = false;
    for word in flags {
        // A value follows its flag, and none here begins as a flag does.
        dropping = if word.starts_with('-') { more.contains(word) } else { dropping };
        if !dropping {
            kept.push(word.clone());
        }
    }
    [&kept, more].concat()
}

/// Whether a folder of panels is of the same model; its numbers may differ, for they change no speed.
fn check_packed(folder: &Path, model: &Path) -> Result<(), String> {
    let open = |folder: &Path| Checkpoint::open(folder).map_err(|error| error.to_string());
    let (packed, published) = (open(folder)?, open(model)?);
    if packed.packed_from().is_none() {
        return Err(format!("{}: nothing is packed here; `nightmonk pack` makes such a folder", folder.display()));
    }
    match packed.config() == published.config() {
        true => Ok(()),
        false => Err(format!("{} and {} are of different models", folder.display(), model.display())),
    }
}

/// Who runs when in a round: a contender of Nightmonk, or llama.cpp. Every other round goes the other way.
fn turns(contenders: usize, round: usize) -> Vec<Option<usize>> {
    let mut turns: Vec<Option<usize>> = (0..contenders).map(Some).chain([None]).collect();
    if round % 2 == 1 {
        turns.reverse();
    }
    turns
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
    let [prompt, generate] = [&arguments.prompt, &arguments.generate]
        .map(|lengths| lengths.iter().copied().filter(|length| *length > 0).collect::<Vec<_>>());
    let is_single = arguments.width.iter().any(|width| width.get() == 1);
    let single = if is_single { &generate[..] } else { &[] };
    let mut samples = Vec::new();
    for cache_type in &arguments.llama_cache_type {
        if !prompt.is_empty() || !single.is_empty() {
            let repetitions = arguments.repetitions.to_string();
            let tests = ["-p", &or_zero(list(&prompt)), "-n", &or_zero(list(single))].map(str::to_owned);
            let more = ["-d", &list(&arguments.depth), "-r", &repetitions].map(str::to_owned);
            let flags = [&flags[..], &tests, &more].concat();
            samples.extend(llama.bench(&arguments.flash_attention, cache_type, &flags)?);
        }
        if !wide.is_empty() && !generate.is_empty() {
            for flash_attention in &arguments.flash_attention {
                for depth in &arguments.depth {
                    let batch = Batch { depth: *depth, generate: &generate, width: &wide };
                    samples.extend(llama.batched(flash_attention, cache_type, &batch, &flags)?);
                }
            }
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

#[cfg(test)]
mod tests {
    use clap::Parser;
    use engine_core::pack::{PackOptions, pack_folder};

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn arguments(line: &[&str]) -> Arguments {
        Line::parse_from(["versus", "-m", "."].iter().chain(line)).arguments
    }

    #[test]
    fn rounds_go_to_and_fro_and_the_first_begins_with_nightmonk() {
        assert_eq!(turns(2, 0), [Some(0), Some(1), None]);
        assert_eq!(turns(2, 1), [None, Some(1), Some(0)]);
        assert_eq!(turns(1, 2), [Some(0), None]);
    }

    #[test]
    fn one_more_contender_adds_its_flags_to_those_of_all_or_replaces_them() {
        let line = ["-p", "0", "-d", "0,4096", "-t", "2", "--also", "--activations bf16", "--also", "--load resident"];
        let arguments = arguments(&[&line[..], &["--", "--load", "mapped", "--isa", "avx2"]].concat());
        let contenders = contenders(&arguments).unwrap();
        let flags = contenders.iter().map(|contender| contender.named.flags.join(" ")).collect::<Vec<_>>();
        let all = "-p 0 -n 64 -d 0,4096 --width 1 -r 1 -t 2";
        let both = format!("{all} --load mapped --isa avx2");
        let replaced = format!("{all} --isa avx2 --load resident");
        assert_eq!(flags, [both.clone(), format!("{both} --activations bf16"), replaced]);
        assert_eq!(contenders[1].named.name, "--activations bf16");
    }

    #[test]
    fn a_folder_that_is_not_packed_or_of_another_model_is_no_packed_contender() {
        let write = |layers| {
            let folder = tempfile::tempdir().unwrap();
            let mut config = synth::shapes::config("qwen3-0.6b", Some(layers)).unwrap();
            for (field, size) in [("hidden_size", 32), ("intermediate_size", 48), ("vocab_size", 100)] {
                config[field] = size.into();
            }
            synth::write_checkpoint(&config, folder.path(), 1, &mut |_, _| {}).unwrap();
            folder
        };
        let (one, two, packed) = (write(1), write(2), tempfile::tempdir().unwrap());
        pack_folder(one.path(), packed.path(), &PackOptions::default(), &mut |_| {}).unwrap();
        check_packed(packed.path(), one.path()).unwrap();
        let why = check_packed(packed.path(), two.path()).unwrap_err();
        assert!(why.contains("different models"), "{why}");
        let why = check_packed(one.path(), one.path()).unwrap_err();
        assert!(why.contains("nothing is packed here"), "{why}");
    }
}
