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

/// Writes all that a template may be told, so that a prompt shows what it was told.
const TELLS: &str = "{{ enable_thinking | default('-') }} {{ reasoning_effort | default('-') }} {{ mood | default('-') }} \
                     {% for tool in tools or [] %}{{ tool.function.name }} {% endfor %}";

#[test]
fn a_template_is_told_what_the_flags_say() {
    let model = model(TELLS);
    let tools = model.path().join("tools.json");
    let list = json!([{"type": "function", "function": {"name": "look", "parameters": {}}},
                      {"type": "function", "function": {"name": "count"}}]);
    std::fs::write(&tools, list.to_string()).unwrap();
    for (flags, told) in [
        (vec![], "- - - "),
        (vec!["--thinking", "on"], "True - - "),
        (vec!["--thinking", "off"], "False - - "),
        (vec!["--reasoning-effort", "low"], "- low - "),
        (vec!["--reasoning-effort", "high", "--thinking", "on"], "True high - "),
        (vec!["--chat-template-kwargs", r#"{"reasoning_effort": "high", "mood": "calm"}"#], "- high calm "),
        (vec!["--tools", tools.to_str().unwrap()], "- - - look count "),
    ] {
        let told = format!("<|im_start|>Ночь</think><|im_end|>{told}");
        let plain = Command::new(env!("CARGO_BIN_EXE_nightmonk"))
            .args(["generate", "-n", "12", "-o", "json", "-p", &told, "-m"])
            .arg(model.path())
            .output()
            .unwrap();
        let mut arguments = vec!["--chat", "-o", "json"];
        arguments.extend(&flags);
        let chat = document(&generate(model.path(), &arguments));
        assert_eq!(chat["tokens"], document(&plain)["tokens"], "{flags:?}: another prompt");
        assert_eq!(chat["usage"], document(&plain)["usage"], "{flags:?}");
    }
}

#[test]
fn what_a_template_does_not_know_is_refused_by_name_before_the_model_is_loaded() {
    let knows_nothing = model("");
    let tools = knows_nothing.path().join("tools.json");
    std::fs::write(&tools, r#"[{"type": "function", "function": {"name": "look"}}]"#).unwrap();
    let knows_all = model(TELLS);
    for (model, flags, parts) in [
        (&knows_nothing, vec!["--chat", "--thinking", "off"], vec!["`enable_thinking`", "nowhere"]),
        (&knows_nothing, vec!["--chat", "--reasoning-effort", "low"], vec!["`reasoning_effort`", "nowhere"]),
        (&knows_nothing, vec!["--chat", "--tools", tools.to_str().unwrap()], vec!["`tools`", "nowhere"]),
        (&knows_nothing, vec!["--chat", "--chat-template-kwargs", r#"{"mood": 1}"#], vec!["`mood`", "nowhere"]),
        (&knows_all, vec!["--chat", "--chat-template-kwargs", r#"{"messages": []}"#], vec!["`messages`", "always set"]),
        (
            &knows_all,
            vec!["--chat", "--thinking", "on", "--chat-template-kwargs", r#"{"enable_thinking": false}"#],
            vec!["`enable_thinking`", "twice"],
        ),
        (
            &knows_all,
            vec!["--chat", "--reasoning-effort", "low", "--chat-template-kwargs", r#"{"reasoning_effort": "high"}"#],
            vec!["`reasoning_effort`", "twice"],
        ),
        (&knows_all, vec!["--chat", "--reasoning-effort", "hard"], vec!["low, medium, high"]),
        (&knows_all, vec!["--chat", "--chat-template-kwargs", "[1]"], vec!["a JSON object"]),
        (&knows_all, vec!["--thinking", "on"], vec!["--chat"]),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_nightmonk"))
            .args(["generate", "-p", "Ночь", "-n", "1", "-m"])
            .arg(model.path())
            .args(&flags)
            .output()
            .unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{flags:?}: {said}");
        for part in parts {
            assert!(said.contains(part), "{flags:?}, {part} is missing in: {said}");
        }
        assert!(!said.contains("loaded in"), "{said}");
    }
}
