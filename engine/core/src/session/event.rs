//! What goes into the step loop and what comes out of it.

use std::num::NonZeroUsize;

use super::routing::{ROUTING_BYTES_MAX, Routing};
use super::timing::Timings;
use crate::adapter::AdapterSetError;
use crate::constraint::{Constraint, ConstraintError};
use crate::sampler::{SampleError, SamplingError, SamplingParams, TokenLogprobs};
use crate::text::TextError;

/// A prompt and how to go on from it.
#[derive(Clone, Debug)]
pub struct Request {
    /// Token ids of the prompt.
    pub tokens: Vec<u32>,
    /// Most tokens to generate.
    pub max_tokens: usize,
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// Texts that end the generation; they are not part of it.
    pub stop: Vec<String>,
    /// Experts that each of its tokens goes through; without it, as many as the model's tokens do.
    pub experts_per_token: Option<NonZeroUsize>,
    /// Control tokens that leave their text, where all others leave none: marks of thoughts and calls, as
    /// [`SpeechFormat::shown_tokens`](crate::text::SpeechFormat::shown_tokens) has them.
    pub shown_tokens: Vec<u32>,
    /// Names of loaded adapters, each with a factor of what it adds; their order means nothing.
    pub adapters: Vec<(String, f32)>,
    /// Added to the logits of these tokens before each draw, each from -100 to 100, as in the OpenAI API. What is given
    /// twice for a token adds up.
    pub logit_bias: Vec<(u32, f32)>,
    /// Tell each token's log-probability, and those of the so many most probable ones, up to
    /// [`TOP_LOGPROBS_MAX`](crate::sampler::TOP_LOGPROBS_MAX).
    pub logprobs: Option<usize>,
    /// Tell the experts that each token went through: [`Completion::routing`]. Nothing is taken from the prefix cache then,
    /// and there is room for [`ROUTING_BYTES_MAX`].
    pub return_router: bool,
    /// Sent to see that a token comes: what it chooses is not counted.
    pub is_probe: bool,
    /// What the text has to be.
    pub constraint: Option<Constraint>,
    /// What is asked for; `max_tokens` counts for text alone.
    pub output: Output,
    /// Before whom it goes, and who goes before it.
    pub priority: Priority,
}

/// What comes of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Output {
    /// Tokens after the prompt.
    #[default]
    Text,
    /// One vector for the prompt: [`Event::Embedded`].
    Embedding(Pooling),
}

/// How the final hidden states `[prompt_tokens, hidden_size]`, after the last norm, become one vector `[hidden_size]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// That of the last token, which has seen all others: Qwen3-Embedding, E5-Mistral.
    Last,
    /// Their mean.
    Mean,
    /// That of the first token (`cls`).
    First,
}

/// Who goes first where sequences want the same room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    /// Someone waits for it.
    #[default]
    Interactive,
    /// It may wait.
    Background,
}

impl Request {
    /// Of the model as it is, to the end of its turn or `max_tokens`.
    pub fn new(tokens: Vec<u32>, max_tokens: usize, sampling: SamplingParams) -> Self {
        Self {
            tokens,
            max_tokens,
            sampling,
            stop: Vec::new(),
            experts_per_token: None,
            shown_tokens: Vec::new(),
            adapters: Vec::new(),
            logit_bias: Vec::new(),
            logprobs: None,
            return_router: false,
            is_probe: false,
            constraint: None,
            output: Output::Text,
            priority: Priority::default(),
        }
    }
}

impl Request {
    /// Names the first field that is for generated text, if it is set.
    pub(super) fn refuse_what_embeddings_have_not(&self) -> Result<(), Refused> {
        let set = [
            ("logit_bias", !self.logit_bias.is_empty()),
            ("logprobs", self.logprobs.is_some()),
            ("return_router", self.return_router),
            ("constraint", self.constraint.is_some()),
            ("stop", !self.stop.is_empty()),
        ];
        match set.into_iter().find(|(_, set)| *set) {
            Some((field, _)) => Err(Refused::NotForEmbedding { field }),
            None => Ok(()),
        }
    }
}

/// A sequence of this engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SequenceId(pub(super) u64);

impl SequenceId {
    /// Sequences are counted from 0, in the order in which they came.
    pub fn number(self) -> u64 {
        self.0
    }
}

/// A sequence that waits or runs, for those who watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// The sequence.
    pub id: SequenceId,
    /// Where it is on its way.
    pub state: SlotState,
    /// Its request's.
    pub priority: Priority,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens, of the prompt and generated, whose keys and values it has.
    pub computed: usize,
    /// Tokens generated.
    pub generated: usize,
}

/// Where a sequence is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SlotState {
    /// It waits for room.
    Queued,
    /// Its prompt is being computed, or what it lost while it was suspended.
    Prefilling,
    /// It draws a token each step.
    Decoding,
    /// It ran, and waits until those that go before it leave room again.
    Suspended,
}

/// Why a request was not taken.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// Nothing to go on from.
    #[error("the prompt has no tokens; give at least one")]
    EmptyPrompt,
    /// A token id that the embedding does not have.
    #[error("token {token} at position {position} is not in the vocabulary of {vocab_size}")]
    Token {
        /// The id.
        token: u32,
        /// Where it stands.
        position: usize,
        /// Rows of the embedding.
        vocab_size: usize,
    },
    /// Prompt and generation do not fit.
    #[error(
        "the prompt has {prompt} tokens and up to {max_tokens} were asked for, but a sequence has room for {ctx_size}; raise `--ctx-size` or ask for less"
    )]
    Context {
        /// Tokens of the prompt.
        prompt: usize,
        /// Tokens asked for.
        max_tokens: usize,
        /// Positions of a sequence.
        ctx_size: usize,
    },
    /// More experts than there is room for.
    #[error(
        "{asked} experts per token were asked for, but requests of this run may have up to {most}{}",
        if *most == 0 { ": the model has none" } else { "" }
    )]
    Experts {
        /// Experts asked for.
        asked: usize,
        /// Experts that a request may have.
        most: usize,
    },
    /// A bias for a token that the tokenizer does not have.
    #[error("`logit_bias` has token {token}, which is not in the vocabulary of {vocab_size}")]
    BiasedToken {
        /// The id.
        token: u32,
        /// Tokens that can be drawn.
        vocab_size: usize,
    },
    /// More probable tokens than a request may ask for.
    #[error("`logprobs` asks for the {asked} most probable tokens, but there may be up to {most}")]
    Logprobs {
        /// Tokens asked for.
        asked: usize,
        /// Tokens that may be asked for.
        most: usize,
    },
    /// The experts of a model that has none.
    #[error("`return_router`: this model has no experts")]
    NoRouter,
    /// Nothing is computed for a text without tokens.
    #[error("`return_router` tells of tokens that are computed, but none is to be drawn; ask for one at least")]
    RouterOfNothing,
    /// More positions than are kept.
    #[error(
        "`return_router` would keep {bytes} bytes of what routers choose, but a request has room for {ROUTING_BYTES_MAX}; send a shorter prompt or ask for fewer tokens"
    )]
    RouterBytes {
        /// Bytes that all positions would take.
        bytes: usize,
    },
    /// The constraint was compiled for another vocabulary or other ends than this engine has.
    #[error("the constraint was not compiled for the tokenizer and the end tokens of this engine")]
    ForeignConstraint,
    /// An embedding whose request has what only a text can have.
    #[error("`{field}` is for generated text, but an embedding was asked for")]
    NotForEmbedding {
        /// The field of the request.
        field: &'static str,
    },
    /// A sampling parameter is out of its range.
    #[error(transparent)]
    Sampling(#[from] SamplingError),
    /// A stop string cannot be used.
    #[error(transparent)]
    Stop(#[from] TextError),
    /// There is no adapter of this name.
    #[error("there is no adapter `{name}`; loaded are: {loaded}")]
    NoAdapter {
        /// The name.
        name: String,
        /// The names that there are.
        loaded: String,
    },
    /// The adapters do not go together.
    #[error(transparent)]
    Adapters(#[from] AdapterSetError),
}

/// Why a sequence ended without a usable result.
#[derive(Debug, thiserror::Error)]
pub enum SequenceError {
    /// No token can be drawn from its logits.
    #[error(transparent)]
    Sample(#[from] SampleError),
    /// Its tokens are no text.
    #[error(transparent)]
    Text(#[from] TextError),
    /// What may follow under its constraint is too much to compute.
    #[error(transparent)]
    Constraint(#[from] ConstraintError),
    /// Its final hidden states are broken numbers.
    #[error("number {index} of the embedding is {value}: this sequence's numbers are broken")]
    NonFiniteEmbedding {
        /// The first such number.
        index: usize,
        /// It.
        value: f32,
    },
}

/// What a step brought.
#[derive(Debug)]
pub enum Event {
    /// Tokens of the prompt were computed, or taken from the prefix cache.
    Prefill {
        /// The sequence.
        id: SequenceId,
        /// Tokens of the prompt that are done with.
        done: usize,
        /// Tokens of the prompt.
        total: usize,
    },
    /// A token was drawn.
    Token {
        /// The sequence.
        id: SequenceId,
        /// The token.
        token: u32,
        /// Text that can be shown now; may be empty while a character or a stop string is incomplete.
        text: String,
        /// How probable it was, if the request asked.
        logprobs: Option<Box<TokenLogprobs>>,
    },
    /// The vector that was asked for; the sequence ended.
    Embedded {
        /// The sequence.
        id: SequenceId,
        /// The vector `[hidden_size]`, as long as it came out: [`normalize`](super::normalize) makes its length 1.
        values: Vec<f32>,
        /// Tokens of the prompt.
        prompt_tokens: usize,
    },
    /// The sequence ended.
    Finished {
        /// The sequence.
        id: SequenceId,
        /// All of its text.
        completion: Completion,
    },
    /// The sequence ended without a usable result.
    Failed {
        /// The sequence.
        id: SequenceId,
        /// Why.
        error: SequenceError,
    },
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FinishReason {
    /// The model ended it, or a stop string.
    Stop,
    /// As many tokens as were asked for.
    Length,
}

/// A finished generation.
#[derive(Clone, Debug)]
pub struct Completion {
    /// Generated token ids, the ending one included.
    pub tokens: Vec<u32>,
    /// How probable each of them was, if the request asked; else none.
    pub logprobs: Vec<TokenLogprobs>,
    /// Experts of all tokens that were computed, if the request asked.
    pub routing: Option<Box<Routing>>,
    /// Their text, without stop strings, and without control tokens save those that were to be shown.
    pub text: String,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Of these, tokens whose keys and values were taken from the prefix cache.
    pub cached_tokens: usize,
    /// How long it took.
    pub timings: Timings,
}
