//! The step loop: sequences wait, are admitted, prefill, decode and end.
//!
//! One thread owns everything here. Each step takes one row of every decoding sequence and fills up with rows of
//! prompts, computes them together, and draws a token wherever a sequence has come to its end. A sequence is admitted
//! only when all KV blocks that it may ever need can be had, so nothing that runs waits for memory. Blocks of equal
//! beginnings are shared; what may wait is suspended where someone waits for an answer.

mod admission;
mod embedding;
mod engine;
mod evaluate;
mod event;
mod prefix;
mod routing;
mod sequence;
mod timing;
mod watch;

pub use embedding::normalize;
pub use engine::{Engine, EngineError, EngineOptions};
pub use evaluate::Evaluator;
pub use event::{
    Completion, Event, FinishReason, Output, Pooling, Priority, Refused, Request, SequenceError, SequenceId, Slot,
    SlotState,
};
pub use routing::{ROUTING_BYTES_MAX, Routing};
pub use timing::{Timings, Totals};
