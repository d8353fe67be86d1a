//! Whether anything of one request comes out of another.
//!
//! With private notes this is the worst that can happen, and it has happened to others after aborts and when a cache was full
//! (llama.cpp #27148, Ollama #17475). Every request carries a mark of its own. A model with random weights repeats nothing,
//! so marks come back in two ways that it cannot help: by a schema that allows nothing else, and as an echo of the prompt. The
//! rest is told by bytes: a prompt has the answer that it has alone, or something else had a part in it.

use std::io;

use serde_json::{Value, json};

use super::after;
use crate::answers::{self, ask};
use crate::options::Options;
use crate::parts::in_parallel;
use crate::random::Random;
use crate::service::Service;
use crate::{Failure, Report};

const ROUNDS: usize = 500;
/// Requests of a round, one of each role and two with a mark in a schema.
const ROLES: usize = 6;
/// Prompts whose answers are known.
const KNOWN: usize = 24;
/// Characters of a prompt that pushes others out of the cache.
const LONG: usize = 1200;
const MARK: &str = "mk";
const MARK_DIGITS: usize = 16;

/// A prompt and its answer when nobody else is there.
struct Known {
    body: Value,
    text: String,
}

/// What was wrong with an answer.
enum Fault {
    ForeignMark,
    NoMark,
    OtherBytes,
    Failed,
}

pub(crate) fn run(options: &Options) -> Result<Report, Failure> {
    let mut report = Report::default();
    let service = options.service(4, &["--queue-size", "256"])?;
    let baseline = service.baseline()?;
    let rounds = options.rounds(ROUNDS);
    let known = known(&service, options.seed).map_err(|error| Failure::io("a request alone", error))?;
    let mut texts: Vec<&str> = known.iter().map(|known| known.text.as_str()).collect();
    texts.sort_unstable();
    texts.dedup();
    let probe =
        ask(&service.site, &in_schema(&service.model, "mk0", "a")).map_err(|error| Failure::io("a schema", error))?;
    let schemas = probe.status == 200;

    let results = in_parallel(options.clients(12), rounds * ROLES, options.seed, |index, random| {
        let mark = format!("{MARK}{}", random.hex(MARK_DIGITS));
        let role = index % ROLES;
        one(&service, role, &mark, &known, schemas, random)
            .map_err(|(fault, why)| (fault, format!("request {index}: {why}")))
    });
    let mut counts = [0; 4];
    for (fault, why) in results.into_iter().filter_map(Result::err) {
        counts[fault as usize] += 1;
        report.remark(why);
    }
    report.tell("seed", options.seed);
    report.tell("rounds", format!("{rounds} of {ROLES} requests"));
    // Were they all alike, equal bytes would say nothing.
    let distinct = format!("{} of {}", texts.len(), known.len());
    report.holds("answers that differ between prompts", distinct, "at least half", texts.len() * 2 >= known.len());
    let support = if schemas {
        "by schema and echo".to_owned()
    } else {
        format!("by echo only; a schema was refused: {:?}", probe.error)
    };
    report.holds("marks come back", support, "by schema and echo", schemas);
    let [foreign, absent, other, failed] = counts;
    report.equal("foreign marks", foreign, 0);
    report.equal("answers without their own mark", absent, 0);
    report.equal("answers with other bytes than alone", other, 0);
    report.equal("requests that failed", failed, 0);
    after::check(&service, &baseline, &mut report)?;
    Ok(report)
}

fn known(service: &Service, seed: u64) -> io::Result<Vec<Known>> {
    // Some begin alike, so that they share blocks.
    let mut random = Random::new(!seed);
    let beginnings = [random.words(300), random.words(40), String::new()];
    let bodies = (0..KNOWN).map(|index| {
        let length = random.between(5, 80);
        let prompt = format!("{}{}", beginnings[index % beginnings.len()], random.words(length));
        let mut body = match index % 4 {
            0 => answers::chat(&service.model, &prompt, 16),
            _ => answers::completion(&service.model, &prompt, 16),
        };
        if index % 3 == 1 {
            body["temperature"] = json!(1.0);
            body["seed"] = json!(index);
        }
        body
    });
    bodies
        .map(|body| {
            let answer = ask(&service.site, &body)?;
            match answer.status {
                200 => Ok(Known { body, text: answer.text }),
                _ => Err(io::Error::other(format!("{answer:?}, to {body}"))),
            }
        })
        .collect()
}

/// A chat whose answer can be nothing but `mark`.
fn in_schema(model: &str, mark: &str, message: &str) -> Value {
    let schema = json!({"type": "object", "properties": {"mark": {"const": mark}}, "required": ["mark"], "additionalProperties": false});
    let mut body = answers::chat(model, message, 120);
    body["response_format"] =
        json!({"type": "json_schema", "json_schema": {"name": "mark", "strict": true, "schema": schema}});
    body
}

/// Marks in a text.
fn marks(text: &str) -> impl Iterator<Item = &str> {
    text.match_indices(MARK).filter_map(|(at, _)| {
        let mark = text.get(at..at + MARK.len() + MARK_DIGITS)?;
        mark[MARK.len()..].bytes().all(|byte| byte.is_ascii_hexdigit()).then_some(mark)
    })
}

fn one(
    service: &Service,
    role: usize,
    mark: &str,
    known: &[Known],
    schemas: bool,
    random: &mut Random,
) -> Result<(), (Fault, String)> {
    let model = &service.model;
    let stream = random.once_in(2);
    let text_of = |body: &Value| {
        let mut body = body.clone();
        body["stream"] = stream.into();
        let answer = ask(&service.site, &body).map_err(|error| (Fault::Failed, format!("{error}, to {body}")))?;
        match (answer.status, &answer.error) {
            (200, None) => Ok(answer.text),
            _ => Err((Fault::Failed, format!("{answer:?}, to {body}"))),
        }
    };
    let only_own = |text: &str| match marks(text).find(|found| *found != mark) {
        Some(foreign) => Err((Fault::ForeignMark, format!("{foreign} in the answer to {mark}: {text:?}"))),
        None => Ok(()),
    };
    match role {
        0 | 1 if schemas => {
            let text = text_of(&in_schema(model, mark, &format!("{mark} {}", random.words(20))))?;
            only_own(&text)?;
            let document: Value = serde_json::from_str(&text).unwrap_or(Value::Null);
            match document["mark"] == mark {
                true => Ok(()),
                false => Err((Fault::NoMark, format!("{mark} is not in its answer {text:?}"))),
            }
        }
        0..=2 => {
            let mut body = answers::completion(model, &format!("{mark} {}", random.words(30)), 12);
            body["echo"] = true.into();
            let text = text_of(&body)?;
            only_own(&text)?;
            match text.starts_with(mark) {
                true => Ok(()),
                false => Err((Fault::NoMark, format!("{mark} does not begin its echo {text:?}"))),
            }
        }
        3 => {
            let Known { body, text } = random.one_of(known);
            let got = text_of(body)?;
            match got == *text {
                true => Ok(()),
                false => Err((Fault::OtherBytes, format!("alone {text:?}, here {got:?}, to {body}"))),
            }
        }
        4 => {
            let body = answers::completion(model, &format!("{mark} {}", random.words(50)), 200);
            let streamed = answers::stream(&service.site, &body, random.below(6));
            let streamed = streamed.map_err(|error| (Fault::Failed, error.to_string()))?;
            only_own(&streamed.answer.text)
        }
        _ => only_own(&text_of(&answers::completion(model, &format!("{mark} {}", random.words(LONG)), 8))?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_found_in_any_text() {
        let text = "ж mk0123456789abcdef, mkx, mk0123456789abcdeg mkfedcba9876543210ж mk01";
        assert_eq!(marks(text).collect::<Vec<_>>(), ["mk0123456789abcdef", "mkfedcba9876543210"]);
    }
}
