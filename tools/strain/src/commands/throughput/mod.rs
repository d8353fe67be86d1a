//! Sixteen clients at once, of Nightmonk and of llama-server, on the same weights.
//!
//! Both get token ids, as many places as clients, and their whole machine: rounds alternate, and a server is ended before the
//! other starts.

mod bytes_tokenizer;
mod llama_server;

use std::path::PathBuf;
use std::time::Instant;

use serde_json::{Value, json};

use crate::answers;
use crate::client::Site;
use crate::options::Options;
use crate::parts::in_parallel;
use crate::service::Service;
use crate::statistics::percentile;
use crate::{Failure, Report};

const ROUNDS: usize = 3;
const CLIENTS: usize = 16;
/// Tokens of a prompt and of an answer.
const PROMPT: usize = 128;
const ANSWER: usize = 64;
const RATIO_MIN: f64 = 1.5;
/// Ids that all vocabularies have, control tokens apart.
const ID_MAX: usize = 255;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// llama-server; without it, one is built beside llama-bench, where `cargo tools versus` put that
    #[arg(long, value_name = "PATH")]
    llama_server: Option<PathBuf>,
    /// The same weights as GGUF; without it, `cargo tools gguf` writes them to the target folder
    #[arg(long, value_name = "FILE")]
    gguf: Option<PathBuf>,
    /// Further flags of llama-server, in one argument
    #[arg(long, value_name = "FLAGS", default_value = "-fa on", allow_hyphen_values = true)]
    llama_flags: String,
}

pub(crate) fn run(arguments: &Arguments, options: &Options) -> Result<Report, Failure> {
    let mut report = Report::default();
    let clients = options.clients(CLIENTS);
    let mut launch = options.launch(clients, &["--ctx-size", &(PROMPT + ANSWER + 64).to_string()])?;
    let theirs = llama_server::Launch::new(arguments, &launch.model, clients, clients * (PROMPT + ANSWER + 64))?;
    // A checkpoint that was made for measuring speed has no tokenizer.
    let speaking = bytes_tokenizer::beside(&launch.model)?;
    if let Some(folder) = &speaking {
        launch.model = folder.path().to_owned();
    }
    let (mut own, mut other) = (Vec::new(), Vec::new());
    for round in 0..options.rounds(ROUNDS) {
        let seed = options.seed ^ round as u64;
        let mut ours = || -> Result<(), Failure> {
            let service = Service::start(&launch)?;
            own.push(speed(&service.site, &service.model, clients, seed)?);
            service.end()
        };
        let mut others = || -> Result<(), Failure> {
            let server = theirs.start()?;
            other.push(speed(&server.site, "", clients, seed)?);
            Ok(())
        };
        if round % 2 == 0 {
            ours()?;
            others()?;
        } else {
            others()?;
            ours()?;
        }
    }
    let list = |speeds: &[f64]| speeds.iter().map(|speed| format!("{speed:.2}")).collect::<Vec<_>>().join(", ");
    report.tell("clients, tokens of a prompt, of an answer", format!("{clients}, {PROMPT}, {ANSWER}"));
    report.tell("Nightmonk, tokens/s of all", list(&own));
    report.tell("llama-server, tokens/s of all", list(&other));
    let ratios: Vec<f64> = own.iter().zip(&other).map(|(own, other)| own / other).collect();
    let ratio = percentile(&ratios, 0.5).ok_or_else(|| Failure::Usage("no rounds, no figure".into()))?;
    let figure = format!("{ratio:.2}x (median of {} rounds)", ratios.len());
    report.holds_in_time("Nightmonk over llama-server", figure, format!("{RATIO_MIN}x"), ratio >= RATIO_MIN);
    Ok(report)
}

/// Tokens of all answers, a second of the time from the first request to the last answer.
fn speed(site: &Site, model: &str, clients: usize, seed: u64) -> Result<f64, Failure> {
    let ask_all = |max_tokens: usize, seed: u64| -> Result<usize, Failure> {
        let answers = in_parallel(clients, clients, seed, |_, random| {
            let prompt: Vec<usize> = (0..PROMPT).map(|_| random.below(ID_MAX)).collect();
            let mut body: Value = json!({"prompt": prompt, "max_tokens": max_tokens, "temperature": 0});
            if !model.is_empty() {
                body["model"] = json!(model);
            }
            answers::stream(site, &body, usize::MAX)
        });
        let mut tokens = 0;
        for answer in answers {
            let answer = answer.map_err(|error| Failure::io("a stream", error))?.answer;
            match (answer.status, &answer.error) {
                (200, None) => tokens += answer.tokens[1],
                _ => return Err(Failure::Server(format!("{answer:?}"))),
            }
        }
        Ok(tokens)
    };
    // Cold pages and threads.
    ask_all(2, !seed)?;
    let start = Instant::now();
    let tokens = ask_all(ANSWER, seed)?;
    Ok(tokens as f64 / start.elapsed().as_secs_f64())
}
