//! A long time of ordinary use.
//!
//! A leak of a few kilobytes a request is found by nobody before the third night. So memory is put on a line over requests
//! and over tokens, and what counts is the upper end of the slope's interval.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use super::after;
use crate::answers::{self, ask};
use crate::options::Options;
use crate::parts::in_parallel;
use crate::process::Holdings;
use crate::random::Random;
use crate::service::Service;
use crate::statistics::{Slope, slope};
use crate::{Failure, Report};

const REQUESTS: usize = 100_000;
/// Below this many requests a slope is that of a start, and is only told: a tokenizer may keep 10,000 words that it has split,
/// and where texts are noise, each request brings new ones.
const REQUESTS_JUDGED: usize = 60_000;
const SAMPLES: usize = 1000;
const REQUEST_BYTES_MAX: f64 = 1024.0;
const TOKEN_BYTES_MAX: f64 = 16.0;
const SPEED_MIN: f64 = 0.95;

#[derive(Clone, Copy)]
struct Sample {
    time: Duration,
    requests: usize,
    tokens: usize,
    holdings: Option<Holdings>,
}

#[derive(Default)]
struct Done {
    requests: AtomicUsize,
    tokens: AtomicUsize,
    failed: AtomicUsize,
}

pub(crate) fn run(options: &Options) -> Result<Report, Failure> {
    let mut report = Report::default();
    let clients = options.clients(8);
    let service = options.service(4, &["--queue-size", &(4 * clients).to_string()])?;
    let baseline = service.baseline()?;
    let rounds = options.rounds(REQUESTS);
    let (done, ended) = (Done::default(), AtomicBool::new(false));
    let (samples, failures) = thread::scope(|scope| {
        let sampler = scope.spawn(|| sample(&service, &done, &ended, (rounds / SAMPLES).max(1)));
        let failures = in_parallel(clients, rounds, options.seed, |index, random| {
            let result = one(&service, &done, random);
            done.requests.fetch_add(1, Relaxed);
            result.err().map(|why| {
                done.failed.fetch_add(1, Relaxed);
                format!("request {index}: {why}")
            })
        });
        ended.store(true, Relaxed);
        (sampler.join().unwrap_or_default(), failures)
    });
    failures.into_iter().flatten().for_each(|why| report.remark(why));

    report.tell("seed", options.seed);
    let (requests, tokens) = (done.requests.load(Relaxed), done.tokens.load(Relaxed));
    report.tell("requests", format!("{requests} from {clients} clients, one in ten aborted; {tokens} tokens"));
    report.equal("requests that failed", done.failed.load(Relaxed), 0);
    slopes(&mut report, &samples, requests);
    speeds(&mut report, &samples, requests);
    after::check(&service, &baseline, &mut report)?;
    Ok(report)
}

/// What the process holds as requests go by.
fn sample(service: &Service, done: &Done, ended: &AtomicBool, every: usize) -> Vec<Sample> {
    let start = Instant::now();
    let mut samples: Vec<Sample> = Vec::new();
    while !ended.load(Relaxed) {
        let requests = done.requests.load(Relaxed);
        if samples.last().is_none_or(|last| requests >= last.requests + every) {
            let holdings = service.holdings().ok().flatten();
            samples.push(Sample { time: start.elapsed(), requests, tokens: done.tokens.load(Relaxed), holdings });
        }
        sleep(Duration::from_millis(2));
    }
    samples
}

fn one(service: &Service, done: &Done, random: &mut Random) -> Result<(), String> {
    let length = random.between(1, 100);
    let text = random.words(length);
    let tokens = random.between(2, 20);
    let mut body = match random.once_in(2) {
        true => answers::chat(&service.model, &text, tokens),
        false => answers::completion(&service.model, &text, tokens),
    };
    if random.once_in(10) {
        let streamed = answers::stream(&service.site, &body, random.below(4)).map_err(|error| error.to_string())?;
        return match streamed.answer.status {
            200 => Ok(()),
            status => Err(format!("status {status}")),
        };
    }
    body["stream"] = random.once_in(2).into();
    let asks_usage = body["stream"] == true;
    let answer = match asks_usage {
        true => answers::stream(&service.site, &body, usize::MAX).map(|streamed| streamed.answer),
        false => ask(&service.site, &body),
    };
    let answer = answer.map_err(|error| error.to_string())?;
    match (answer.status, &answer.error) {
        (200, None) => {
            done.tokens.fetch_add(answer.tokens.iter().sum(), Relaxed);
            Ok(())
        }
        _ => Err(format!("{answer:?}")),
    }
}

fn slopes(report: &mut Report, samples: &[Sample], requests: usize) {
    // The first fifth fills buffers, pools and caches that have a bound; it is not what goes on.
    let steady: Vec<&Sample> = samples.iter().filter(|sample| sample.requests * 5 >= requests).collect();
    let line = |x: fn(&Sample) -> usize, y: fn(&Holdings) -> f64| {
        let points = steady.iter().filter_map(|sample| Some((x(sample) as f64, y(sample.holdings.as_ref()?))));
        slope(&points.collect::<Vec<_>>())
    };
    let bytes = |holdings: &Holdings| holdings.anonymous_bytes as f64;
    let rows: [(&str, Option<Slope>, f64, &str); 3] = [
        ("anonymous memory and swap a request", line(|sample| sample.requests, bytes), REQUEST_BYTES_MAX, "bytes"),
        ("anonymous memory and swap a token", line(|sample| sample.tokens, bytes), TOKEN_BYTES_MAX, "bytes"),
        // Connections come and go; a leak of one in ten thousand is none.
        (
            "file descriptors a request",
            line(|sample| sample.requests, |holdings| holdings.descriptors as f64),
            1e-4,
            "",
        ),
    ];
    for (what, found, bound, unit) in rows {
        match found {
            None => report.tell(what, "not known: the server's process is not, or was seen too few times"),
            Some(Slope { slope, upper }) => {
                let figure = format!("{slope:.2e} {unit}, at most {upper:.2e} (95 %)");
                match requests >= REQUESTS_JUDGED {
                    true => report.holds(what, figure, format!("{bound} {unit}"), upper <= bound),
                    false => report.tell(what, figure),
                }
            }
        }
    }
}

fn speeds(report: &mut Report, samples: &[Sample], requests: usize) {
    let speed = |from: usize, to: usize| -> Option<f64> {
        let at = |tenth: usize| samples.iter().find(|sample| sample.requests * 10 >= requests * tenth);
        let (start, end) = (at(from)?, at(to).or(samples.last())?);
        let time = end.time.checked_sub(start.time)?.as_secs_f64();
        (time > 0.0).then(|| (end.tokens - start.tokens) as f64 / time)
    };
    if let (Some(second), Some(last)) = (speed(1, 2), speed(9, 10)) {
        let figure = format!("{last:.0} tokens/s, {:.1} % of the second's {second:.0}", last / second * 100.0);
        let bound = format!("{} %", SPEED_MIN * 100.0);
        report.holds_in_time("speed of the last tenth", figure, bound, last >= SPEED_MIN * second);
    }
}
