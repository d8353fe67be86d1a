//! `selftest context` on tiny models, whose answers are noise: texts, depths, pictures and the proof of scaled ropes.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use engine_core::checkpoint::CheckpointError;
use engine_core::session::Evaluator;
use serde_json::Value;
use simd::{Dtype, Isa};

use crate::models::{load, options, pool};
use crate::tiny_model::tiny_model;

fn context(model: &Path, flags: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nightmonk"));
    command.args(["selftest", "context", "-m"]).arg(model).args(flags).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[track_caller]
fn document(model: &Path, flags: &[&str]) -> Value {
    let output = context(model, &[flags, &["-o", "json"]].concat());
    assert!(output.status.success(), "{}", said(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[track_caller]
fn refused(model: &Path, flags: &[&str], status: i32, parts: &[&str]) {
    let output = context(model, flags);
    assert_eq!(output.status.code(), Some(status), "{}", said(&output));
    assert!(output.stdout.is_empty() && parts.iter().all(|part| said(&output).contains(part)), "{}", said(&output));
}

/// A tiny model whose tokenizer_config.json has no chat template.
fn without_template() -> tempfile::TempDir {
    let model = tiny_model("llama");
    fs::write(model.path().join("tokenizer_config.json"), "{}").unwrap();
    model
}

#[test]
fn every_depth_of_every_length_is_asked_for_at_its_place_in_a_text_of_its_length() {
    let model = tiny_model("llama");
    for (language, longest) in [("en", 140), ("ru", 240)] {
        let flags = ["--lengths", "2048,1500", "--depths", "3", "--max-tokens", "4", "--language", language];
        let document = document(model.path(), &flags);
        let cells = document["cells"].as_array().unwrap();
        assert_eq!(cells.len(), 6);
        assert!(cells.iter().all(|cell| cell["asked"] == 1 && cell["score"].is_number()));
        assert_eq!((&document["chat"], &document["rope"]), (&Value::Bool(true), &Value::Null));
        let answers = document["answers"].as_array().unwrap();
        assert_eq!(answers.len(), 6);
        for answer in answers {
            let [length, prompt, at, all] =
                ["length", "prompt_tokens", "fact_at_token", "text_tokens"].map(|name| answer[name].as_u64().unwrap());
            // The longest sentence of each language is shorter than `longest` bytes, and a token is a byte.
            assert!(prompt + 4 <= length && prompt + 4 + longest > length, "{prompt} of {length}");
            let wanted = answer["depth"].as_f64().unwrap() / 100.0 * all as f64;
            assert!((at as f64 - wanted).abs() <= 2.0 * longest as f64, "{at} of {all}, not at {wanted}");
            assert!(answer["answer_tokens"].as_u64().unwrap() <= 4);
        }
    }
}

#[test]
fn the_same_flags_give_the_same_bytes_and_another_seed_other_facts() {
    let model = tiny_model("qwen3_moe");
    let of = |flags: &[&str]| {
        let base = ["--lengths", "1200", "--depths", "0,60", "--rounds", "2", "--max-tokens", "6"];
        let output = context(model.path(), &[&base[..], flags].concat());
        assert!(output.status.success(), "{}", said(&output));
        output.stdout
    };
    let json = ["-o", "json"];
    let want = of(&json);
    assert_eq!(of(&["-o", "json", "-t", "3", "-ub", "33"]), want);
    // A text for each fact instead of one for all has the same facts and other prompts.
    let alone: Value = serde_json::from_slice(&of(&["-o", "json", "--facts-per-context", "1"])).unwrap();
    let together: Value = serde_json::from_slice(&want).unwrap();
    let codes = |document: &Value| {
        let mut codes: Vec<String> =
            document["answers"].as_array().unwrap().iter().map(|answer| answer["code"].to_string()).collect();
        codes.sort();
        codes
    };
    assert_eq!(codes(&alone), codes(&together));
    assert_eq!(codes(&alone).len(), 4);
    assert!(alone["cells"].as_array().unwrap().iter().all(|cell| cell["asked"] == 2));
    let other: Value = serde_json::from_slice(&of(&["-o", "json", "--seed", "9"])).unwrap();
    assert_ne!(codes(&other), codes(&together));
}

#[test]
fn questions_that_share_a_text_get_the_answers_that_they_get_alone() {
    // Text comes after an answer was drawn behind another question: nothing of that may stay.
    let model = tiny_model("gpt_oss");
    let model = load(model.path(), options(Isa::detect()));
    let (text, questions) = ((0..300).map(|i| i * 7 % 256).collect::<Vec<u32>>(), [[5, 6, 7], [8, 9, 10]]);
    let bits = |evaluator: &mut Evaluator, tokens: &[u32]| {
        let mut bits = Vec::new();
        let each = |_: usize, logits: &[f32]| {
            bits = logits.iter().map(|logit| logit.to_bits()).collect();
            Ok::<_, CheckpointError>(())
        };
        evaluator.feed(tokens, &mut (), each).unwrap();
        bits
    };
    let new = || Evaluator::new(&model, pool(2), Dtype::F16, 400, 64).unwrap();
    let mut shared = new();
    bits(&mut shared, &text);
    for question in questions {
        let want = bits(&mut new(), &[&text[..], &question].concat());
        shared.rewind(text.len());
        assert_eq!(bits(&mut shared, &question), want);
    }
}

#[test]
fn scores_are_a_table_and_a_picture_with_and_without_a_chat_template() {
    let (chat, plain) = (tiny_model("llama"), without_template());
    for (model, asked) in [(&chat, "chat template"), (&plain, "plain text")] {
        let svg = model.path().join("scores.svg");
        let flags = ["--lengths", "1100,1300", "--depths", "3", "--max-tokens", "3", "--svg", svg.to_str().unwrap()];
        let output = context(model.path(), &flags);
        assert!(output.status.success(), "{}", said(&output));
        let text = String::from_utf8(output.stdout.clone()).unwrap();
        let begins = |start: &str| text.lines().filter(|line| line.trim_start().starts_with(start)).count();
        assert_eq!(["depth", "0%", "100%", "all", "rope: no scaling"].map(begins), [1; 5], "{text}");
        assert!(text.contains("of 6 planted facts found") && text.contains(asked), "{text}");
        let picture = fs::read_to_string(&svg).unwrap();
        crate::experts::assert_well_formed(&picture);
        assert!(picture.contains(">1300</text>") && picture.contains(asked));
    }
}

#[test]
fn a_stretched_context_is_proved_to_be_stretched() {
    let model = tiny_model("llama");
    let base = ["--lengths", "1024", "--depths", "1", "--max-tokens", "1"];
    for (flags, scaling, original) in [
        (&["--rope-scaling", "yarn", "--rope-scale", "4", "--yarn-orig-ctx", "256"][..], "yarn x4 of 256", 256),
        (&["--rope-scaling", "linear", "--rope-scale", "2", "-c", "1024"], "linear x2", 8192),
    ] {
        let document = document(model.path(), &[&base[..], flags].concat());
        let rope = &document["rope"];
        assert_eq!((&rope["scaling"], &rope["original_context"]), (&scaling.into(), &original.into()));
        assert_eq!(rope["changes"], true);
        assert!(rope["below"]["rms_difference"].as_f64().unwrap() > 1e-4, "{rope}");
        match original {
            256 => assert!(rope["beyond"]["rms_difference"].as_f64().unwrap() > 1e-4, "{rope}"),
            _ => assert!(rope["beyond"].is_null(), "{rope}"),
        }
    }
    // Of config.json, as published.
    for (family, scaling) in [("llama3", "llama3 x8 of 64"), ("gpt_oss", "yarn x8 of 64")] {
        let model = tiny_model(family);
        let document = document(model.path(), &base);
        let rope = &document["rope"];
        assert_eq!(rope["scaling"], scaling);
        assert!(rope["beyond"]["rms_difference"].as_f64().unwrap() > 1e-4, "{scaling}: {rope}");
    }
}

#[test]
fn a_scaling_in_name_only_fails_before_a_question_is_asked() {
    let model = tiny_model("llama");
    let base = ["--lengths", "1024", "--depths", "1", "-c", "1024"];
    for (method, words) in [("yarn", "yarn x1 of 8192"), ("linear", "linear x1")] {
        let flags = [&base[..], &["--rope-scaling", method, "--rope-scale", "1"]].concat();
        let said =
            [&format!("rope scaling `{words}` does not change the logits"), "no effect", "for comparison rope none"];
        refused(model.path(), &flags, 1, &said);
    }
    // Turned off, there is nothing to prove.
    let none = tiny_model("llama3");
    let flags = ["--rope-scaling", "none", "--lengths", "32", "--depths", "1"];
    refused(none.path(), &flags, 2, &["`--lengths 32` has no room"]);
}

#[test]
fn what_cannot_be_asked_is_refused_with_what_would_help() {
    let model = tiny_model("llama");
    for (flags, parts) in [
        (&["--lengths", "8193"][..], &["`--lengths 8193`", "8192 positions", "--rope-scaling"][..]),
        (&["--lengths", "2048", "-c", "1024"], &["`--lengths 2048`", "`--ctx-size 1024`"]),
        (&["-c", "8193"], &["`--ctx-size 8193`"]),
        (&["--lengths", "400"], &["`--lengths 400` has no room", "5 facts", "64 tokens"]),
        (&["--depths", "3", "--facts-per-context", "4"], &["`--facts-per-context 4`", "3 depths"]),
        (&["--depths", "0"], &["--depths"]),
        (&["--lengths", "0"], &["--lengths"]),
        (&["--language", "de"], &["--language", "en", "ru"]),
    ] {
        refused(model.path(), flags, 2, parts);
    }
    refused(&model.path().join("none"), &[], 2, &["is not a folder"]);
}
