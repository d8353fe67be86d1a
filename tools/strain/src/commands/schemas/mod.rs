//! Answers that a schema allows, and nothing else.
//!
//! A model with random weights obeys nobody: what is valid here is valid because of the mask. A schema that cannot be kept is
//! refused; text without it would look like an answer (llama.cpp #19051).

mod draw;
mod valid;

use std::io;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::after;
use crate::answers::{self, Answer, ask};
use crate::options::Options;
use crate::parts::in_parallel;
use crate::random::Random;
use crate::service::Service;
use crate::statistics::percentile;
use crate::{Failure, Report};

const SCHEMAS: usize = 500;
/// Enough for every schema that is drawn, with the white space that JSON may have.
const TOKENS_MAX: usize = 6000;
const COST_MAX: f64 = 0.05;
/// Pairs of answers whose times are compared.
const TIMED: usize = 15;
const TIMED_TOKENS: usize = 48;

pub(crate) fn run(options: &Options) -> Result<Report, Failure> {
    let mut report = Report::default();
    let service = options.service(4, &["--queue-size", "256"])?;
    let baseline = service.baseline()?;
    let rounds = options.rounds(SCHEMAS);
    let results = in_parallel(options.clients(4), rounds, options.seed, |index, random| {
        let schema = draw::schema(random);
        let mut body = asking(&service.model, &schema, TOKENS_MAX);
        if index % 2 == 1 {
            body["temperature"] = json!(1.0);
            body["seed"] = json!(index);
        }
        body["stream"] = (index % 3 == 1).into();
        (judge(&schema, ask(&service.site, &body)), schema)
    });
    let mut counts = [0; 4];
    for (index, (verdict, schema)) in results.into_iter().enumerate() {
        counts[verdict.kind as usize] += 1;
        if verdict.kind != Kind::Valid {
            report.remark(format!("schema {index}: {}: {schema}", verdict.why));
        }
    }
    report.tell("seed", options.seed);
    report.tell("schemas", rounds);
    let [valid, invalid, unfinished, failed] = counts;
    report.tell("valid answers", valid);
    report.equal("invalid answers", invalid, 0);
    report.equal(format!("answers not finished after {TOKENS_MAX} tokens"), unfinished, 0);
    report.equal("requests that failed", failed, 0);
    bad_schemas(&service, &mut report);
    cost_of_mask(&service, &mut report, options.seed)?;
    after::check(&service, &baseline, &mut report)?;
    Ok(report)
}

fn asking(model: &str, schema: &Value, max_tokens: usize) -> Value {
    let mut body = answers::chat(model, "Answer.", max_tokens);
    body["response_format"] =
        json!({"type": "json_schema", "json_schema": {"name": "answer", "strict": true, "schema": schema}});
    body
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Valid,
    Invalid,
    Unfinished,
    Failed,
}

struct Verdict {
    kind: Kind,
    why: String,
}

fn judge(schema: &Value, answer: io::Result<Answer>) -> Verdict {
    let verdict = |kind, why: String| Verdict { kind, why };
    let answer = match answer {
        Ok(answer) if answer.status == 200 && answer.error.is_none() => answer,
        Ok(answer) => return verdict(Kind::Failed, format!("{answer:?}")),
        Err(error) => return verdict(Kind::Failed, error.to_string()),
    };
    if answer.finish_reason == "length" {
        return verdict(Kind::Unfinished, answer.text.chars().take(300).collect());
    }
    match serde_json::from_str::<Value>(&answer.text) {
        Err(error) => verdict(Kind::Invalid, format!("not JSON ({error}): {:?}", answer.text)),
        Ok(document) => match valid::check(schema, schema, &document) {
            Ok(()) => verdict(Kind::Valid, String::new()),
            Err(why) => verdict(Kind::Invalid, format!("{why}: {document}")),
        },
    }
}

/// Schemas that no server can keep are a 400.
fn bad_schemas(service: &Service, report: &mut Report) {
    let bad = [
        json!({"type": "objekt"}),
        json!({"type": 7}),
        json!({"type": "string", "pattern": "("}),
        json!({"type": "string", "pattern": "(?=look)ahead"}),
        json!({"$ref": "#/$defs/missing"}),
        json!({"$ref": "http://127.0.0.1:9/schema"}),
        json!({"type": "integer", "minimum": 5, "maximum": 1}),
        json!({"type": "string", "minLength": 5, "maxLength": 1}),
        json!({"enum": []}),
        json!(false),
        json!({"type": "object", "properties": []}),
        json!({"anyOf": "x"}),
        json!([]),
        json!("x"),
        json!(7),
        Value::Null,
    ];
    let total = bad.len();
    let mut taken = 0;
    for schema in bad {
        let answer = ask(&service.site, &asking(&service.model, &schema, 4));
        if !answer.as_ref().is_ok_and(|answer| answer.status == 400) {
            taken += 1;
            report.remark(format!("not refused with 400: {schema}: {answer:?}"));
        }
    }
    report.equal(format!("of {total} bad schemas, not refused"), taken, 0);
}

/// What a token costs with a mask and without, in alternating requests of as many tokens.
fn cost_of_mask(service: &Service, report: &mut Report, seed: u64) -> Result<(), Failure> {
    // One string that goes on as long as it may: every token is masked, and none is forced for long.
    let schema = json!({"type": "string", "minLength": 10_000});
    let timed = |constrained: bool, number: usize| -> Result<Option<f64>, Failure> {
        let mut random = Random::of_part(seed, number);
        let mut body = answers::chat(&service.model, &random.words(20), TIMED_TOKENS);
        if constrained {
            body["response_format"] = asking(&service.model, &schema, 1)["response_format"].clone();
        }
        body["temperature"] = json!(1.0);
        body["seed"] = json!(number);
        let start = Instant::now();
        let streamed = answers::stream(&service.site, &body, usize::MAX);
        let streamed = streamed.map_err(|error| Failure::io("a stream", error))?;
        let first = streamed.chunks.first().copied().unwrap_or_default();
        let tokens = streamed.answer.tokens[1];
        // The first token has the prompt's time, and the grammar's reading, in it.
        let time = start.elapsed().saturating_sub(first);
        Ok((tokens > 8 && time > Duration::ZERO).then(|| time.as_secs_f64() / (tokens - 1) as f64))
    };
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for number in 0..TIMED {
        with.extend(timed(true, number)?);
        without.extend(timed(false, number)?);
    }
    match (percentile(&with, 0.5), percentile(&without, 0.5)) {
        (Some(with), Some(without)) => {
            let cost = with / without - 1.0;
            let figure = format!("{:+.1} % of a token's {:.0} µs", cost * 100.0, without * 1e6);
            let bound = format!("{} %", COST_MAX * 100.0);
            report.holds_in_time("the mask costs", figure, bound, cost <= COST_MAX);
        }
        _ => report.holds_in_time("the mask costs", "answers too short to tell", "a figure", false),
    }
    Ok(())
}
