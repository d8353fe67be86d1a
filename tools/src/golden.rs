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
    println!("the tests compare with these; made by `cargo tools golden --make` (tools/golden/make.py)");
    Ok(())
}

/// Makes the golden data anew.
pub(crate) fn make(root: &Path) -> Result<(), String> {
    let mut python = Command::new("python3");
    python.arg("tools/golden/make.py").current_dir(root);
    match python.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!(
            "tools/golden/make.py: {status}. It needs the versions of torch and transformers that it names"
        )),
        Err(error) => Err(format!("python3 could not be started: {error}. Install Python 3")),
    }
}
