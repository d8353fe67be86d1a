//! One sequence: its tokens, how many of them are in the cache, and the text that came of them.

use std::num::NonZeroUsize;
use std::time::Duration;

use super::embedding::Pool;
use super::event::{Completion, Event, FinishReason, Priority, Request, SequenceError, SequenceId, Slot, SlotState};
use super::timing::Timings;
use crate::adapter::AdapterSet;
use crate::constraint::Matcher;
use crate::sampler::{Sampler, TokenLogprobs};
use crate::text::{Detokenizer, StopOutcome, StopStrings};

pub(super) struct Sequence<'t> {
    pub(super) id: SequenceId,
    pub(super) priority: Priority,
    pub(super) tokens: Vec<u32>, // prompt, then generated
    pub(super) computed: usize,  // positions whose keys and values are in the cache
    pub(super) adapters: AdapterSet,
    prompt_tokens: usize,
    max_tokens: usize,
    pub(super) experts_per_token: Option<NonZeroUsize>,
    sampler: Sampler,
    top_logprobs: Option<usize>,
    logprobs: Vec<TokenLogprobs>,
    matcher: Option<Matcher>,
    /// Of a prompt that is embedded.
    pub(super) pool: Option<Pool>,
    detokenizer: Detokenizer<'t>,
    stop: StopStrings,
    text: String,
    timings: Timings,
}

/// A token that was drawn, and what comes of it.
pub(super) struct Drawn {
    pub(super) token: u32,
    pub(super) text: String,
    pub(super) logprobs: Option<Box<TokenLogprobs>>,
    pub(super) after: After,
}

/// What a sequence does after a token.
pub(super) enum After {
    GoesOn,
    Ended(FinishReason),
}

impl<'t> Sequence<'t> {
    pub(super) fn new(
        id: SequenceId,
        request: Request,
        pool: Option<Pool>,
        adapters: AdapterSet,
        mut sampler: Sampler,
        detokenizer: Detokenizer<'t>,
        stop: StopStrings,
    ) -> Self {
        let Request { mut tokens, max_tokens, experts_per_token, priority, logprobs, constraint, .. } = request;
        let prompt_tokens = tokens.len();
        sampler.prompt(&tokens);
        tokens.reserve_exact(max_tokens);
        let timings = Timings { prefill_tokens: prompt_tokens, ..Timings::default() };
        Self {
            id,
            priority,
            tokens,
            computed: 0,
            adapters,
            prompt_tokens,
            max_tokens,
            experts_per_token,
            sampler,
            top_logprobs: logprobs,
            logprobs: Vec::new(),
            matcher: constraint.map(|constraint| constraint.begin()),
            pool,
            detokenizer,
            stop,
            text: String::new(),
            timings,
        }
    }

    /// Tokens that are not in the cache yet.
    pub(super) fn pending(&self) -> usize {
        self.tokens.len() - self.computed
    }

    /// Positions that the sequence may come to need. The last token drawn is never computed.
    pub(super) fn positions_max(&self) -> usize {
        self.prompt_tokens + self.max_tokens.saturating_sub(1)
    }

    /// Neither a token nor an embedding was asked for.
    pub(super) fn wants_nothing(&self) -> bool {
        self.max_tokens == 0 && self.pool.is_none()
    }

    /// Its prompt is in the cache, and it has drawn a token.
    pub(super) fn decodes(&self) -> bool {
        self.tokens.len() > self.prompt_tokens
    }

    /// Counts a step that computed `rows` of this sequence's tokens.
    pub(super) fn computed(&mut self, rows: usize, time: Duration, bytes: usize) -> Option<Event> {
        self.computed += rows;
        if self.decodes() {
            self.timings.decode += time;
            self.timings.decode_tokens += 1;
            self.timings.decode_bytes += bytes;
            return None;
        }
        self.timings.prefill += time;
        Some(Event::Prefill { id: self.id, done: self.computed, total: self.prompt_tokens })
    }

    /// Draws the next token from `logits` `[vocab_size]` and turns it into text.
    pub(super) fn draw(&mut self, logits: &[f32], eos: &[u32]) -> Result<Drawn, SequenceError> {
        let mask = self.matcher.as_mut().map(Matcher::mask).transpose()?;
        // The counter is the token's place in the sequence: a sequence taken up again draws what it would have drawn.
        let sampled = self.sampler.sample_masked(logits, self.tokens.len() as u64, mask)?;
        let token = sampled.token;
        let logprobs = self.top_logprobs.map(|top| Box::new(self.sampler.logprobs(logits, sampled, top)));
        self.logprobs.extend(logprobs.as_deref().cloned());
        self.tokens.push(token);
        self.sampler.generated(token);
        if eos.contains(&token) {
            let (text, _) = self.finish_text();
            return Ok(Drawn { token, text, logprobs, after: After::Ended(FinishReason::Stop) });
        }
        self.matcher.as_mut().map_or(Ok(()), |matcher| matcher.accept(token))?;
        let mut after = After::GoesOn;
        let piece = self.detokenizer.push(token)?;
        let mut text = match self.stop.push(&piece) {
            StopOutcome::Continue(text) => text,
            StopOutcome::Stopped { text, .. } => {
                after = After::Ended(FinishReason::Stop);
                text
            }
        };
        self.text.push_str(&text);
        if matches!(after, After::GoesOn) && self.tokens.len() - self.prompt_tokens == self.max_tokens {
            let (rest, reason) = self.finish_text();
            text.push_str(&rest);
            after = After::Ended(reason);
        }
        Ok(Drawn { token, text, logprobs, after })
    }

    /// Text that was held back, and why it ends here: a character cut in half may still complete a stop string.
    fn finish_text(&mut self) -> (String, FinishReason) {
        let rest = self.detokenizer.finish();
        let (mut text, reason) = match self.stop.push(&rest) {
            StopOutcome::Continue(text) => (text, FinishReason::Length),
            StopOutcome::Stopped { text, .. } => (text, FinishReason::Stop),
        };
        text.push_str(&self.stop.finish());
        self.text.push_str(&text);
        (text, reason)
    }

    /// How it stands, if it runs.
    pub(super) fn running_slot(&self) -> Slot {
        self.slot(if self.decodes() { SlotState::Decoding } else { SlotState::Prefilling })
    }

    /// How it stands, if it waits.
    pub(super) fn waiting_slot(&self) -> Slot {
        self.slot(SlotState::Queued)
    }

    fn slot(&self, state: SlotState) -> Slot {
        let Self { id, priority, prompt_tokens, computed, .. } = *self;
        Slot { id, state, priority, prompt_tokens, computed, generated: self.tokens.len() - prompt_tokens }
    }

    /// Its last event.
    pub(super) fn finished(mut self, finish_reason: FinishReason) -> Event {
        let completion = Completion {
            tokens: self.tokens.split_off(self.prompt_tokens),
            logprobs: self.logprobs,
            text: self.text,
            finish_reason,
            prompt_tokens: self.prompt_tokens,
            cached_tokens: 0,
            timings: self.timings,
        };
        Event::Finished { id: self.id, completion }
    }
}
