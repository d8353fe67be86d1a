//! One command for each kind of load.

mod aborts;
mod after;
mod hosts;
mod isolation;
mod load;
mod malformed;
mod overhead;
mod same_bytes;
mod schemas;
mod slow;
mod soak;
mod throughput;

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
    /// Requests with marks of their own, aborts and a full cache: whether anything comes out elsewhere [500 rounds]
    Isolation,
    /// Requests alone, among 15 others, and after a restart [16 requests]
    SameBytes,
    /// Connections that hold and give nothing, beside an honest client [200 connections]
    Slow,
    /// Names, origins, methods and keys, against a table of who may [all combinations]
    Hosts,
    /// Requests that are wrong in every way we know [6,000]
    Malformed,
    /// Answers under schemas, checked by a validator of their own; schemas that have to be refused [500]
    Schemas,
    /// Ordinary use for long, one request in ten aborted: what memory, descriptors and speed do [100,000 requests]
    Soak,
    /// One client's decode rate beside that of `nightmonk bench` [5 rounds]
    Overhead,
    /// Sixteen streaming clients of Nightmonk and of llama-server, on the same weights [3 rounds]
    Throughput(throughput::Arguments),
}

impl Command {
    pub(crate) fn run(&self, options: &Options) -> Result<Report, Failure> {
        match self {
            Self::Aborts => aborts::run(options),
            Self::Load => load::run(options),
            Self::Isolation => isolation::run(options),
            Self::SameBytes => same_bytes::run(options),
            Self::Slow => slow::run(options),
            Self::Hosts => hosts::run(options),
            Self::Malformed => malformed::run(options),
            Self::Schemas => schemas::run(options),
            Self::Soak => soak::run(options),
            Self::Overhead => overhead::run(options),
            Self::Throughput(arguments) => throughput::run(arguments, options),
        }
    }
}
