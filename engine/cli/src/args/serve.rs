//! Flags of `serve`: whom to answer, how much to take, and where.

use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::Args;
use clap::builder::BoolishValueParser;

use super::values::size;
use super::{Draw, Run};

#[derive(Args)]
pub(crate) struct Serve {
    /// Model folder
    #[arg(short, long, env = "NIGHTMONK_MODEL", value_name = "DIR")]
    pub(crate) model: PathBuf,
    /// Address to listen on: that of this machine itself, unless --allow-remote
    #[arg(long, env = "NIGHTMONK_HOST", value_name = "IP", default_value = "127.0.0.1", value_parser = address)]
    pub(crate) host: IpAddr,
    /// Port to listen on; 0 takes a free one
    #[arg(long, env = "NIGHTMONK_PORT", value_name = "PORT", default_value_t = 8080)]
    pub(crate) port: u16,
    /// Listen on a Unix socket in place of an address
    #[arg(long, env = "NIGHTMONK_UNIX_SOCKET", value_name = "PATH")]
    pub(crate) unix_socket: Option<PathBuf>,
    /// Allow an address that others can reach; clients need the key there
    #[arg(long, env = "NIGHTMONK_ALLOW_REMOTE", value_parser = BoolishValueParser::new())]
    pub(crate) allow_remote: bool,
    /// Keys that clients may show. Without one, a key is made at the first start, in a file that only its owner may read
    #[arg(long, env = "NIGHTMONK_API_KEY", value_name = "KEY", value_delimiter = ',', hide_env_values = true)]
    pub(crate) api_key: Vec<String>,
    /// File of such keys, one a line, that only its owner may read
    #[arg(long, env = "NIGHTMONK_API_KEY_FILE", value_name = "FILE")]
    pub(crate) api_key_file: Option<PathBuf>,
    /// Answer every client of this machine, whatever key it shows; not with --allow-remote
    #[arg(long, env = "NIGHTMONK_NO_API_KEY", value_parser = BoolishValueParser::new(),
          conflicts_with_all = ["api_key", "api_key_file", "allow_remote"])]
    pub(crate) no_api_key: bool,
    /// Further names that clients may call this server by, as NAME or NAME:PORT
    #[arg(long, env = "NIGHTMONK_ALLOWED_HOST", value_name = "NAME", value_delimiter = ',')]
    pub(crate) allowed_host: Vec<String>,
    /// Pages that may use this server from a browser, as http://NAME:PORT; without it, none
    #[arg(long, env = "NIGHTMONK_ALLOWED_ORIGIN", value_name = "ORIGIN", value_delimiter = ',')]
    pub(crate) allowed_origin: Vec<String>,
    /// Names of the model for clients; without it, the folder's name
    #[arg(short, long, env = "NIGHTMONK_ALIAS", value_name = "NAME", value_delimiter = ',')]
    pub(crate) alias: Vec<String>,
    /// Sequences that run side by side [llama.cpp: -np]
    #[arg(long, env = "NIGHTMONK_PARALLEL", value_name = "N", default_value = "4")]
    pub(crate) parallel: NonZeroUsize,
    /// Sequences that may wait beside those that run; more are answered 429
    #[arg(long, env = "NIGHTMONK_QUEUE_SIZE", value_name = "N", default_value_t = 64)]
    pub(crate) queue_size: usize,
    /// Open connections
    #[arg(long, env = "NIGHTMONK_CONNECTIONS", value_name = "N", default_value = "256")]
    pub(crate) connections: NonZeroUsize,
    /// Largest body of a request
    #[arg(long, env = "NIGHTMONK_BODY_LIMIT", value_name = "SIZE", default_value = "16MiB", value_parser = size)]
    pub(crate) body_limit: u64,
    /// Seconds after which a client that does not read its answer is dropped [llama.cpp: -to]
    #[arg(long, env = "NIGHTMONK_TIMEOUT", value_name = "SECONDS", default_value_t = 600)]
    pub(crate) timeout: u64,
    /// Seconds that running requests get when the server is asked to end
    #[arg(long, env = "NIGHTMONK_GRACE", value_name = "SECONDS", default_value_t = 30)]
    pub(crate) grace: u64,
    /// Most tokens of an answer where a request does not say; without it, until the context is full
    #[arg(short = 'n', long = "predict", alias = "n-predict", env = "NIGHTMONK_PREDICT", value_name = "N")]
    pub(crate) predict: Option<usize>,
    /// Folder from which clients may load adapters; without it, they may load none
    #[arg(long, env = "NIGHTMONK_LORA_DIR", value_name = "DIR")]
    pub(crate) lora_dir: Option<PathBuf>,
    /// Folder for keys and values of the beginnings of prompts, kept over restarts; without it, in memory alone
    #[arg(long, env = "NIGHTMONK_KV_DIR", value_name = "DIR")]
    pub(crate) kv_dir: Option<PathBuf>,
    /// Most bytes that are kept there
    #[arg(long, env = "NIGHTMONK_KV_DIR_SIZE", value_name = "SIZE", default_value = "16GiB", value_parser = size)]
    pub(crate) kv_dir_size: u64,
    /// Folder of the key that is made; without it, nightmonk in the user's folder for state
    #[arg(long, env = "NIGHTMONK_STATE_DIR", value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) draw: Draw,
    #[command(flatten)]
    pub(crate) run: Run,
}

fn address(text: &str) -> Result<IpAddr, String> {
    match text {
        "localhost" => Ok(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        _ => text.parse().map_err(|_| "it must be an address, like 127.0.0.1".into()),
    }
}
