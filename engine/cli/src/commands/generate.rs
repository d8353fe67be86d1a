//! `generate`: one prompt, its text as it comes, and one line of figures.

use std::io::Read;
use std::num::NonZeroUsize;

use engine_core::config::ModelConfig;
use engine_core::constraint::Constraint;
use engine_core::sampler::SamplingParams;
use engine_core::session::{Event, Request};
use engine_core::text::{ChatTemplate, Message, SpeechFormat, SpeechParser, StopStrings, Tools};
use serde_json::json;

use crate::args::{Draw, Format, Generate, Run};
use crate::failure::{Failure, wrong_dial};
use crate::figures;
use crate::load_choice::Work;
use crate::model::{self, LogitRows, ModelText, Opened};
use crate::output::print;
use crate::progress::{Progress, Unit};
use crate::turn::Turn;

pub(crate) fn run(arguments: &Generate) -> Result<(), Failure> {
    let prompt = prompt(arguments)?;
    model::check_folder(&arguments.model)?;
    let text = ModelText::from_dir(&arguments.model)?;
    let seed = arguments.sampling.seed;
    let sampling = SamplingParams { seed, ..sampling(&arguments.sampling.draw, &text)? };
    let Prompt { tokens, shown_tokens, constraint, mut turn } = tokens(arguments, &prompt, &text)?;
    let (run, max_tokens) = room(arguments, tokens.len())?;
    let work = Work::Tokens { prompt: tokens.len(), generate: max_tokens };
    let opened = Opened::new(&arguments.model, &run, 1, LogitRows::Last, work)?;
    let adapters = opened.adapters.iter().map(|adapter| (adapter.name.clone(), adapter.scale)).collect();
    let (mut engine, _pin) = opened.engine(&text)?;
    let before = figures::read_bandwidth(&mut engine);

    let mut prefill = Some(Progress::new("prompt", Unit::Tokens, tokens.len() as u64));
    let stop = arguments.stop.clone();
    let logit_bias = arguments.form.logit_bias.clone();
    let request =
        Request { stop, adapters, shown_tokens, logit_bias, constraint, ..Request::new(tokens, max_tokens, sampling) };
    engine.submit(request).map_err(|refused| Failure::Usage(refused.to_string()))?;

    let mut events = Vec::new();
    loop {
        engine.step(&mut events)?;
        for event in events.drain(..) {
            match event {
                Event::Prefill { done, .. } => {
                    if let Some(progress) = &mut prefill {
                        progress.set(done as u64);
                    }
                }
                Event::Token { text, .. } => {
                    prefill = None;
                    let answer = turn.push(&text);
                    if arguments.output.output == Format::Text {
                        print(answer)?;
                    }
                }
                Event::Failed { error, .. } => return Err(error.into()),
                Event::Embedded { .. } => {}
                Event::Finished { completion, .. } => {
                    let bandwidth = figures::read_bandwidth(&mut engine).max(before);
                    let timings = &completion.timings;
                    match arguments.output.output {
                        Format::Text => {
                            print(turn.finish())?;
                            print('\n')?;
                            print(turn.calls())?;
                            turn.tell_what_is_not_printed();
                        }
                        Format::Json => {
                            turn.finish();
                            let mut document = json!({
                                "text": completion.text,
                                "tokens": completion.tokens,
                                "finish_reason": completion.finish_reason,
                                "usage": {
                                    "prompt_tokens": completion.prompt_tokens,
                                    "completion_tokens": completion.tokens.len(),
                                    "total_tokens": completion.prompt_tokens + completion.tokens.len(),
                                },
                                "sampling": {
                                    "temperature": sampling.temperature,
                                    "top_k": sampling.top_k,
                                    "top_p": sampling.top_p,
                                    "min_p": sampling.min_p,
                                    "seed": sampling.seed,
                                    "repetition_penalty": sampling.repetition_penalty,
                                    "presence_penalty": sampling.presence_penalty,
                                    "frequency_penalty": sampling.frequency_penalty,
                                },
                                "timings": {
                                    "prompt_tokens_per_second": timings.prefill_rate(),
                                    "tokens_per_second": timings.decode_rate(),
                                    "bytes_per_second": timings.decode_bandwidth(),
                                    "read_bandwidth": bandwidth,
                                    "fraction_of_bandwidth": timings.decode_bandwidth() / bandwidth,
                                },
                            });
                            turn.describe(&mut document);
                            print(format_args!("{document}\n"))?;
                        }
                    }
                    eprintln!("{}", figures::generation(timings, bandwidth));
                    return Ok(());
                }
            }
        }
    }
}

fn prompt(arguments: &Generate) -> Result<String, Failure> {
    let Some(file) = &arguments.file else { return Ok(arguments.prompt.clone().unwrap_or_default()) };
    let named = |error: std::io::Error| {
        std::io::Error::new(error.kind(), format!("cannot read the prompt from {}: {error}", file.display()))
    };
    if file.as_os_str() == "-" {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).map_err(named)?;
        return Ok(text);
    }
    Ok(std::fs::read_to_string(file).map_err(named)?)
}

/// The context, and the most tokens that are generated in it: known, and refused, before the model is loaded. Where no
/// context was asked for, a long prompt makes it larger, up to the model's own.
fn room(arguments: &Generate, prompt: usize) -> Result<(Run, usize), Failure> {
    if prompt == 0 {
        return Err(Failure::Usage("the prompt is empty; give it by `--prompt` or `--file`".into()));
    }
    StopStrings::new(arguments.stop.clone()).map_err(|error| Failure::Usage(error.to_string()))?;
    let mut config = ModelConfig::from_file(&arguments.model.join("config.json"))?;
    arguments.run.dials.dials().turn(&mut config).map_err(|error| wrong_dial(&error))?;
    let mut run = arguments.run.clone();
    let mut ctx_size = model::plan_request(&run, &config, 1)?.0.ctx_size;
    let wanted = prompt.saturating_add(arguments.predict.unwrap_or(1));
    if run.ctx_size.is_none() && wanted > ctx_size {
        ctx_size = wanted.min(config.longest_context());
        run = run.with_ctx_size(NonZeroUsize::new(ctx_size).unwrap_or(NonZeroUsize::MIN));
    }
    if wanted > ctx_size {
        let asked = arguments.predict.map_or(String::new(), |n| format!(" and {n} to generate"));
        let most = config.longest_context();
        let why = format!(
            "{prompt} tokens of the prompt{asked} do not fit a context of {ctx_size}; this model has up to {most}"
        );
        return Err(Failure::Usage(why));
    }
    Ok((run, arguments.predict.unwrap_or(ctx_size - prompt)))
}

/// What the engine is given, and what is made of its answer.
struct Prompt {
    tokens: Vec<u32>,
    shown_tokens: Vec<u32>,
    constraint: Option<Constraint>,
    turn: Turn,
}

fn tokens(arguments: &Generate, prompt: &str, text: &ModelText) -> Result<Prompt, Failure> {
    let flags = &arguments.chat;
    if !flags.chat {
        let tokens = text.tokenizer.encode(prompt, true)?;
        let constraint = arguments.form.constraint(text, SpeechFormat::PLAIN, "")?;
        return Ok(Prompt { tokens, shown_tokens: Vec::new(), constraint, turn: Turn::of_text() });
    }
    let template = ChatTemplate::from_dir(&arguments.model)?;
    let options = flags.options(&template)?;
    let mut messages = Vec::new();
    messages.extend(flags.system.iter().map(|system| Message::new("system", system.as_str())));
    messages.push(Message::new("user", prompt));
    let tokens = template.render_to_tokens(&text.tokenizer, &messages, &options)?;
    let format = template.speech_format(&options)?;
    if options.tools.is_some() && matches!(format, SpeechFormat::Tagged { calls: None, .. }) {
        eprintln!("note: how this model writes calls of tools is not known; they are part of the answer");
    }
    let tools = options.tools.as_ref().map(Tools::from_openai).unwrap_or_default();
    let prompt_end = text.tokenizer.decode_end(&tokens)?;
    let constraint = arguments.form.constraint(text, format, &prompt_end)?;
    let parser = SpeechParser::new(format, tools, &prompt_end);
    let shown_tokens = format.shown_tokens(&text.tokenizer);
    Ok(Prompt { tokens, shown_tokens, constraint, turn: Turn::of_chat(parser) })
}

/// A flag, else the model's own default, else its plain distribution.
pub(crate) fn sampling(flags: &Draw, text: &ModelText) -> Result<SamplingParams, Failure> {
    let defaults = &text.defaults;
    let greedy = defaults.do_sample == Some(false);
    let plain = SamplingParams::default();
    let params = SamplingParams {
        temperature: flags.temp.or(greedy.then_some(0.0)).or(defaults.temperature).unwrap_or(plain.temperature),
        top_k: flags.top_k.or(defaults.top_k).unwrap_or(plain.top_k),
        top_p: flags.top_p.or(defaults.top_p).unwrap_or(plain.top_p),
        min_p: flags.min_p.or(defaults.min_p).unwrap_or(plain.min_p),
        seed: plain.seed,
        repetition_penalty: flags.repeat_penalty.or(defaults.repetition_penalty).unwrap_or(plain.repetition_penalty),
        presence_penalty: flags.presence_penalty.unwrap_or(plain.presence_penalty),
        frequency_penalty: flags.frequency_penalty.unwrap_or(plain.frequency_penalty),
    };
    params.validate().map_err(|error| Failure::Usage(error.to_string()))?;
    Ok(params)
}
