//! `cargo tools synth`: writes a checkpoint of a published shape.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

/// Writes a checkpoint with a published model's layer shape and random weights.
#[derive(Parser)]
#[command(name = "cargo tools synth")]
struct Arguments {
    /// Shape: one of the names that an unknown one lists
    #[arg(long)]
    shape: String,
    /// Decoder layers; without it, as many as the model has
    #[arg(long)]
    layers: Option<usize>,
    /// Seed of the weights
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Folder to write
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("synth: {why}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), String> {
    let config = synth::shapes::config(&arguments.shape, arguments.layers)?;
    let mut told = 0;
    synth::write_checkpoint(&config, &arguments.output, arguments.seed, &mut |done, all| {
        let tenths = done * 10 / all;
        if tenths > told {
            told = tenths;
            eprintln!("{} of {} MB", done / 1_000_000, all / 1_000_000);
        }
    })
}
