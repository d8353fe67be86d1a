//! The model's tokens as the grammar library walks them: a trie over what each adds to a text.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use llguidance::toktrie::{TokEnv, TokRxInfo, TokTrie, TokenId, TokenizerEnv};

use super::error::ConstraintError;
use crate::text::Tokenizer;

/// Tokens that add more are never part of a constrained text. The trie has room for four times this.
const TOKEN_BYTES_MAX: usize = 256;

struct Vocabulary(TokTrie);

impl TokenizerEnv for Vocabulary {
    fn tok_trie(&self) -> &TokTrie {
        &self.0
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        self.0.greedy_tokenize(bytes)
    }

    /// The model chooses how to spell what a grammar forces, as it was trained to; the trie's greedy way is another.
    fn tokenize_is_canonical(&self) -> bool {
        false
    }
}

/// Control tokens stand behind a byte that no text has, so no grammar takes them for the text that they look like.
pub(super) fn vocabulary(tokenizer: &Tokenizer, eos: &[u32]) -> Result<TokEnv, ConstraintError> {
    let unfit = |reason: String| ConstraintError::Vocabulary { reason };
    let vocab_size = tokenizer.vocab_size();
    let Some(tok_eos) = eos.iter().copied().find(|id| (*id as usize) < vocab_size) else {
        return Err(ConstraintError::NoEnd);
    };
    let ends: Vec<u32> = eos.iter().copied().filter(|id| (*id as usize) < vocab_size).collect();
    let words: Vec<Vec<u8>> = (0..vocab_size as u32)
        .map(|id| match tokenizer.token_bytes(id) {
            Some(bytes) if bytes.len() <= TOKEN_BYTES_MAX => match tokenizer.is_special(id) || ends.contains(&id) {
                true => [&[TokTrie::SPECIAL_TOKEN_MARKER], bytes].concat(),
                false if bytes.contains(&TokTrie::SPECIAL_TOKEN_MARKER) => Vec::new(),
                false => bytes.to_vec(),
            },
            _ => Vec::new(),
        })
        .collect();
    let info = TokRxInfo {
        vocab_size: vocab_size as u32,
        tok_eos,
        tok_bos: None,
        tok_pad: None,
        tok_unk: None,
        tok_end_of_turn: None,
    };
    // The library asserts what it cannot hold.
    let trie = catch_unwind(AssertUnwindSafe(|| TokTrie::from(&info, &words).with_eos_tokens(&ends)))
        .map_err(|_| unfit(format!("its {vocab_size} tokens do not fit the trie")))?;
    Ok(Arc::new(Vocabulary(trie)))
}
