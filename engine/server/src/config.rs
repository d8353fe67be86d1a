//! What a server is told when it starts.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Where to listen, whom to answer, how much to take.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Address and port, or a Unix socket.
    pub listen: Listen,
    /// Accepted keys. Empty: every local client is answered.
    pub api_keys: Vec<String>,
    /// Values of `Host` beside those of the address itself, as `name` or `name:port`.
    pub allowed_hosts: Vec<String>,
    /// Values of `Origin` whose pages may use the server; they get CORS headers. Empty: none.
    pub allowed_origins: Vec<String>,
    /// Sequences that may wait beside those that run.
    pub queue: usize,
    /// Open connections.
    pub connections: usize,
    /// Largest body of a request.
    pub body_bytes_max: usize,
    /// How long running requests may go on once the server was asked to end.
    pub grace: Duration,
    /// A connection to which nothing can be written for so long is closed.
    pub write_timeout: Duration,
    /// Folder from which adapters may be loaded by requests; without it, none may.
    pub adapter_folder: Option<PathBuf>,
}

/// Where a server listens.
#[derive(Clone, Debug)]
pub enum Listen {
    /// An address; port 0 takes a free one.
    Tcp(SocketAddr),
    /// A socket in the file system. A file that is there already, and that no server listens on, is replaced.
    Unix(PathBuf),
}

impl ServerConfig {
    /// The defaults, for an address.
    pub fn new(listen: Listen) -> Self {
        Self {
            listen,
            api_keys: Vec::new(),
            allowed_hosts: Vec::new(),
            allowed_origins: Vec::new(),
            queue: 64,
            connections: 256,
            body_bytes_max: 16 << 20,
            grace: Duration::from_secs(30),
            write_timeout: Duration::from_secs(600),
            adapter_folder: None,
        }
    }
}

/// Most headers of a request.
pub(crate) const HEADERS_MAX: usize = 64;
/// Largest head of a request.
pub(crate) const HEAD_BYTES_MAX: usize = 16 << 10;
/// A head that is not complete after this time ends its connection; so does a connection that waits longer for one.
pub(crate) const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// Deepest nesting of a JSON body.
pub(crate) const JSON_DEPTH_MAX: usize = 64;
/// Slowest body, after [`HEAD_TIMEOUT`].
pub(crate) const BODY_BYTES_PER_SECOND_MIN: u64 = 1 << 10;
/// A client that waits hears something this often.
pub(crate) const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// Answers of `/v1/responses` that are kept, running ones too.
pub(crate) const RESPONSES_MAX: usize = 1000;
/// And how long they may be together, with the conversations before them, as JSON.
pub(crate) const RESPONSES_BYTES_MAX: usize = 256 << 20;
