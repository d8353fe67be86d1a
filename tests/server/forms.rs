//! What an answer has to be, how probable it was, and texts as vectors.

use serde_json::{Value, json};

use super::client::Server;

fn complete(server: &Server, extra: Value) -> Value {
    let mut body = json!({"prompt": "abc", "max_tokens": 8, "temperature": 0});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    let answer = server.post("/v1/completions", &body);
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()["choices"][0].clone()
}

#[test]
fn a_schema_is_kept_to_and_a_bad_one_is_refused() {
    let server = Server::start("qwen3", &[]);
    let schema = json!({"type": "object", "properties": {"day": {"enum": ["mon", "tue"]}, "free": {"type": "boolean"}},
                        "required": ["day", "free"], "additionalProperties": false});
    let chat = |format: Value| {
        let body = json!({"messages": [{"role": "user", "content": "x"}], "max_tokens": 200, "temperature": 1, "seed": 3,
                          "response_format": format});
        server.post("/v1/chat/completions", &body)
    };
    let answer =
        chat(json!({"type": "json_schema", "json_schema": {"name": "plan", "schema": schema, "strict": true}}));
    assert_eq!(answer.status, 200, "{answer:?}");
    let answer = answer.json();
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    let plan: Value = serde_json::from_str(answer["choices"][0]["message"]["content"].as_str().unwrap()).unwrap();
    assert!(["mon", "tue"].contains(&plan["day"].as_str().unwrap()) && plan["free"].is_boolean(), "{plan}");

    for (format, param) in [
        (json!({"type": "json_schema", "json_schema": {"schema": {"type": "nothing"}}}), "response_format"),
        (json!({"type": "json_schema", "json_schema": {}}), "response_format.json_schema.schema"),
        (json!({"type": "xml"}), "response_format"),
    ] {
        let refused = chat(format);
        assert_eq!(refused.status, 400, "{refused:?}");
        assert_eq!(refused.json()["error"]["param"], param);
    }
    assert_eq!(complete(&server, json!({"guided_regex": "[0-9]{5}"}))["text"].as_str().unwrap().len(), 5);
    assert_eq!(complete(&server, json!({"grammar": "start: \"yes\" | \"no\""}))["finish_reason"], "stop");
    let forced = json!({"messages": [{"role": "user", "content": "x"}], "tool_choice": "required"});
    assert_eq!(server.post("/v1/chat/completions", &forced).json()["error"]["param"], "tool_choice");
}

#[test]
fn probabilities_are_told_and_biases_decide() {
    let server = Server::start("qwen3", &[]);
    let told = complete(&server, json!({"logprobs": 3}));
    let logprobs = &told["logprobs"];
    assert_eq!(logprobs["tokens"].as_array().unwrap().len(), 8);
    for (token, chosen) in logprobs["token_logprobs"].as_array().unwrap().iter().enumerate() {
        let top = logprobs["top_logprobs"][token].as_object().unwrap().values();
        let best = top.map(|value| value.as_f64().unwrap()).fold(f64::NEG_INFINITY, f64::max);
        assert_eq!(chosen.as_f64().unwrap(), best);
    }
    assert_eq!(complete(&server, json!({"logit_bias": {"65": 100}, "max_tokens": 4}))["text"], "AAAA");
    let penalised =
        complete(&server, json!({"logit_bias": [[65, 100], [66, 99.9]], "max_tokens": 4, "presence_penalty": 2}));
    assert_eq!(penalised["text"], "ABAA");

    let chat = json!({"messages": [{"role": "user", "content": "x"}], "max_tokens": 6, "temperature": 0, "logprobs": true,
                      "top_logprobs": 2, "stream": true});
    let events = server.post("/v1/chat/completions", &chat).events();
    let tokens = events.iter().filter_map(|event| event["choices"][0]["logprobs"]["content"].as_array()).flatten();
    let tokens: Vec<&Value> = tokens.collect();
    assert_eq!(tokens.len(), 6);
    assert!(tokens.iter().all(|token| token["top_logprobs"].as_array().unwrap().len() == 2));
    for (field, body) in [
        ("logprobs", json!({"prompt": "a", "logprobs": 21})),
        ("logit_bias", json!({"prompt": "a", "logit_bias": {"9999": 1}})),
    ] {
        let refused = server.post("/v1/completions", &body);
        assert_eq!((refused.status, &refused.json()["error"]["param"]), (400, &json!(field)));
    }
}

#[test]
fn a_text_is_the_same_vector_alone_and_in_company() {
    let server = Server::start("qwen3", &["--parallel", "2"]);
    let embed = |input: Value| {
        let answer = server.post("/v1/embeddings", &json!({"input": input}));
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()
    };
    let alone = embed(json!("abc"));
    let texts: Vec<String> = (0..5).map(|length| "abc".repeat(length + 1)).collect();
    let company = embed(json!(texts));
    assert_eq!(company["data"].as_array().unwrap().len(), 5);
    assert_eq!(company["data"][0]["embedding"], alone["data"][0]["embedding"]);
    assert_ne!(company["data"][0]["embedding"], company["data"][1]["embedding"]);
    assert_eq!((&alone["usage"]["prompt_tokens"], &company["usage"]["prompt_tokens"]), (&json!(3), &json!(45)));
    let vector = alone["data"][0]["embedding"].as_array().unwrap();
    let length: f64 = vector.iter().map(|value| value.as_f64().unwrap().powi(2)).sum();
    assert!((length - 1.0).abs() < 1e-5, "{length}");
    let ollama = server.post("/api/embed", &json!({"model": "", "input": ["abc"]})).json();
    assert_eq!(&ollama["embeddings"][0], &alone["data"][0]["embedding"]);
    let base64 = server.post("/v1/embeddings", &json!({"input": "abc", "encoding_format": "base64"})).json();
    assert!(base64["data"][0]["embedding"].is_string());
    for (field, body) in [
        ("input", json!({"input": []})),
        ("dimensions", json!({"input": "a", "dimensions": 3})),
        ("input", json!({"input": "a".repeat(600)})),
    ] {
        let refused = server.post("/v1/embeddings", &body);
        assert_eq!((refused.status, &refused.json()["error"]["param"]), (400, &json!(field)));
    }
}
