//! A server of its own for a test, and a client that says exactly what a test wants said.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::tiny_model::tiny_model;

/// A running server; it is killed when dropped.
pub(super) struct Server {
    process: Child,
    pub(super) port: u16,
    /// What it says on standard error after it listens.
    lines: std::sync::mpsc::Receiver<String>,
    own_model: Option<TempDir>,
}

/// An answer: status, head, body.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) head: String,
    pub(super) body: String,
}

impl Answer {
    pub(super) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The documents of a stream, without its end.
    pub(super) fn events(&self) -> Vec<Value> {
        let lines = self.body.lines().filter_map(|line| line.strip_prefix("data: "));
        lines.filter(|line| *line != "[DONE]").map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

impl Server {
    /// A tiny model, without a key, when it is ready.
    pub(super) fn start(family: &str, arguments: &[&str]) -> Self {
        Self::start_with(tiny_model(family), arguments)
    }

    /// The same, with a folder that a test has changed.
    pub(super) fn start_with(model: TempDir, arguments: &[&str]) -> Self {
        let arguments = [&["--no-api-key"], arguments].concat();
        let mut server = Self::spawn(model.path(), &arguments);
        server.wait_for("ready");
        server.own_model = Some(model);
        server
    }

    /// Its model's folder.
    pub(super) fn model(&self) -> &Path {
        self.own_model.as_ref().expect("it was started with a folder of its own").path()
    }

    /// As soon as it listens.
    pub(super) fn spawn(model: &Path, arguments: &[&str]) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_nightmonk"))
            .args(["serve", "--port", "0", "-t", "1", "-m"])
            .arg(model)
            .args(if arguments.contains(&"-c") { &[][..] } else { &["-c", "512"] })
            .args(arguments)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, lines) = std::sync::mpsc::channel();
        let stderr = BufReader::new(process.stderr.take().unwrap());
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let mut server = Self { process, port: 0, lines, own_model: None };
        let line = server.wait_for("listening on ");
        server.port = line.rsplit(':').next().and_then(|port| port.parse().ok()).unwrap_or(0);
        server
    }

    /// The next line that begins so.
    pub(super) fn wait_for(&mut self, start: &str) -> String {
        let mut before = Vec::new();
        loop {
            match self.lines.recv_timeout(Duration::from_secs(60)) {
                Ok(line) if line.starts_with(start) => return line,
                Ok(line) => before.push(line),
                Err(error) => panic!("no line `{start}`: {error}; {before:#?}"),
            }
        }
    }

    pub(super) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream
    }

    /// Sends bytes as they are and reads until the server closes.
    pub(super) fn raw(&self, request: &[u8]) -> Answer {
        let mut stream = self.connect();
        // A server that has closed already has answered.
        let _ = stream.write_all(request);
        read_answer(stream)
    }

    pub(super) fn head(&self, method: &str, path: &str, headers: &str) -> String {
        format!("{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nConnection: close\r\n{headers}", self.port)
    }

    pub(super) fn get(&self, path: &str) -> Answer {
        self.raw(format!("{}\r\n", self.head("GET", path, "")).as_bytes())
    }

    pub(super) fn delete(&self, path: &str) -> Answer {
        self.raw(format!("{}\r\n", self.head("DELETE", path, "")).as_bytes())
    }

    pub(super) fn post(&self, path: &str, body: &Value) -> Answer {
        self.post_text(path, &body.to_string())
    }

    pub(super) fn post_text(&self, path: &str, body: &str) -> Answer {
        self.raw(self.post_request(path, body).as_bytes())
    }

    pub(super) fn post_request(&self, path: &str, body: &str) -> String {
        let headers = format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len());
        format!("{}\r\n{body}", self.head("POST", path, &headers))
    }

    /// Asks it to end, and how it did.
    pub(super) fn terminate(mut self) -> Option<i32> {
        kill_process(Pid::from_child(&self.process), Signal::TERM).unwrap();
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(30) {
            if let Some(status) = self.process.try_wait().unwrap() {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("the server did not end");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What comes until the connection is closed.
pub(super) fn read_answer(mut stream: TcpStream) -> Answer {
    let mut bytes = Vec::new();
    // What came before a reset counts.
    let _ = stream.read_to_end(&mut bytes);
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n").unwrap_or(bytes.len());
    let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
    let rest = bytes.get(end + 4..).unwrap_or_default();
    let body = if head.contains("transfer-encoding: chunked") { unchunked(rest) } else { rest.to_vec() };
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    Answer { status, head, body: String::from_utf8(body).unwrap() }
}

fn unchunked(mut bytes: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(line) = bytes.windows(2).position(|window| window == b"\r\n") {
        let size = std::str::from_utf8(&bytes[..line]).ok().and_then(|text| usize::from_str_radix(text, 16).ok());
        let Some(size) = size.filter(|size| *size > 0) else { break };
        body.extend_from_slice(&bytes[line + 2..][..size]);
        bytes = &bytes[line + 2 + size + 2..];
    }
    body
}
