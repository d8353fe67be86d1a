//! `/v1/responses`: made whole and as streams, found again, gone on from, made while nobody waits.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::client::Server;

fn asked(extra: Value) -> Value {
    let mut body = json!({"input": "Ночь", "max_output_tokens": 12, "temperature": 0});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

fn create(server: &Server, extra: Value) -> Value {
    let answer = server.post("/v1/responses", &asked(extra));
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

fn path(response: &Value) -> String {
    format!("/v1/responses/{}", response["id"].as_str().unwrap())
}

/// What clients call `output_text`.
fn text(response: &Value) -> String {
    let items = response["output"].as_array().unwrap().iter().filter(|item| item["type"] == "message");
    items.flat_map(|item| item["content"].as_array().unwrap()).filter_map(|part| part["text"].as_str()).collect()
}

/// What it came to in the end.
fn ended(server: &Server, response: &Value) -> Value {
    let start = Instant::now();
    loop {
        let now = server.get(&path(response)).json();
        if !["queued", "in_progress"].iter().any(|status| now["status"] == *status) {
            return now;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "{now}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_response_says_what_a_chat_says_and_is_found_again() {
    let server = Server::start("qwen3", &[]);
    let made = create(&server, json!({"metadata": {"for": "me"}, "top_p": 0.7}));
    let chat = json!({"messages": [{"role": "user", "content": "Ночь"}], "max_tokens": 12, "temperature": 0});
    let chat = server.post("/v1/chat/completions", &chat).json();
    let said = chat["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(!said.is_empty());
    assert_eq!(text(&made), said);
    assert_eq!((&made["object"], &made["status"]), (&json!("response"), &json!("incomplete")));
    assert_eq!(made["incomplete_details"]["reason"], "max_output_tokens");
    assert_eq!(made["output"][0]["status"], "incomplete");
    assert_eq!((&made["metadata"]["for"], &made["top_p"]), (&json!("me"), &json!(0.7)));
    let usage = &made["usage"];
    assert_eq!(usage["input_tokens"], chat["usage"]["prompt_tokens"]);
    assert_eq!(usage["output_tokens"], 12);
    assert_eq!(usage["total_tokens"], chat["usage"]["total_tokens"]);
    for field in ["/input_tokens_details/cached_tokens", "/output_tokens_details/reasoning_tokens"] {
        assert!(usage.pointer(field).is_some_and(Value::is_u64), "{field}: {usage}");
    }

    assert_eq!(server.get(&path(&made)).json(), made);
    let deleted = server.raw(format!("{}\r\n", server.head("DELETE", &path(&made), "")).as_bytes()).json();
    assert_eq!(deleted, json!({"id": made["id"], "object": "response", "deleted": true}));
    let unstored = create(&server, json!({"store": false}));
    for gone in [path(&made), path(&unstored), "/v1/responses/resp_0".into()] {
        for answer in [server.get(&gone), server.get(&format!("{gone}/input_items"))] {
            assert_eq!((answer.status, &answer.json()["error"]["code"]), (404, &json!("not_found")), "{answer:?}");
        }
        assert_eq!(server.raw(format!("{}\r\n", server.head("DELETE", &gone, "")).as_bytes()).status, 404);
        assert_eq!(server.post(&format!("{gone}/cancel"), &json!({})).status, 404);
    }
}

#[test]
fn a_streamed_response_says_what_the_whole_one_says() {
    let server = Server::start("qwen3", &[]);
    let whole = create(&server, json!({}));
    let streamed = server.post("/v1/responses", &asked(json!({"stream": true})));
    assert!(streamed.head.contains("text/event-stream"), "{streamed:?}");
    let events = streamed.events();
    let kinds: Vec<&str> = events.iter().filter_map(|event| event["type"].as_str()).collect();
    assert!(streamed.body.starts_with("event: response.created\ndata: {"), "{streamed:?}");
    for (number, event) in events.iter().enumerate() {
        assert_eq!(event["sequence_number"], number, "{event}");
    }
    let mut steps = kinds.clone();
    steps.dedup();
    assert_eq!(
        steps,
        [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added",
            "response.output_text.delta",
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.incomplete",
        ]
    );
    let told: String = events.iter().filter_map(|event| event["delta"].as_str()).collect();
    assert_eq!(told, text(&whole));
    let done = events.iter().find(|event| event["type"] == "response.output_text.done").unwrap();
    assert_eq!(done["text"], told.as_str());
    let last = &events.last().unwrap()["response"];
    assert_eq!(text(last), told);
    assert_eq!(last["usage"]["output_tokens"], 12);
    assert_eq!(&server.get(&path(last)).json(), last);
}

#[test]
fn a_call_that_is_forced_is_an_item_and_its_result_goes_back() {
    let server = Server::start("qwen3", &[]);
    let parameters = json!({"type": "object", "properties": {"x": {"enum": ["a"]}}, "required": ["x"],
        "additionalProperties": false});
    let tools = json!([{"type": "function", "name": "f", "description": "", "parameters": parameters}]);
    let extra = json!({"tools": tools, "tool_choice": {"type": "function", "name": "f"}, "max_output_tokens": 200,
        "parallel_tool_calls": false});
    let made = create(&server, extra.clone());
    let call = made["output"].as_array().unwrap().iter().find(|item| item["type"] == "function_call").unwrap();
    assert_eq!(call["name"], "f", "{made}");
    assert_eq!(serde_json::from_str::<Value>(call["arguments"].as_str().unwrap()).unwrap(), json!({"x": "a"}));
    assert_eq!((&made["status"], &call["status"]), (&json!("completed"), &json!("completed")));
    assert_eq!(made["tools"], tools);

    let mut streamed = extra;
    streamed["stream"] = json!(true);
    let events = server.post("/v1/responses", &asked(streamed)).events();
    let told: String = events
        .iter()
        .filter(|event| event["type"] == "response.function_call_arguments.delta")
        .filter_map(|event| event["delta"].as_str())
        .collect();
    assert_eq!(told, call["arguments"].as_str().unwrap());

    let output = json!({"type": "function_call_output", "call_id": call["call_id"], "output": "1"});
    let next = create(&server, json!({"previous_response_id": made["id"], "input": [output], "tools": tools}));
    let call = json!({"id": call["call_id"], "type": "function",
        "function": {"name": "f", "arguments": call["arguments"]}});
    let chat = json!({"max_tokens": 12, "temperature": 0, "messages": [
        {"role": "user", "content": "Ночь"},
        {"role": "assistant", "content": null, "tool_calls": [call]},
        {"role": "tool", "content": "1", "tool_call_id": call["id"]},
    ], "tools": [{"type": "function", "function": {"name": "f", "description": "", "parameters": parameters}}]});
    let chat = server.post("/v1/chat/completions", &chat).json();
    assert_eq!(next["usage"]["input_tokens"], chat["usage"]["prompt_tokens"]);
    assert_eq!(text(&next), chat["choices"][0]["message"]["content"].as_str().unwrap());
}

#[test]
fn a_response_that_goes_on_from_another_is_that_of_the_conversation_sent_whole() {
    let server = Server::start("qwen3", &[]);
    let first = create(&server, json!({"instructions": "Say little."}));
    let next = create(&server, json!({"previous_response_id": first["id"], "input": "ещё"}));
    let user = |text: &str| json!({"role": "user", "content": [{"type": "input_text", "text": text}]});
    let mut whole = vec![user("Ночь")];
    whole.extend(first["output"].as_array().unwrap().iter().cloned());
    whole.push(user("ещё"));
    let whole = create(&server, json!({"input": whole}));
    assert_eq!(text(&next), text(&whole));
    assert_eq!(next["usage"]["input_tokens"], whole["usage"]["input_tokens"]);
    let chat = json!({"max_tokens": 12, "temperature": 0, "messages": [
        {"role": "user", "content": "Ночь"},
        {"role": "assistant", "content": text(&first)},
        {"role": "user", "content": "ещё"},
    ]});
    let chat = server.post("/v1/chat/completions", &chat).json();
    assert_eq!(text(&next), chat["choices"][0]["message"]["content"].as_str().unwrap());

    let third = create(&server, json!({"previous_response_id": next["id"], "input": "и"}));
    let items = server.get(&format!("{}/input_items?order=asc&limit=4", path(&third))).json();
    let roles: Vec<&str> = items["data"].as_array().unwrap().iter().filter_map(|item| item["role"].as_str()).collect();
    assert_eq!((roles, &items["has_more"]), (vec!["user", "assistant", "user", "assistant"], &json!(true)));
    let rest = format!("{}/input_items?order=asc&after={}", path(&third), items["last_id"].as_str().unwrap());
    let rest = server.get(&rest).json();
    assert_eq!(rest["data"][0]["content"], json!([{"type": "input_text", "text": "и"}]));
    assert_eq!((rest["data"].as_array().unwrap().len(), &rest["has_more"]), (1, &json!(false)));
}

#[test]
fn a_response_in_the_background_is_made_while_nobody_waits() {
    let server = Server::start("qwen3", &[]);
    let whole = create(&server, json!({}));
    let made = create(&server, json!({"background": true}));
    assert_eq!((&made["status"], &made["output"]), (&json!("queued"), &json!([])));
    let made = ended(&server, &made);
    assert_eq!((&made["status"], text(&made)), (&json!("incomplete"), text(&whole)));
    // It has ended: a cancel changes nothing.
    assert_eq!(server.post(&format!("{}/cancel", path(&made)), &json!({})).json(), made);
    // Who waited for an answer has it.
    assert_eq!(server.post(&format!("{}/cancel", path(&whole)), &json!({})).status, 400);
}

#[test]
fn a_response_that_is_cancelled_or_deleted_gives_its_place_back() {
    let server = Server::start("qwen3", &["--parallel", "1", "--queue-size", "0", "-c", "8192"]);
    let long = json!({"background": true, "max_output_tokens": 8000, "ignore_eos": true});
    for how in ["POST", "DELETE"] {
        let made = create(&server, long.clone());
        let full = server.post("/v1/responses", &asked(json!({})));
        assert_eq!(full.status, 429, "{full:?}");
        let early = server.post("/v1/responses", &asked(json!({"previous_response_id": made["id"]})));
        assert_eq!((early.status, &early.json()["error"]["param"]), (400, &json!("previous_response_id")));
        if how == "POST" {
            let cancelled = server.post(&format!("{}/cancel", path(&made)), &json!({})).json();
            assert_eq!(cancelled["status"], "cancelled");
            assert_eq!(server.get(&path(&made)).json(), cancelled);
        } else {
            assert_eq!(server.raw(format!("{}\r\n", server.head(how, &path(&made), "")).as_bytes()).status, 200);
            assert_eq!(server.get(&path(&made)).status, 404);
        }
        let start = Instant::now();
        while server.post("/v1/responses", &asked(json!({}))).status == 429 {
            assert!(start.elapsed() < Duration::from_secs(10), "its place is not free");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

#[test]
fn what_a_response_cannot_be_is_refused_by_name() {
    let server = Server::start("qwen3", &[]);
    let item = |item: Value| json!({"input": [item]});
    let image = json!({"role": "user", "content": [{"type": "input_image", "image_url": "x"}]});
    for (extra, param) in [
        (json!({"input": null}), "input"),
        (json!({"input": []}), "input"),
        (item(json!("x")), "input[0]"),
        (item(json!({"type": "computer_call"})), "input[0]"),
        (item(json!({"content": "x"})), "input[0].role"),
        (item(json!({"role": "<|im_start|>", "content": "x"})), "input[0].role"),
        (item(json!({"role": "user"})), "input[0].content"),
        (item(image), "input[0].content[0]"),
        (item(json!({"type": "function_call", "name": "f", "arguments": "{}"})), "input[0].call_id"),
        (json!({"max_output_tokens": 0}), "max_output_tokens"),
        (json!({"max_output_tokens": 100_000}), "input"),
        (json!({"temperature": 1e99}), "temperature"),
        (json!({"n": 2}), "n"),
        (json!({"reasoning": {"effort": "frantic"}}), "reasoning.effort"),
        (json!({"reasoning": {"summary": "detailed"}}), "reasoning.summary"),
        (json!({"tools": [{"type": "web_search"}]}), "tools[0].type"),
        (json!({"tools": [{"type": "function"}]}), "tools[0].name"),
        (json!({"tool_choice": "sometimes"}), "tool_choice"),
        (json!({"tool_choice": "required"}), "tool_choice"),
        (json!({"text": {"format": {"type": "xml"}}}), "text.format"),
        (json!({"text": {"format": {"type": "json_schema", "name": "x"}}}), "text.format.schema"),
        (json!({"text": {"format": {"type": "json_schema", "schema": {"type": 5}}}}), "text.format"),
        (json!({"text": {"verbosity": "low"}}), "text.verbosity"),
        (json!({"truncation": "auto"}), "truncation"),
        (json!({"include": ["message.output_text.logprobs"]}), "include[0]"),
        (json!({"top_logprobs": 2}), "top_logprobs"),
        (json!({"service_tier": "flex"}), "service_tier"),
        (json!({"prompt": {"id": "x"}}), "prompt"),
        (json!({"conversation": "conv_1"}), "conversation"),
        (json!({"background": true, "store": false}), "store"),
        (json!({"background": true, "stream": true}), "stream"),
        (json!({"previous_response_id": "resp_0"}), "previous_response_id"),
        (json!({"metadata": {"x": "y".repeat(513)}}), "metadata"),
        (json!({"metadata": {"x": 1}}), "metadata.x"),
    ] {
        let answer = server.post("/v1/responses", &asked(extra.clone()));
        assert_eq!(answer.status, 400, "{extra}: {answer:?}");
        let error = &answer.json()["error"];
        assert_eq!(error["param"], param, "{extra}: {error}");
        assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()));
    }
    // Unknown fields, and known ones that ask for nothing, are taken.
    let neutral = json!({"user": "x", "truncation": "disabled", "xyz": [1], "service_tier": "auto", "text": {},
        "include": ["reasoning.encrypted_content"], "tools": [], "reasoning": {"effort": null, "summary": "auto"}});
    assert_eq!(server.post("/v1/responses", &asked(neutral)).status, 200);
    let form = json!({"type": "json_schema", "name": "x", "strict": true, "schema": {"enum": ["да"]}});
    assert_eq!(text(&create(&server, json!({"text": {"format": form}, "max_output_tokens": 50}))), "\"да\"");
}
