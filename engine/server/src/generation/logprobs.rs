//! How probable tokens were, as APIs tell it.

use engine_core::sampler::TokenLogprobs;
use engine_core::text::Tokenizer;
use serde_json::{Map, Value, json};

/// JSON has no minus infinity; this is what OpenAI sends for it.
const NEVER: f32 = -9999.0;

fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob } else { NEVER }
}

fn text(tokenizer: &Tokenizer, token: u32) -> String {
    String::from_utf8_lossy(tokenizer.token_bytes(token).unwrap_or_default()).into_owned()
}

/// `logprobs.content` of a chat.
pub(crate) fn of_chat(tokenizer: &Tokenizer, tokens: &[TokenLogprobs]) -> Value {
    let entry = |token: u32, logprob: f32| {
        let bytes = tokenizer.token_bytes(token).unwrap_or_default();
        json!({"token": text(tokenizer, token), "logprob": finite(logprob), "bytes": bytes})
    };
    let content = tokens.iter().map(|told| {
        let mut document = entry(told.token, told.logprob);
        document["top_logprobs"] = told.top.iter().map(|(token, logprob)| entry(*token, *logprob)).collect();
        document
    });
    json!({"content": content.collect::<Vec<_>>(), "refusal": null})
}

/// `logprobs` of a completion; `offset` is where the text of the first token begins, and is moved behind the last one.
pub(crate) fn of_text(tokenizer: &Tokenizer, tokens: &[TokenLogprobs], offset: &mut usize) -> Value {
    let (mut offsets, mut texts, mut logprobs, mut tops) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for told in tokens {
        let text_of = text(tokenizer, told.token);
        offsets.push(*offset);
        *offset += text_of.chars().count();
        texts.push(text_of);
        logprobs.push(finite(told.logprob));
        let top = told.top.iter().map(|(token, logprob)| (text(tokenizer, *token), json!(finite(*logprob))));
        tops.push(Value::Object(top.collect::<Map<_, _>>()));
    }
    json!({"text_offset": offsets, "tokens": texts, "token_logprobs": logprobs, "top_logprobs": tops})
}
