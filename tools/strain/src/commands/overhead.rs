//! What HTTP costs: one client's decode rate beside that of `nightmonk bench`, in alternating rounds.
//!
//! Between rounds the server is ended: two copies of a large model do not fit, and a neighbour would cost bandwidth.

use std::process::Command;
use std::time::Instant;

use serde_json::{Value, json};

use crate::answers;
use crate::options::Options;
use crate::service::{Launch, Service};
use crate::statistics::percentile;
use crate::{Failure, Report};

const ROUNDS: usize = 5;
/// Tokens whose time is told, after those of a shorter answer.
const TOKENS: usize = 64;
const SHORT: usize = 8;
const OVERHEAD_MAX: f64 = 0.03;

pub(crate) fn run(options: &Options) -> Result<Report, Failure> {
    let mut report = Report::default();
    let launch = options.launch(1, &[])?;
    let (mut served, mut benched) = (Vec::new(), Vec::new());
    for round in 0..options.rounds(ROUNDS) {
        // Every other round the other way.
        if round % 2 == 0 {
            benched.push(bench(&launch)?);
            served.push(serve(&launch)?);
        } else {
            served.push(serve(&launch)?);
            benched.push(bench(&launch)?);
        }
    }
    let ratios: Vec<f64> = benched.iter().zip(&served).map(|(bench, serve)| bench / serve - 1.0).collect();
    report.tell("bench, tokens/s", list(&benched));
    report.tell("served, tokens/s", list(&served));
    match percentile(&ratios, 0.5) {
        Some(overhead) => {
            let figure = format!("{:+.2} % (median of {} rounds)", overhead * 100.0, ratios.len());
            let bound = format!("{} %", OVERHEAD_MAX * 100.0);
            report.holds_in_time("time a token over the bench", figure, bound, overhead <= OVERHEAD_MAX);
        }
        None => return Err(Failure::Usage("no rounds, no figure".into())),
    }
    Ok(report)
}

fn list(speeds: &[f64]) -> String {
    speeds.iter().map(|speed| format!("{speed:.2}")).collect::<Vec<_>>().join(", ")
}

fn bench(launch: &Launch) -> Result<f64, Failure> {
    let mut command = Command::new(&launch.program);
    command.arg("bench").arg("-m").arg(&launch.model).args(["-p", "0", "-n", &TOKENS.to_string(), "-r", "3"]);
    let output = command.args(["--width", "1", "-o", "json"]).output();
    let output = output.map_err(|error| Failure::io(&launch.program.display().to_string(), error))?;
    let figures: Value = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    figures[0]["tokens_per_second"].as_f64().ok_or_else(|| {
        Failure::Server(format!("`nightmonk bench`: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr)))
    })
}

/// The decode rate of one stream. Two answers that begin alike and differ in length tell it: the time of what both have, the
/// prompt's above all, falls out.
fn serve(launch: &Launch) -> Result<f64, Failure> {
    let service = Service::start(launch)?;
    let timed = |number: usize, tokens: usize| -> Result<(f64, usize), Failure> {
        let mut body = answers::completion(&service.model, "a", tokens);
        // As the bench takes the most probable token, and no end.
        body["temperature"] = json!(0);
        body["ignore_eos"] = json!(true);
        body["seed"] = json!(number);
        let start = Instant::now();
        let streamed = answers::stream(&service.site, &body, usize::MAX);
        let streamed = streamed.map_err(|error| Failure::io("a stream", error))?;
        Ok((start.elapsed().as_secs_f64(), streamed.answer.tokens[1]))
    };
    // The first request finds cold pages.
    timed(0, TOKENS)?;
    let mut speeds = Vec::new();
    for number in 1..=3 {
        let (short_time, short) = timed(number, SHORT)?;
        let (long_time, long) = timed(number, SHORT + TOKENS)?;
        if long > short + TOKENS / 2 && long_time > short_time {
            speeds.push((long - short) as f64 / (long_time - short_time));
        }
    }
    service.end()?;
    percentile(&speeds, 0.5).ok_or_else(|| Failure::Server("all answers ended too early to tell a speed".into()))
}
