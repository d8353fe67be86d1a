//! Ids to text while they come.
//!
//! The stream holds back at most three bytes: the beginning of a character that the next token may complete. Nothing
//! that came out is ever taken back, and what comes out does not depend on how far the stream has run.

use super::{TextError, Tokenizer};

/// Turns the ids of one sequence into text. The pieces, with [`finish`](Self::finish), are [`Tokenizer::decode`] of all ids.
#[derive(Clone)]
pub struct Detokenizer<'a> {
    tokenizer: &'a Tokenizer,
    skip_special: bool,
    /// Control tokens that leave their text all the same.
    shown: Vec<u32>,
    /// Beginning of a character, not yet complete: at most three bytes between calls.
    pending: Vec<u8>,
    /// Bytes that may still be dropped from the start of the text.
    strip: usize,
    started: bool,
}

impl<'a> Detokenizer<'a> {
    /// For a new text. With `skip_special`, control tokens leave no text.
    pub fn new(tokenizer: &'a Tokenizer, skip_special: bool) -> Self {
        let strip = tokenizer.decoder().strip.map_or(0, |(_, count)| count);
        Self { tokenizer, skip_special, shown: Vec::new(), pending: Vec::new(), strip, started: false }
    }

    /// For a new text in which these control tokens leave their text and others none: a model marks its thoughts and calls
    /// with some of them ([`SpeechFormat::shown_tokens`](super::SpeechFormat::shown_tokens)).
    pub fn showing(tokenizer: &'a Tokenizer, shown: Vec<u32>) -> Self {
        Self { shown, ..Self::new(tokenizer, true) }
    }

    /// The text that this token completes; may be empty.
    pub fn push(&mut self, id: u32) -> Result<String, TextError> {
        let tokenizer = self.tokenizer;
        let bytes =
            tokenizer.token_bytes(id).ok_or(TextError::UnknownToken { id, vocab_size: tokenizer.vocab_size() })?;
        if self.skip_special && tokenizer.is_special(id) && !self.shown.contains(&id) {
            return Ok(String::new());
        }
        let decoder = tokenizer.decoder();
        match decoder.first_token_drops.filter(|_| !self.started) {
            Some(dropped) => {
                let token = tokenizer.token_text(id).unwrap_or_default();
                self.pending.extend(decoder.bytes(&token.replace(dropped, "")));
            }
            None => self.pending.extend(bytes),
        }
        self.started = true;
        if let Some((byte, _)) = decoder.strip {
            let strip = self.strip.min(self.pending.iter().take_while(|&&b| b == byte).count());
            // Once something else stands at the start, nothing more is dropped.
            self.strip = if strip == self.pending.len() { self.strip - strip } else { 0 };
            self.pending.drain(..strip);
        }
        Ok(self.take_complete())
    }

    /// The end: bytes that never became a character are U+FFFD.
    pub fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.pending)).into_owned()
    }

    /// Invalid bytes become U+FFFD, as in [`String::from_utf8_lossy`] of the whole; an incomplete end stays.
    fn take_complete(&mut self) -> String {
        let complete = match self.pending.utf8_chunks().last() {
            Some(last) if could_be_completed(last.invalid()) => self.pending.len() - last.invalid().len(),
            _ => self.pending.len(),
        };
        let text = String::from_utf8_lossy(&self.pending[..complete]).into_owned();
        self.pending.drain(..complete);
        text
    }
}

/// Whether more bytes can make a character of these, which are the invalid end of a text.
fn could_be_completed(invalid: &[u8]) -> bool {
    !invalid.is_empty() && std::str::from_utf8(invalid).is_err_and(|error| error.error_len().is_none())
}
