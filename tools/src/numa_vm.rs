//! The tests of placement, and whole models, in emulated machines with several NUMA nodes.
//!
//! Almost every developer's machine has one node, where a page cannot be in the wrong place. `tools/numa-vm.sh` boots a
//! machine with more and runs one program in it; here it is the runner of cargo, so the tests are ordinary ones. Then the
//! program itself computes logits there, with the machine as one node and with the model cut over all: the same bytes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use crate::succeed;

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Nodes of the machines to test in.
const MACHINES: [&str; 2] = ["2", "4"];

/// Where static programs are built.
const BUILD: &str = "target/numa-vm/build";

/// Models to compute with: golden ones, of BF16 and of MXFP4.
const FAMILIES: [&str; 2] = ["qwen3_moe", "gpt_oss"];

/// What the guest does with them. Its CPU has no AVX-512.
const LOGITS: &str = "set -e
mkdir out
for model in */config.json; do
    model=${model%/*}
    for numa in off slice; do
        ./nightmonk logits -m $model --tokens tokens.json --output out/$model-$numa.npy \
            --load resident --isa avx2 -ub 16 --numa $numa 2>out/$model-$numa.txt || { cat out/$model-$numa.txt; exit 1; }
    done
done
";

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
    succeed(static_cargo(root, &["build", "--package", "nightmonk"]).args(["--bin", "nightmonk"]))?;
    let guest = guest(root)?;
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
        table += &format!("{nodes} nodes {:>6.1} s  tests passed\n", start.elapsed().as_secs_f64());
        let start = Instant::now();
        let came_back = root.join(format!("target/numa-vm/logits-{nodes}"));
        remove(&came_back)?;
        let mut vm = Command::new("sh");
        vm.args(["-c", r#"exec "$0" "$@" "$(command -v busybox)" sh logits.sh"#, script]);
        vm.args(["-n", nodes, "-d", "1024", "-i"]).arg(&guest).arg("-o").arg(&came_back);
        succeed(&mut vm)?;
        compare(&came_back.join("out"), nodes)?;
        table += &format!("{nodes} nodes {:>6.1} s  logits are the same\n", start.elapsed().as_secs_f64());
    }
    eprint!("== times\n{table}");
    Ok(())
}

/// `cargo test` for the tests of nodes as one static program.
fn tests(root: &Path) -> Command {
    static_cargo(root, &["test", "--package", "numa", "--test", "nodes"])
}

/// Cargo for programs that need nothing around them.
pub(crate) fn static_cargo(root: &Path, arguments: &[&str]) -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root).env("RUSTFLAGS", "-C target-feature=+crt-static");
    // A folder of its own: other flags would make everything else be built anew.
    cargo.args(arguments).args(["--target", TARGET, "--target-dir", BUILD]);
    cargo
}

/// Where [`static_cargo`] puts the program, from the root.
pub(crate) fn built(profile: &str) -> PathBuf {
    Path::new(BUILD).join(TARGET).join(profile).join("nightmonk")
}

/// What the guest finds in its /data: the program, models, tokens and what to do with them.
fn guest(root: &Path) -> Result<PathBuf, String> {
    let guest = root.join("target/numa-vm/guest");
    remove(&guest)?;
    let copy = |from: &Path, to: &Path| fs::copy(from, to).map(drop).map_err(|error| failed(from, &error));
    for family in FAMILIES {
        let (from, to) = (root.join("tests/golden").join(family), guest.join(family));
        fs::create_dir_all(&to).map_err(|error| failed(&to, &error))?;
        for entry in fs::read_dir(&from).map_err(|error| failed(&from, &error))? {
            let path = entry.map_err(|error| failed(&from, &error))?.path();
            copy(&path, &to.join(path.file_name().unwrap_or_default()))?;
        }
    }
    copy(&root.join(built("debug")), &guest.join("nightmonk"))?;
    let tokens: Vec<String> = (0..48).map(|i| (i * i % 89).to_string()).collect();
    for (name, text) in [("tokens.json", format!("[{}]", tokens.join(", "))), ("logits.sh", LOGITS.into())] {
        let path = guest.join(name);
        fs::write(&path, text).map_err(|error| failed(&path, &error))?;
    }
    Ok(guest)
}

/// Checks what `LOGITS` wrote: equal bytes, and every page of weights, keys and values on its node. The models are small
/// enough for the program to ask for each page.
fn compare(out: &Path, nodes: &str) -> Result<(), String> {
    for family in FAMILIES {
        let read = |name: String| {
            let path = out.join(name);
            fs::read(&path).map_err(|error| failed(&path, &error))
        };
        let text =
            |mode: &str| Ok::<_, String>(String::from_utf8_lossy(&read(format!("{family}-{mode}.txt"))?).into_owned());
        let (off, slice) = (text("off")?, text("slice")?);
        eprint!("{family}: {slice}");
        let placed = format!("placed 100.0 % on {nodes} nodes");
        if !off.contains("numa off") || !slice.contains("numa slice on nodes 0, 1") || !slice.contains(&placed) {
            return Err(format!("{family}: not `{placed}`, or not the mode that was asked for:\n{off}{slice}"));
        }
        let [off, slice] = ["off", "slice"].map(|mode| read(format!("{family}-{mode}.npy")));
        if off? != slice? {
            return Err(format!("{family}: {nodes} nodes change the bytes of logits"));
        }
    }
    Ok(())
}

fn remove(folder: &Path) -> Result<(), String> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(failed(folder, &error)),
        _ => Ok(()),
    }
}

fn failed(path: &Path, error: &std::io::Error) -> String {
    format!("{}: {error}", path.display())
}

/// Cargo's setting to hand each program to `command`. A list, because a text would be split at its spaces.
fn runner(command: &[&str]) -> String {
    let words: Vec<String> = command.iter().map(|word| toml::Value::from(*word).to_string()).collect();
    format!("target.{TARGET}.runner=[{}]", words.join(", "))
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
