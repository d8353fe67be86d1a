//! What can go wrong between text and tokens. No message quotes a prompt or a note: those are private, and errors are
//! logged.

use std::path::PathBuf;

/// An error of tokenizer, template or generation settings.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TextError {
    /// A file that is needed is not there.
    #[error("{} does not exist; {help}", path.display())]
    Missing {
        /// Where it was looked for.
        path: PathBuf,
        /// What would help.
        help: &'static str,
    },
    /// A file could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file is larger than any honest one.
    #[error("{} has more than {max_bytes} bytes, the most that is read; is it the right file?", path.display())]
    FileTooLarge {
        /// The file.
        path: PathBuf,
        /// The limit.
        max_bytes: u64,
    },
    /// A file is not what its name says.
    #[error("{} is not valid: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A field of a JSON file has the wrong type or range.
    #[error("{}: `{field}` is {found}, but it must be {expected}", path.display())]
    Field {
        /// The file.
        path: PathBuf,
        /// Name of the field.
        field: String,
        /// What it may be.
        expected: &'static str,
        /// What it is.
        found: String,
    },
    /// A tokenizer part that is not implemented.
    #[error("{}: decoder `{decoder}` is not supported; supported are ByteLevel, Metaspace, and sequences of Replace, ByteFallback, Fuse and Strip", path.display())]
    UnsupportedDecoder {
        /// tokenizer.json.
        path: PathBuf,
        /// The decoder's type, or what is unusual about it.
        decoder: String,
    },
    /// A library failed on an input that it should have refused.
    #[error("the tokenizer library broke off while {during}: this tokenizer.json or this text drives it into a bug")]
    Panicked {
        /// What it was doing.
        during: &'static str,
    },
    /// A text longer than any context.
    #[error("the text has {bytes} bytes, but at most {max_bytes} are encoded at once; split it")]
    TextTooLong {
        /// Its length.
        bytes: usize,
        /// The limit.
        max_bytes: usize,
    },
    /// The tokenizer refused the text.
    #[error("cannot encode the text: {reason}")]
    Encode {
        /// Why.
        reason: String,
    },
    /// This tokenizer cannot encode control text as plain text.
    #[error(
        "this tokenizer turns the text `{token}` into a control token even where it is only quoted, so notes cannot be put into a prompt safely; use a tokenizer.json whose special tokens are `normalized: false`"
    )]
    Unprotectable {
        /// The first special token that cannot be written as text.
        token: String,
    },
    /// An id outside the vocabulary.
    #[error("token id {id} has no text: the tokenizer knows ids below {vocab_size}")]
    UnknownToken {
        /// The id.
        id: u32,
        /// Ids at or above this are padding.
        vocab_size: usize,
    },
    /// The chat template failed.
    #[error("chat template {}: {reason}", path.display())]
    Template {
        /// Where the template came from.
        path: PathBuf,
        /// What it says or did.
        reason: String,
    },
    /// The chat template ran out of its budget.
    #[error(
        "chat template {} was stopped after {fuel} steps for {input_bytes} bytes of input: it loops, or makes far more text than a prompt has",
        path.display()
    )]
    TemplateBudget {
        /// Where the template came from.
        path: PathBuf,
        /// The budget, in instructions or 64 bytes of data.
        fuel: u64,
        /// Length of messages, tools and options as JSON.
        input_bytes: usize,
    },
    /// The template prints the date, and none was given.
    #[error(
        "chat template {} asks for the current time (strftime_now); give `now`, so that the same run gives the same prompt",
        path.display()
    )]
    TemplateNeedsTime {
        /// Where the template came from.
        path: PathBuf,
    },
    /// An option that would decide nothing, or that is not the caller's to give.
    #[error("chat template {}: option `{name}` {reason}", path.display())]
    TemplateOption {
        /// Where the template came from.
        path: PathBuf,
        /// The variable.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A message part that is not text.
    #[error("message {index} holds a part of type `{kind}`, but this model's template takes text only")]
    UnsupportedPart {
        /// Index of the message, from 0.
        index: usize,
        /// The part's `type`.
        kind: String,
    },
    /// Stop strings out of range.
    #[error("stop strings: {reason}")]
    StopStrings {
        /// What is wrong and what is allowed.
        reason: String,
    },
}
