//! `cargo tools`: the one entry point to everything that is done to this repository rather than with it.
//!
//! It checks the house before the house is built, so it needs almost nothing itself: the standard library and a TOML
//! reader. Arguments are few enough to be matched by hand.
#![forbid(unsafe_code)]

mod ci;
mod clients;
mod dist;
mod golden;
mod numa_vm;
mod tidy;

use std::path::PathBuf;
use std::process::{Command, ExitCode};

const USAGE: &str = "\
usage: cargo tools COMMAND

  ci [--no-tests]   format, tidy, clippy, tests, benches and docs, each with warnings denied; ends at the first failure
  tidy              the rules of the house that no compiler knows
  synth --shape NAME [--layers N] [--seed S] -o DIR
                    a checkpoint with a published model's layer shape and random weights, for measuring speed
  versus -m DIR     Nightmonk and llama.cpp on the same weights, in alternating rounds
  record -m DIR --machine NAME
                    what `nightmonk bench` measures, appended to benches/record
  plot RECORD -o FILE.svg
                    a record drawn
  gguf -m DIR -o FILE.gguf
                    a checkpoint's weights, as they are, for llama.cpp
  strain LOAD -m DIR
                    the server under aborts, load, hostile and malformed requests, and more; `strain help` has all
  golden            sizes of the golden data
  golden --make     make it anew with transformers, or
  golden --check    compute it a second way and compare (both need Python and torch; by hand, never in CI)
  clients [ARGS]    the openai, ollama and langchain-openai packages and schemathesis against a server with the demonstration's
                    model (needs Python); ARGS go to pytest
  dist              a release in target/dist: the static program, completions, manual pages, a unit that systemd accepts
  numa-vm           tests of memory, threads and models on nodes, in emulated machines with 2 and 4; where QEMU is missing it
                    says so and is done
  numa-vm --install the same, after getting QEMU and a kernel for it (Debian, as root)

exit codes: 0 done, 1 failed, 2 wrong usage";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match &arguments[..] {
        ["synth", rest @ ..] => return package("synth", rest),
        ["strain", rest @ ..] => return package("strain", rest),
        ["versus" | "record" | "plot" | "gguf", ..] => return package("measure", &arguments),
        _ => {}
    }
    let command: fn() -> Result<(), String> = match arguments[..] {
        ["ci"] => || ci::run(ci::Tests::Run),
        ["ci", "--no-tests"] => || ci::run(ci::Tests::Skip),
        ["tidy"] => || tidy::run(&root()?),
        ["golden"] => || golden::sizes(&root()?),
        ["golden", "--make"] => || golden::python(&root()?, &[]),
        ["golden", "--check"] => || golden::python(&root()?, &["--check"]),
        ["clients", ref rest @ ..] => return done(root().and_then(|root| clients::run(&root, rest))),
        ["dist"] => || dist::run(&root()?),
        ["numa-vm"] => || numa_vm::run(&root()?),
        ["numa-vm", "--install"] => || numa_vm::install(&root()?).and_then(|()| numa_vm::run(&root()?)),
        ["help" | "--help" | "-h"] => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    done(command())
}

fn done(result: Result<(), String>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("{reason}");
            ExitCode::FAILURE
        }
    }
}

/// What needs the engine, and with it an optimised build, is a package of its own.
fn package(name: &str, arguments: &[&str]) -> ExitCode {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["run", "--release", "--quiet", "--package", name, "--"]).args(arguments);
    match cargo.status() {
        Ok(status) if status.success() => ExitCode::SUCCESS,
        Ok(status) => ExitCode::from(status.code().map_or(1, |code| code.clamp(1, 255) as u8)),
        Err(error) => {
            eprintln!("{cargo:?} could not be started: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The checkout that the current folder is in.
fn root() -> Result<PathBuf, String> {
    output(Command::new("git").args(["rev-parse", "--show-toplevel"])).map(|path| PathBuf::from(path.trim_end()))
}

/// Standard output of a command that has to succeed.
fn output(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|error| format!("{command:?} could not be started: {error}"))?;
    if !output.status.success() {
        return Err(format!("{command:?}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr).trim_end()));
    }
    String::from_utf8(output.stdout).map_err(|_| format!("{command:?} wrote something that is not UTF-8"))
}

/// Runs a command that has to succeed; what it says goes where this program speaks.
fn succeed(command: &mut Command) -> Result<(), String> {
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{command:?}: {status}")),
        Err(error) => Err(format!("{command:?} could not be started: {error}")),
    }
}
