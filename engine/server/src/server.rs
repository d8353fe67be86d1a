//! From a start to an end: listen, load, answer, drain.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::config::{Listen, ServerConfig};
use crate::digest::Digest;
use crate::engine_loop::EngineEnded;
use crate::engine_thread::{Command, EngineHandle, Start, channel};
use crate::guard::{Guard, HostRules, Keys};
use crate::listen::{self, Listener};
use crate::routes::Site;
use crate::sandbox::{self, Enforced, Sandbox};
use crate::served::{ServedModel, Shared};
use crate::vitals::Phase;

/// Threads that answer; the others compute.
const ANSWERING_THREADS: usize = 2;
/// Threads for templates and tokenisers, and some for what the runtime itself does so.
const BLOCKING_THREADS_MAX: usize = 4;

/// Why a server did not start, or did not end in order.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address or socket is not to be had.
    #[error("cannot listen on {at}: {source}")]
    Listen {
        /// The address.
        at: String,
        /// What the system said.
        source: io::Error,
    },
    /// Threads or signals are not to be had.
    #[error("cannot start the server's threads: {0}")]
    Threads(io::Error),
    /// Anybody could use the server.
    #[error("{0} can be reached by others, so a key is needed: leave `--no-api-key` out")]
    NoKey(SocketAddr),
    /// The engine ended.
    #[error(transparent)]
    Engine(#[from] EngineEnded),
    /// The engine did not end a step for so long that it never will.
    #[error("no step ended for {0} s; the server ends, so that it can be started again")]
    Stuck(u64),
}

/// Serves `model` until SIGTERM or SIGINT, or until its engine ends. `listening` is told the address before the model is
/// loaded (none for a Unix socket), `ready` when the first token came, with what the kernel keeps the server from since.
///
/// # Errors
/// [`ServeError`].
pub fn serve(
    config: ServerConfig,
    model: ServedModel,
    start: Start,
    listening: impl FnOnce(Option<SocketAddr>),
    ready: impl FnOnce(Sandbox) + Send + 'static,
) -> Result<(), ServeError> {
    let files = Arc::new(OnceLock::new());
    let runtime = Builder::new_multi_thread()
        .on_thread_start(see_no_files(config.adapter_folder.as_deref(), Arc::clone(&files)))
        .worker_threads(ANSWERING_THREADS)
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .thread_name("http")
        .enable_all()
        .build()
        .map_err(ServeError::Threads)?;
    let listener = runtime.block_on(Listener::bind(&config.listen)).map_err(|source| refused(&config, source))?;
    let address = listener.address().map_err(|source| refused(&config, source))?;
    if let Some(address) = address
        && !address.ip().is_loopback()
        && config.api_keys.is_empty()
    {
        return Err(ServeError::NoKey(address));
    }
    let hosts = HostRules::new(address, &config.allowed_hosts, &config.allowed_origins);
    let guard = Guard { hosts, keys: Keys::new(&config.api_keys) };

    let (handle, engine) = channel(model.width, config.queue);
    let digest = Digest::start(Arc::clone(&model.digest)).map_err(ServeError::Threads)?;
    let shared = Arc::new(Shared::new(model, handle.clone(), config, digest));
    let of_thread = Arc::clone(&shared);
    let thread = thread::Builder::new()
        .name("engine".into())
        .spawn(move || engine.run(start, &of_thread.model.tokenizer))
        .map_err(ServeError::Threads)?;
    listening(address);

    let calls_too = move || {
        let calls = if sandbox::restrict_calls().is_ok() { Enforced::Fully } else { Enforced::Not };
        ready(Sandbox { files: files.get().copied().unwrap_or(Enforced::Not), calls });
    };
    let served = answer(&runtime, listener, guard, &shared, calls_too);
    // Those that are left are cut off now: their time of grace is over.
    runtime.shutdown_timeout(Duration::from_millis(100));
    if matches!(served, Err(ServeError::Stuck(_))) {
        // Its thread would never be joined.
        return served;
    }
    // If it has ended already, it needs no word.
    let _ = handle.send(Command::Stop);
    match thread.join() {
        Ok(ended) => ended.map_err(ServeError::Engine).and(served),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// What each thread that reads requests does first. It needs `/proc` for figures of this process, and adapters.
fn see_no_files(adapters: Option<&Path>, kept: Arc<OnceLock<Enforced>>) -> impl Fn() + Send + Sync + 'static {
    let adapters = adapters.map(Path::to_path_buf);
    move || {
        let readable: Vec<&Path> = [Path::new("/proc")].into_iter().chain(adapters.as_deref()).collect();
        // All threads ask for the same and get the same.
        let _ = kept.set(sandbox::restrict_files(&readable).unwrap_or(Enforced::Not));
    }
}

fn refused(config: &ServerConfig, source: io::Error) -> ServeError {
    let at = match &config.listen {
        Listen::Tcp(address) => address.to_string(),
        Listen::Unix(path) => path.display().to_string(),
    };
    ServeError::Listen { at, source }
}

fn answer(
    runtime: &Runtime,
    listener: Listener,
    guard: Guard,
    shared: &Arc<Shared>,
    ready: impl FnOnce() + Send + 'static,
) -> Result<(), ServeError> {
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).map_err(ServeError::Threads)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(ServeError::Threads)?;
        let site = Arc::new(Site::new(guard, Arc::clone(shared)));
        let mut stuck = Ok(());
        let ended = async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
                watched = watch(shared.engine.clone(), ready) => stuck = watched,
            }
            // A notification that nobody waits for is lost, and nobody minds.
            let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
        };
        listen::serve(listener, &shared.config, site, ended).await;
        stuck
    })
}

/// Ends when the engine has, or does not get on. Tells systemd how it is meanwhile.
async fn watch(engine: EngineHandle, ready: impl FnOnce()) -> Result<(), ServeError> {
    while engine.vitals.phase() == Phase::Loading {
        sleep(Duration::from_millis(50)).await;
    }
    let mut ready = Some(ready);
    let mut ticks = interval(Duration::from_secs(1));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let vitals = &engine.vitals;
    // Ticks are counted, not time: a process that was stopped for a while is not stuck.
    let (mut steps, mut still) = (vitals.steps(), 0_u64);
    loop {
        ticks.tick().await;
        if vitals.phase() == Phase::Ended {
            return Ok(());
        }
        if let Some(ready) = ready.take() {
            ready();
            let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
        }
        if vitals.is_idle() || vitals.steps() != steps {
            (steps, still) = (vitals.steps(), 0);
        } else {
            still += 1;
        }
        if Duration::from_secs(still) > vitals.patience() {
            return Err(ServeError::Stuck(still));
        }
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Watchdog]);
    }
}
