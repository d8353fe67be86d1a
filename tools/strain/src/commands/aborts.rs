//! Clients that leave.
//!
//! A sequence that nobody waits for must end in whatever phase it is, and must not take another with it: a server of this kind
//! hung for good when a client left while somebody else's prompt was being computed (llama.cpp #27604). So half of all
//! rounds do just that, and the other's answer is compared with the one that it gets alone.

use std::io;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::after;
use crate::answers::{self, Answer, ask};
use crate::client::Events;
use crate::options::Options;
use crate::parts::in_parallel;
use crate::random::Random;
use crate::service::Service;
use crate::statistics::{ms, percentile};
use crate::{Failure, Report};

const ROUNDS: usize = 1000;
/// Aborts whose effect on the blocks is timed, one after the other.
const TIMED: usize = 20;
/// Answers of others that are compared with those that they get alone: one in so many.
const COMPARED_ONE_IN: usize = 5;
/// Characters of a long prompt, and of a short one.
const LONG: usize = 1500;
const SHORT: usize = 12;
/// Tokens of an answer that is aborted before its end.
const MANY: usize = 400;
const BACK_MS_MAX: f64 = 2000.0;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    Queued,
    Prefill,
    Decoding,
    DuringOthersPrefill,
}

impl Phase {
    fn of_round(round: usize) -> Self {
        match round % 6 {
            0 => Self::Queued,
            2 => Self::Prefill,
            4 => Self::Decoding,
            _ => Self::DuringOthersPrefill,
        }
    }
}

/// The client that stayed, and what it was told.
struct Other {
    body: Value,
    answer: io::Result<Answer>,
}

pub(crate) fn run(options: &Options) -> Result<Report, Failure> {
    let mut report = Report::default();
    let service = options.service(4, &["--queue-size", "256"])?;
    let baseline = service.baseline()?;
    let rounds = options.rounds(ROUNDS);
    let prefill = time_of_prefill(&service, options.seed)?;
    report.tell("seed", options.seed);
    report.tell("rounds", rounds);

    let others = in_parallel(options.clients(4), rounds, options.seed, |round, random| {
        abort(&service, Phase::of_round(round), prefill, random)
    });
    let mut failed = 0;
    let mut stayed = Vec::new();
    for (round, other) in others.into_iter().enumerate() {
        match other {
            Ok(None) => {}
            Ok(Some(Other { body, answer: Ok(answer) })) if answer.status == 200 => stayed.push((round, body, answer)),
            Ok(Some(Other { answer, .. })) => {
                failed += 1;
                let said = answer.map_or_else(|error| error.to_string(), |answer| format!("{answer:?}"));
                report.remark(format!("round {round}: the other got {said}"));
            }
            Err(error) => {
                failed += 1;
                report.remark(format!("round {round} ({:?}): {error}", Phase::of_round(round)));
            }
        }
    }
    report.equal("requests that failed beside an abort", failed, 0);
    after::check(&service, &baseline, &mut report)?;

    let mut different = 0;
    let compared: Vec<_> = stayed.iter().step_by(COMPARED_ONE_IN).collect();
    for (round, body, answer) in &compared {
        let alone = ask(&service.site, body).map_err(|error| Failure::io("a request alone", error))?;
        if (alone.status, &alone.text, &alone.finish_reason) != (200, &answer.text, &answer.finish_reason) {
            different += 1;
            report.remark(format!("round {round}: alone {:?}, then {:?}", alone.text, answer.text));
        }
    }
    report.equal(format!("of {} answers beside an abort, other than alone", compared.len()), different, 0);
    time_aborts(&service, &mut report, options.seed)?;
    Ok(report)
}

fn long_prompt(service: &Service, random: &mut Random, max_tokens: usize) -> Value {
    answers::completion(&service.model, &random.words(LONG), max_tokens)
}

/// How long a long prompt takes when nobody else is there.
fn time_of_prefill(service: &Service, seed: u64) -> Result<Duration, Failure> {
    let body = long_prompt(service, &mut Random::new(seed), 1);
    let start = Instant::now();
    match ask(&service.site, &body) {
        Ok(answer) if answer.status == 200 => Ok(start.elapsed()),
        Ok(answer) => Err(Failure::Server(format!("a prompt of {LONG} characters: {answer:?}"))),
        Err(error) => Err(Failure::io("a long prompt", error)),
    }
}

fn part_of(time: Duration, random: &mut Random) -> Duration {
    time.mul_f64(random.below(1000) as f64 / 1000.0)
}

/// A stream of many tokens whose head came, and whose first text too if `begun`; a model may end it before that.
fn streaming(service: &Service, body: Value, begun: bool) -> io::Result<Events> {
    let mut body = body;
    body["stream"] = true.into();
    let start = Instant::now();
    let mut events = Events::of(service.site.send("POST", answers::path_of(&body), Some(&body))?)?;
    if events.status() != 200 {
        return Err(io::Error::other(format!("a stream got status {}", events.status())));
    }
    if begun {
        answers::read(&mut events, start, 1)?;
    }
    Ok(events)
}

fn abort(service: &Service, phase: Phase, prefill: Duration, random: &mut Random) -> io::Result<Option<Other>> {
    let short = |random: &mut Random| answers::completion(&service.model, &random.words(SHORT), MANY);
    match phase {
        Phase::Queued => {
            // All places taken, and one more.
            let running = service.parallel.unwrap_or(4);
            let before =
                (0..running).map(|_| streaming(service, short(random), false)).collect::<io::Result<Vec<_>>>()?;
            let last = service.site.send("POST", "/v1/completions", Some(&short(random)))?;
            sleep(Duration::from_micros(random.below(5000) as u64));
            last.abort();
            before.into_iter().for_each(Events::abort);
            Ok(None)
        }
        Phase::Prefill => {
            let body = long_prompt(service, random, MANY);
            // Half of these clients do not stream: their answer's head is not there yet.
            let connection = match random.once_in(2) {
                true => service.site.send("POST", "/v1/completions", Some(&body))?,
                false => {
                    streaming(service, body, false)?.abort();
                    return Ok(None);
                }
            };
            sleep(part_of(prefill, random));
            connection.abort();
            Ok(None)
        }
        Phase::Decoding => {
            answers::stream(&service.site, &short(random), random.between(1, 8))?;
            Ok(None)
        }
        Phase::DuringOthersPrefill => {
            let leaving = streaming(service, short(random), true)?;
            let max_tokens = random.between(1, 6);
            let body = long_prompt(service, random, max_tokens);
            let staying = service.site.send("POST", "/v1/completions", Some(&body))?;
            sleep(part_of(prefill, random));
            leaving.abort();
            let answer = staying.response().and_then(|response| answers::of_response(&response));
            Ok(Some(Other { body, answer }))
        }
    }
}

/// How long after an abort the blocks are back, when nobody else is there.
fn time_aborts(service: &Service, report: &mut Report, seed: u64) -> Result<(), Failure> {
    let mut times = Vec::new();
    for index in 0..TIMED {
        let mut random = Random::of_part(!seed, index);
        let (before, _) = service.settle(Duration::from_secs(30), |work| work.running == 0 && work.waiting == 0)?;
        let body = long_prompt(service, &mut random, MANY);
        let events = streaming(service, body, random.once_in(2)).map_err(|error| Failure::io("a stream", error))?;
        events.abort();
        let (_, time) = service.settle(Duration::from_secs(30), |work| *work == before)?;
        times.push(ms(time));
    }
    let p99 = percentile(&times, 0.99).unwrap_or_default();
    let figure = format!("{p99:.0} ms at most, of {TIMED}");
    report.holds_in_time("from an abort to its blocks", figure, format!("{BACK_MS_MAX} ms"), p99 <= BACK_MS_MAX);
    Ok(())
}
