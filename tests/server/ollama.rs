//! Ollama's shape.

use serde_json::{Value, json};

use super::client::{Answer, Server};

fn lines(answer: &Answer) -> Vec<Value> {
    answer.body.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn lines_say_what_the_whole_answer_says() {
    let server = Server::start("qwen3", &["--alias", "monk"]);
    let body = |stream: bool| {
        json!({"model": "monk:latest", "messages": [{"role": "user", "content": "Ночь"}], "stream": stream,
               "options": {"temperature": 0, "num_predict": 12, "num_ctx": 256}, "keep_alive": "5m"})
    };
    let whole = server.post("/api/chat", &body(false));
    assert_eq!(whole.status, 200, "{whole:?}");
    let whole = whole.json();
    let text = whole["message"]["content"].as_str().unwrap();
    assert!(!text.is_empty());
    assert_eq!(
        (&whole["done"], &whole["done_reason"], &whole["eval_count"]),
        (&json!(true), &json!("length"), &json!(12))
    );

    let streamed = server.post("/api/chat", &body(true));
    assert!(streamed.head.contains("application/x-ndjson"));
    let lines = lines(&streamed);
    let told: String = lines.iter().filter_map(|line| line["message"]["content"].as_str()).collect();
    assert_eq!(told, text);
    let (last, before) = lines.split_last().unwrap();
    assert!(before.iter().all(|line| line["done"] == false));
    assert_eq!(
        (&last["done"], &last["eval_count"], &last["prompt_eval_count"]),
        (&json!(true), &json!(12), &whole["prompt_eval_count"])
    );
}

#[test]
fn one_prompt_is_a_chat_of_one_turn_or_raw_text() {
    let server = Server::start("qwen3", &["--alias", "monk"]);
    let generate = |extra: Value| {
        let mut body =
            json!({"model": "monk", "prompt": "abc", "stream": false, "options": {"temperature": 0, "num_predict": 8}});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        server.post("/api/generate", &body)
    };
    let chat = json!({"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "abc"}], "max_tokens": 8, "temperature": 0});
    let chat = server.post("/v1/chat/completions", &chat).json();
    assert_eq!(generate(json!({"system": "s"})).json()["response"], chat["choices"][0]["message"]["content"]);
    let plain = server.post("/v1/completions", &json!({"prompt": "abc", "max_tokens": 8, "temperature": 0})).json();
    assert_eq!(generate(json!({"raw": true})).json()["response"], plain["choices"][0]["text"]);
    assert_eq!(generate(json!({"prompt": ""})).json()["done_reason"], "load");

    for (extra, status) in [
        (json!({"model": "other"}), 404),
        (json!({"images": ["aGk="]}), 400),
        (json!({"options": {"num_ctx": 1_000_000}}), 400),
        (json!({"options": {"num_predict": 100_000}}), 400),
        (json!({"options": {"mirostat": 2}}), 400),
        (json!({"think": "frantically"}), 400),
        (json!({"template": "x"}), 400),
    ] {
        let answer = generate(extra.clone());
        assert_eq!(answer.status, status, "{extra}: {answer:?}");
        assert!(answer.json()["error"].is_string(), "{answer:?}");
    }
}

#[test]
fn what_there_is_is_told() {
    let server = Server::start("qwen3_moe", &["--alias", "monk"]);
    assert!(server.get("/api/version").json()["version"].is_string());
    for path in ["/api/tags", "/api/ps"] {
        let models = server.get(path).json();
        assert_eq!(models["models"][0]["name"], "monk:latest");
        assert!(models["models"][0]["size"].as_u64().unwrap() > 0);
    }
    let shown = server.post("/api/show", &json!({"model": "monk"})).json();
    assert_eq!(shown["details"]["family"], "qwen3_moe");
    assert_eq!(shown["model_info"]["qwen3_moe.context_length"], 512);
    assert_eq!(shown["capabilities"], json!(["completion"]));
    assert_eq!(server.post("/api/show", &json!({"model": "other"})).status, 404);
}
