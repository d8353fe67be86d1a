//! The command line: what was typed, what it means, and what is shown.
//!
//! Results go to standard output, everything else to standard error. Exit codes: 0 done, 1 failed, 2 wrong usage,
//! 3 refused by plan.
#![forbid(unsafe_code)]

/// As std's, but a standard error that is closed or on a full disk does not end a night's work: std's panics.
macro_rules! eprintln {
    ($($argument:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($argument)*);
    }};
}

mod args;
mod chat_flags;
mod clock;
mod commands;
mod dials;
mod failure;
mod figures;
mod internal_error;
mod limits;
mod load_choice;
mod model;
mod nodes;
mod output;
mod progress;
mod svg;
mod text_form;
mod turn;

use std::process::ExitCode;

use clap::Parser;

use args::{Arguments, Command, Selftest, SelftestCommand};

fn main() -> ExitCode {
    internal_error::guard(run).unwrap_or_else(|error| {
        eprintln!("nightmonk: {error}");
        ExitCode::FAILURE
    })
}

fn run() -> ExitCode {
    let arguments = Arguments::parse_from(args::spelled_out(std::env::args_os()));
    let result = match arguments.command {
        Command::Generate(arguments) => commands::generate::run(&arguments),
        Command::Logits(arguments) => commands::logits::run(&arguments),
        Command::Experts(arguments) => commands::experts::run(&arguments),
        Command::Perplexity(arguments) => commands::perplexity::run(&arguments),
        Command::Night(arguments) => commands::night::run(&arguments),
        Command::Serve(arguments) => commands::serve::run(*arguments),
        Command::Import(arguments) => commands::import::run(&arguments),
        Command::Pack(arguments) => commands::pack::run(&arguments),
        Command::Plan(arguments) => commands::plan::run(&arguments),
        Command::Bench(arguments) => commands::bench::run(&arguments),
        Command::Doctor(arguments) => commands::doctor::run(&arguments),
        Command::Selftest(Selftest { command: SelftestCommand::Numerics(arguments) }) => {
            commands::numerics::run(&arguments)
        }
        Command::Selftest(Selftest { command: SelftestCommand::Context(arguments) }) => {
            commands::context::run(&arguments)
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("nightmonk: {}", output::printable(&failure.to_string()));
            failure.exit_code()
        }
    }
}
