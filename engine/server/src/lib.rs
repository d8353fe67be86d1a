//! The HTTP surface: the only place that knows the JSON of an API.
//!
//! ```text
//! connection → guard (Host, Origin, key, limits) → route → fields, checked → prompt → engine's thread
//!                                                  client ← dialect ← choices ← events of its sequences ←┘
//! ```
//!
//! Everything is bounded before the engine sees it, so what a request can cost is known when it is taken: connections,
//! heads, bodies and their nesting, sequences that run or wait, tokens of each. Nothing of a request's text is logged.
#![forbid(unsafe_code)]

mod config;
mod digest;
mod engine_loop;
mod engine_thread;
mod error;
mod generation;
mod guard;
mod input;
mod listen;
mod ollama;
mod openai;
mod openapi;
mod operation;
mod routes;
mod sandbox;
mod served;
mod server;
mod vitals;

pub use config::{Listen, ServerConfig};
pub use digest::ComputeDigest;
pub use engine_loop::EngineEnded;
pub use engine_thread::{Start, Started};
pub use guard::{KeyFileError, key_file};
pub use sandbox::{Enforced, Sandbox};
pub use served::{ServedAdapter, ServedModel};
pub use server::{ServeError, serve};
