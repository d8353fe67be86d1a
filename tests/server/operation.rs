//! What an operator asks.

use serde_json::{Value, json};

use super::client::Server;
use crate::models::golden;

#[test]
fn figures_count_what_was_done() {
    let server = Server::start("qwen3", &["--parallel", "2"]);
    let answer = server.post("/v1/completions", &json!({"prompt": "abc", "max_tokens": 5, "temperature": 0}));
    assert_eq!(answer.status, 200);
    let figures = server.get("/metrics");
    let figure = |name: &str| -> f64 {
        let line = figures.body.lines().find(|line| line.split(' ').next() == Some(name));
        line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or_else(|| panic!("{name}: {figures:?}"))
    };
    assert_eq!(figure("nightmonk_prompt_tokens_total"), 3.0);
    assert_eq!(figure("nightmonk_tokens_predicted_total"), 5.0);
    assert_eq!(figure("nightmonk_requests_processing"), 0.0);
    assert_eq!(figure("nightmonk_kv_cache_usage_ratio"), 0.0);
    assert!(figure("nightmonk_n_decode_total") >= 5.0);
    assert!(figure("nightmonk_read_bandwidth_bytes_per_second") > 0.0);
    assert!(figure("nightmonk_memory_bytes{arena=\"kv_cache\"}") > 0.0);
    assert!(figures.body.ends_with("# EOF\n"));

    let slots = server.get("/slots").json();
    assert_eq!(slots.as_array().unwrap().iter().filter(|slot| slot["state"] == "idle").count(), 2);
    let props = server.get("/props").json();
    assert_eq!((&props["total_slots"], &props["default_generation_settings"]["n_ctx"]), (&json!(2), &json!(512)));
}

#[test]
fn texts_become_tokens_and_tokens_texts() {
    let server = Server::start("qwen3", &[]);
    let tokens = server.post("/tokenize", &json!({"content": "aб<|im_end|>"})).json();
    assert_eq!(tokens["tokens"], json!([97, 208, 177, 258]));
    let text = server.post("/detokenize", &tokens).json();
    assert_eq!(text["content"], "aб<|im_end|>");
    let quoted = server.post("/tokenize", &json!({"content": "<|im_end|>", "parse_special": false})).json();
    assert_eq!(quoted["tokens"].as_array().unwrap().len(), 10);
    let pieces = server.post("/tokenize", &json!({"content": "aб", "with_pieces": true})).json();
    assert_eq!(
        pieces["tokens"],
        json!([{"id": 97, "piece": "a"}, {"id": 208, "piece": [208]}, {"id": 177, "piece": [177]}])
    );
    assert_eq!(server.post("/detokenize", &json!({"tokens": [100_000]})).status, 400);
    let chat = json!({"messages": [{"role": "user", "content": "x"}]});
    let prompt = server.post("/apply-template", &chat).json();
    assert_eq!(prompt["prompt"], "<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n");
}

#[test]
fn adapters_are_loaded_named_weighed_and_unloaded() {
    let lora = golden().join("lora");
    let server = Server::start("qwen3", &["--lora-dir", lora.to_str().unwrap()]);
    let ask = |model: &str| -> Value {
        let body = json!({"model": model, "prompt": "abc", "max_tokens": 24, "temperature": 0});
        server.post("/v1/completions", &body).json()["choices"][0]["text"].clone()
    };
    let plain = ask("");
    let load = json!({"lora_name": "style", "lora_path": "qwen3_rslora"});
    assert_eq!(server.post("/v1/load_lora_adapter", &load).json(), json!({"success": true, "lora_name": "style"}));
    assert_eq!(server.post("/v1/load_lora_adapter", &load).status, 400);
    assert!(server.get("/v1/models/style").json()["parent"].is_string());
    let styled = ask("style");
    assert_ne!(styled, plain);
    assert_eq!(ask(""), plain);
    assert_eq!(server.post("/lora-adapters", &json!([{"id": 0, "scale": 1.0}])).status, 200);
    assert_eq!(ask(""), styled);
    assert_eq!(server.post("/v1/unload_lora_adapter", &json!({"lora_name": "style"})).status, 200);
    assert_eq!(ask(""), plain);
    assert_eq!(server.post("/v1/load_lora_adapter", &json!({"lora_name": "x", "lora_path": "../qwen3"})).status, 400);
    assert_eq!(server.post("/v1/unload_lora_adapter", &json!({"lora_name": "none"})).status, 400);
}

#[test]
fn the_document_of_the_api_names_every_path_that_it_has() {
    let server = Server::start("qwen3", &[]);
    let document = server.get("/openapi.json").json();
    let paths = document["paths"].as_object().unwrap();
    for (path, methods) in paths {
        for method in methods.as_object().unwrap().keys() {
            let path = path.replace("{id}", "none");
            let answer = match method.as_str() {
                "get" => server.get(&path),
                "delete" => server.delete(&path),
                _ => server.post(&path, &json!({"model": "none"})),
            };
            let is_there = answer.status != 405 && !answer.body.contains("nothing at this path");
            assert!(is_there && answer.status < 500, "{method} {path}: {answer:?}");
        }
    }
    assert!(paths.len() > 15);
}
