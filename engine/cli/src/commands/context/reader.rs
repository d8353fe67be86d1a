//! Answers of a model, the most probable token each time.

use engine_core::session::Evaluator;
use engine_core::text::{Detokenizer, Speech, SpeechFormat, Tools};
use simd::Isa;

use super::tasks::{Asking, Question};
use crate::failure::Failure;

/// What a model said.
pub(super) struct Answer {
    pub(super) text: String,
    pub(super) tokens: usize,
    /// It came to its end within the tokens that it had.
    pub(super) ended: bool,
}

/// What answers are made with.
pub(super) struct Reader<'a> {
    pub(super) asking: &'a Asking<'a>,
    pub(super) format: SpeechFormat,
    pub(super) eos: &'a [u32],
    pub(super) isa: Isa,
    pub(super) max_tokens: usize,
}

impl Reader<'_> {
    /// The answer to a question whose prompt begins with `shared` tokens, which the evaluator has read.
    pub(super) fn answer(
        &self,
        evaluator: &mut Evaluator,
        shared: usize,
        question: &Question,
    ) -> Result<Answer, Failure> {
        let tokenizer = self.asking.tokenizer;
        evaluator.rewind(shared);
        let mut token = self.next(evaluator, shared, &question.rest)?;
        let prompt = shared + question.rest.len();
        let mut detokenizer = Detokenizer::showing(tokenizer, self.format.shown_tokens(tokenizer));
        let (mut text, mut tokens, mut ended) = (String::new(), 1, false);
        loop {
            if self.eos.contains(&token) {
                ended = true;
                break;
            }
            text += &detokenizer.push(token)?;
            // A text that only goes on has answered with its line.
            if !self.asking.is_chat() && text.trim_start().contains('\n') {
                ended = true;
                break;
            }
            if tokens == self.max_tokens {
                break;
            }
            token = self.next(evaluator, prompt + tokens - 1, &[token])?;
            tokens += 1;
        }
        text += &detokenizer.finish();
        let text = match self.asking.is_chat() {
            true => Speech::parse(self.format, Tools::default(), &question.prompt_end, &text).content,
            false => text.trim_start().lines().next().unwrap_or_default().into(),
        };
        Ok(Answer { text: text.trim().into(), tokens, ended })
    }

    /// Feeds tokens at a position and returns the most probable one after them; of equals, the lower id.
    fn next(&self, evaluator: &mut Evaluator, position: usize, tokens: &[u32]) -> Result<u32, Failure> {
        let mut next = 0;
        evaluator.feed_from(tokens, position + tokens.len() - 1, &mut (), |position, logits| {
            if !simd::elementwise::all_finite(self.isa, logits) {
                let why = format!(
                    "logits at position {position} are not all finite; a cache of float32 has a wider range (-ctk f32)"
                );
                return Err(Failure::Failed(why.into()));
            }
            // Ids beyond the tokenizer's are padding.
            let drawn = logits.iter().zip(0u32..).take(self.asking.tokenizer.vocab_size());
            next = drawn.reduce(|best, other| if other.0 > best.0 { other } else { best }).map_or(0, |(_, id)| id);
            Ok(())
        })?;
        Ok(next)
    }
}
