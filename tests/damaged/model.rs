//! Damaged model folders.

use std::fs;
use std::path::Path;

use serde_json::Value;

use super::{assert_refused, run, text};
use crate::tiny_model::tiny_model;

const FIRST: &str = "model-00001-of-00002.safetensors";
const SECOND: &str = "model-00002-of-00002.safetensors";
const INDEX: &str = "model.safetensors.index.json";

fn json(folder: &Path, file: &str, change: impl FnOnce(&mut Value)) {
    let mut value = serde_json::from_slice(&fs::read(folder.join(file)).unwrap()).unwrap();
    change(&mut value);
    fs::write(folder.join(file), value.to_string()).unwrap();
}

fn header_bytes(file: &[u8]) -> usize {
    8 + u64::from_le_bytes(*file.first_chunk::<8>().unwrap()) as usize
}

/// What was done, how, and what the message must name.
type Damage = (&'static str, fn(&Path), &'static [&'static str]);

const DAMAGES: &[Damage] = &[
    (
        "truncated shard",
        |folder| {
            let path = folder.join(SECOND);
            let file = fs::read(&path).unwrap();
            fs::write(path, &file[..file.len() / 2]).unwrap();
        },
        &[SECOND, "tensor `", "cut short", "fetch the file again"],
    ),
    (
        "shard truncated in its header",
        |folder| {
            let path = folder.join(FIRST);
            fs::write(&path, &fs::read(&path).unwrap()[..100]).unwrap();
        },
        &[FIRST, "the file has 100", "fetch the file again"],
    ),
    (
        "missing shard",
        |folder| fs::remove_file(folder.join(FIRST)).unwrap(),
        &[FIRST, "every shard that its index names"],
    ),
    (
        "wrong shape",
        |folder| json(folder, "config.json", |config| config["moe_intermediate_size"] = 41.into()),
        &[FIRST, "model.layers.0.mlp.experts.0.gate_proj.weight", "[40, 48]", "[41, 48]", "config.json"],
    ),
    (
        "a path in the index",
        |folder| {
            json(folder, INDEX, |index| {
                index["weight_map"]["lm_head.weight"] = "../model-00002-of-00002.safetensors".into();
            });
        },
        &[INDEX, "`../model-00002-of-00002.safetensors`", "not a shard's name", "fetch the file again"],
    ),
    (
        "NaN",
        |folder| {
            let path = folder.join(SECOND);
            let mut file = fs::read(&path).unwrap();
            let data = header_bytes(&file);
            // lm_head.weight lies first, [320, 48] in BF16.
            file[data + 2 * 77..][..2].copy_from_slice(&[0xc0, 0x7f]);
            fs::write(path, file).unwrap();
        },
        &[SECOND, "lm_head.weight", "NaN at index 77", "fetch it again"],
    ),
    (
        "missing config.json",
        |folder| fs::remove_file(folder.join("config.json")).unwrap(),
        &["config.json", "a model folder holds"],
    ),
    (
        "an architecture of escape sequences",
        |folder| json(folder, "config.json", |config| config["architectures"] = serde_json::json!(["\u{1b}[2J"])),
        &["config.json", r"\u{1b}[2J", "supported: LlamaForCausalLM"],
    ),
    (
        "a million characters where a number belongs",
        |folder| json(folder, "config.json", |config| config["hidden_size"] = "x".repeat(1_000_000).into()),
        &["config.json", "`hidden_size`"],
    ),
    (
        "config.json of a hundred thousand levels",
        |folder| fs::write(folder.join("config.json"), "[".repeat(100_000)).unwrap(),
        &["config.json", "not"],
    ),
];

#[test]
fn a_damaged_model_folder_is_refused_by_every_command_that_opens_it() {
    for (what, damage, parts) in DAMAGES {
        let model = tiny_model("qwen3_moe");
        damage(model.path());
        let tokens = model.path().join("tokens.json");
        fs::write(&tokens, "[1, 2, 3]").unwrap();
        let logits = model.path().join("logits.npy");
        let folder = text(model.path());
        let mut commands = vec![
            vec!["generate", "-m", folder, "-p", "x", "-n", "1"],
            vec!["logits", "-m", folder, "--tokens", text(&tokens), "--output", text(&logits)],
        ];
        if *what != "NaN" {
            commands.push(vec!["plan", "-m", folder]);
        }
        for command in commands {
            let said = assert_refused(&format!("{what}, {}", command[0]), &run(&command), 1, parts);
            assert!(said.len() < 10_000, "{what}: {} bytes of message", said.len());
        }
        assert!(!logits.exists(), "{what}: a file of logits was made");
    }
}

#[test]
fn a_header_with_one_bit_turned_is_refused_or_harmless() {
    let model = tiny_model("llama");
    let path = model.path().join("model.safetensors");
    let whole = fs::read(&path).unwrap();
    let arguments = ["generate", "-m", text(model.path()), "-p", "x", "-n", "1", "--temp", "0"];
    let want = run(&arguments).stdout;
    let bits = header_bytes(&whole) * 8;
    for turn in 0..40 {
        // Multiples of a prime step: spread over the header, every bit of a byte in turn.
        let bit = (turn * 7919) % bits;
        let mut file = whole.clone();
        file[bit / 8] ^= 1 << (bit % 8);
        fs::write(&path, file).unwrap();
        let output = run(&arguments);
        let what = format!("bit {bit}");
        match output.status.code() {
            Some(0) => assert_eq!(output.stdout, want, "{what}: other words from a damaged model"),
            _ => drop(assert_refused(&what, &output, 1, &["nightmonk: "])),
        }
    }
}

#[test]
fn a_scale_that_bf16_cannot_follow_is_refused_mapped_or_resident() {
    let scales = "model.layers.1.mlp.experts.down_proj_scales"; // [6, 96, 2]
    let model = tiny_model("gpt_oss");
    let arguments = |load| ["generate", "-m", text(model.path()), "-p", "x", "-n", "2", "--temp", "0", "--load", load];
    let whole: Vec<_> = ["mapped", "resident"].map(|load| run(&arguments(load)).stdout).into();
    assert!(!whole[0].is_empty() && whole[0] == whole[1]);

    let path = model.path().join("model.safetensors");
    let mut file = fs::read(&path).unwrap();
    let data = header_bytes(&file);
    let header: Value = serde_json::from_slice(&file[8..data]).unwrap();
    let start = header[scales]["data_offsets"][0].as_u64().unwrap() as usize;
    file[data + start + 1001] = 255;
    fs::write(&path, file).unwrap();
    for load in ["mapped", "resident"] {
        let parts = ["model.safetensors", scales, "the scale 255 at index 1001", "2 to 252", "fetch it again"];
        assert_refused(load, &run(&arguments(load)), 1, &parts);
    }
}

#[test]
fn a_tokenizer_that_is_missing_or_none_is_refused() {
    for (content, parts) in [
        (None, &["tokenizer.json", "does not exist", "convert it"][..]),
        (Some("{}".to_owned()), &["tokenizer.json"]),
        (Some("[".repeat(100_000)), &["tokenizer.json"]),
        (Some("\u{1b}[2J".to_owned()), &["tokenizer.json"]),
    ] {
        let model = tiny_model("llama");
        let path = model.path().join("tokenizer.json");
        match &content {
            None => fs::remove_file(path).unwrap(),
            Some(content) => fs::write(path, content).unwrap(),
        }
        assert_refused("tokenizer", &run(&["generate", "-m", text(model.path()), "-p", "x"]), 1, parts);
    }
}

#[test]
fn a_chat_template_that_does_not_end_or_does_not_parse_is_refused() {
    let endless = "{% for a in range(99999) %}{% for b in range(99999) %}{{ a * b }}{% endfor %}{% endfor %}";
    let recursive = "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}";
    for (template, parts) in [
        (endless, &["chat_template.jinja", "it loops"][..]),
        (recursive, &["chat_template.jinja"]),
        ("{% for %}", &["chat_template.jinja", "syntax error"]),
        ("{{ raise_exception('no\u{1b}[2J') }}", &["chat_template.jinja"]),
    ] {
        let model = tiny_model("llama");
        fs::write(model.path().join("chat_template.jinja"), template).unwrap();
        let output = run(&["generate", "-m", text(model.path()), "-p", "x", "--chat", "-n", "1"]);
        assert_refused(template, &output, 1, parts);
    }
    let model = tiny_model("llama");
    fs::write(model.path().join("tokenizer_config.json"), "{}").unwrap();
    let output = run(&["generate", "-m", text(model.path()), "-p", "x", "--chat", "-n", "1"]);
    assert_refused("no template", &output, 1, &["chat_template.jinja", "plain text"]);
}
