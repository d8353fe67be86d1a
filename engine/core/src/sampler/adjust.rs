//! What a request adds to the model's logits before a token is drawn from them: a bias, penalties of tokens that were
//! there, and the mask of a constraint.
//!
//! What is counted derives from the tokens of the sequence alone, so one that is taken up again in the middle is
//! penalised as if it had never stopped. Memory is taken once, and only by requests that adjust something.

use super::{SamplingError, SamplingParams};

/// Most that a bias may add or take, as in the OpenAI API.
pub const LOGIT_BIAS_MAX: f32 = 100.0;

pub(super) struct Adjust {
    repetition: f32,
    presence: f32,
    frequency: f32,
    bias: Vec<(u32, f32)>,
    counts: Option<Counts>,
    /// The logits after all that. No room unless something is adjusted.
    logits: Vec<f32>, // [limit]
}

/// How often each token was there.
struct Counts {
    generated: Vec<u32>, // [limit]
    listed: Vec<bool>,   // [limit]
    /// Tokens that a penalty is for, each once. Room for all of them: a step allocates nothing.
    tokens: Vec<u32>,
}

impl Adjust {
    /// # Errors
    /// Names `logit_bias` if one is out of range.
    pub(super) fn new(params: &SamplingParams, bias: Vec<(u32, f32)>, limit: usize) -> Result<Self, SamplingError> {
        if let Some((_, value)) = bias.iter().find(|(_, value)| !(-LOGIT_BIAS_MAX..=LOGIT_BIAS_MAX).contains(value)) {
            return Err(SamplingError { field: "logit_bias", value: *value, allowed: "from -100 to 100" });
        }
        let SamplingParams { repetition_penalty, presence_penalty, frequency_penalty, .. } = *params;
        let penalises = repetition_penalty != 1.0 || presence_penalty != 0.0 || frequency_penalty != 0.0;
        let counts = penalises.then(|| Counts {
            generated: vec![0; limit],
            listed: vec![false; limit],
            tokens: Vec::with_capacity(limit),
        });
        let mut this = Self {
            repetition: repetition_penalty,
            presence: presence_penalty,
            frequency: frequency_penalty,
            bias,
            counts,
            logits: Vec::new(),
        };
        if this.counts.is_some() || !this.bias.is_empty() {
            this.prepare(limit);
        }
        Ok(this)
    }

    /// Takes the memory of adjusted logits.
    pub(super) fn prepare(&mut self, limit: usize) {
        self.logits.reserve_exact(limit);
    }

    pub(super) fn prompt(&mut self, tokens: &[u32]) {
        if let Some(counts) = self.counts.as_mut().filter(|_| self.repetition != 1.0) {
            tokens.iter().for_each(|token| counts.list(*token));
        }
    }

    pub(super) fn generated(&mut self, token: u32) {
        if let Some(counts) = &mut self.counts
            && let Some(count) = counts.generated.get_mut(token as usize)
        {
            *count += 1;
            counts.list(token);
        }
    }

    /// Nothing but a mask could change a logit.
    pub(super) fn is_off(&self) -> bool {
        self.counts.is_none() && self.bias.is_empty()
    }

    /// The adjusted logits. Of `mask` bit `id % 32` of word `id / 32` says whether a token may be drawn; beyond its end
    /// none may.
    pub(super) fn apply(&mut self, logits: &[f32], mask: Option<&[u32]>) -> &[f32] {
        let Self { repetition, presence, frequency, bias, counts, logits: adjusted } = self;
        adjusted.clear();
        adjusted.extend_from_slice(logits);
        for (token, bias) in bias.iter() {
            if let Some(logit) = adjusted.get_mut(*token as usize) {
                *logit += bias;
            }
        }
        if let Some(counts) = counts {
            for token in &counts.tokens {
                let Some(logit) = adjusted.get_mut(*token as usize) else { continue };
                let count = counts.generated[*token as usize];
                let repeated = if *logit > 0.0 { *logit / *repetition } else { *logit * *repetition };
                let present = if count > 0 { *presence } else { 0.0 };
                // A finite logit stays finite upwards: +infinity means broken numbers, and these are not.
                *logit = (repeated - *frequency * count as f32 - present).min(f32::MAX);
            }
        }
        if let Some(mask) = mask {
            let mut words = mask.iter().copied();
            for chunk in adjusted.chunks_mut(32) {
                match words.next().unwrap_or(0) {
                    0 => chunk.fill(f32::NEG_INFINITY),
                    u32::MAX => {}
                    word => {
                        let barred = chunk.iter_mut().enumerate().filter(|(bit, _)| word >> bit & 1 == 0);
                        barred.for_each(|(_, logit)| *logit = f32::NEG_INFINITY);
                    }
                }
            }
        }
        adjusted
    }
}

impl Counts {
    fn list(&mut self, token: u32) {
        // Ids at or above the limit are padding that is never drawn.
        if let Some(listed) = self.listed.get_mut(token as usize).filter(|listed| !**listed) {
            *listed = true;
            self.tokens.push(token);
        }
    }
}
