//! A real model: SmolLM2-135M-Instruct from its GGUF file, against what transformers made of the same weights.
//!
//! Golden families are tiny and random; here words come out. The file is too large for the repository, so
//! `NIGHTMONK_SMOLLM2_GGUF` names it, and with `NIGHTMONK_REQUIRE_MODEL=1` it may not be missing. Imported folders stay
//! in the target folder for the next run.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use engine_core::import::{self, ImportOptions, import_gguf};
use engine_core::sampler::SamplingParams;
use engine_core::session::{Completion, Engine, EngineOptions, Event, FinishReason, Request};
use engine_core::text::{ChatTemplate, GenerationDefaults, Message, RenderOptions, Tokenizer};
use serde_json::Value;
use simd::{Dtype, Isa};

use crate::mixture;
use crate::models::{golden, load, options};

/// Prompts and their continuations; the token that ends one counts.
const MAX_TOKENS: usize = 64;

/// One model at a time: memory and cores are those of a small machine.
static MODEL: Mutex<()> = Mutex::new(());

/// An imported folder, and the right to load from it.
struct Imported {
    folder: PathBuf,
    _alone: MutexGuard<'static, ()>,
}

/// Imports the file unless that was done before. `None`, said loudly, where there is none.
fn imported(expand_to: import::Dtype) -> Option<Imported> {
    let Some(source) = std::env::var_os("NIGHTMONK_SMOLLM2_GGUF").map(PathBuf::from) else {
        let required = std::env::var_os("NIGHTMONK_REQUIRE_MODEL").is_some_and(|value| value == "1");
        assert!(!required, "NIGHTMONK_REQUIRE_MODEL=1, but NIGHTMONK_SMOLLM2_GGUF names no file");
        eprintln!("*** NOT TESTED: a real model. Set NIGHTMONK_SMOLLM2_GGUF to its GGUF file. ***");
        return None;
    };
    let alone = MODEL.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("SmolLM2-135M-Instruct-{expand_to}"));
    let options = ImportOptions { expand_to, ..ImportOptions::default() };
    import_gguf(&source, &folder, &options, &mut |_| {}).unwrap();
    Some(Imported { folder, _alone: alone })
}

fn reference(file: &str) -> Value {
    serde_json::from_slice(&std::fs::read(golden().join("smollm2").join(file)).unwrap()).unwrap()
}

fn ids(list: &Value) -> Vec<u32> {
    list.as_array().unwrap().iter().map(|id| id.as_u64().unwrap().try_into().unwrap()).collect()
}

/// The prompt's ids, by way of the chat template where the reference went that way.
fn prompt_ids(prompt: &Value, tokenizer: &Tokenizer, template: &ChatTemplate) -> Vec<u32> {
    let text = prompt["text"].as_str().unwrap();
    if prompt["chat"] == false {
        return tokenizer.encode(text, true).unwrap();
    }
    let messages = [Message::new("user", text)];
    let options = RenderOptions { add_generation_prompt: true, ..RenderOptions::default() };
    assert_eq!(template.render(&messages, &options).unwrap(), prompt["rendered"].as_str().unwrap());
    template.render_to_tokens(tokenizer, &messages, &options).unwrap()
}

fn engine<'t>(folder: &Path, tokenizer: &'t Tokenizer, width: usize) -> Engine<'t> {
    let model = load(folder, options(Isa::detect()));
    let eos = GenerationDefaults::from_dir(folder).unwrap().stop_token_ids(tokenizer);
    let threads = NonZeroUsize::new(2).unwrap();
    // The defaults of the command line, save the context.
    let options =
        EngineOptions { threads, kv_dtype: Dtype::F16, ctx_size: 256, width, ubatch_size: 256, prefix_cache: true };
    Engine::new(model, tokenizer, eos, options).unwrap()
}

/// Greedy completions of `prompts`, side by side.
fn complete(engine: &mut Engine, prompts: &[Vec<u32>]) -> Vec<Completion> {
    let sampling = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
    let request = |tokens| Request::new(tokens, MAX_TOKENS, sampling);
    let order: Vec<_> = prompts.iter().map(|tokens| engine.submit(request(tokens.clone())).unwrap()).collect();
    let mut finished = Vec::new();
    let mut events = Vec::new();
    while !engine.is_idle() {
        engine.step(&mut events).unwrap();
        for event in events.drain(..) {
            match event {
                Event::Finished { id, completion } => finished.push((id, completion)),
                Event::Failed { error, .. } => panic!("{error}"),
                Event::Prefill { .. } | Event::Token { .. } | Event::Embedded { .. } => {}
            }
        }
    }
    finished.sort_by_key(|(id, _)| order.iter().position(|known| known == id));
    finished.into_iter().map(|(_, completion)| completion).collect()
}

#[track_caller]
fn assert_is(got: &Completion, want: &Value, name: &str) {
    assert_eq!(got.tokens, ids(&want["greedy_ids"]), "{name}: {:?}", got.text);
    assert_eq!(got.text, want["text"].as_str().unwrap(), "{name}");
    assert_eq!(got.finish_reason == FinishReason::Stop, want["stopped_at_eos"], "{name}");
}

#[test]
fn smollm2_writes_what_transformers_writes_alone_and_beside_three_others() {
    let Some(imported) = imported(import::Dtype::F32) else { return };
    let tokenizer = Tokenizer::from_dir(&imported.folder).unwrap();
    let template = ChatTemplate::from_dir(&imported.folder).unwrap();
    let mut engine = engine(&imported.folder, &tokenizer, 4);

    let reference = reference("reference.json");
    let references = reference["prompts"].as_array().unwrap();
    let mut prompts = Vec::new();
    for prompt in references {
        let name = prompt["name"].as_str().unwrap();
        let tokens = prompt_ids(prompt, &tokenizer, &template);
        assert_eq!(tokens, ids(&prompt["prompt_ids"]), "{name}");
        let [got] = complete(&mut engine, std::slice::from_ref(&tokens)).try_into().unwrap();
        assert_is(&got, &prompt["float32_weights"], name);
        prompts.push(tokens);
    }
    // Five prompts for four places: the fifth comes in when another leaves, in the middle of the others' answers.
    for (got, prompt) in complete(&mut engine, &prompts).iter().zip(references) {
        assert_is(got, &prompt["float32_weights"], &format!("{} in company", prompt["name"]));
    }
}

#[test]
fn smollm2_reads_and_writes_text_as_its_tokenizer_should() {
    let Some(imported) = imported(import::Dtype::F32) else { return };
    let tokenizer = Tokenizer::from_dir(&imported.folder).unwrap();
    for line in reference("tokenizer_lines.json")["lines"].as_array().unwrap() {
        let text = line["text"].as_str().unwrap();
        let want = ids(&line["ids"]);
        assert_eq!(tokenizer.encode(text, false).unwrap(), want, "{text:?}");
        assert_eq!(tokenizer.decode(&want, false).unwrap(), text);
    }
}

#[test]
fn smollm2_with_each_mlp_copied_into_four_experts_writes_the_same_text() {
    let Some(imported) = imported(import::Dtype::BF16) else { return };
    let tokenizer = Tokenizer::from_dir(&imported.folder).unwrap();
    let reference = reference("reference.json");
    let prompt = &reference["prompts"][0];
    assert_eq!(prompt["name"], "chat");
    let tokens = ids(&prompt["prompt_ids"]);
    let want = &prompt["bfloat16_weights"];

    let dense = complete(&mut engine(&imported.folder, &tokenizer, 1), std::slice::from_ref(&tokens));
    assert_is(&dense[0], want, "dense");

    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    mixture::write_copy(&imported.folder, folder.path());
    let chosen = mixture::chosen_experts(folder.path(), &tokens);
    assert!(chosen.iter().all(|times| *times > 0), "the router never chose one of the experts: {chosen:?}");
    let copy = complete(&mut engine(folder.path(), &tokenizer, 1), std::slice::from_ref(&tokens));
    assert_is(&copy[0], want, "mixture");
}
