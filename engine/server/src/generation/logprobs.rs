//! How probable tokens were, as APIs tell it.

use engine_core::sampler::TokenLogprobs;
use engine_core::text::Tokenizer;
use serde_json::{Map, Value, json};

/// JSON has no minus infinity; this is what OpenAI sends for it.
const NEVER: f32 = -9999.0;

fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob } else { NEVER }
}

/// A token's text; one that is a part of a character is spelled by its bytes, so that no two are the same.
fn text(tokenizer: &Tokenizer, token: u32) -> String {
    let bytes = tokenizer.token_bytes(token).unwrap_or_default();
    match std::str::from_utf8(bytes) {
        Ok(text) => text.into(),
        Err(_) => bytes.iter().fold(String::from("bytes:"), |text, byte| text + &format!("\\x{byte:02x}")),
    }
}

/// Characters that begin in a token.
fn characters(tokenizer: &Tokenizer, token: u32) -> usize {
    let bytes = tokenizer.token_bytes(token).unwrap_or_default();
    bytes.iter().filter(|byte| **byte & 0b1100_0000 != 0b1000_0000).count()
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
        offsets.push(*offset);
        *offset += characters(tokenizer, told.token);
        texts.push(text(tokenizer, told.token));
        logprobs.push(finite(told.logprob));
        let top = told.top.iter().map(|(token, logprob)| (text(tokenizer, *token), json!(finite(*logprob))));
        tops.push(Value::Object(top.collect::<Map<_, _>>()));
    }
    json!({"text_offset": offsets, "tokens": texts, "token_logprobs": logprobs, "top_logprobs": tops})
}
