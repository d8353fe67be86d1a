//! Chats and completions, whole and as streams.

use serde_json::{Value, json};

use super::client::Server;

fn chat(extra: Value) -> Value {
    let mut body = json!({"messages": [{"role": "user", "content": "Ночь"}], "max_tokens": 12, "temperature": 0});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

#[test]
fn a_stream_says_what_the_whole_answer_says() {
    let server = Server::start("qwen3", &[]);
    let whole = server.post("/v1/chat/completions", &chat(json!({})));
    assert_eq!(whole.status, 200, "{whole:?}");
    let whole = whole.json();
    let choice = &whole["choices"][0];
    let text = choice["message"]["content"].as_str().unwrap();
    assert!(!text.is_empty());
    assert_eq!(choice["finish_reason"], "length");
    assert_eq!(whole["object"], "chat.completion");
    let usage = &whole["usage"];
    assert_eq!(usage["completion_tokens"], 12);
    assert_eq!(usage["total_tokens"].as_u64().unwrap(), usage["prompt_tokens"].as_u64().unwrap() + 12);
    assert!(whole["timings"]["prompt_n"].as_u64().unwrap() > 0);

    let streamed =
        server.post("/v1/chat/completions", &chat(json!({"stream": true, "stream_options": {"include_usage": true}})));
    assert!(streamed.head.contains("text/event-stream"), "{streamed:?}");
    assert!(streamed.body.ends_with("data: [DONE]\n\n"));
    let events = streamed.events();
    assert_eq!(events[0]["choices"][0]["delta"]["role"], "assistant");
    let told: String = events.iter().filter_map(|event| event["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(told, text);
    let reasons: Vec<&Value> = events.iter().map(|event| &event["choices"][0]["finish_reason"]).collect();
    assert_eq!(reasons.iter().filter(|reason| !reason.is_null()).count(), 1);
    let last = events.last().unwrap();
    assert_eq!((&last["choices"], &last["usage"]["completion_tokens"]), (&json!([]), &json!(12)));
}

#[test]
fn completions_go_on_from_text_or_tokens() {
    let server = Server::start("qwen3", &[]);
    let complete = |body: Value| {
        let answer = server.post("/v1/completions", &body);
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()
    };
    let text = complete(json!({"prompt": "abc", "max_tokens": 8, "temperature": 0}));
    let tokens = complete(json!({"prompt": [97, 98, 99], "max_tokens": 8, "temperature": 0}));
    assert_eq!(text["choices"][0]["text"], tokens["choices"][0]["text"]);
    let echoed = complete(json!({"prompt": ["abc", "x"], "max_tokens": 8, "temperature": 0, "echo": true, "n": 2}));
    let choices = echoed["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 4);
    let expected = format!("abc{}", text["choices"][0]["text"].as_str().unwrap());
    assert_eq!(choices[0]["text"], expected.as_str());
    assert_eq!(choices[1]["text"], expected.as_str());
    assert_eq!(echoed["usage"]["prompt_tokens"], 4);

    let nothing = complete(json!({"prompt": "abc", "max_tokens": 0}));
    assert_eq!(
        (&nothing["choices"][0]["text"], &nothing["choices"][0]["finish_reason"]),
        (&json!(""), &json!("length"))
    );
}

#[test]
fn a_seed_gives_the_same_answer_and_choices_differ() {
    let server = Server::start("qwen3", &[]);
    let ask = |seed: i64| {
        let body = chat(json!({"seed": seed, "temperature": 1.0, "n": 2}));
        let answer = server.post("/v1/chat/completions", &body).json();
        [0, 1].map(|index| answer["choices"][index]["message"]["content"].to_string())
    };
    let first = ask(7);
    assert_eq!(first, ask(7));
    assert_ne!(first[0], first[1]);
    assert_eq!(first[1], ask(8)[0]);
}

#[test]
fn a_stop_string_ends_the_answer_before_it() {
    let server = Server::start("qwen3", &[]);
    let all = server.post("/v1/completions", &json!({"prompt": "abc", "max_tokens": 32, "temperature": 0})).json();
    let all = all["choices"][0]["text"].as_str().unwrap().to_owned();
    let stop: String = all.chars().skip(5).take(2).collect();
    let body = json!({"prompt": "abc", "max_tokens": 32, "temperature": 0, "stop": [stop]});
    let cut = server.post("/v1/completions", &body).json();
    let choice = &cut["choices"][0];
    assert_eq!(choice["finish_reason"], "stop");
    assert_eq!(choice["text"].as_str().unwrap(), &all[..all.find(&stop).unwrap()]);
}

#[test]
fn what_cannot_be_done_is_refused_by_name() {
    let server = Server::start("qwen3", &[]);
    let image =
        json!([{"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {}}]}]);
    for (extra, param, code) in [
        (json!({"max_tokens": 100_000}), "messages", "context_length_exceeded"),
        (json!({"max_tokens": -2}), "max_tokens", ""),
        (json!({"temperature": 1e99}), "temperature", ""),
        (json!({"temperature": "hot"}), "temperature", ""),
        (json!({"top_p": 0}), "top_p", ""),
        (json!({"n": 0}), "n", ""),
        (json!({"stop": ["", "x"]}), "stop", ""),
        (json!({"stop": 5}), "stop", ""),
        (json!({"model": "gpt-9"}), "model", "model_not_found"),
        (json!({"messages": []}), "messages", ""),
        (json!({"messages": [{"content": "x"}]}), "messages[0].role", ""),
        (json!({"messages": [{"role": "<|im_start|>", "content": "x"}]}), "messages[0].role", "unsupported_value"),
        (json!({"messages": image}), "messages[0].content[1]", "unsupported_value"),
        (json!({"experts_per_token": 3}), "experts_per_token", "unsupported_value"),
        (json!({"rope_freq_base": 1e6}), "rope_freq_base", "unsupported_value"),
        (json!({"mirostat": 2}), "mirostat", "unsupported_value"),
        (json!({"reasoning_effort": "frantic"}), "reasoning_effort", "unsupported_value"),
        (json!({"tools": [{"type": "function", "function": {}}]}), "tools[0].function.name", ""),
        (json!({"lora": [{"id": 3, "scale": 1}]}), "lora", ""),
    ] {
        let answer = server.post("/v1/chat/completions", &chat(extra.clone()));
        let expected = if code == "model_not_found" { 404 } else { 400 };
        assert_eq!(answer.status, expected, "{extra}: {answer:?}");
        let error = &answer.json()["error"];
        assert_eq!(error["param"], param, "{extra}: {error}");
        assert!(code.is_empty() || error["code"] == code, "{extra}: {error}");
        assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()));
    }
    // Unknown fields, and known ones that ask for nothing, are taken.
    let neutral = json!({"user": "x", "metadata": {}, "mirostat": 0, "suffix": null, "xyz": [1], "top_k": -1});
    assert_eq!(server.post("/v1/chat/completions", &chat(neutral)).status, 200);
}

#[test]
fn models_are_told_by_their_names() {
    let server = Server::start("qwen3", &["--alias", "monk,night"]);
    let models = server.get("/v1/models").json();
    let names: Vec<&str> = models["data"].as_array().unwrap().iter().filter_map(|model| model["id"].as_str()).collect();
    assert_eq!(names, ["monk", "night"]);
    assert_eq!(server.get("/v1/models/night").json()["id"], "night");
    assert_eq!(server.get("/v1/models/day").status, 404);
    assert_eq!(server.post("/v1/chat/completions", &chat(json!({"model": "night"}))).json()["model"], "night");
}
