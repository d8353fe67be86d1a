//! Text to tokens and back.
//!
//! Everything that is read here is hostile: the tokenizer and the chat template come from a download, the text from a
//! note or a request, and the ids from a model. So every file has a largest size, a template has a budget of steps, and
//! text can be encoded such that no control token comes out of it ([`Tokenizer::encode_text_only`],
//! [`ChatTemplate::render_to_tokens`]).

mod bounded_file;
mod decoder;
mod error;
mod masking;

mod civil_time;
mod detokenize;
mod generation_config;
mod message;
mod reasoning_effort;
mod speech;
mod stop;
mod template;
mod tokenizer;

#[cfg(test)]
pub(crate) mod fixtures;
#[cfg(test)]
mod tokenizer_tests;

pub use civil_time::CivilTime;
pub use detokenize::Detokenizer;
pub use error::TextError;
pub use generation_config::GenerationDefaults;
pub use message::{Content, Message};
pub use reasoning_effort::ReasoningEffort;
pub(crate) use speech::marks;
pub use speech::{CallFormat, Speech, SpeechEvent, SpeechFormat, SpeechParser, ToolCall, Tools};
pub use stop::{StopOutcome, StopStrings};
pub use template::{ChatTemplate, RenderOptions};
pub use tokenizer::Tokenizer;
