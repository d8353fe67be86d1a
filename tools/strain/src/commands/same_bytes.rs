//! The same request alone, in company, and after a restart.

use std::ffi::OsString;
use std::process::Command;

use serde_json::{Value, json};

use crate::answers::{self, Answer, ask};
use crate::options::Options;
use crate::parts::in_parallel;
use crate::random::Random;
use crate::service::Service;
use crate::{Failure, Report};

/// Different requests of a full run.
const REQUESTS: usize = 16;
/// Others beside one.
const COMPANY: usize = 15;

pub(crate) fn run(options: &Options) -> Result<Report, Failure> {
    let mut report = Report::default();
    let cache = tempfile::tempdir().map_err(|error| Failure::io("a temporary folder", error))?;
    let launch = options.launch(16, &["--queue-size", "64"])?;
    let help = Command::new(&launch.program).args(["serve", "--help"]).output();
    let help = help.map_err(|error| Failure::io(&launch.program.display().to_string(), error))?;
    let on_disk = String::from_utf8_lossy(&help.stdout).contains("--kv-dir");
    let kv_dir = cache.path().join("kv").display().to_string();
    let flags = if on_disk { vec!["--queue-size", "64", "--kv-dir", &kv_dir] } else { vec!["--queue-size", "64"] };
    let service = options.service(16, &flags)?;

    let rounds = options.rounds(REQUESTS);
    let bodies: Vec<Value> = (0..rounds).map(|index| request(&service.model, index, options.seed)).collect();
    let alone = bodies.iter().map(|body| answered(&service, body)).collect::<Result<Vec<_>, _>>()?;
    report.tell("seed", options.seed);
    report.tell("requests", rounds);

    let again = bodies.iter().map(|body| answered(&service, body)).collect::<Result<Vec<_>, _>>()?;
    compare(&mut report, "with its prompt in the cache", &alone, &again);

    let mut among = Vec::new();
    for (index, body) in bodies.iter().enumerate() {
        let place = index % (COMPANY + 1);
        let mut answers = in_parallel(COMPANY + 1, COMPANY + 1, options.seed ^ index as u64, |other, random| {
            if other == place {
                return answered(&service, body);
            }
            let length = random.between(5, 400);
            answered(&service, &answers::completion(&service.model, &random.words(length), 24))
        });
        among.push(answers.swap_remove(place)?);
    }
    compare(&mut report, &format!("among {COMPANY} others"), &alone, &among);

    // The process may have put all of it to disk by now, or do so at its end.
    let service = service.restart(&[] as &[OsString])?;
    let after = bodies.iter().map(|body| answered(&service, body)).collect::<Result<Vec<_>, _>>()?;
    compare(&mut report, "after a restart", &alone, &after);
    let cached: usize = after.iter().map(|answer| answer.cached_tokens).sum();
    match on_disk {
        true => report.holds("prompt tokens from the disk cache", cached, "some", cached > 0),
        false => report.tell("the disk cache", "this server has no --kv-dir; what was compared was computed again"),
    }
    service.end()?;
    Ok(report)
}

fn answered(service: &Service, body: &Value) -> Result<Answer, Failure> {
    let answer = ask(&service.site, body).map_err(|error| Failure::io("a request", error))?;
    match (answer.status, &answer.error) {
        (200, None) => Ok(answer),
        _ => Err(Failure::Server(format!("{answer:?}, to {body}"))),
    }
}

fn compare(report: &mut Report, how: &str, alone: &[Answer], other: &[Answer]) {
    let same = |(one, two): &(&Answer, &Answer)| {
        (&one.text, &one.finish_reason, one.tokens) == (&two.text, &two.finish_reason, two.tokens)
    };
    let different: Vec<_> = alone.iter().zip(other).filter(|pair| !same(pair)).collect();
    for (one, two) in &different {
        report.remark(format!("{how}: alone {one:?}, here {two:?}"));
    }
    report.equal(format!("of {} answers {how}, different", alone.len()), different.len(), 0);
}

/// Greedy and drawn, short and long, plain and chats, streamed and whole.
fn request(model: &str, index: usize, seed: u64) -> Value {
    let mut random = Random::of_part(seed, index);
    let length = if index.is_multiple_of(3) { random.between(600, 1500) } else { random.between(5, 100) };
    let text = random.words(length);
    let mut body = if index % 4 == 1 { answers::chat(model, &text, 32) } else { answers::completion(model, &text, 32) };
    if index % 2 == 1 {
        body["temperature"] = json!(1.0);
        body["top_p"] = json!(0.95);
        body["seed"] = json!(random.below(1 << 30));
    }
    body["stream"] = (index % 5 == 2).into();
    body
}
