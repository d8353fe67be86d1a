//! One token out of logits.
//!
//! The draw is a function of (logits, parameters, position): there is no state that a crash could lose or that another
//! row of the batch could disturb. Every sum has a fixed order and `exp` is ours (`elementary`), so the same logits give
//! the same token in every build.
//!
//! The chain is llama.cpp's default one: **top_k → top_p → min_p → temperature**. The filters look at the
//! probabilities that the model gave; temperature only shares out what they left. (vLLM and transformers divide by the
//! temperature first, so their top_p keeps more tokens when temperature > 1 and fewer when it is < 1.)
//!
//! Where logits tie, the lower id goes first, in the filters and in greedy choice.
//!
//! Before the chain a request may change the logits: **bias → repetition → frequency and presence → the mask of a
//! constraint**, the order of llama.cpp and vLLM. What is told of a token's probability is always the model's own.

mod adjust;
mod elementary;
mod philox;

use std::cmp::Ordering;

use adjust::Adjust;
pub use adjust::LOGIT_BIAS_MAX;
use elementary::{exp_nonpositive, ln};

/// Most probable tokens that a request may ask to be told at each place, as in the OpenAI API.
pub const TOP_LOGPROBS_MAX: usize = 20;

/// How the next token is chosen. [`validate`](Self::validate) says what each field may be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SamplingParams {
    /// Divides the logits before the draw; 0 takes the most probable token and no filter matters.
    pub temperature: f32,
    /// Keep the `top_k` most probable tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep the most probable tokens until their share of the probability reaches this, at least one; 1 keeps all.
    pub top_p: f32,
    /// Keep tokens at least this fraction as probable as the most probable one; 0 keeps all.
    pub min_p: f32,
    /// Key of the counter-based generator.
    pub seed: u64,
    /// Of every token in the prompt or generated, a positive logit is divided by this and any other multiplied with it, as
    /// transformers and vLLM do; 1 is off. (llama.cpp, with the same formula, looks back 64 tokens unless told otherwise.)
    pub repetition_penalty: f32,
    /// Taken once from the logit of every token that was generated, as in the OpenAI API and vLLM; 0 is off.
    pub presence_penalty: f32,
    /// Taken from the logit of a token as often as it was generated, as in the OpenAI API and vLLM; 0 is off.
    pub frequency_penalty: f32,
}

impl Default for SamplingParams {
    /// The model's own distribution: temperature 1, no filter, no penalty, seed 0.
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            seed: 0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
        }
    }
}

/// A sampling parameter outside its range.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("`{field}` is {value}, but it must be {allowed}")]
pub struct SamplingError {
    /// Name of the field, as in requests and flags.
    pub field: &'static str,
    /// What was given.
    pub value: f32,
    /// The allowed range, in words.
    pub allowed: &'static str,
}

impl SamplingParams {
    /// Refuses the first field that is out of range, by name.
    pub fn validate(&self) -> Result<(), SamplingError> {
        let check = |field, value: f32, ok: bool, allowed| match ok {
            true => Ok(()),
            false => Err(SamplingError { field, value, allowed }),
        };
        let temperature = self.temperature;
        check(
            "temperature",
            temperature,
            (0.0..=100.0).contains(&temperature),
            "from 0 (the most probable token) to 100",
        )?;
        check("top_p", self.top_p, self.top_p > 0.0 && self.top_p <= 1.0, "above 0 and at most 1 (off)")?;
        check("min_p", self.min_p, (0.0..=1.0).contains(&self.min_p), "from 0 (off) to 1")?;
        let repetition = self.repetition_penalty;
        check("repetition_penalty", repetition, (0.01..=100.0).contains(&repetition), "from 0.01 to 100; 1 is off")?;
        for (field, value) in
            [("presence_penalty", self.presence_penalty), ("frequency_penalty", self.frequency_penalty)]
        {
            check(field, value, (-2.0..=2.0).contains(&value), "from -2 to 2; 0 is off")?;
        }
        Ok(())
    }
}

/// The chosen token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampled {
    /// Its id.
    pub token: u32,
    /// ln of the probability that the model gave it: before bias, penalties, mask, filters and temperature, over all ids
    /// below the limit.
    pub logprob: f32,
    scale: LogScale,
}

/// What turns the logits of one place into log-probabilities: the largest, and ln of the sum of e^(logit - largest).
#[derive(Clone, Copy, Debug, PartialEq)]
struct LogScale {
    max: f64,
    ln_total: f64,
}

impl LogScale {
    fn logprob(self, logit: f32) -> f32 {
        ((f64::from(logit) - self.max) - self.ln_total) as f32
    }
}

/// How probable a token was, and which others were: ln of the probabilities that the model gave, before bias, penalties,
/// mask, filters and temperature, as the OpenAI API tells them.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprobs {
    /// The token that was chosen.
    pub token: u32,
    /// ln of its probability.
    pub logprob: f32,
    /// The most probable tokens, most probable first, as many as were asked for; the chosen one need not be among them.
    pub top: Vec<(u32, f32)>,
}

/// Logits from which no token may be drawn. It ends that sequence; a token would only look like an answer.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum SampleError {
    /// NaN or +infinity. (-infinity is a masked token, and allowed.)
    #[error("logit {index} is {value}: this sequence's numbers are broken, no token can be drawn from them")]
    NonFinite {
        /// The first such id.
        index: usize,
        /// Its logit.
        value: f32,
    },
    /// Every id below the limit is masked, by the model or by a constraint, or there is none.
    #[error("all {limit} tokens are masked (-infinity): nothing is left to draw from")]
    AllMasked {
        /// How many ids were looked at.
        limit: usize,
    },
}

#[derive(Clone, Copy)]
struct Candidate {
    id: u32,
    logit: f32,
}

/// Most probable first; of equals, the lower id. Logits here are never NaN.
fn by_rank(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.partial_cmp(&a.logit).unwrap_or(Ordering::Equal).then(a.id.cmp(&b.id))
}

/// Draws tokens for one sequence.
pub struct Sampler {
    params: SamplingParams,
    vocab_size_limit: usize,
    /// Survivors of the filters. The capacity is reserved at the start and pages are touched as needed: a step
    /// allocates nothing.
    candidates: Vec<Candidate>,
    adjust: Adjust,
}

impl Sampler {
    /// Ids >= `vocab_size_limit` are padding of the embedding and are never drawn: pass the tokenizer's `vocab_size`.
    ///
    /// # Errors
    /// [`SamplingError`] names the first parameter that is out of range.
    pub fn new(params: SamplingParams, vocab_size_limit: usize) -> Result<Self, SamplingError> {
        Self::with_bias(params, Vec::new(), vocab_size_limit)
    }

    /// As [`new`](Self::new), with what is added to the logits of some tokens, each from -[`LOGIT_BIAS_MAX`] to it. Ids at
    /// or above the limit are never drawn, whatever their bias.
    ///
    /// # Errors
    /// As [`new`](Self::new); a bias out of range is `logit_bias`.
    pub fn with_bias(
        params: SamplingParams,
        logit_bias: Vec<(u32, f32)>,
        vocab_size_limit: usize,
    ) -> Result<Self, SamplingError> {
        params.validate()?;
        let unfiltered = params.top_k == 0 && params.top_p == 1.0 && params.min_p == 0.0;
        let capacity = if params.temperature == 0.0 || unfiltered {
            0
        } else if params.top_k > 0 {
            vocab_size_limit.min(gather_capacity(params.top_k))
        } else {
            vocab_size_limit
        };
        let adjust = Adjust::new(&params, logit_bias, vocab_size_limit)?;
        Ok(Self { params, vocab_size_limit, candidates: Vec::with_capacity(capacity), adjust })
    }

    /// Takes the memory that draws under a mask need, and those that tell `top` probable tokens.
    #[must_use]
    pub fn reserving(mut self, masked: bool, top: usize) -> Self {
        if masked {
            self.adjust.prepare(self.vocab_size_limit);
        }
        if top > 0 {
            self.candidates.reserve(self.vocab_size_limit.min(gather_capacity(top)));
        }
        self
    }

    /// Parameters of this sequence.
    pub fn params(&self) -> &SamplingParams {
        &self.params
    }

    /// Tells what the sequence began with. Penalties derive from this and [`generated`](Self::generated) alone.
    pub fn prompt(&mut self, tokens: &[u32]) {
        self.adjust.prompt(tokens);
    }

    /// Tells that the sequence has this token now.
    pub fn generated(&mut self, token: u32) {
        self.adjust.generated(token);
    }

    /// Draws the token at `position` of the sequence. `logits: [vocab_size]`, padding included.
    ///
    /// # Errors
    /// [`SampleError`] if no token can be drawn.
    pub fn sample(&mut self, logits: &[f32], position: u64) -> Result<Sampled, SampleError> {
        self.sample_masked(logits, position, None)
    }

    /// As [`sample`](Self::sample), from the tokens that `mask` leaves: bit `id % 32` of word `id / 32`; beyond its end, none.
    ///
    /// # Errors
    /// [`SampleError`] if no token can be drawn.
    pub fn sample_masked(
        &mut self,
        logits: &[f32],
        position: u64,
        mask: Option<&[u32]>,
    ) -> Result<Sampled, SampleError> {
        let logits = &logits[..logits.len().min(self.vocab_size_limit)];
        let best = most_probable(logits)?;
        let total = sum_of_exp(logits, best.logit);
        let Self { params, candidates, adjust, .. } = self;
        let token = if mask.is_none() && adjust.is_off() {
            draw(params, candidates, logits, best, || total, position)
        } else {
            let adjusted = adjust.apply(logits, mask);
            let best = most_probable(adjusted)?;
            draw(params, candidates, adjusted, best, || sum_of_exp(adjusted, best.logit), position)
        };
        let scale = LogScale { max: f64::from(best.logit), ln_total: ln(total) };
        Ok(Sampled { token, logprob: scale.logprob(logits[token as usize]), scale })
    }

    /// How probable the token was that was drawn from these logits, and the `top` most probable ones.
    pub fn logprobs(&mut self, logits: &[f32], sampled: Sampled, top: usize) -> TokenLogprobs {
        let logits = &logits[..logits.len().min(self.vocab_size_limit)];
        let Self { candidates, .. } = self;
        candidates.clear();
        if top > 0 {
            gather_top(logits, top, candidates);
            candidates.sort_unstable_by(by_rank);
        }
        let top = candidates.iter().map(|c| (c.id, sampled.scale.logprob(c.logit))).collect();
        TokenLogprobs { token: sampled.token, logprob: sampled.logprob, top }
    }
}

fn draw(
    params: &SamplingParams,
    candidates: &mut Vec<Candidate>,
    logits: &[f32],
    best: Candidate,
    total: impl FnOnce() -> f64,
    position: u64,
) -> u32 {
    let SamplingParams { temperature, top_k, top_p, min_p, seed, .. } = *params;
    if temperature == 0.0 {
        return best.id;
    }
    let u = philox::uniform(seed, position);
    let max = f64::from(best.logit);
    let temperature = f64::from(temperature);
    let tempered = |logit: f32| exp_nonpositive((f64::from(logit) - max) / temperature);

    if top_k == 0 && top_p == 1.0 && min_p == 0.0 {
        let all = logits.iter().zip(0u32..).map(|(&logit, id)| Candidate { id, logit });
        return walk(all, tempered, u, best.id);
    }

    if top_k > 0 {
        gather_top(logits, top_k, candidates);
        candidates.sort_unstable_by(by_rank);
        if top_p < 1.0 {
            let total: f64 = candidates.iter().map(|c| exp_nonpositive(f64::from(c.logit) - max)).sum();
            candidates.truncate(nucleus(candidates, max, f64::from(top_p) * total).unwrap_or(candidates.len()));
        }
    } else if top_p < 1.0 {
        let total = total();
        // A nucleus is small as a rule, so rank only as many tokens as it turns out to need.
        let mut ranked = 64;
        loop {
            gather_top(logits, ranked, candidates);
            candidates.sort_unstable_by(by_rank);
            match nucleus(candidates, max, f64::from(top_p) * total) {
                Some(len) => break candidates.truncate(len),
                None if candidates.len() < ranked => break,
                None => ranked *= 8,
            }
        }
    } else {
        candidates.clear();
        let enough = |&logit: &f32| exp_nonpositive(f64::from(logit) - max) >= f64::from(min_p);
        let kept = logits.iter().zip(0u32..).filter(|(logit, _)| enough(logit));
        candidates.extend(kept.map(|(&logit, id)| Candidate { id, logit }));
    }
    candidates.retain(|c| exp_nonpositive(f64::from(c.logit) - max) >= f64::from(min_p));
    candidates.sort_unstable_by_key(|c| c.id);
    walk(candidates.iter().copied(), tempered, u, best.id)
}

/// Goes through the survivors by rising id until their weights pass `u` of the sum.
fn walk(survivors: impl Iterator<Item = Candidate> + Clone, weight: impl Fn(f32) -> f64, u: f64, best: u32) -> u32 {
    let total: f64 = survivors.clone().map(|c| weight(c.logit)).sum();
    let target = u * total;
    let mut passed = 0.0;
    for candidate in survivors {
        passed += weight(candidate.logit);
        if passed > target {
            return candidate.id;
        }
    }
    // u < 1 and the same additions in the same order: `passed` ends at `total` > `target`, unless u*total rounded up.
    best
}

fn most_probable(logits: &[f32]) -> Result<Candidate, SampleError> {
    let mut best: Option<Candidate> = None;
    for (index, &logit) in logits.iter().enumerate() {
        if logit.is_nan() || logit == f32::INFINITY {
            return Err(SampleError::NonFinite { index, value: logit });
        }
        if logit > best.map_or(f32::NEG_INFINITY, |b| b.logit) {
            best = Some(Candidate { id: index as u32, logit });
        }
    }
    best.ok_or(SampleError::AllMasked { limit: logits.len() })
}

/// Sum of exp(logit - max) in eight interleaved lanes: one order, whether the compiler vectorises it or not.
fn sum_of_exp(logits: &[f32], max: f32) -> f64 {
    let max = f64::from(max);
    let mut lanes = [0.0f64; 8];
    let (chunks, tail) = logits.as_chunks::<8>();
    for chunk in chunks {
        for (lane, &logit) in lanes.iter_mut().zip(chunk) {
            *lane += exp_nonpositive(f64::from(logit) - max);
        }
    }
    for (lane, &logit) in lanes.iter_mut().zip(tail) {
        *lane += exp_nonpositive(f64::from(logit) - max);
    }
    let [a, b, c, d, e, f, g, h] = lanes;
    ((a + b) + (c + d)) + ((e + f) + (g + h))
}

fn gather_capacity(k: usize) -> usize {
    k.saturating_mul(2).max(256)
}

/// Leaves the `k` first of [`by_rank`] in `out`, in no order; masked tokens are never among them.
fn gather_top(logits: &[f32], k: usize, out: &mut Vec<Candidate>) {
    out.clear();
    let full = gather_capacity(k);
    let mut threshold = f32::NEG_INFINITY;
    for (id, &logit) in (0u32..).zip(logits) {
        // An equal logit that comes later has a higher id, so it ranks below the k that set the threshold.
        if logit > threshold {
            out.push(Candidate { id, logit });
            if out.len() == full {
                out.select_nth_unstable_by(k - 1, by_rank);
                threshold = out[k - 1].logit;
                out.truncate(k);
            }
        }
    }
    if out.len() > k {
        out.select_nth_unstable_by(k - 1, by_rank);
        out.truncate(k);
    }
}

/// How many of the ranked candidates it takes to reach `enough` of the weight, if they reach it.
fn nucleus(ranked: &[Candidate], max: f64, enough: f64) -> Option<usize> {
    let mut passed = 0.0;
    for (index, candidate) in ranked.iter().enumerate() {
        passed += exp_nonpositive(f64::from(candidate.logit) - max);
        if passed >= enough {
            return Some(index + 1);
        }
    }
    None
}

#[cfg(test)]
mod adjust_tests;
#[cfg(test)]
mod tests;
