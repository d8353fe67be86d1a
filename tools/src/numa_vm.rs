//! The tests of placement, in emulated machines with several NUMA nodes.
//!
//! Almost every developer's machine has one node, where a page cannot be in the wrong place. `tools/numa-vm.sh` boots a
//! machine with more and runs one program in it; here it is the runner of cargo, so the tests are ordinary ones.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Nodes of the machines to test in.
const MACHINES: [&str; 2] = ["2", "4"];

/// What the script exits with where something that it needs is missing.
const MISSING: i32 = 77;

/// All that the emulated machine is made of, as Debian names it. The kernel is unpacked and not installed: this machine
/// keeps its own.
const INSTALL: &str = r#"
set -eu
apt-get install --yes --no-install-recommends qemu-system-x86 busybox-static cpio e2fsprogs
mkdir -p target/numa-vm
cd target/numa-vm
kernel=$(apt-cache depends linux-image-cloud-amd64 | awk '/Depends:/ { print $2; exit }')
apt-get download "$kernel-unsigned"
dpkg-deb --fsys-tarfile "$kernel"-unsigned_*.deb | tar --extract --wildcards './boot/vmlinuz-*'
rm -- "$kernel"-unsigned_*.deb
"#;

/// Gets QEMU, a kernel and what makes its disk; on Debian, as root.
pub(crate) fn install(root: &Path) -> Result<(), String> {
    succeed(Command::new("sh").args(["-c", INSTALL]).current_dir(root))
}

/// Runs the tests in each machine, or says loudly that there is none.
pub(crate) fn run(root: &Path) -> Result<(), String> {
    let script = root.join("tools/numa-vm.sh");
    let asked = Command::new(&script).arg("-q").status().map_err(|error| format!("{}: {error}", script.display()))?;
    match asked.code() {
        Some(0) => {}
        // It has said so.
        Some(MISSING) => return Ok(()),
        _ => return Err(format!("{} -q: {asked}", script.display())),
    }
    // Once, so that the times below are those of the machines.
    succeed(tests(root).arg("--no-run"))?;
    let script =
        script.to_str().ok_or("the path of this checkout is not UTF-8, which cargo's configuration has to be")?;
    let mut table = String::new();
    for nodes in MACHINES {
        eprintln!("== {nodes} nodes");
        let start = Instant::now();
        let mut tests = tests(root);
        tests.args(["--config", &runner(&[script, "-n", nodes])]);
        // One after the other: they count pages and CPUs, and the machine is slow enough to be starved.
        succeed(tests.args(["--", "--test-threads=1"]))?;
        table += &format!("{nodes} nodes {:>6.1} s  passed\n", start.elapsed().as_secs_f64());
    }
    eprint!("== times\n{table}");
    Ok(())
}

/// `cargo test` for the tests of nodes as one static program.
fn tests(root: &Path) -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root).env("RUSTFLAGS", "-C target-feature=+crt-static");
    // A folder of its own: other flags would make everything else be built anew.
    cargo.args(["test", "--package", "numa", "--test", "nodes", "--target", TARGET]);
    cargo.args(["--target-dir", "target/numa-vm/build"]);
    cargo
}

/// Cargo's setting to hand each program to `command`. A list, because a text would be split at its spaces.
fn runner(command: &[&str]) -> String {
    let words: Vec<String> = command.iter().map(|word| toml::Value::from(*word).to_string()).collect();
    format!("target.{TARGET}.runner=[{}]", words.join(", "))
}

fn succeed(command: &mut Command) -> Result<(), String> {
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{command:?}: {status}")),
        Err(error) => Err(format!("{command:?} could not be started: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runner_is_configuration_whatever_its_path() {
        let text = runner(&["/a folder/with \"quotes\"/vm.sh", "-n", "2"]);
        let table: toml::Table = text.parse().unwrap();
        let words = table["target"][TARGET]["runner"].as_array().unwrap();
        assert_eq!(words[0].as_str(), Some("/a folder/with \"quotes\"/vm.sh"));
        assert_eq!(words.len(), 3);
    }

    #[test]
    fn the_script_and_this_file_agree_on_what_is_missing() {
        let script = std::fs::read_to_string(crate::root().unwrap().join("tools/numa-vm.sh")).unwrap();
        assert!(script.contains(&format!("exit {MISSING};")));
    }
}
