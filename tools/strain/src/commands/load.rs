//! Many clients, of whom some leave and some are wrong.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::after;
use crate::answers::{self, ask};
use crate::options::Options;
use crate::parts::in_parallel;
use crate::random::Random;
use crate::service::Service;
use crate::statistics::{ms, percentile};
use crate::{Failure, Report};

const REQUESTS: usize = 10_000;
const CLIENTS: usize = 64;
const HEALTH_MS_MAX: f64 = 50.0;
/// Between two looks at `/health`.
const HEALTH_EVERY: Duration = Duration::from_millis(20);

/// What a client wants.
enum Wish {
    /// An answer, read to its end.
    Answer(Value),
    /// A stream that is left after so many chunks.
    Leave(Value, usize),
    /// An answer that is not waited for.
    Gone(Value, Duration),
    /// A refusal: method, path, body, status.
    Refusal(&'static str, &'static str, Option<Value>, u16),
}

pub(crate) fn run(options: &Options) -> Result<Report, Failure> {
    let mut report = Report::default();
    let clients = options.clients(CLIENTS);
    // Clients that left may wait in line until the next step; nobody is to be turned away for them.
    let service = options.service(4, &["--queue-size", &(4 * clients).to_string()])?;
    let baseline = service.baseline()?;
    let rounds = options.rounds(REQUESTS);
    report.tell("seed", options.seed);
    report.tell("requests", format!("{rounds} from {clients} clients"));

    let ended = AtomicBool::new(false);
    let start = Instant::now();
    let (results, health) = thread::scope(|scope| {
        let health = scope.spawn(|| watch(&service, &ended));
        let results = in_parallel(clients, rounds, options.seed, |_, random| {
            let wish = wish(&service.model, random);
            fulfil(&service, &wish)
        });
        ended.store(true, Relaxed);
        (results, health.join().unwrap_or_default())
    });
    let seconds = start.elapsed().as_secs_f64();

    let mut statuses: BTreeMap<String, usize> = BTreeMap::new();
    let (mut wrong, mut tokens) = (0, 0);
    for (index, result) in results.into_iter().enumerate() {
        match result {
            Ok((what, given)) => {
                tokens += given;
                *statuses.entry(what).or_default() += 1;
            }
            Err(why) => {
                wrong += 1;
                report.remark(format!("request {index}: {why}"));
            }
        }
    }
    let statuses = statuses.iter().map(|(what, count)| format!("{what} {count}")).collect::<Vec<_>>().join(", ");
    report.tell("answers", statuses);
    report.tell("speed", format!("{:.0} requests/s, {:.0} tokens/s", rounds as f64 / seconds, tokens as f64 / seconds));
    report.equal("wrong answers", wrong, 0);
    report.equal(format!("of {} looks at /health, not 200", health.len()), unwell(&health), 0);
    let times: Vec<f64> = health.iter().flatten().copied().collect();
    if let (Some(p50), Some(p99)) = (percentile(&times, 0.5), percentile(&times, 0.99)) {
        report.tell("/health p50", format!("{p50:.1} ms"));
        report.holds_in_time(
            "/health p99",
            format!("{p99:.1} ms"),
            format!("{HEALTH_MS_MAX} ms"),
            p99 <= HEALTH_MS_MAX,
        );
    }
    after::check(&service, &baseline, &mut report)?;
    Ok(report)
}

/// Times of `/health`, in milliseconds; none where it did not say 200.
fn watch(service: &Service, ended: &AtomicBool) -> Vec<Option<f64>> {
    let mut times = Vec::new();
    loop {
        let start = Instant::now();
        let well = service.site.get("/health").is_ok_and(|answer| answer.status == 200);
        times.push(well.then(|| ms(start.elapsed())));
        if ended.load(Relaxed) {
            return times;
        }
        sleep(HEALTH_EVERY);
    }
}

fn unwell(health: &[Option<f64>]) -> usize {
    health.iter().filter(|time| time.is_none()).count()
}

fn wish(model: &str, random: &mut Random) -> Wish {
    let long = if random.once_in(10) { 600 } else { 40 };
    let characters = random.between(1, long);
    let (prompt, max_tokens) = (random.words(characters), random.between(1, 12));
    let mut body = match random.once_in(2) {
        true => answers::chat(model, &prompt, max_tokens),
        false => answers::completion(model, &prompt, max_tokens),
    };
    if random.once_in(3) {
        body["temperature"] = json!(0.8);
        body["seed"] = json!(random.below(1000));
    }
    match random.below(20) {
        0 | 1 => {
            body["max_tokens"] = json!(200);
            Wish::Leave(body, random.below(6))
        }
        2 | 3 => {
            body["max_tokens"] = json!(200);
            Wish::Gone(body, Duration::from_micros(random.below(20_000) as u64))
        }
        4 => refusal(body, random),
        5..=9 => {
            body["stream"] = true.into();
            Wish::Answer(body)
        }
        _ => Wish::Answer(body),
    }
}

/// Requests whose answer is known without the server's code.
fn refusal(mut body: Value, random: &mut Random) -> Wish {
    let path = answers::path_of(&body);
    match random.below(6) {
        0 => {
            body["temperature"] = json!(-1);
            Wish::Refusal("POST", path, Some(body), 400)
        }
        1 => {
            body["max_tokens"] = json!("many");
            Wish::Refusal("POST", path, Some(body), 400)
        }
        2 => {
            body["model"] = json!("no-such-model");
            Wish::Refusal("POST", path, Some(body), 404)
        }
        3 => Wish::Refusal("GET", "/v1/nothing", None, 404),
        4 => Wish::Refusal("GET", path, None, 405),
        _ => {
            body["max_tokens"] = json!(100_000_000);
            Wish::Refusal("POST", path, Some(body), 400)
        }
    }
}

/// What came, and how many tokens; or what was wrong with it.
fn fulfil(service: &Service, wish: &Wish) -> Result<(String, usize), String> {
    let site = &service.site;
    match wish {
        Wish::Answer(body) => {
            let answer = ask(site, body).map_err(|error| format!("{error}, to {body}"))?;
            match (answer.status, &answer.error) {
                (200, None) => Ok(("200".into(), answer.tokens[1])),
                _ => Err(format!("{answer:?}, to {body}")),
            }
        }
        Wish::Leave(body, chunks) => match answers::stream(site, body, *chunks) {
            Ok(streamed) if streamed.answer.status == 200 && streamed.answer.error.is_none() => Ok(("left".into(), 0)),
            Ok(streamed) => Err(format!("{:?}, to {body}", streamed.answer)),
            Err(error) => Err(format!("{error}, to {body}")),
        },
        Wish::Gone(body, after) => {
            let connection =
                site.send("POST", answers::path_of(body), Some(body)).map_err(|error| error.to_string())?;
            sleep(*after);
            connection.abort();
            Ok(("gone".into(), 0))
        }
        Wish::Refusal(method, path, body, want) => {
            let answer = site.ask(method, path, body.as_ref()).map_err(|error| error.to_string())?;
            match answer.status == *want {
                true => Ok((want.to_string(), 0)),
                false => Err(format!("{method} {path}: {} in place of {want}, to {body:?}", answer.status)),
            }
        }
    }
}
