//! The server that is put under load: started here, or running already.

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::Failure;
use crate::client::Site;
use crate::process::{self, Holdings};

/// Longest wait for a server to listen, and then for its model.
const START_MAX: Duration = Duration::from_secs(600);
/// Longest wait for a server to end after it was asked to.
const END_MAX: Duration = Duration::from_secs(60);
/// Lines of the server's output that a failure shows.
const LINES_SHOWN: usize = 30;

/// How a server is started.
#[derive(Clone, Debug)]
pub(crate) struct Launch {
    /// `nightmonk`.
    pub(crate) program: PathBuf,
    /// The model folder.
    pub(crate) model: PathBuf,
    /// Sequences that run side by side.
    pub(crate) parallel: usize,
    /// Further flags of `nightmonk serve`.
    pub(crate) flags: Vec<OsString>,
}

/// A server that answers.
pub(crate) struct Service {
    /// For its clients.
    pub(crate) site: Site,
    /// Its process, where that is known.
    pub(crate) pid: Option<u32>,
    /// Name of its model.
    pub(crate) model: String,
    /// Sequences that it runs side by side, where that is known.
    pub(crate) parallel: Option<usize>,
    started: Option<Started>,
}

struct Started {
    child: Child,
    launch: Launch,
    /// Where it keeps its key; the same after a restart.
    state: Arc<TempDir>,
    lines: Arc<Mutex<Vec<String>>>,
}

/// What a server says of its work.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Work {
    /// Sequences that run.
    pub(crate) running: usize,
    /// Sequences that wait.
    pub(crate) waiting: usize,
    /// KV blocks that a new sequence could not have.
    pub(crate) used_blocks: usize,
}

/// What must be there again when the load has gone.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Baseline {
    /// Of `/metrics`.
    pub(crate) work: Work,
    /// Of `/proc`, where the process is known.
    pub(crate) holdings: Option<Holdings>,
}

impl Service {
    /// Starts a server on a free port, with a key that it makes itself, and waits until its model is loaded.
    ///
    /// # Errors
    /// It does not start, does not say where it listens, or does not become ready; with what it printed.
    pub(crate) fn start(launch: &Launch) -> Result<Self, Failure> {
        let state = Arc::new(tempfile::tempdir().map_err(|error| Failure::io("a temporary folder", error))?);
        Self::start_in(launch, state)
    }

    fn start_in(launch: &Launch, state: Arc<TempDir>) -> Result<Self, Failure> {
        let mut command = Command::new(&launch.program);
        command.arg("serve").arg("-m").arg(&launch.model).args(["--port", "0", "--parallel"]);
        command.arg(launch.parallel.to_string()).arg("--state-dir").arg(state.path()).args(&launch.flags);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|error| Failure::io(&launch.program.display().to_string(), error))?;
        let lines = Arc::default();
        let (found, urls) = mpsc::channel();
        follow(child.stdout.take(), Arc::clone(&lines), found.clone());
        follow(child.stderr.take(), Arc::clone(&lines), found);
        let mut started = Started { child, launch: launch.clone(), state, lines };
        let Ok(url) = urls.recv_timeout(START_MAX) else {
            return Err(started.failure("said no address"));
        };
        let key = key_in(started.state.path());
        let site = Site::new(&url, key).map_err(Failure::Server)?;
        let deadline = Instant::now() + START_MAX;
        loop {
            match site.get("/health") {
                Ok(answer) if answer.status == 200 => break,
                _ if started.child.try_wait().is_ok_and(|ended| ended.is_some()) || Instant::now() > deadline => {
                    return Err(started.failure("did not become ready"));
                }
                _ => sleep(Duration::from_millis(20)),
            }
        }
        let model = first_model(&site)?;
        let pid = Some(started.child.id());
        Ok(Self { site, pid, model, parallel: Some(launch.parallel), started: Some(started) })
    }

    /// A server that runs already.
    ///
    /// # Errors
    /// It does not answer, or not to this key.
    pub(crate) fn at(url: &str, key: Option<String>, pid: Option<u32>) -> Result<Self, Failure> {
        let site = Site::new(url, key).map_err(Failure::Usage)?;
        let model = first_model(&site)?;
        Ok(Self { site, pid, model, parallel: None, started: None })
    }

    /// Ends the server in order and starts it again as it was, with further flags. Its port is another.
    ///
    /// # Errors
    /// It was not started here, does not end, or does not start again.
    pub(crate) fn restart(mut self, flags: &[OsString]) -> Result<Self, Failure> {
        let Some(mut started) = self.started.take() else {
            return Err(Failure::Usage(
                "only a server that was started here can be started again; leave --url out".into(),
            ));
        };
        started.end()?;
        let mut launch = started.launch.clone();
        launch.flags.extend_from_slice(flags);
        let state = Arc::clone(&started.state);
        drop(started);
        Self::start_in(&launch, state)
    }

    /// Asks the server to end, and waits for it.
    ///
    /// # Errors
    /// It does not end, or not with success.
    pub(crate) fn end(mut self) -> Result<(), Failure> {
        self.started.take().map_or(Ok(()), |mut started| started.end())
    }

    /// Whether the process is the one that was started. A server that runs elsewhere is alive if it answers.
    pub(crate) fn is_alive(&self) -> bool {
        match self.pid {
            Some(pid) => process::is_alive(pid),
            None => self.site.get("/health").is_ok(),
        }
    }

    /// What the process holds; none where it is not known.
    ///
    /// # Errors
    /// The process is gone.
    pub(crate) fn holdings(&self) -> Result<Option<Holdings>, Failure> {
        let holdings = self.pid.map(process::holdings).transpose();
        holdings.map_err(|error| Failure::io("the server's process", error))
    }

    /// The work that the server says it has.
    ///
    /// # Errors
    /// `/metrics` does not answer, or lacks a name.
    pub(crate) fn work(&self) -> Result<Work, Failure> {
        let answer = self.site.get("/metrics").map_err(|error| Failure::io("GET /metrics", error))?;
        if answer.status != 200 {
            return Err(Failure::Server(format!("GET /metrics: {} {}", answer.status, answer.text())));
        }
        let text = answer.text();
        let gauge =
            |name: &str| metric(&text, name).ok_or_else(|| Failure::Server(format!("/metrics has no `…{name}`")));
        Ok(Work {
            running: gauge("requests_processing")? as usize,
            waiting: gauge("requests_deferred")? as usize,
            used_blocks: (gauge("kv_cache_usage_ratio")? * gauge("kv_cache_blocks")?).round() as usize,
        })
    }

    /// What is there before any load: the work and holdings of an idle server that has answered before.
    ///
    /// # Errors
    /// The server does not answer, or does not become idle.
    pub(crate) fn baseline(&self) -> Result<Baseline, Failure> {
        // The first requests may make threads and buffers that stay.
        for _ in 0..8 {
            let body = serde_json::json!({"model": self.model, "prompt": "warm", "max_tokens": 2, "temperature": 0});
            let answer = self.site.post("/v1/completions", &body);
            let answer = answer.map_err(|error| Failure::io("POST /v1/completions", error))?;
            if answer.status != 200 {
                return Err(Failure::Server(format!("a plain request: {} {}", answer.status, answer.text())));
            }
        }
        let (work, _) = self.settle(Duration::from_secs(30), |work| work.running == 0 && work.waiting == 0)?;
        // Connections are closed a moment after their clients have gone.
        sleep(Duration::from_millis(100));
        Ok(Baseline { work, holdings: self.holdings()? })
    }

    /// Waits until the server's work is as `settled` says, at most for `time`. The work at the end, and how long it took.
    ///
    /// # Errors
    /// `/metrics` does not answer.
    pub(crate) fn settle(&self, time: Duration, settled: impl Fn(&Work) -> bool) -> Result<(Work, Duration), Failure> {
        let start = Instant::now();
        loop {
            let work = self.work()?;
            if settled(&work) || start.elapsed() > time {
                return Ok((work, start.elapsed()));
            }
            sleep(Duration::from_millis(1));
        }
    }
}

/// The value of the first sample whose name ends with `name`.
fn metric(text: &str, name: &str) -> Option<f64> {
    text.lines().filter(|line| !line.starts_with('#')).find_map(|line| {
        let (sample, value) = line.rsplit_once(' ')?;
        let own = sample.split('{').next().unwrap_or_default();
        own.ends_with(name).then(|| value.parse().ok())?
    })
}

fn first_model(site: &Site) -> Result<String, Failure> {
    let answer = site.get("/v1/models").map_err(|error| Failure::io("GET /v1/models", error))?;
    let document = answer.json().unwrap_or(Value::Null);
    let name = document["data"][0]["id"].as_str().map(ToOwned::to_owned);
    name.ok_or_else(|| Failure::Server(format!("GET /v1/models: {} {}", answer.status, answer.text())))
}

/// The key that a server has put into its folder.
fn key_in(folder: &Path) -> Option<String> {
    let names = fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path());
    let keys = names.filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().contains("key")));
    keys.filter_map(|path| fs::read_to_string(path).ok()).find_map(|text| Some(text.lines().next()?.trim().to_owned()))
}

/// Keeps the lines of an output, and finds the address in them.
fn follow(output: Option<impl Read + Send + 'static>, lines: Arc<Mutex<Vec<String>>>, found: Sender<String>) {
    let Some(output) = output else { return };
    thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if let Some(url) = url_in(&line) {
                // Nobody waits for a second one.
                let _ = found.send(url);
            }
            let mut lines = lines.lock().unwrap_or_else(PoisonError::into_inner);
            if lines.len() == LINES_SHOWN {
                lines.remove(0);
            }
            lines.push(line);
        }
    });
}

fn url_in(line: &str) -> Option<String> {
    let rest = &line[line.find("http://")?..];
    let is_end = |c: char| c.is_whitespace() || matches!(c, '"' | ',' | ';' | ')');
    let url = rest.split(is_end).next()?.trim_end_matches(['/', '.']);
    // The port says that it is an address and not a hint.
    url.rsplit(':').next()?.split('/').next()?.parse::<u16>().ok()?;
    Some(url.to_owned())
}

impl Started {
    fn failure(&mut self, what: &str) -> Failure {
        let ended = self.child.try_wait().ok().flatten().map_or("still runs".into(), |status| status.to_string());
        // Its last lines may be on their way.
        sleep(Duration::from_millis(50));
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner).join("\n");
        Failure::Server(format!("the server {what} ({ended})\n{lines}"))
    }

    fn end(&mut self) -> Result<(), Failure> {
        // If it has ended by itself, waiting tells how.
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid {
            let _ = kill_process(pid, Signal::TERM);
        }
        let deadline = Instant::now() + END_MAX;
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) if status.success() => return Ok(()),
                Ok(Some(_)) => return Err(self.failure("did not end in order")),
                Ok(None) if Instant::now() < deadline => sleep(Duration::from_millis(5)),
                _ => return Err(self.failure("does not end")),
            }
        }
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        // After an end in order there is nothing to kill.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_found_in_a_line() {
        assert_eq!(url_in("listening on http://127.0.0.1:8080").as_deref(), Some("http://127.0.0.1:8080"));
        assert_eq!(url_in("http://127.0.0.1:80/v1 (key in /x)").as_deref(), Some("http://127.0.0.1:80/v1"));
        assert_eq!(url_in("see http://example.org/docs"), None);
        assert_eq!(url_in("nothing"), None);
    }

    #[test]
    fn a_metric_is_found_by_the_end_of_its_name() {
        let text = "# HELP nightmonk_requests_processing x\nnightmonk_requests_processing 3\nn_free{a=\"b\"} 7.0\n";
        assert_eq!(metric(text, "requests_processing"), Some(3.0));
        assert_eq!(metric(text, "_free"), Some(7.0));
        assert_eq!(metric(text, "absent"), None);
    }
}
