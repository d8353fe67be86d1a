//! Chat templates of the models that people run, to the byte as transformers renders them, and turns written by them
//! taken apart again.
//!
//! `tests/golden/templates/README.md` says where the templates come from.

use std::path::PathBuf;

use engine_core::text::{
    CallFormat, ChatTemplate, CivilTime, Content, Message, RenderOptions, Speech, SpeechFormat, TextError, Tools,
};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::models::golden;

/// 2026-11-22 23:30, which the reference took for now.
const NOW: i64 = 1_795_390_200;

const fn tagged(thinks: bool, calls: Option<CallFormat>) -> SpeechFormat {
    SpeechFormat::Tagged { thinks, calls }
}

/// Each template's folder and the marks that are found in it.
const TEMPLATES: [(&str, SpeechFormat); 14] = [
    ("gpt_oss", SpeechFormat::Harmony),
    ("llama2", SpeechFormat::PLAIN),
    ("llama3", SpeechFormat::PLAIN),
    ("llama3_1", tagged(false, Some(CallFormat::Llama3))),
    ("mistral_nemo", tagged(false, Some(CallFormat::Mistral))),
    ("mistral_v1", SpeechFormat::PLAIN),
    ("mistral_v3", tagged(false, Some(CallFormat::Mistral))),
    ("qwen1_5", SpeechFormat::PLAIN),
    ("qwen2_5", tagged(false, Some(CallFormat::Hermes))),
    ("qwen3", tagged(true, Some(CallFormat::Hermes))),
    ("qwen3_coder", tagged(false, Some(CallFormat::FunctionXml))),
    ("qwen3_instruct_2507", tagged(false, Some(CallFormat::Hermes))),
    ("qwen3_thinking_2507", tagged(true, Some(CallFormat::Hermes))),
    ("yi", SpeechFormat::PLAIN),
];

#[derive(Deserialize)]
struct Conversation {
    name: String,
    tools: Option<Value>,
    messages: Vec<Message>,
}

#[derive(Deserialize)]
struct Case {
    conversation: usize,
    options: Map<String, Value>,
    #[serde(flatten)]
    expected: Expected,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Expected {
    Prompt(String),
    Refused(String),
}

fn folder(name: &str) -> PathBuf {
    golden().join("templates").join(name)
}

fn read<T: serde::de::DeserializeOwned>(path: PathBuf) -> T {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn conversations() -> Vec<Conversation> {
    read(folder("conversations.json"))
}

fn options(mut options: Map<String, Value>, tools: Option<&Value>) -> RenderOptions {
    RenderOptions {
        add_generation_prompt: options.remove("add_generation_prompt").unwrap().as_bool().unwrap(),
        enable_thinking: options.remove("enable_thinking").map(|value| value.as_bool().unwrap()),
        tools: tools.cloned(),
        now: Some(CivilTime::from_unix(NOW, 0)),
        extra: options,
    }
}

#[test]
fn every_template_writes_what_transformers_writes_and_refuses_what_it_refuses() {
    let conversations = conversations();
    assert_eq!(conversations.len(), 12);
    for (name, _) in TEMPLATES {
        let template = ChatTemplate::from_dir(&folder(name)).unwrap();
        let cases: Vec<Case> = read(folder(name).join("expected.json"));
        assert!(cases.len() > conversations.len(), "{name}");
        for Case { conversation, options: chosen, expected } in cases {
            let Conversation { name: about, tools, messages } = &conversations[conversation];
            let place = format!("{name}, {about}, {chosen:?}");
            let got = template.render(messages, &options(chosen, tools.as_ref()));
            match expected {
                Expected::Prompt(want) => assert_eq!(got.unwrap(), want, "{place}"),
                Expected::Refused(why) => {
                    let Err(TextError::Template { reason, .. }) = got else { panic!("{place}: {got:?}") };
                    assert!(reason.contains(&why), "{place}: {reason}");
                }
            }
        }
    }
}

#[test]
fn every_template_shows_how_its_model_marks_thoughts_and_calls() {
    for (name, format) in TEMPLATES {
        let template = ChatTemplate::from_dir(&folder(name)).unwrap();
        assert_eq!(template.speech_format(&RenderOptions::default()).unwrap(), format, "{name}");
    }
}

/// The assistant's turn as `template` writes it after `before`, and the end of the prompt before it.
fn turn(template: &ChatTemplate, before: &[Message], turn: &Message, tools: Option<&Value>) -> (String, String) {
    let render = |messages: &[Message], add_generation_prompt| {
        let now = Some(CivilTime::from_unix(NOW, 0));
        let options = RenderOptions { add_generation_prompt, tools: tools.cloned(), now, ..RenderOptions::default() };
        template.render(messages, &options).unwrap()
    };
    let prompt = render(before, true);
    let whole = render(&[before, std::slice::from_ref(turn)].concat(), false);
    // Some write the history otherwise once an answer is there; where the answer begins, they write the same.
    let tail = prompt.char_indices().nth_back(15).map_or(prompt.as_str(), |(at, _)| &prompt[at..]);
    let after_tail = || whole.rfind(tail).map(|at| &whole[at + tail.len()..]);
    let written = whole.strip_prefix(&prompt).or_else(after_tail).expect("the turn follows the prompt");
    let end = ["<|im_end|>\n", "<|call|>", "<|return|>", "</s>", "<|eot_id|>"]
        .into_iter()
        .find_map(|end| written.strip_suffix(end))
        .unwrap_or(written);
    (prompt, end.to_owned())
}

/// Arguments as the conversations have them, in objects.
fn calls(message: &Message) -> Vec<(String, Value)> {
    let call = |call: &Value| {
        let function = &call["function"];
        let arguments = match &function["arguments"] {
            Value::String(text) => serde_json::from_str(text).unwrap(),
            other => other.clone(),
        };
        (function["name"].as_str().unwrap().to_owned(), arguments)
    };
    message.tool_calls.iter().flatten().map(call).collect()
}

fn text(message: &Message) -> &str {
    match &message.content {
        Some(Content::Text(text)) => text,
        _ => "",
    }
}

#[test]
fn turns_that_templates_write_are_taken_apart_again() {
    let mut taken = 0;
    for (name, format) in TEMPLATES {
        if matches!(format, SpeechFormat::Tagged { calls: None, .. }) {
            continue;
        }
        let template = ChatTemplate::from_dir(&folder(name)).unwrap();
        let one_call = matches!(name, "gpt_oss" | "llama3_1");
        for Conversation { name: about, tools, messages } in conversations() {
            let Some(tools) = tools else { continue };
            for (at, message) in messages.iter().enumerate().filter(|(_, message)| message.role == "assistant") {
                let wanted = calls(message);
                if one_call && wanted.len() > 1 {
                    continue;
                }
                let place = format!("{name}, {about}, message {at}");
                let (prompt, written) = turn(&template, &messages[..at], message, Some(&tools));
                let speech = Speech::parse(format, Tools::from_openai(&tools), &prompt, &written);
                let got = speech.clone().into_message(0);
                assert_eq!(calls(&got), wanted, "{place}: {written}");
                // These write no text beside a call, or write it as a thought.
                let silent = !wanted.is_empty() && matches!(format, SpeechFormat::Harmony)
                    || !wanted.is_empty() && matches!(name, "mistral_nemo" | "mistral_v3" | "llama3_1");
                if !silent {
                    assert_eq!(speech.content.trim(), text(message).trim(), "{place}: {written}");
                }
                if written.contains("<think>") || written.contains("analysis") || prompt.ends_with("<think>\n") {
                    let thought = message.reasoning_content.as_deref().unwrap_or_default();
                    let thought = if silent && thought.is_empty() { text(message) } else { thought };
                    assert_eq!(speech.reasoning_content, thought, "{place}: {written}");
                }
                taken += 1;
            }
        }
    }
    // Six turns for each of nine templates, less the two calls at once that two of them cannot write.
    assert_eq!(taken, 52);
}
