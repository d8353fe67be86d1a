//! Golden data: what transformers computed for tiny checkpoints of each family.
//!
//! It is made by hand, with pinned versions of torch and transformers, and committed, so that the tests need neither
//! Python nor a network. The sizes matter because a checkout carries them for ever.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use crate::tidy::{GOLDEN, GOLDEN_FAMILY_BYTES_MAX, Tree};

/// Prints one line for each family: bytes, files and its share of what a family may have.
pub(crate) fn sizes(root: &Path) -> Result<(), String> {
    let tree = Tree::read(root)?;
    let families = tree.golden_families();
    if families.is_empty() {
        return Err(format!("{GOLDEN} holds no family yet: `cargo tools golden --make` makes them"));
    }
    let mut table = String::new();
    for (family, size) in families {
        let share = 100 * size.bytes / GOLDEN_FAMILY_BYTES_MAX;
        let _ =
            writeln!(table, "{family:<24} {:>9} bytes {:>3} files {share:>3} % of the limit", size.bytes, size.files);
    }
    print!("{table}");
    println!("made by `cargo tools golden --make`, computed a second way by `--check` (tools/golden/make.py)");
    Ok(())
}

/// Runs `tools/golden/make.py`, which makes the data anew or, with `--check`, computes it a second way and compares.
pub(crate) fn python(root: &Path, arguments: &[&str]) -> Result<(), String> {
    let status = Command::new("python3").arg("tools/golden/make.py").args(arguments).current_dir(root).status();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!(
            "tools/golden/make.py: {status}. It needs the packages that tools/golden/requirements.txt pins: activate an \
             environment that has them"
        )),
        Err(error) => Err(format!("python3 could not be started: {error}. Install Python 3")),
    }
}
