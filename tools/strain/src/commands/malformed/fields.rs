//! A body that would be answered, with one to three fields of the wrong kind.

use serde_json::{Map, Value, json};

use super::{Case, Place};
use crate::random::Random;

/// Fields of all kinds of generation.
const CONTROLS: [&str; 66] = [
    "model",
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "stop",
    "stream",
    "stream_options",
    "stream_options.include_usage",
    "n",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "repeat_penalty",
    "repeat_last_n",
    "logprobs",
    "top_logprobs",
    "logit_bias",
    "response_format",
    "response_format.type",
    "response_format.json_schema",
    "response_format.json_schema.schema",
    "grammar",
    "json_schema",
    "guided_json",
    "guided_regex",
    "structured_outputs",
    "structured_outputs.regex",
    "tools",
    "tool_choice",
    "tool_choice.function",
    "parallel_tool_calls",
    "functions",
    "function_call",
    "reasoning_effort",
    "chat_template_kwargs",
    "chat_template_kwargs.enable_thinking",
    "user",
    "metadata",
    "store",
    "cache_prompt",
    "lora",
    "priority",
    "experts_per_token",
    "rope",
    "rope_freq_base",
    "rope_scaling",
    "return_router",
    "return_progress",
    "timings_per_token",
    "ignore_eos",
    "min_tokens",
    "best_of",
    "echo",
    "suffix",
    "samplers",
    "mirostat",
    "dynatemp_range",
    "typical_p",
    "dry_multiplier",
    "n_probs",
    "service_tier",
    "modalities",
];

/// Paths with a body that works, and fields of their own.
const PATHS: [(&str, &[&str]); 20] = [
    (
        "/v1/chat/completions",
        &[
            "messages",
            "messages.0",
            "messages.0.role",
            "messages.0.content",
            "messages.0.name",
            "messages.0.tool_calls",
            "messages.0.tool_call_id",
            "messages.0.reasoning_content",
        ],
    ),
    ("/v1/completions", &["prompt", "logprobs"]),
    ("/v1/embeddings", &["input", "encoding_format", "dimensions"]),
    (
        "/v1/responses",
        &[
            "input",
            "instructions",
            "background",
            "previous_response_id",
            "max_output_tokens",
            "text",
            "text.format",
            "reasoning",
            "include",
            "truncation",
            "store",
        ],
    ),
    ("/tokenize", &["content", "add_special", "parse_special", "with_pieces"]),
    ("/detokenize", &["tokens"]),
    ("/apply-template", &["messages", "messages.0.role", "messages.0.content"]),
    (
        "/api/chat",
        &[
            "messages",
            "messages.0.content",
            "messages.0.images",
            "options",
            "options.num_ctx",
            "options.stop",
            "options.temperature",
            "format",
            "keep_alive",
            "think",
            "raw",
        ],
    ),
    (
        "/api/generate",
        &[
            "prompt",
            "system",
            "template",
            "context",
            "raw",
            "images",
            "options",
            "options.num_predict",
            "format",
            "keep_alive",
            "think",
        ],
    ),
    ("/api/embed", &["input", "truncate", "options", "keep_alive", "dimensions"]),
    ("/api/embeddings", &["prompt"]),
    ("/api/show", &["model", "name", "verbose"]),
    ("/v1/load_lora_adapter", &["lora_name", "lora_path"]),
    ("/v1/unload_lora_adapter", &["lora_name", "lora_int_id"]),
    ("/lora-adapters", &["0", "id", "scale"]),
    ("/v1/rerank", &["query", "documents", "top_n"]),
    ("/slots/0?action=save", &["filename"]),
    ("/completion", &["prompt", "n_predict", "id_slot"]),
    ("/infill", &["input_prefix", "input_suffix"]),
    ("/v1/responses/resp_x/cancel", &["x"]),
];

/// Something that answers, cheaply.
fn good(place: &Place<'_>) -> Value {
    json!({
        "model": place.model, "messages": [{"role": "user", "content": "a"}], "prompt": "a", "input": "a", "content": "a",
        "tokens": [65], "query": "a", "documents": ["a"], "max_tokens": 2, "max_output_tokens": 2, "n_predict": 2,
        "options": {"num_predict": 2},
    })
}

pub(super) fn case(place: &Place<'_>, random: &mut Random) -> Case {
    let (path, own) = *random.one_of(&PATHS);
    let mut body = good(place);
    let mut names = Vec::new();
    for _ in 0..random.between(1, 3) {
        let field = if random.once_in(2) { *random.one_of(own) } else { *random.one_of(&CONTROLS) };
        set(&mut body, field, value(random));
        names.push(field);
    }
    // A long answer is no fault; only where no length is left, it gets one.
    for field in ["max_tokens", "max_completion_tokens", "max_output_tokens", "n_predict"] {
        if body[field].is_null() {
            body[field] = json!(2);
        }
    }
    if body["options"].is_null() || body["options"].is_object() && body["options"]["num_predict"].is_null() {
        set(&mut body, "options.num_predict", json!(2));
    }
    let text = body.to_string();
    let shown: String = text.chars().take(600).collect();
    match random.below(12) {
        // The same, not quite whole, or with something that is no JSON in it.
        0 => {
            let mut bytes = text.into_bytes();
            bytes.truncate(random.below(bytes.len()));
            Case::body(place.site, format!("{path}: cut after {} bytes", bytes.len()), path, bytes)
        }
        1 => {
            let mut bytes = text.into_bytes();
            let at = random.below(bytes.len());
            bytes[at] = random.below(256) as u8;
            let shown: String = String::from_utf8_lossy(&bytes).chars().take(600).collect();
            Case::body(place.site, format!("{path}: byte {at} replaced: {shown}"), path, bytes)
        }
        _ => Case::body(place.site, format!("{path}: {}: {shown}", names.join(", ")), path, text),
    }
}

/// Sets `a.b.0` in a document, making what is missing on the way.
fn set(document: &mut Value, path: &str, value: Value) {
    let mut place = document;
    for name in path.split('.') {
        place = match (name.parse::<usize>(), place.is_array()) {
            (Ok(index), true) => {
                let list = place.as_array_mut().map(|list| {
                    list.resize(list.len().max(index + 1), Value::Null);
                    &mut list[index]
                });
                match list {
                    Some(place) => place,
                    None => return,
                }
            }
            _ => {
                if !place.is_object() {
                    *place = Value::Object(Map::new());
                }
                &mut place[name]
            }
        };
    }
    *place = value;
}

/// A value of any kind.
fn value(random: &mut Random) -> Value {
    match random.below(30) {
        0 => Value::Null,
        1 => json!(random.once_in(2)),
        2 => json!([]),
        3 => json!({}),
        4 => json!(""),
        5 => json!(-1),
        6 => json!(0),
        7 => json!(1),
        8 => json!(i64::MIN),
        9 => json!(u64::MAX),
        10 => json!(1e308),
        11 => json!(-1e-320),
        12 => json!(0.5),
        13 => serde_json::from_str("1e999").unwrap_or(json!(f64::MAX)),
        14 => json!("\0"),
        15 => json!("\u{feff}\u{202e}\u{0}\u{1b}[2J"),
        16 => json!("a".repeat(random.between(1000, 30_000))),
        17 => json!("\u{1f389}".repeat(random.between(1, 500))),
        18 => json!(["", "", ""]),
        19 => json!([null, 1, "a", [], {}]),
        20 => json!(vec![1; random.between(2, 3000)]),
        21 => json!({"": ""}),
        22 => json!({"type": random.one_of(&["text", "json_object", "json_schema", "function", "image_url", "x", ""])}),
        23 => {
            json!({"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": random.one_of(&["x", "object", "null"])}}})
        }
        24 => json!([{"type": "function", "function": {"name": random.words(3), "parameters": {"type": "x"}}}]),
        25 => json!([{"role": random.one_of(&["user", "system", "tool", "x"]), "content": [{"type": "text"}]}]),
        26 => json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}]),
        27 => json!({"65": 1000, "-1": 1, "x": "y", "99999999999": 0}),
        28 => json!(random.one_of(&[
            "auto",
            "required",
            "none",
            "NaN",
            "Infinity",
            "true",
            "1",
            "../../../etc/passwd",
            "<|im_start|>"
        ])),
        _ => json!([[[[[[[[1]]]]]]], [random.number() as i64]]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_set_at_any_depth() {
        let mut document = json!({"messages": [{"role": "user"}], "n": 1});
        set(&mut document, "messages.0.content", json!("x"));
        set(&mut document, "response_format.json_schema.schema", json!(1));
        set(&mut document, "n", json!([]));
        let want = json!({"messages": [{"role": "user", "content": "x"}], "n": [],
                          "response_format": {"json_schema": {"schema": 1}}});
        assert_eq!(document, want);
    }
}
