//! llama.cpp, from the source that the Python package llama-cpp-python carries.
//!
//! A Python index is what every machine that builds Nightmonk reaches, often through a mirror that pip already knows. The
//! archive is pinned and checked by pip, the package is never imported, and of llama.cpp only the two benches are built.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::Serialize;

use crate::shell;

const VERSION: &str = "0.3.36";
const SHA256: &str = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e";
/// Installed beside the source where the machine has no cmake.
const CMAKE: &str = "cmake==3.31.6";
const PROGRAMS: [&str; 2] = ["llama-bench", "llama-batched-bench"];

/// For the CPU that builds it, and nothing that the benches do not need.
const OPTIONS: [&str; 10] = [
    "-DCMAKE_BUILD_TYPE=Release",
    "-DGGML_NATIVE=ON",
    "-DGGML_OPENMP=ON",
    "-DBUILD_SHARED_LIBS=OFF",
    "-DLLAMA_BUILD_APP=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_SERVER=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_CURL=OFF",
    "-DLLAMA_OPENSSL=OFF",
];

/// What was built.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Build {
    /// Of the package that the source came in.
    pub(super) llama_cpp_python: &'static str,
    /// What the program says of itself.
    pub(super) version: String,
    /// Whether its machine code multiplies BF16 (VDPBF16PS); unknown without objdump.
    pub(super) multiplies_bf16: Option<bool>,
    #[serde(skip)]
    pub(super) folder: PathBuf,
}

/// Brings and builds llama.cpp below `folder`, once.
pub(super) fn llama_cpp(folder: &Path) -> Result<Build, String> {
    let folder = folder.join(format!("llama.cpp-{VERSION}"));
    let programs = folder.join("build/bin");
    if !PROGRAMS.iter().all(|program| programs.join(program).exists()) {
        eprintln!("building llama.cpp in {} (minutes, once)", folder.display());
        bring_source(&folder)?;
        build(&folder)?;
    }
    let version = Command::new(programs.join("llama-bench")).arg("--version").output();
    let version = version.map_err(|error| format!("llama-bench: {error}"))?;
    let both = String::from_utf8_lossy(&version.stdout) + String::from_utf8_lossy(&version.stderr);
    let version = both.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(", ");
    let multiplies_bf16 = has_instruction(&programs.join("llama-bench"), "vdpbf16ps");
    Ok(Build { llama_cpp_python: VERSION, version, multiplies_bf16, folder: programs })
}

fn bring_source(folder: &Path) -> Result<(), String> {
    let source = folder.join("source");
    if source.exists() {
        return Ok(());
    }
    let named = |path: &Path, error: std::io::Error| format!("{}: {error}", path.display());
    fs::create_dir_all(folder).map_err(|error| named(folder, error))?;
    let pinned = folder.join("requirements.txt");
    let text = format!("llama-cpp-python=={VERSION} --hash=sha256:{SHA256}\n");
    fs::write(&pinned, text).map_err(|error| named(&pinned, error))?;
    let mut pip = Command::new("python3");
    // Only this package as source: what pip needs to look into it (a cmake, a ninja) would be compiled too.
    pip.args(["-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "llama-cpp-python"]);
    pip.args(["--require-hashes", "--dest"]);
    shell::output(pip.arg(folder).arg("--requirement").arg(&pinned))?;

    let name = format!("llama_cpp_python-{VERSION}");
    let archive = folder.join(format!("{name}.tar.gz"));
    let unfinished = folder.join("source.unfinished");
    let _ = fs::remove_dir_all(&unfinished); // of an interrupted run
    fs::create_dir_all(&unfinished).map_err(|error| named(&unfinished, error))?;
    let mut tar = Command::new("tar");
    tar.arg("xzf").arg(&archive).arg("-C").arg(&unfinished).args(["--strip-components=3"]);
    shell::output(tar.arg(format!("{name}/vendor/llama.cpp")))?;
    fs::rename(&unfinished, &source).map_err(|error| named(&source, error))?;
    fs::remove_file(&archive).map_err(|error| named(&archive, error))
}

fn build(folder: &Path) -> Result<(), String> {
    let cmake = cmake(folder)?;
    let (source, build) = (folder.join("source"), folder.join("build"));
    let mut configure = Command::new(&cmake);
    shell::output(configure.arg("-S").arg(source).arg("-B").arg(&build).args(OPTIONS))?;
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
    let mut make = Command::new(&cmake);
    make.arg("--build").arg(&build).args(["--parallel", &threads.to_string(), "--target"]).args(PROGRAMS);
    shell::output(&mut make).map(drop)
}

/// The machine's cmake, or one in a Python environment of its own.
fn cmake(folder: &Path) -> Result<PathBuf, String> {
    let found = Command::new("cmake").arg("--version").stdout(Stdio::null()).status();
    if found.is_ok_and(|status| status.success()) {
        return Ok("cmake".into());
    }
    let environment = folder.join("python");
    shell::output(Command::new("python3").args(["-m", "venv"]).arg(&environment))?;
    let mut pip = Command::new(environment.join("bin/pip"));
    shell::output(pip.args(["install", "--quiet", CMAKE]))?;
    Ok(environment.join("bin/cmake"))
}

fn has_instruction(program: &Path, instruction: &str) -> Option<bool> {
    let output = Command::new("objdump").args(["-d", "--no-show-raw-insn"]).arg(program).output().ok()?;
    let found = || output.stdout.windows(instruction.len()).any(|window| window == instruction.as_bytes());
    output.status.success().then(found)
}
