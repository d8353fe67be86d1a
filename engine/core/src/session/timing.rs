//! How long a sequence took and how many bytes its steps read, for the line that ends every generation.

use std::time::Duration;

/// Times of one sequence. Steps are shared by all sequences in them, so times of sequences that ran side by side
/// overlap.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timings {
    /// Tokens of the prompt that were computed: all but those from the prefix cache.
    pub prefill_tokens: usize,
    /// Steps in which tokens of the prompt were computed.
    pub prefill: Duration,
    /// Tokens computed once more, because they were given up while the sequence was suspended.
    pub recomputed_tokens: usize,
    /// Steps in which nothing else was done for the sequence.
    pub recompute: Duration,
    /// Tokens after the first.
    pub decode_tokens: usize,
    /// Steps in which those were computed.
    pub decode: Duration,
    /// Bytes of weights, keys and values that these steps read, for all sequences in them.
    pub decode_bytes: usize,
}

impl Timings {
    /// Tokens of the prompt per second.
    pub fn prefill_rate(&self) -> f64 {
        rate(self.prefill_tokens as f64, self.prefill)
    }

    /// Generated tokens per second.
    pub fn decode_rate(&self) -> f64 {
        rate(self.decode_tokens as f64, self.decode)
    }

    /// Bytes read per second while decoding.
    pub fn decode_bandwidth(&self) -> f64 {
        rate(self.decode_bytes as f64, self.decode)
    }
}

/// What an engine has done since it started.
#[derive(Clone, Copy, Debug, Default)]
pub struct Totals {
    /// Steps computed.
    pub steps: usize,
    /// Sequences that had room in them, added up.
    pub sequences: usize,
    /// Tokens of prompts computed.
    pub prefill_tokens: usize,
    /// Tokens of prompts taken from the prefix cache instead.
    pub cached_tokens: usize,
    /// Tokens computed once more for sequences that had been suspended.
    pub recomputed_tokens: usize,
    /// Times that a sequence was suspended.
    pub suspensions: usize,
    /// Blocks of the prefix cache that were given up for room.
    pub evicted_blocks: usize,
    /// Blocks of the prefix cache that came from disk.
    pub blocks_from_disk: usize,
    /// Tokens drawn.
    pub generated_tokens: usize,
    /// Time in steps.
    pub time: Duration,
    /// Bytes of weights, keys and values read.
    pub bytes: usize,
}

impl Totals {
    /// Tokens fed and drawn per second.
    pub fn rate(&self) -> f64 {
        rate((self.prefill_tokens + self.generated_tokens) as f64, self.time)
    }

    /// Bytes read per second.
    pub fn bandwidth(&self) -> f64 {
        rate(self.bytes as f64, self.time)
    }
}

fn rate(amount: f64, time: Duration) -> f64 {
    if time.is_zero() { 0.0 } else { amount / time.as_secs_f64() }
}
