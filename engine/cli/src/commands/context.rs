//! `selftest context`: what a model still finds in a long text, and whether a stretched context is stretched.
//!
//! Facts are planted at even depths of a text without meaning, and asked for one by one: what is scored is reading, not
//! knowing. Questions about one text differ at their end, so the text is read once, and each question goes on from where
//! the prompts part. Answers are greedy; the same flags give the same scores.

mod corpus;
mod language;
mod reader;
mod rope_proof;
mod score;
mod tasks;

use std::fs;
use std::num::NonZeroUsize;

use engine_core::config::ModelConfig;
use engine_core::session::Evaluator;
use engine_core::text::Tokenizer;
use serde_json::{Value, json};

use crate::args::{Context, Format};
use crate::failure::{Failure, wrong_dial};
use crate::load_choice::Work;
use crate::model::{self, Loaded, LogitRows, ModelText, Opened};
use crate::nodes;
use crate::output::{print, printable};
use crate::progress::{Progress, Unit};
use corpus::Corpus;
pub(crate) use language::Language;
use reader::{Answer, Reader};
use rope_proof::{Claim, Proof, Rows};
use score::Scores;
use tasks::{Asking, Question, Task};

/// The shortest length that is tried when nobody says.
const FIRST_LENGTH: usize = 1024;
/// Tokens of a text between two signs of progress.
const PART: usize = 4096;

pub(crate) fn run(arguments: &Context) -> Result<(), Failure> {
    model::check_folder(&arguments.model)?;
    let mut config = ModelConfig::from_file(&arguments.model.join("config.json"))?;
    let dials = arguments.run.dials.dials();
    dials.turn(&mut config).map_err(|error| wrong_dial(&error))?;
    let lengths = lengths(arguments, &config)?;
    let longest = lengths.last().copied().unwrap_or(1);
    let claim = Claim::of(&config, &dials);
    let run = rope_proof::run_for(claim.as_ref(), &arguments.run, longest);

    let text = ModelText::from_dir(&arguments.model)?;
    let asking = Asking::new(arguments, &text.tokenizer)?;
    let tasks = tasks::all(arguments, &asking, &lengths)?;
    for task in &tasks {
        check_vocabulary(&task.shared, &config)?;
        task.questions.iter().try_for_each(|question| check_vocabulary(&question.rest, &config))?;
    }

    let unscaled = match claim {
        None => None,
        Some(claim) => {
            let ctx_size = run.ctx_size.map_or(longest, NonZeroUsize::get).min(claim.ctx_size());
            let tokens = filler(arguments, &text.tokenizer, ctx_size)?;
            check_vocabulary(&tokens, &config)?;
            Some((Rows::unscaled(&claim, &arguments.model, &run, &tokens)?, claim, tokens))
        }
    };
    let prompt = tasks.iter().map(Task::tokens_to_read).sum();
    let questions = tasks.iter().map(|task| task.questions.len()).sum::<usize>();
    let work = Work::Tokens { prompt, generate: questions.saturating_mul(arguments.max_tokens.get()) };
    let opened = Opened::new(&arguments.model, &run, 1, LogitRows::All, work)?;
    let request = opened.request;
    let loaded = opened.load()?;
    let adapters = loaded.adapter_set()?;
    let Loaded { model, pool, .. } = loaded;
    let _pin = nodes::pin_caller(&pool)?;
    let mut evaluator = Evaluator::new(&model, pool, request.kv_dtype, request.ctx_size, request.ubatch_size)?;
    evaluator.choose_adapters(adapters);
    nodes::report_placement(model.placement(), evaluator.kv_placement());

    let isa = model.options().isa;
    let proof = match unscaled {
        None => None,
        Some((unscaled, claim, tokens)) => {
            let scaled = Rows::of(&claim, &mut evaluator, &tokens, isa, config.vocab_size)?;
            let proof = Proof::new(claim, &scaled, &unscaled);
            // Answers of a model that is not the one that was asked for say nothing.
            proof.check()?;
            eprintln!("{}", proof.words());
            Some(proof)
        }
    };
    let max_tokens = arguments.max_tokens.get();
    let reader = Reader { asking: &asking, format: asking.format()?, eos: &text.eos, isa, max_tokens };
    let mut scores = Scores::new(lengths, arguments.depths.0.clone());
    let answers = ask(&tasks, &reader, &mut evaluator, &mut scores)?;
    report(arguments, &scores, asking.is_chat(), proof.as_ref(), answers)
}

fn check_vocabulary(tokens: &[u32], config: &ModelConfig) -> Result<(), Failure> {
    let size = config.vocab_size;
    match tokens.iter().find(|token| **token as usize >= size) {
        None => Ok(()),
        Some(token) => {
            let why =
                format!("tokenizer.json makes token {token} of the text, but the model has a vocabulary of {size}");
            Err(Failure::Failed(why.into()))
        }
    }
}

/// Puts all questions, adds up what was found, and returns the answers as they are told.
fn ask(tasks: &[Task], reader: &Reader, evaluator: &mut Evaluator, scores: &mut Scores) -> Result<Vec<Value>, Failure> {
    let (mut answers, mut cut_off, mut read) = (Vec::new(), 0, 0);
    let all = tasks.iter().map(Task::tokens_to_read).sum::<usize>();
    let mut progress = Progress::new("context", Unit::Tokens, all as u64);
    for task in tasks {
        let codes: Vec<&str> = task.questions.iter().map(|question| question.fact.code.as_str()).collect();
        let mut found_here = 0;
        evaluator.restart();
        for part in task.shared.chunks(PART) {
            evaluator.observe(part, &mut ())?;
            read += part.len();
            progress.set(read as u64);
        }
        for question in &task.questions {
            let answer = reader.answer(evaluator, task.shared.len(), question)?;
            read += question.rest.len();
            progress.set(read as u64);
            let found = corpus::names_first(&answer.text, &question.fact.code, &codes);
            scores.add(question.depth, task.length, found);
            found_here += usize::from(found);
            cut_off += usize::from(!answer.ended && !found);
            answers.push(told(task, question, answer, found, scores));
        }
        let (length, asked) = (scores.lengths[task.length], task.questions.len());
        progress.line(&format!("{length} tokens, round {}: {found_here} of {asked} found", task.round + 1));
    }
    drop(progress);
    if cut_off > 0 {
        let most = reader.max_tokens;
        eprintln!(
            "note: {cut_off} answers without their code were cut off after {most} tokens, thoughts included; `--max-tokens` gives them more"
        );
    }
    Ok(answers)
}

fn told(task: &Task, question: &Question, answer: Answer, found: bool, scores: &Scores) -> Value {
    let (before, of) = question.planted;
    json!({
        "length": scores.lengths[task.length],
        "depth": scores.depths[question.depth],
        "round": task.round,
        "fact_at_token": before,
        "text_tokens": of,
        "prompt_tokens": task.shared.len() + question.rest.len(),
        "subject": question.fact.subject,
        "code": question.fact.code,
        "answer": answer.text,
        "answer_tokens": answer.tokens,
        "ended": answer.ended,
        "found": found,
    })
}

fn report(
    arguments: &Context,
    scores: &Scores,
    chat: bool,
    proof: Option<&Proof>,
    answers: Vec<Value>,
) -> Result<(), Failure> {
    let folder = fs::canonicalize(&arguments.model).unwrap_or_else(|_| arguments.model.clone());
    let name = folder.file_name().unwrap_or(folder.as_os_str()).to_string_lossy().into_owned();
    let whole = scores.whole();
    let asked = if chat { "chat template" } else { "plain text" };
    let title = format!(
        "{}: {} of {} planted facts found, {asked}, language {}, seed {}",
        printable(&name),
        whole.found,
        whole.asked,
        arguments.language.name(),
        arguments.seed
    );
    if let Some(path) = &arguments.svg {
        let named = |error: std::io::Error| {
            std::io::Error::new(error.kind(), format!("cannot write {}: {error}", path.display()))
        };
        fs::write(path, scores.svg(&title)).map_err(named)?;
    }
    match arguments.output.output {
        Format::Text => {
            let rope = proof.map_or("rope: no scaling, so there is none to prove".into(), Proof::words);
            print(format_args!("{title}\n\n{}\n{rope}\n", scores.text()))
        }
        Format::Json => {
            let cells =
                (0..scores.depths.len()).flat_map(|depth| (0..scores.lengths.len()).map(move |length| (depth, length)));
            let cells = cells.map(|(depth, length)| {
                let cell = scores.cell(depth, length);
                json!({
                    "length": scores.lengths[length],
                    "depth": scores.depths[depth],
                    "asked": cell.asked,
                    "found": cell.found,
                    "score": cell.score(),
                })
            });
            let document = json!({
                "model": name,
                "language": arguments.language.name(),
                "seed": arguments.seed,
                "chat": chat,
                "max_tokens": arguments.max_tokens,
                "score": whole.score(),
                "cells": cells.collect::<Vec<_>>(),
                "answers": answers,
                "rope": proof.map(Proof::document),
            });
            print(format_args!("{document}\n"))
        }
    }
}

/// The lengths that were asked for, or powers of two up to the context, ascending.
fn lengths(arguments: &Context, config: &ModelConfig) -> Result<Vec<usize>, Failure> {
    let longest = config.longest_context();
    let mut lengths: Vec<usize> = arguments.lengths.iter().map(|length| length.get()).collect();
    let usage = |why: String| Err(Failure::Usage(why));
    if lengths.is_empty() {
        let ctx_size = model::plan_request(&arguments.run, config, 1)?.0.ctx_size;
        let double = |length: &usize| length.checked_mul(2);
        lengths.extend(std::iter::successors(Some(FIRST_LENGTH), double).take_while(|length| *length <= ctx_size));
        if lengths.is_empty() {
            lengths.push(ctx_size);
        }
    }
    lengths.sort_unstable();
    lengths.dedup();
    let most = lengths.last().copied().unwrap_or(1);
    if most > longest {
        return usage(format!(
            "`--lengths {most}` is beyond the {longest} positions that this model was made for; `--rope-scaling yarn --rope-scale F` stretches them"
        ));
    }
    match arguments.run.ctx_size.map(NonZeroUsize::get) {
        Some(ctx_size) if ctx_size < most => {
            usage(format!("`--lengths {most}` is beyond `--ctx-size {ctx_size}`; leave that out, or raise it"))
        }
        _ => Ok(lengths),
    }
}

/// Tokens of filler alone, as many as asked for.
fn filler(arguments: &Context, tokenizer: &Tokenizer, count: usize) -> Result<Vec<u32>, Failure> {
    let mut corpus = Corpus::new(arguments.language, arguments.seed);
    let tokens_of = |text: &str| Ok::<_, Failure>(tokenizer.encode(text, true)?.len());
    // The longest text in twice the room has enough.
    let text = corpus.fit(&[], count.saturating_mul(2).max(count.saturating_add(256)), tokens_of, tokens_of)?;
    let mut tokens = tokenizer.encode(&text.map(|text| text.text).unwrap_or_default(), true)?;
    tokens.truncate(count);
    Ok(tokens)
}
