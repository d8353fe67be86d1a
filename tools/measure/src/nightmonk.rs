//! The program that is measured: built in release from this checkout, and asked for its figures.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::figures::Figures;
use crate::shell;

/// A release build of this checkout.
pub(crate) struct Nightmonk {
    program: PathBuf,
}

impl Nightmonk {
    /// Builds the program; cargo knows where it puts it.
    pub(crate) fn build() -> Result<Self, String> {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.args(["build", "--release", "--locked", "--package", "nightmonk"]);
        cargo.args(["--message-format", "json-render-diagnostics"]);
        let messages = shell::output(&mut cargo)?;
        let artifacts = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let mut programs = artifacts.filter(|artifact| artifact["target"]["name"] == "nightmonk");
        let program = programs.find_map(|artifact| artifact["executable"].as_str().map(PathBuf::from));
        Ok(Self { program: program.ok_or("cargo built nightmonk and did not say where it is")? })
    }

    /// Cargo's target folder: where everything goes that is made from this checkout.
    pub(crate) fn target(&self) -> Result<&Path, String> {
        let target = self.program.parent().and_then(Path::parent);
        target.ok_or_else(|| format!("{} lies in no target folder", self.program.display()))
    }

    /// Runs `nightmonk bench` on `model` with these flags.
    pub(crate) fn bench(&self, model: &Path, flags: &[String]) -> Result<Vec<Figures>, String> {
        let mut command = Command::new(&self.program);
        command.args(["bench", "-m"]).arg(model).args(flags).args(["-o", "json"]);
        let json = shell::output(&mut command)?;
        serde_json::from_str(&json).map_err(|error| format!("{}: {error}", shell::line(&command)))
    }
}
