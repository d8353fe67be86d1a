//! All that a night job needs of a model.
//!
//! The engine is one implementation, the tests' fake another. The one law is that the bytes of a completion depend
//! on the fingerprint and the request alone, never on the requests beside it or on the order in which they end: that
//! lets the runner group steps freely and lets a record stand for a generation after a restart.

/// Something that completes chat prompts.
pub trait Generator {
    /// A hash of all that decides a completion's bytes apart from the request: weights, tokenizer, chat template,
    /// instruction set, numeric settings. Two generators with one fingerprint give equal bytes for equal requests.
    fn fingerprint(&self) -> String;

    /// Tokens that prompt and answer may have together.
    fn context_size(&self) -> usize;

    /// Tokens of `prompt` as the model would read it: chat template and special tokens included.
    fn count_tokens(&self, prompt: &Prompt) -> Result<usize, GenerateError>;

    /// Completes all `requests`, side by side up to the generator's own width, and calls `finished` with a request's
    /// index as soon as that request ends, in any order, each index once.
    ///
    /// When `finished` returns [`Abort`], the generator stops as soon as it can and returns
    /// [`GenerateError::Aborted`], without another call to `finished`.
    fn generate(
        &mut self,
        requests: &[PromptRequest],
        finished: &mut dyn FnMut(usize, Completion) -> Result<(), Abort>,
    ) -> Result<(), GenerateError>;
}

/// A chat of one turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// The system message, if the recipe has one.
    pub system: Option<String>,
    /// The user's message.
    pub user: String,
}

/// A prompt with all that decides its completion, given a fingerprint.
#[derive(Clone, Debug, PartialEq)]
pub struct PromptRequest {
    /// The chat to complete.
    pub prompt: Prompt,
    /// The most tokens that the answer may have, at least 1. Prompt and answer together fit the context size.
    pub max_tokens: usize,
    /// How tokens are drawn.
    pub sampling: Sampling,
    /// The seed of the draw: token `i` is drawn with f(seed, i).
    pub seed: u64,
}

/// How tokens are drawn. The default is greedy.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// 0 takes the most likely token; otherwise logits are divided by it.
    pub temperature: f32,
    /// Draw among this many of the most likely tokens; 0 means all.
    pub top_k: usize,
    /// Draw among the fewest tokens whose probabilities reach this sum, in (0, 1]; 1 means all.
    pub top_p: f32,
    /// Draw among tokens at least this fraction as likely as the likeliest, in [0, 1]; 0 means all.
    pub min_p: f32,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0 }
    }
}

/// What a model answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Completion {
    /// The answer, without the end-of-turn token.
    pub text: String,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// Tokens that were fed.
    pub prompt_tokens: usize,
    /// Tokens that were generated.
    pub completion_tokens: usize,
}

/// Why a completion ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// The model ended its turn.
    Stop,
    /// `max_tokens` were generated and the model had not ended: the answer is cut.
    Length,
}

/// The caller of [`Generator::generate`] wants no more; it keeps the reason itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abort;

/// Why a generator gave no completions.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    /// `finished` asked to stop.
    #[error("stopped by the caller")]
    Aborted,
    /// The generator's own failure, in its own words (never with the prompt's text).
    #[error("{0}")]
    Failed(Box<dyn std::error::Error + Send + Sync>),
}
