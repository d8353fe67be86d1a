//! One sequence: its tokens, how many of them are in the cache, the names of its blocks, and the text that came of it.

use std::num::NonZeroUsize;
use std::time::Duration;

use simd::attention::KV_BLOCK;

use super::embedding::Pool;
use super::event::{Completion, Event, FinishReason, Priority, Request, SequenceError, SequenceId, Slot, SlotState};
use super::routing::Routing;
use super::timing::{Timings, Totals};
use crate::adapter::AdapterSet;
use crate::constraint::Matcher;
use crate::kv_cache::prefix::ChainHash;
use crate::sampler::{Sampler, TokenLogprobs};
use crate::text::{Detokenizer, StopOutcome, StopStrings};

pub(super) struct Sequence<'t> {
    pub(super) id: SequenceId,
    pub(super) priority: Priority,
    pub(super) tokens: Vec<u32>, // prompt, then generated
    pub(super) computed: usize,  // positions whose keys and values are in the cache
    /// Blocks at the beginning of its table that have a name.
    pub(super) shared: usize,
    /// Its next block is to come from disk, in a later step.
    pub(super) is_reading: bool,
    /// It has run, and waits to go on.
    pub(super) is_suspended: bool,
    /// The name that its first block stands behind.
    pub(super) root: ChainHash,
    /// Names of its blocks, as far as they were asked for.
    names: Vec<ChainHash>,
    /// Tokens of the prompt that were ever done with, and those told of.
    furthest: usize,
    told: usize,
    cached_tokens: usize,
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
    /// Of a request that asks for it.
    pub(super) routing: Option<Routing>,
    /// What its tokens choose is of the model as it was loaded, and counted.
    pub(super) is_counted: bool,
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
        Self {
            id,
            priority,
            tokens,
            computed: 0,
            shared: 0,
            is_reading: false,
            is_suspended: false,
            root: ChainHash::root(&[]),
            names: Vec::new(),
            furthest: 0,
            told: 0,
            cached_tokens: 0,
            adapters,
            prompt_tokens,
            max_tokens,
            experts_per_token,
            sampler,
            top_logprobs: logprobs,
            logprobs: Vec::new(),
            matcher: constraint.map(|constraint| constraint.begin()),
            pool,
            routing: None,
            is_counted: false,
            detokenizer,
            stop,
            text: String::new(),
            timings: Timings::default(),
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

    /// It has drawn a token, and all before that one is in the cache.
    pub(super) fn decodes(&self) -> bool {
        self.tokens.len() > self.prompt_tokens && self.pending() == 1
    }

    /// It has tokens to compute before it can draw, and they are at hand.
    pub(super) fn prefills(&self) -> bool {
        !self.decodes() && !self.is_reading
    }

    /// Full blocks that it may share: the last token's logits are wanted, and no block has the states that an embedding
    /// wants, or what routers chose.
    pub(super) fn most_shared(&self) -> usize {
        if self.pool.is_some() || self.routing.is_some() { 0 } else { (self.tokens.len() - 1) / KV_BLOCK }
    }

    /// Name and tokens of a full block.
    pub(super) fn block(&mut self, index: usize) -> (ChainHash, &[u32; KV_BLOCK]) {
        let blocks = self.tokens.as_chunks::<KV_BLOCK>().0;
        while self.names.len() <= index {
            let before = self.names.last().unwrap_or(&self.root);
            self.names.push(before.then(&blocks[self.names.len()]));
        }
        (self.names[index], &blocks[index])
    }

    /// Goes on at `position` if it is not as far yet: the cache had all before. Gives the tokens of the prompt that are
    /// done with for the first time.
    pub(super) fn took(&mut self, position: usize) -> usize {
        self.computed = self.computed.max(position);
        let first = self.advance();
        self.cached_tokens += first;
        first
    }

    /// Tokens of the prompt that are done with for the first time.
    fn advance(&mut self) -> usize {
        let done = self.computed.min(self.prompt_tokens);
        let first = done.saturating_sub(self.furthest);
        self.furthest += first;
        first
    }

    /// Its blocks are gone; it is to go on as if they were not.
    pub(super) fn suspend(&mut self) {
        self.computed = 0;
        self.shared = 0;
        self.is_reading = false;
        self.is_suspended = true;
        if let Some(pool) = &mut self.pool {
            pool.restart();
        }
    }

    /// Counts a step that computed `rows` of this sequence's tokens, in it and in the totals.
    pub(super) fn count(&mut self, rows: usize, time: Duration, bytes: usize, totals: &mut Totals) {
        let decodes = self.decodes();
        self.computed += rows;
        if decodes {
            self.timings.decode += time;
            self.timings.decode_tokens += 1;
            self.timings.decode_bytes += bytes;
            return;
        }
        let first = self.advance();
        // The last token drawn before it was suspended is new too.
        let resumed = self.tokens.len() > self.prompt_tokens && self.pending() == 0;
        let again = rows - first - usize::from(resumed);
        self.timings.prefill_tokens += first;
        self.timings.decode_tokens += usize::from(resumed);
        self.timings.recomputed_tokens += again;
        match first {
            0 => self.timings.recompute += time,
            _ => self.timings.prefill += time,
        }
        totals.prefill_tokens += first;
        totals.recomputed_tokens += again;
    }

    /// Tells of tokens of the prompt that are done with since this was asked.
    pub(super) fn progress(&mut self) -> Option<Event> {
        (self.furthest > self.told).then(|| {
            self.told = self.furthest;
            Event::Prefill { id: self.id, done: self.told, total: self.prompt_tokens }
        })
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
        self.slot(if self.is_suspended { SlotState::Suspended } else { SlotState::Queued })
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
            routing: self.routing.map(Box::new),
            text: self.text,
            finish_reason,
            prompt_tokens: self.prompt_tokens,
            cached_tokens: self.cached_tokens,
            timings: self.timings,
        };
        Event::Finished { id: self.id, completion }
    }
}
