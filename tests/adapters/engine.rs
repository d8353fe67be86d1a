//! Adapters come and go while an engine runs, and nobody who did not choose one notices.

use std::num::NonZeroUsize;

use engine_core::sampler::SamplingParams;
use engine_core::session::{Engine, EngineOptions, Event, Request, SequenceId};
use engine_core::text::Tokenizer;
use simd::{Dtype, Isa};
use tempfile::TempDir;

use super::folder;
use crate::models::{load, options};
use crate::tiny_model::tiny_model;

struct Speaker(TempDir, Tokenizer);

impl Speaker {
    fn new(family: &str) -> Self {
        let folder = tiny_model(family);
        let tokenizer = Tokenizer::from_dir(folder.path()).unwrap();
        Self(folder, tokenizer)
    }

    fn engine(&self) -> Engine<'_> {
        let threads = NonZeroUsize::new(2).unwrap();
        let sizes = EngineOptions {
            threads,
            kv_dtype: Dtype::F16,
            ctx_size: 96,
            width: 3,
            ubatch_size: 16,
            prefix_cache: true,
        };
        Engine::new(load(self.0.path(), options(Isa::detect())), &self.1, Vec::new(), sizes).unwrap()
    }
}

/// Drawn from the whole distribution: a token says more of the logits' bits than the greatest one does.
fn request(adapters: &[(&str, f32)]) -> Request {
    let adapters = adapters.iter().map(|(name, scale)| ((*name).into(), *scale)).collect();
    let sampling = SamplingParams { seed: 7, ..SamplingParams::default() };
    Request { adapters, ..Request::new((0..40).map(|at| at * 37 % 256).collect(), 24, sampling) }
}

/// Runs to the end; the tokens of each sequence that was submitted.
fn run(engine: &mut Engine, ids: &[SequenceId]) -> Vec<Vec<u32>> {
    let mut tokens = vec![Vec::new(); ids.len()];
    let mut events = Vec::new();
    while !engine.is_idle() {
        engine.step(&mut events).unwrap();
        for event in events.drain(..) {
            if let Event::Finished { id, completion } = event {
                tokens[ids.iter().position(|own| *own == id).unwrap()] = completion.tokens;
            }
        }
    }
    tokens
}

fn complete(engine: &mut Engine, requests: &[Request]) -> Vec<Vec<u32>> {
    let ids: Vec<_> = requests.iter().map(|request| engine.submit(request.clone()).unwrap()).collect();
    run(engine, &ids)
}

#[test]
fn the_base_says_the_same_before_beside_and_after_an_adapter() {
    for (family, case) in [("llama", "llama_attention"), ("qwen3_moe", "qwen3_moe_experts")] {
        let speaker = Speaker::new(family);
        let mut engine = speaker.engine();
        let before = complete(&mut engine, &[request(&[])]);
        assert_eq!(engine.load_adapter("a", &folder(case)).unwrap().name(), "a");
        assert_eq!(complete(&mut engine, &[request(&[])]), before, "{family}: loaded, but not chosen");

        let adapted = complete(&mut engine, &[request(&[("a", 1.0)])]);
        assert_ne!(adapted, before, "{family}: an adapter that does nothing");
        let three = [request(&[("a", 1.0)]), request(&[]), request(&[("a", 1.0)])];
        let want = [&adapted[0], &before[0], &adapted[0]];
        assert_eq!(complete(&mut engine, &three).iter().collect::<Vec<_>>(), want, "{family}: side by side");

        engine.unload_adapter("a").unwrap();
        assert_eq!(complete(&mut engine, &[request(&[])]), before, "{family}: unloaded");
        // Under another name, beside a second one that nobody chose.
        engine.load_adapter("b", &folder(case)).unwrap();
        let other = if family == "llama" { "llama_mlp" } else { "qwen3_moe_one_by_one" };
        engine.load_adapter("c", &folder(other)).unwrap();
        assert_eq!(complete(&mut engine, &[request(&[("b", 1.0)])]), adapted, "{family}: loaded again");
    }
}

#[test]
fn an_adapter_is_loaded_while_sequences_run_and_unloaded_when_none_uses_it() {
    let speaker = Speaker::new("llama");
    let mut engine = speaker.engine();
    let alone = complete(&mut engine, &[request(&[])]);
    let mut ids = vec![engine.submit(request(&[])).unwrap()];
    for _ in 0..4 {
        engine.step(&mut Vec::new()).unwrap();
    }
    engine.load_adapter("a", &folder("llama_attention")).unwrap();
    ids.push(engine.submit(request(&[("a", 0.5)])).unwrap());
    let refused = engine.unload_adapter("a").unwrap_err().to_string();
    assert!(refused.contains("`a` is in use by 1 sequences"), "waiting: {refused}");
    engine.step(&mut Vec::new()).unwrap();
    assert!(engine.unload_adapter("a").is_err(), "running");
    let said = run(&mut engine, &ids);
    assert_eq!(said[0], alone[0]);
    assert_eq!(engine.adapters().map(|own| own.name().to_owned()).collect::<Vec<_>>(), ["a"]);
    engine.unload_adapter("a").unwrap();
    assert_eq!(engine.adapters().count(), 0);

    engine.load_adapter("a", &folder("llama_attention")).unwrap();
    engine.submit(request(&[("a", 1.0)])).unwrap();
    engine.step(&mut Vec::new()).unwrap();
    engine.cancel_all();
    engine.unload_adapter("a").unwrap();
}

#[test]
fn names_that_are_not_there_or_taken_are_refused() {
    let speaker = Speaker::new("llama");
    let mut engine = speaker.engine();
    let refused = engine.submit(request(&[("a", 1.0)])).unwrap_err().to_string();
    assert!(refused.contains("no adapter `a`") && refused.contains("none"), "{refused}");
    engine.load_adapter("b", &folder("llama_attention")).unwrap();
    let refused = engine.submit(request(&[("a", 1.0)])).unwrap_err().to_string();
    assert!(refused.contains("loaded are: b"), "{refused}");
    assert!(engine.submit(request(&[("b", 1.0), ("b", 1.0)])).unwrap_err().to_string().contains("twice"));
    assert!(engine.submit(request(&[("b", f32::INFINITY)])).unwrap_err().to_string().contains("finite"));
    assert!(engine.load_adapter("b", &folder("llama_mlp")).err().unwrap().to_string().contains("already"));
    assert!(engine.unload_adapter("a").unwrap_err().to_string().contains("loaded are: b"));
    assert!(engine.is_idle(), "what is refused leaves nothing behind");
}
