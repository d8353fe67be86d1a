//! What routers chose, told of one answer and counted of all.

use std::fs;

use serde_json::{Value, json};

use super::client::Server;
use crate::damaged::{run, text};
use crate::experts::npy;

/// What `nightmonk logits` writes of these tokens: shape, experts, weights.
fn logits(server: &Server, tokens: &Value, flags: &[&str]) -> (Vec<usize>, Vec<u64>, Vec<f32>) {
    let folder = tempfile::tempdir().unwrap();
    let [ids, out, experts, weights] =
        ["ids.json", "out.npy", "experts.npy", "weights.npy"].map(|name| folder.path().join(name));
    fs::write(&ids, tokens.to_string()).unwrap();
    let base = ["logits", "-m", text(server.model()), "--tokens", text(&ids), "--output", text(&out)];
    let files = ["--router", text(&experts), "--router-weights", text(&weights)];
    let output = run(&[&base[..], &files, flags].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let (shape, experts) = npy(&experts, "<i4");
    let (_, weights) = npy(&weights, "<f4");
    let expert = |word| u64::try_from(i32::from_le_bytes(word)).unwrap();
    (shape, experts.into_iter().map(expert).collect(), weights.into_iter().map(f32::from_le_bytes).collect())
}

/// Numbers of nested arrays, in their order.
fn flat(value: &Value) -> Vec<f64> {
    match value {
        Value::Array(list) => list.iter().flat_map(flat).collect(),
        value => vec![value.as_f64().unwrap()],
    }
}

fn tokens_of(server: &Server, text: &str) -> Vec<u64> {
    let tokens = server.post("/tokenize", &json!({"content": text})).json();
    tokens["tokens"].as_array().unwrap().iter().map(|token| token.as_u64().unwrap()).collect()
}

/// The router's part of a choice says of prompt and answer what `logits` says of the same tokens.
#[track_caller]
fn assert_is_of(server: &Server, router: &Value, tokens: &[u64], flags: &[&str]) {
    let (shape, experts, weights) = logits(server, &json!(tokens), flags);
    let [layers, positions, k] = shape[..] else { panic!("{shape:?}") };
    assert_eq!(router["layers"].as_array().unwrap().len(), layers);
    assert_eq!(router["experts_per_token"], k);
    assert_eq!(router["positions"], json!([0, positions - 1]));
    assert_eq!(router["experts"].as_array().unwrap().len(), layers);
    assert_eq!(router["experts"][0].as_array().unwrap().len(), positions);
    assert_eq!(flat(&router["experts"]), experts.iter().map(|expert| *expert as f64).collect::<Vec<_>>());
    let told: Vec<f32> = flat(&router["weights"]).into_iter().map(|weight| weight as f32).collect();
    assert_eq!(told, weights, "to the bit");
}

#[test]
fn told_experts_are_those_of_logits_whole_streamed_and_from_a_warm_cache() {
    let server = Server::start("qwen3_moe", &["--experts-per-token-max", "5"]);
    // Longer than two blocks, so that the cache has some of it. ASCII alone: what is said is read as tokens again.
    let prompt = "The monk reads by night what the day has written. ".repeat(3);
    let body = |extra: Value| {
        let mut body = json!({"prompt": prompt, "max_tokens": 6, "temperature": 0, "guided_regex": "[a-z]{6}"});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        body
    };
    let complete = |extra: Value| {
        let answer = server.post("/v1/completions", &body(extra));
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()
    };
    for (experts, flags) in [(json!({}), &[][..]), (json!({"experts_per_token": 5}), &["--experts-per-token", "5"])] {
        let plain = complete(experts.clone());
        assert!(plain["choices"][0].get("router").is_none());
        let mut asked = experts.clone();
        asked["return_router"] = json!(true);
        let whole = complete(asked.clone());
        let choice = &whole["choices"][0];
        assert_eq!(choice["text"], plain["choices"][0]["text"], "asking changes nothing");
        assert_eq!(whole["usage"]["prompt_tokens_details"]["cached_tokens"], 0, "all of it was computed");
        let mut tokens = tokens_of(&server, &(prompt.clone() + choice["text"].as_str().unwrap()));
        tokens.pop();
        assert_is_of(&server, &choice["router"], &tokens, flags);

        asked["stream"] = json!(true);
        let events = server.post("/v1/completions", &body(asked)).events();
        let routers: Vec<&Value> = events.iter().filter_map(|event| event["choices"][0].get("router")).collect();
        assert_eq!(routers, [&choice["router"]]);
        assert!(!events.iter().rev().find_map(|event| event["choices"].get(0)).unwrap()["finish_reason"].is_null());
    }
    // What is not asked for is taken from the cache as before.
    assert!(complete(json!({}))["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap() > 0);

    let chat = json!({"messages": [{"role": "user", "content": "x"}], "max_tokens": 3, "temperature": 0, "n": 2,
                      "return_router": true});
    let whole = server.post("/v1/chat/completions", &chat).json();
    let mut streamed = chat.clone();
    streamed["stream"] = json!(true);
    let events = server.post("/v1/chat/completions", &streamed).events();
    let prompt_tokens = whole["usage"]["prompt_tokens"].as_u64().unwrap();
    for index in 0..2 {
        let choice = &whole["choices"][index];
        assert_eq!(choice["router"]["positions"], json!([0, prompt_tokens + 1]), "{choice}");
        let own = |event: &&Value| event["choices"][0]["index"] == index;
        let told: Vec<&Value> =
            events.iter().filter(own).filter_map(|event| event["choices"][0].get("router")).collect();
        assert_eq!(told, [&choice["router"]]);
    }
}

#[test]
fn experts_that_cannot_be_told_are_refused_by_name() {
    let dense = Server::start("qwen3", &[]);
    let sparse = Server::start("qwen3_moe", &["-c", "8192", "--parallel", "2"]);
    let complete = |extra: Value| {
        let mut body = json!({"prompt": "abc", "max_tokens": 4, "return_router": true});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        body
    };
    let chat = json!({"messages": [{"role": "user", "content": "x"}], "return_router": true,
                      "parallel_tool_calls": false});
    let layers_and_experts = |server: &Server| {
        let layers = server.get("/experts").json()["layers"].as_array().unwrap().clone();
        layers.iter().map(|layer| layer["num_experts_per_tok"].as_u64().unwrap()).sum::<u64>()
    };
    // As many choices of a long answer as are beyond 16 MiB.
    let n = (16 << 20) / (layers_and_experts(&sparse) * 8 * 8000) + 1;
    for (server, path, body, says) in [
        (&dense, "/v1/completions", complete(json!({})), "no experts"),
        (&sparse, "/v1/completions", complete(json!({"max_tokens": 0})), "at least"),
        (&sparse, "/v1/completions", complete(json!({"max_tokens": 8000, "n": n})), "16777216"),
        (&sparse, "/v1/chat/completions", chat, "parallel_tool_calls"),
        (&sparse, "/v1/embeddings", json!({"input": "abc", "return_router": true}), "/v1/completions"),
    ] {
        let refused = server.post(path, &body);
        assert_eq!(refused.status, 400, "{refused:?}");
        let error = &refused.json()["error"];
        assert_eq!(error["param"], "return_router", "{error}");
        assert!(error["message"].as_str().unwrap().contains(says), "{error}");
    }
    let ollama = json!({"model": "", "prompt": "x", "options": {"return_router": true}});
    assert_eq!(sparse.post("/api/generate", &ollama).status, 400);
}

#[test]
fn experts_that_served_tokens_chose_are_counted_as_a_recording_counts_them() {
    let server = Server::start("qwen3_moe", &["--experts-per-token-max", "5"]);
    let get = || server.get("/experts").json();
    // A file of no tokens is none; and the server's own look at whether tokens come does not count.
    assert_eq!((&get()["tokens"], server.get("/experts?download=1").status), (&json!(0), 400));
    assert_eq!(server.get("/experts?download=x").json()["error"]["param"], "download");

    let prompt = "What a router chooses is counted.";
    let complete = |extra: Value| {
        let mut body = json!({"prompt": prompt, "max_tokens": 5, "temperature": 0, "guided_regex": "[a-z]{5}"});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let answer = server.post("/v1/completions", &body);
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()["choices"][0]["text"].as_str().unwrap().to_owned()
    };
    let said = complete(json!({}));
    // With other experts than the model's own, it would be another count.
    complete(json!({"experts_per_token": 5}));
    let mut tokens = tokens_of(&server, &(prompt.to_owned() + &said));
    tokens.pop();

    let folder = tempfile::tempdir().unwrap();
    let [ids, recorded, served, merged] =
        ["ids.json", "recorded", "served", "merged"].map(|name| folder.path().join(name));
    fs::write(&ids, json!(tokens).to_string()).unwrap();
    let experts = |arguments: &[&str]| {
        let output = run(&[&["experts"], arguments].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let model = text(server.model());
    let flags = ["--workload", "served", "--experts-per-token-max", "5"];
    experts(&[&["record", "-m", model, "--tokens", text(&ids), "-o", text(&recorded)], &flags[..]].concat());
    let want: Value = serde_json::from_slice(&fs::read(&recorded).unwrap()).unwrap();
    let download = server.get("/experts?download=1");
    assert_eq!((download.status, download.json()), (200, want.clone()));

    let told = get();
    assert_eq!(told["tokens"], tokens.len());
    for (told, want) in told["layers"].as_array().unwrap().iter().zip(want["layers"].as_array().unwrap()) {
        assert_eq!((&told["layer"], &told["counts"]), (&want["layer"], &want["counts"]));
        assert_eq!(told["counts"].as_array().unwrap().len() as u64, told["num_experts"].as_u64().unwrap());
    }
    fs::write(&served, &download.body).unwrap();
    experts(&["merge", text(&recorded), text(&served), "-o", text(&merged)]);
    let sum: Value = serde_json::from_slice(&fs::read(&merged).unwrap()).unwrap();
    assert_eq!(sum["workloads"]["served"], 2 * tokens.len());
    assert!(experts(&["show", text(&served)]).contains("served"));
}

#[test]
fn a_request_for_more_experts_than_the_models_own_needs_room_made_at_the_start() {
    let ask = |server: &Server, experts: usize| {
        let body = json!({"prompt": "abcdef", "max_tokens": 12, "temperature": 0, "experts_per_token": experts});
        server.post("/v1/completions", &body)
    };
    let (plain, roomy) =
        (Server::start("qwen3_moe", &[]), Server::start("qwen3_moe", &["--experts-per-token-max", "5"]));
    let own = plain.get("/experts").json()["layers"][0]["num_experts_per_tok"].as_u64().unwrap() as usize;
    assert!(own < 5);
    let refused = ask(&plain, 5);
    assert_eq!((refused.status, &refused.json()["error"]["param"]), (400, &json!("experts_per_token")));
    let texts = [own, 5].map(|experts| {
        let answer = ask(&roomy, experts);
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()["choices"][0]["text"].clone()
    });
    assert_ne!(texts[0], texts[1]);
    assert_eq!(ask(&plain, own).json()["choices"][0]["text"], texts[0], "room alone changes nothing");
    assert_eq!((ask(&roomy, 6).status, ask(&roomy, 0).status), (400, 400));
    assert_eq!(roomy.get("/props").json()["experts_per_token_max"], 5);
}
