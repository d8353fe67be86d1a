//! What a release is: one static program for every x86-64 machine, and what an administrator puts beside it.
//!
//! The program is built for the oldest x86-64 and chooses its instructions when it starts. It is linked statically, so the
//! age of a machine's C library does not matter.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::numa_vm::static_cargo;
use crate::{output, succeed};

/// Where the release is put together.
const FOLDER: &str = "target/dist";
const UNIT: &str = "packaging/nightmonk.service";
/// The program's place in the unit.
const INSTALLED: &str = "/usr/local/bin/nightmonk";

/// Builds, writes completions and manual pages by the program itself, and checks program and unit.
pub(crate) fn run(root: &Path) -> Result<(), String> {
    let mut build = static_cargo(root, &["build", "--release", "--locked", "--package", "nightmonk"]);
    succeed(build.args(["--bin", "nightmonk"]))?;
    let folder = root.join(FOLDER);
    let failed = |error: std::io::Error| format!("{}: {error}", folder.display());
    if folder.exists() {
        fs::remove_dir_all(&folder).map_err(failed)?;
    }
    fs::create_dir_all(folder.join("completions")).map_err(failed)?;
    let program = folder.join("nightmonk");
    for (from, to) in [
        (crate::numa_vm::built("release"), "nightmonk"),
        (UNIT.into(), "nightmonk.service"),
        ("README.md".into(), "README.md"),
        ("LICENSE-MIT".into(), "LICENSE-MIT"),
        ("LICENSE-APACHE".into(), "LICENSE-APACHE"),
    ] {
        fs::copy(root.join(from), folder.join(to)).map_err(failed)?;
    }
    is_static(&program)?;
    for (shell, file) in [("bash", "nightmonk.bash"), ("zsh", "_nightmonk"), ("fish", "nightmonk.fish")] {
        let script = output(Command::new(&program).args(["completions", shell]))?;
        fs::write(folder.join("completions").join(file), script).map_err(failed)?;
    }
    succeed(Command::new(&program).arg("man").arg("--output").arg(folder.join("man1")))?;
    verify_unit(&folder, &program)?;
    // Names in the list are those in the folder.
    let sums = output(Command::new("sh").args(["-c", "find . -type f | sort | xargs sha256sum"]).current_dir(&folder))?;
    fs::write(folder.join("SHA256SUMS"), &sums).map_err(failed)?;
    print!("{sums}");
    println!("{}", folder.display());
    Ok(())
}

/// No interpreter and no shared library, as the ELF file itself says.
fn is_static(program: &Path) -> Result<(), String> {
    let headers = output(Command::new("readelf").args(["--program-headers", "--dynamic", "--wide"]).arg(program))?;
    for word in ["INTERP", "(NEEDED)"] {
        if headers.contains(word) {
            return Err(format!("{} is not static: it has {word}", program.display()));
        }
    }
    Ok(())
}

/// systemd reads the unit, with the program where it was built instead of where it will be.
fn verify_unit(folder: &Path, program: &Path) -> Result<(), String> {
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        eprintln!("*** NOT VERIFIED: {UNIT}; there is no systemd-analyze ***");
        return Ok(());
    }
    let text = fs::read_to_string(folder.join("nightmonk.service")).map_err(|error| format!("{UNIT}: {error}"))?;
    let place = folder.join("verify");
    let unit = place.join("nightmonk.service");
    let failed = |error: std::io::Error| format!("{}: {error}", unit.display());
    fs::create_dir_all(&place).map_err(failed)?;
    fs::write(&unit, text.replace(INSTALLED, &program.display().to_string())).map_err(failed)?;
    succeed(Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&unit))?;
    fs::remove_dir_all(&place).map_err(failed)
}
