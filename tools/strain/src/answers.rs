//! Requests for text, and what came back.

use std::io;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::client::{Events, Response, Site};

/// What a client got.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Answer {
    /// The status.
    pub(crate) status: u16,
    /// Text of the first choice.
    pub(crate) text: String,
    /// Why it ended; empty where the answer was an error.
    pub(crate) finish_reason: String,
    /// Tokens of the prompt and of the answer.
    pub(crate) tokens: [usize; 2],
    /// Tokens of the prompt that were in the cache.
    pub(crate) cached_tokens: usize,
    /// What the server said was wrong.
    pub(crate) error: Option<String>,
}

/// A completion of a text, greedy unless `body` is changed.
pub(crate) fn completion(model: &str, prompt: &str, max_tokens: usize) -> Value {
    json!({"model": model, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0})
}

/// A chat with one message, greedy.
pub(crate) fn chat(model: &str, message: &str, max_tokens: usize) -> Value {
    json!({"model": model, "messages": [{"role": "user", "content": message}], "max_tokens": max_tokens, "temperature": 0})
}

/// The path that answers `body`.
pub(crate) fn path_of(body: &Value) -> &'static str {
    if body.get("messages").is_some() { "/v1/chat/completions" } else { "/v1/completions" }
}

/// Sends `body` to where it belongs, streaming if it says so, and reads the answer to its end.
///
/// # Errors
/// What the system says; an answer that is not what it should be.
pub(crate) fn ask(site: &Site, body: &Value) -> io::Result<Answer> {
    if body["stream"] == true {
        return Ok(stream(site, body, usize::MAX)?.answer);
    }
    of_response(&site.post(path_of(body), body)?)
}

/// An answer that was read whole.
///
/// # Errors
/// It is a 200 without the fields of one.
pub(crate) fn of_response(response: &Response) -> io::Result<Answer> {
    let document = response.json()?;
    let mut answer = Answer { status: response.status, error: error_of(&document), ..Answer::default() };
    if answer.status == 200 && answer.error.is_none() {
        answer.add(&document);
        if answer.finish_reason.is_empty() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("an answer without an end: {document}")));
        }
    }
    Ok(answer)
}

fn error_of(document: &Value) -> Option<String> {
    document.get("error").map(|error| error["message"].as_str().unwrap_or_default().to_owned())
}

impl Answer {
    /// Takes what a chunk, or a whole answer, says.
    fn add(&mut self, document: &Value) {
        let choice = &document["choices"][0];
        let places = [&choice["text"], &choice["message"]["content"], &choice["delta"]["content"]];
        let thoughts = [&choice["message"]["reasoning_content"], &choice["delta"]["reasoning_content"]];
        for text in thoughts.into_iter().chain(places).filter_map(Value::as_str) {
            self.text.push_str(text);
        }
        if let Some(reason) = choice["finish_reason"].as_str() {
            self.finish_reason = reason.to_owned();
        }
        let usage = &document["usage"];
        let number = |value: &Value| value.as_u64().map(|number| number as usize);
        if let (Some(prompt), Some(answer)) = (number(&usage["prompt_tokens"]), number(&usage["completion_tokens"])) {
            self.tokens = [prompt, answer];
            self.cached_tokens = number(&usage["prompt_tokens_details"]["cached_tokens"]).unwrap_or(0);
        }
    }
}

/// What came as a stream.
#[derive(Clone, Debug)]
pub(crate) struct Streamed {
    /// All of it together.
    pub(crate) answer: Answer,
    /// When each chunk with text came, after the request was sent.
    pub(crate) chunks: Vec<Duration>,
    /// Whether it was read to its end.
    pub(crate) ended: bool,
}

/// Streams an answer, and leaves after `chunks_max` chunks with text.
///
/// # Errors
/// What the system says; a stream that ends without `[DONE]`.
pub(crate) fn stream(site: &Site, body: &Value, chunks_max: usize) -> io::Result<Streamed> {
    let mut body = body.clone();
    body["stream"] = true.into();
    body["stream_options"] = json!({"include_usage": true});
    let start = Instant::now();
    let connection = site.send("POST", path_of(&body), Some(&body))?;
    let mut events = Events::of(connection)?;
    read(&mut events, start, chunks_max)
}

/// Reads a stream whose head came.
///
/// # Errors
/// As [`stream`].
pub(crate) fn read(events: &mut Events, start: Instant, chunks_max: usize) -> io::Result<Streamed> {
    let mut streamed =
        Streamed { answer: Answer { status: events.status(), ..Answer::default() }, chunks: Vec::new(), ended: false };
    if events.status() != 200 {
        return Ok(Streamed { ended: true, ..streamed });
    }
    while streamed.chunks.len() < chunks_max {
        let Some(data) = events.next_data()? else {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "a stream ended without [DONE]"));
        };
        if data == "[DONE]" {
            streamed.ended = true;
            break;
        }
        let document: Value = serde_json::from_str(&data)?;
        if let Some(error) = error_of(&document) {
            streamed.answer.error = Some(error);
            streamed.ended = true;
            break;
        }
        let before = streamed.answer.text.len();
        streamed.answer.add(&document);
        if streamed.answer.text.len() > before {
            streamed.chunks.push(start.elapsed());
        }
    }
    Ok(streamed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chats_and_completions_are_read_alike() {
        let mut answer = Answer::default();
        answer.add(&json!({"choices": [{"delta": {"content": "a"}, "finish_reason": null}]}));
        answer.add(&json!({"choices": [{"text": "b", "finish_reason": "length"}]}));
        answer.add(&json!({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2,
                           "prompt_tokens_details": {"cached_tokens": 1}}}));
        assert_eq!((answer.text.as_str(), answer.finish_reason.as_str()), ("ab", "length"));
        assert_eq!((answer.tokens, answer.cached_tokens), ([3, 2], 1));
    }

    #[test]
    fn an_error_is_no_text() {
        let body = json!({"error": {"message": "no"}}).to_string().into_bytes();
        let answer = of_response(&Response { status: 400, headers: Vec::new(), body }).unwrap();
        assert_eq!((answer.status, answer.error.as_deref()), (400, Some("no")));
        let body = b"{}".to_vec();
        assert!(of_response(&Response { status: 200, headers: Vec::new(), body }).is_err());
    }
}
