//! Speed as `nightmonk bench` measures it: recorded, drawn, and beside llama.cpp on the same weights.
//!
//! One machine's speed moves with its neighbours, so two engines are compared in alternating rounds, and a record says
//! with each row which commit and which command it came from.
#![forbid(unsafe_code)]

mod csv;
mod figures;
mod gguf;
mod nightmonk;
mod plot;
mod record;
mod shell;
mod versus;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use engine_core::checkpoint::Checkpoint;

/// Measures, records and draws speed.
#[derive(Parser)]
#[command(name = "cargo tools")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measures Nightmonk and llama.cpp in alternating rounds on the same weights
    Versus(Box<versus::Arguments>),
    /// Runs `nightmonk bench` and appends its figures to benches/record
    Record(record::Arguments),
    /// Draws a record, or what `nightmonk bench -o json` printed, as SVG
    Plot(plot::Arguments),
    /// Writes a checkpoint's weights, as they are, as a GGUF file without vocabulary
    Gguf {
        /// Model folder
        #[arg(short, long, value_name = "DIR")]
        model: PathBuf,
        /// File to write
        #[arg(short, long, value_name = "FILE")]
        output: PathBuf,
    },
}

fn main() -> ExitCode {
    let result = match &Arguments::parse().command {
        Command::Versus(arguments) => versus::run(arguments),
        Command::Record(arguments) => record::run(arguments),
        Command::Plot(arguments) => plot::run(arguments),
        Command::Gguf { model, output } => write_gguf(model, output),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}

fn write_gguf(model: &Path, output: &Path) -> Result<(), String> {
    gguf::write(&Checkpoint::open(model).map_err(|error| error.to_string())?, output)
}
