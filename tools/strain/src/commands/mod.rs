//! One command for each kind of load.

mod aborts;
mod after;
mod hosts;
mod load;
mod slow;

use clap::Subcommand;

use crate::options::Options;
use crate::{Failure, Report};

/// A kind of load.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Clients that leave at random phases, half of them during another's prefill [1,000 rounds]
    Aborts,
    /// Many clients, one request in five aborted, a few wrong [10,000 requests from 64 clients]
    Load,
    /// Connections that hold and give nothing, beside an honest client [200 connections]
    Slow,
    /// Names, origins, methods and keys, against a table of who may [all combinations]
    Hosts,
}

impl Command {
    pub(crate) fn run(&self, options: &Options) -> Result<Report, Failure> {
        match self {
            Self::Aborts => aborts::run(options),
            Self::Load => load::run(options),
            Self::Slow => slow::run(options),
            Self::Hosts => hosts::run(options),
        }
    }
}
