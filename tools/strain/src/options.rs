//! What all commands are told.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use clap::Args;
use serde_json::Value;

use crate::Failure;
use crate::service::{Launch, Service};

/// Which server, and how much of it.
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// Model folder of a server that is started for this command
    #[arg(short, long, value_name = "DIR", global = true)]
    pub(crate) model: Option<PathBuf>,
    /// The program; without it, cargo builds one in release
    #[arg(long, value_name = "PATH", global = true)]
    pub(crate) program: Option<PathBuf>,
    /// Sequences that the started server runs side by side, where a command does not need another number
    #[arg(long, value_name = "N", global = true)]
    pub(crate) parallel: Option<usize>,
    /// Further flags of `nightmonk serve`, in one argument
    #[arg(long, value_name = "FLAGS", default_value = "", allow_hyphen_values = true, global = true)]
    serve_flags: String,
    /// A server that runs already, as http://ADDRESS:PORT
    #[arg(long, value_name = "URL", global = true, conflicts_with_all = ["model", "program"])]
    url: Option<String>,
    /// Its key
    #[arg(long, value_name = "KEY", global = true, requires = "url")]
    key: Option<String>,
    /// Its process, whose memory and descriptors are looked at
    #[arg(long, value_name = "PID", global = true, requires = "url")]
    pid: Option<u32>,
    /// How much is done, in units of the command; without it, as much as the bounds are about
    #[arg(long, value_name = "N", global = true)]
    pub(crate) rounds: Option<usize>,
    /// Clients at once, where a command does not need another number
    #[arg(long, value_name = "N", global = true)]
    pub(crate) clients: Option<usize>,
    /// What traffic is drawn from
    #[arg(long, value_name = "S", default_value_t = 1, global = true)]
    pub(crate) seed: u64,
}

impl Options {
    /// How the server is started: with these flags of the command, and those that were typed after them.
    pub(crate) fn launch(&self, parallel: usize, flags: &[&str]) -> Result<Launch, Failure> {
        let Some(model) = self.model.clone() else {
            return Err(Failure::Usage("say which model to serve (-m DIR), or where a server runs (--url URL)".into()));
        };
        let program = self.program.clone().map_or_else(built, Ok)?;
        let typed = self.serve_flags.split_whitespace();
        let flags = flags.iter().copied().chain(typed).map(OsString::from).collect();
        Ok(Launch { program, model, parallel: self.parallel.unwrap_or(parallel), flags })
    }

    /// The server: a running one, or one that is started now.
    pub(crate) fn service(&self, parallel: usize, flags: &[&str]) -> Result<Service, Failure> {
        match &self.url {
            Some(url) => Service::at(url, self.key.clone(), self.pid),
            None => Service::start(&self.launch(parallel, flags)?),
        }
    }

    pub(crate) fn rounds(&self, full: usize) -> usize {
        self.rounds.unwrap_or(full)
    }

    pub(crate) fn clients(&self, full: usize) -> usize {
        self.clients.unwrap_or(full).max(1)
    }
}

/// The program as cargo builds it from this checkout.
fn built() -> Result<PathBuf, Failure> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--release", "--locked", "--package", "nightmonk"]);
    cargo.args(["--message-format", "json-render-diagnostics"]).stderr(Stdio::inherit());
    let output = cargo.output().map_err(|error| Failure::io("cargo", error))?;
    let messages = String::from_utf8_lossy(&output.stdout).into_owned();
    let artifacts = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut programs = artifacts.filter(|artifact| artifact["target"]["name"] == "nightmonk");
    let program = programs.find_map(|artifact| artifact["executable"].as_str().map(PathBuf::from));
    program.filter(|_| output.status.success()).ok_or_else(|| Failure::Usage("cargo did not build nightmonk".into()))
}
