//! Calls of tools from end to end: a template that knows a form of calls, an answer that has to be one, a call that was
//! said freely, and the turn after it.

use std::fs;

use serde_json::{Value, json};

use super::client::Server;
use crate::models::golden;
use crate::tiny_model::tiny_model;

/// A tiny model under Qwen3's template.
fn server() -> Server {
    let model = tiny_model("qwen3_moe");
    let template = golden().join("templates/qwen3/chat_template.jinja");
    let path = model.path().join("tokenizer_config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config["chat_template"] = fs::read_to_string(template).unwrap().into();
    fs::write(&path, config.to_string()).unwrap();
    Server::start_with(model, &["-c", "4096"])
}

fn tools() -> Value {
    let tide = json!({"type": "object", "properties": {"port": {"enum": ["Brest", "Архангельск"]}, "high": {"type": "boolean"}},
                      "required": ["port", "high"], "additionalProperties": false});
    let bell = json!({"type": "object", "properties": {"hour": {"enum": [3, 6, 9]}}, "required": ["hour"],
                      "additionalProperties": false});
    json!([
        {"type": "function", "function": {"name": "tide", "description": "When it is high or low.", "parameters": tide}},
        {"type": "function", "function": {"name": "bell", "parameters": bell}},
    ])
}

fn chat(messages: &Value, extra: Value) -> Value {
    let mut body = json!({"messages": messages, "tools": tools(), "max_tokens": 300, "temperature": 0.8, "seed": 5,
                          "chat_template_kwargs": {"enable_thinking": false}});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

fn question() -> Value {
    json!([{"role": "user", "content": "When is the tide?"}])
}

/// Arguments are what the tool's schema says.
#[track_caller]
fn assert_valid(call: &Value) {
    assert_eq!(call["type"], "function");
    let arguments: Value = serde_json::from_str(call["function"]["arguments"].as_str().unwrap()).unwrap();
    let fields = arguments.as_object().unwrap().len();
    match call["function"]["name"].as_str().unwrap() {
        "tide" => {
            assert!(["Brest", "Архангельск"].contains(&arguments["port"].as_str().unwrap()), "{call}");
            assert!(arguments["high"].is_boolean() && fields == 2, "{call}");
        }
        "bell" => assert!([3, 6, 9].contains(&arguments["hour"].as_u64().unwrap()) && fields == 1, "{call}"),
        name => panic!("{name} is no tool of the request"),
    }
}

/// Calls without their ids, which are new each time.
fn functions<'v>(calls: impl IntoIterator<Item = &'v Value>) -> Vec<Value> {
    calls.into_iter().map(|call| call["function"].clone()).collect()
}

#[test]
fn a_forced_call_has_valid_arguments_and_the_turn_after_it_is_answered() {
    let server = server();
    let named = json!({"type": "function", "function": {"name": "bell"}});
    for (choice, one) in [(json!("required"), json!({})), (named, json!({"parallel_tool_calls": false}))] {
        let mut extra = one;
        extra["tool_choice"] = choice.clone();
        let whole = server.post("/v1/chat/completions", &chat(&question(), extra.clone()));
        assert_eq!(whole.status, 200, "{whole:?}");
        let whole = whole.json();
        let message = &whole["choices"][0]["message"];
        let calls = message["tool_calls"].as_array().unwrap_or_else(|| panic!("no call: {whole}"));
        assert_eq!(whole["choices"][0]["finish_reason"], "tool_calls", "{whole}");
        calls.iter().for_each(assert_valid);
        if choice.is_object() {
            assert_eq!((calls.len(), &calls[0]["function"]["name"]), (1, &json!("bell")));
        }

        extra["stream"] = json!(true);
        let events = server.post("/v1/chat/completions", &chat(&question(), extra)).events();
        let told = events.iter().filter_map(|event| event["choices"][0]["delta"]["tool_calls"].as_array()).flatten();
        let told: Vec<&Value> = told.collect();
        assert_eq!(functions(told.iter().copied()), functions(calls));
        assert!(told.iter().enumerate().all(|(index, call)| call["index"] == index));
        let reasons = events.iter().filter_map(|event| event["choices"][0]["finish_reason"].as_str());
        assert_eq!(reasons.collect::<Vec<_>>(), ["tool_calls"]);

        // As clients do: the message as it came, and what the tools gave.
        let mut messages = question();
        let turns = messages.as_array_mut().unwrap();
        turns.push(message.clone());
        for call in calls {
            turns.push(json!({"role": "tool", "tool_call_id": call["id"], "content": "at 4:20"}));
        }
        let rendered = server.post("/apply-template", &chat(&messages, json!({}))).json();
        let prompt = rendered["prompt"].as_str().unwrap();
        for part in ["<tool_call>\n{\"name\": \"", "<tool_response>\nat 4:20\n</tool_response>", "\"name\": \"tide\""] {
            assert!(prompt.contains(part), "`{part}` is not in {prompt}");
        }
        let next = chat(&messages, json!({"tool_choice": "none", "max_tokens": 5}));
        let answer = server.post("/v1/chat/completions", &next);
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.json()["usage"]["completion_tokens"], 5);
    }
}

#[test]
fn a_call_that_is_said_freely_is_told_as_one_and_without_tools_as_text() {
    let server = server();
    let said = r#"<tool_call>\n\{"name": "bell", "arguments": \{"hour": 6\}\}\n</tool_call>"#;
    let text = "<tool_call>\n{\"name\": \"bell\", \"arguments\": {\"hour\": 6}}\n</tool_call>";
    let ask = |extra: Value| {
        let mut body = chat(&question(), json!({"guided_regex": format!(r"Ding\. {said}")}));
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        server.post("/v1/chat/completions", &body)
    };
    let whole = ask(json!({})).json();
    let message = &whole["choices"][0]["message"];
    assert_eq!(message["content"].as_str().unwrap().trim_end(), "Ding.");
    let calls = message["tool_calls"].as_array().unwrap();
    assert_eq!(functions(calls), [json!({"name": "bell", "arguments": "{\"hour\": 6}"})]);
    assert_eq!(whole["choices"][0]["finish_reason"], "tool_calls");

    let events = ask(json!({"stream": true})).events();
    let told = events.iter().filter_map(|event| event["choices"][0]["delta"]["tool_calls"].as_array()).flatten();
    assert_eq!(functions(told), functions(calls));
    let content: String = events.iter().filter_map(|event| event["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(content, message["content"].as_str().unwrap());

    let plain = ask(json!({"tool_choice": "none"})).json();
    let choice = &plain["choices"][0];
    assert_eq!(choice["message"]["content"], format!("Ding. {text}"));
    assert_eq!((choice["message"].get("tool_calls"), &choice["finish_reason"]), (None, &json!("stop")));
}
