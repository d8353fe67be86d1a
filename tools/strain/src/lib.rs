//! The running server under load, and what it has to hold there.
//!
//! Failures of servers like this one come from company: an abort during somebody else's prefill, a slow connection too many,
//! the ten-thousandth request. No unit test keeps that company. So these commands start the program as its users do, put it
//! under one kind of load each, print what came out, and say whether a bound was broken. Traffic is drawn from a seed: a
//! failure can be looked for again. The package knows the server by its HTTP alone, and depends on no other of the workspace.
#![forbid(unsafe_code)]

mod answers;
mod client;
mod commands;
mod options;
mod parts;
mod process;
mod random;
mod report;
mod service;
mod statistics;

use std::ffi::OsString;
use std::io;

use clap::Parser;

use commands::Command;
use options::Options;
pub use report::{Kind, Report, Row};

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The arguments make no sense together.
    #[error("{0}")]
    Usage(String),
    /// Arguments that clap does not know, or its help.
    #[error(transparent)]
    Arguments(#[from] clap::Error),
    /// Something could not be read, started or reached.
    #[error("{what}: {source}")]
    Io {
        /// What.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// The server does what makes any measurement senseless.
    #[error("{0}")]
    Server(String),
}

impl Failure {
    fn io(what: &str, source: io::Error) -> Self {
        Self::Io { what: what.into(), source }
    }
}

/// Puts a server under load and tells what came out.
#[derive(Parser)]
#[command(name = "cargo tools strain")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    options: Options,
}

/// Runs one command, as in `["aborts", "-m", "DIR", "--rounds", "20"]`.
///
/// # Errors
/// [`Failure`]; a broken bound is none, but a row of the report.
pub fn run<A: Into<OsString> + Clone>(arguments: impl IntoIterator<Item = A>) -> Result<Report, Failure> {
    let program = OsString::from("cargo tools strain");
    let Arguments { command, options } =
        Arguments::try_parse_from([program].into_iter().chain(arguments.into_iter().map(Into::into)))?;
    command.run(&options)
}
