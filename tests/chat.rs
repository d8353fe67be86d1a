//! `generate --chat`: the answer on standard output, thoughts beside it.
//!
//! What tiny models say is noise, but a template that opens the thoughts makes all of it thought, and one that knows
//! thoughts but does not open them makes it answer.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::tiny_model::tiny_model;

const TURNS: &str = "{% for message in messages %}<|im_start|>{{ message.content }}</think><|im_end|>{% endfor %}";

fn generate(model: &Path, arguments: &[&str]) -> Output {
    let output = Command::new(env!("CARGO_BIN_EXE_nightmonk"))
        .args(["generate", "-p", "Ночь", "-n", "12", "-m"])
        .arg(model)
        .args(arguments)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output
}

fn document(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A model whose chat template ends the prompt with this.
fn model(prompt_end: &str) -> tempfile::TempDir {
    let model = tiny_model("qwen3");
    let path = model.path().join("tokenizer_config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config["chat_template"] = format!("{TURNS}{prompt_end}").into();
    std::fs::write(path, config.to_string()).unwrap();
    model
}

#[test]
fn thoughts_that_the_template_opened_are_not_printed_and_json_has_them() {
    let model = model("<think>{{ '\\n' }}");
    let all = document(&generate(model.path(), &["--chat", "-o", "json"]));
    let text = all["text"].as_str().unwrap();
    assert!(!text.trim().is_empty(), "{all}");
    assert_eq!(all["content"], "");
    assert_eq!(all["reasoning_content"], text.trim_start_matches('\n'));
    assert_eq!(all["tool_calls"], json!([]));

    let printed = generate(model.path(), &["--chat"]);
    assert_eq!(printed.stdout, b"\n");
    let note = String::from_utf8(printed.stderr).unwrap();
    assert!(note.contains("characters of thoughts are not printed"), "{note}");
}

#[test]
fn an_answer_without_thoughts_is_printed_as_it_is() {
    let model = model("<|im_start|>");
    let all = document(&generate(model.path(), &["--chat", "-o", "json"]));
    let text = all["text"].as_str().unwrap();
    assert_eq!((&all["content"], &all["reasoning_content"]), (&json!(text), &json!("")));
    assert_eq!(generate(model.path(), &["--chat"]).stdout, format!("{text}\n").into_bytes());
}

#[test]
fn without_a_chat_nothing_is_taken_apart() {
    let model = model("<think>");
    let all = document(&generate(model.path(), &["-o", "json"]));
    assert!(all.get("content").is_none() && all.get("reasoning_content").is_none(), "{all}");
    assert_eq!(generate(model.path(), &[]).stdout, format!("{}\n", all["text"].as_str().unwrap()).into_bytes());
}
