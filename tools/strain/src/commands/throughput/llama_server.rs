//! llama.cpp's server, from the source that `cargo tools versus` has brought.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::Arguments;
use crate::Failure;
use crate::client::Site;

const START_MAX: Duration = Duration::from_secs(300);

pub(super) struct Launch {
    program: PathBuf,
    weights: PathBuf,
    places: usize,
    positions: usize,
    flags: Vec<String>,
}

/// A llama-server that answers; dropped, it is killed.
pub(super) struct Running {
    pub(super) site: Site,
    child: Child,
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Launch {
    pub(super) fn new(arguments: &Arguments, model: &Path, places: usize, positions: usize) -> Result<Self, Failure> {
        let folder = target()?.join("versus");
        let program = arguments.llama_server.clone().map_or_else(|| build(&folder), Ok)?;
        let weights = arguments.gguf.clone().map_or_else(|| write(&folder, model), Ok)?;
        let flags = arguments.llama_flags.split_whitespace().map(ToOwned::to_owned).collect();
        Ok(Self { program, weights, places, positions, flags })
    }

    pub(super) fn start(&self) -> Result<Running, Failure> {
        // A port that is free now is free a moment later.
        let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let port = free.map_err(|error| Failure::io("a free port", error))?.port();
        let mut command = Command::new(&self.program);
        command.arg("-m").arg(&self.weights).args(["--host", "127.0.0.1", "--port", &port.to_string()]);
        command.args(["-np", &self.places.to_string(), "-c", &self.positions.to_string()]).args(&self.flags);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().map_err(|error| Failure::io(&self.program.display().to_string(), error))?;
        let site = Site::new(&format!("http://127.0.0.1:{port}"), None).map_err(Failure::Server)?;
        let mut running = Running { site, child };
        let deadline = Instant::now() + START_MAX;
        loop {
            if running.site.get("/health").is_ok_and(|answer| answer.status == 200) {
                return Ok(running);
            }
            let ended = running.child.try_wait().is_ok_and(|status| status.is_some());
            if ended || Instant::now() > deadline {
                return Err(Failure::Server(format!("{command:?} did not become ready; run it to see why")));
            }
            sleep(Duration::from_millis(100));
        }
    }
}

/// Runs a command that has to succeed.
fn done(command: &mut Command) -> Result<(), Failure> {
    let status = command.stdin(Stdio::null()).status();
    let status = status.map_err(|error| Failure::io(&format!("{command:?}"), error))?;
    if status.success() { Ok(()) } else { Err(Failure::Server(format!("{command:?}: {status}"))) }
}

/// Cargo's target folder.
fn target() -> Result<PathBuf, Failure> {
    let program = std::env::current_exe().map_err(|error| Failure::io("this program", error))?;
    let target = program.parent().and_then(Path::parent).map(Path::to_owned);
    target.ok_or_else(|| Failure::Usage(format!("{} lies in no target folder", program.display())))
}

/// Builds llama-server beside llama-bench, once.
fn build(folder: &Path) -> Result<PathBuf, Failure> {
    let advice = || {
        let folder = folder.display();
        Failure::Usage(format!(
            "{folder} has no source of llama.cpp: `cargo tools versus` brings it, or name --llama-server"
        ))
    };
    let mut found = fs::read_dir(folder).map_err(|_| advice())?.flatten().map(|entry| entry.path());
    let llama = found.find(|path| path.join("source/CMakeLists.txt").exists()).ok_or_else(advice)?;
    let program = llama.join("build/bin/llama-server");
    if program.exists() {
        return Ok(program);
    }
    eprintln!("building {} (minutes, once)", program.display());
    let own = llama.join("python/bin/cmake");
    let cmake = if own.exists() { own } else { "cmake".into() };
    let (source, build) = (llama.join("source"), llama.join("build"));
    done(Command::new(&cmake).arg("-S").arg(&source).arg("-B").arg(&build).arg("-DLLAMA_BUILD_SERVER=ON"))?;
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get).to_string();
    done(Command::new(&cmake).arg("--build").arg(&build).args(["--parallel", &threads, "--target", "llama-server"]))?;
    Ok(program)
}

/// Writes a checkpoint's weights as GGUF, once.
fn write(folder: &Path, model: &Path) -> Result<PathBuf, Failure> {
    let model = model.canonicalize().map_err(|error| Failure::io(&model.display().to_string(), error))?;
    let name = model.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let path = folder.join("gguf").join(format!("{name}.gguf"));
    if !path.exists() {
        let parent = folder.join("gguf");
        fs::create_dir_all(&parent).map_err(|error| Failure::io(&parent.display().to_string(), error))?;
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = Command::new(cargo);
        command.args(["run", "--release", "--quiet", "--package", "measure", "--", "gguf", "-m"]);
        done(command.arg(&model).arg("-o").arg(&path))?;
    }
    Ok(path)
}
