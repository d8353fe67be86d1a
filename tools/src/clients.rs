//! The clients that people have, against the server: the tests of `tests/clients`, in Python as those clients are.
//!
//! They need packages and a model that answers in words, so they are a command of their own and no part of `cargo test`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{output, succeed};

/// A Python environment with the clients; it belongs to the text of the requirements that it was made from.
const ENVIRONMENT: &str = "target/clients";
const REQUIREMENTS: &str = "tests/clients/requirements.txt";
/// The model of the demonstration.
const MODEL: &str = ".cache/models/SmolLM2-135M-Instruct";

/// Starts a server and lets each client speak to it. `arguments` go to pytest.
pub(crate) fn run(root: &Path, arguments: &[&str]) -> Result<(), String> {
    let python = environment(root)?;
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--release", "--locked", "--package", "nightmonk", "--target-dir", "target"]);
    succeed(cargo.current_dir(root))?;
    let program = root.join("target/release/nightmonk");
    if !root.join(MODEL).is_dir() {
        let gguf = output(Command::new("tools/fetch-model.sh").current_dir(root))?;
        succeed(Command::new(&program).args(["import", gguf.trim(), "-o", MODEL]).current_dir(root))?;
    }
    let mut tests = Command::new(python);
    tests.args(["-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/clients"]).args(arguments);
    tests.env("NIGHTMONK", program).env("NIGHTMONK_MODEL", root.join(MODEL)).env("PYTHONDONTWRITEBYTECODE", "1");
    succeed(tests.current_dir(root))
}

/// The environment's interpreter; made where it is missing or of other requirements.
fn environment(root: &Path) -> Result<PathBuf, String> {
    let folder = root.join(ENVIRONMENT);
    let python = folder.join("bin/python");
    let read = |path: &Path| fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()));
    let wanted = read(&root.join(REQUIREMENTS))?;
    let made_of = folder.join("requirements.txt");
    if read(&made_of).is_ok_and(|there| there == wanted) {
        return Ok(python);
    }
    succeed(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder))?;
    succeed(Command::new(&python).args(["-m", "pip", "install", "--quiet", "-r", REQUIREMENTS]).current_dir(root))?;
    fs::write(&made_of, wanted).map_err(|error| format!("{}: {error}", made_of.display()))?;
    Ok(python)
}
