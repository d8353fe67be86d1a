//! Tokenizers: the same ids as the model's own.

use serde_json::json;

use super::sample::{F32, HIDDEN, Sample, Value, f32_bytes, json_at, numbers, text, texts};

#[test]
fn byte_level_text_is_cut_as_the_file_says() {
    let mut sample = Sample::llama();
    let ids = |sample: &Sample, line: &str| {
        let imported = sample.import().expect("a sound file");
        imported.tokenizer().encode(line, true).expect("text").get_ids().to_vec()
    };
    assert_eq!(ids(&sample, "ab a11<|end|>ab"), [3, 5, 6, 6, 0, 3], "smollm cuts digits one by one");
    sample.set("tokenizer.ggml.pre", text("gpt-2"));
    assert_eq!(ids(&sample, "ab a11<|end|>ab"), [3, 5, 7, 0, 3], "GPT-2 does not");
    sample.set("tokenizer.ggml.pre", text("qwen2"));
    assert_eq!(ids(&sample, "ab a11"), [3, 5, 6, 6]);
    sample.set("tokenizer.ggml.bos_token_id", Value::U32(0));
    assert_eq!(ids(&sample, "ab a11"), [3, 5, 6, 6], "a bos token is not always put before a text");
    sample.set("tokenizer.ggml.pre", text("llama-bpe"));
    assert_eq!(ids(&sample, "ab a11"), [0, 3, 5, 7], "Llama 3 puts bos before, and cuts up to three digits");
    sample.set("tokenizer.ggml.add_bos_token", Value::Bool(false));
    sample.set("tokenizer.ggml.add_eos_token", Value::Bool(true));
    assert_eq!(ids(&sample, "ab a11"), [3, 5, 7, 0]);
}

#[test]
fn a_guess_about_the_tokenizer_is_told() {
    let mut sample = Sample::llama();
    assert!(!sample.import().expect("a sound file").report.to_string().contains("cuts text"));
    sample.set("tokenizer.ggml.pre", text("default"));
    let report = sample.import().expect("a sound file").report.to_string();
    assert!(report.contains("does not say how its tokenizer cuts text"), "{report}");
}

#[test]
fn tokenizer_config_has_template_tokens_and_flags() {
    let mut sample = Sample::llama();
    sample.set("tokenizer.chat_template", text("{{ messages }}"));
    sample.set("tokenizer.ggml.padding_token_id", Value::U32(0));
    let config = sample.import().expect("a sound file").json("tokenizer_config.json");
    assert_eq!(config["chat_template"], "{{ messages }}");
    assert_eq!(config["eos_token"], "<|end|>");
    assert_eq!(config["pad_token"], "<|end|>");
    assert_eq!(config["bos_token"], json!(null));
    assert_eq!(config["add_bos_token"], false);
    assert_eq!(config["added_tokens_decoder"]["0"]["special"], true);
    sample.set("tokenizer.chat_template.tool_use", text("{{ tools }}"));
    let config = sample.import().expect("a sound file").json("tokenizer_config.json");
    let templates = json!([
        {"name": "default", "template": "{{ messages }}"},
        {"name": "tool_use", "template": "{{ tools }}"},
    ]);
    assert_eq!(config["chat_template"], templates);
}

#[test]
fn every_token_that_ends_a_turn_stops_generation() {
    let mut sample = Sample::llama();
    sample.set("tokenizer.ggml.eot_token_id", Value::U32(3));
    let imported = sample.import().expect("a sound file");
    assert_eq!(imported.json("generation_config.json")["eos_token_id"], json!([0, 3]));
    assert_eq!(imported.json("config.json")["eos_token_id"], json!([0, 3]));
}

#[test]
fn unused_tokens_at_the_end_are_not_part_of_the_tokenizer() {
    let mut sample = Sample::llama();
    let mut tokens = super::sample::TOKENS.to_vec();
    tokens.extend(["[PAD8]", "[PAD9]"]);
    sample.set("tokenizer.ggml.tokens", texts(&tokens));
    sample.set("tokenizer.ggml.token_type", Value::I32s(vec![3, 1, 1, 1, 1, 1, 1, 1, 5, 5]));
    assert_eq!(sample.import().expect("a sound file").tokenizer().get_vocab_size(true), 8);
}

#[test]
fn a_tokenizer_that_is_not_known_exactly_is_refused_by_name() {
    for (key, value, expected) in [
        ("tokenizer.ggml.pre", text("tekken"), "`tekken` is not supported; smollm, llama-bpe"),
        ("tokenizer.ggml.model", text("bert"), "tokenizer `bert` is not supported; gpt2 and llama are"),
        ("tokenizer.ggml.merges", texts(&["a b", "b b"]), "merge 1, \"b b\", is not two tokens that make a third"),
        ("tokenizer.ggml.tokens", texts(&["a"; 8]), "tokens 0 and 1 are both \"a\""),
        ("tokenizer.ggml.tokens", texts(&["a"; 11]), "11 tokens do not fit the 10 rows"),
        ("tokenizer.ggml.token_type", Value::I32s(vec![1; 7]), "7 types for 8 tokens"),
        ("tokenizer.ggml.token_type", Value::I32s(vec![9; 8]), "9 is no token type"),
        ("tokenizer.ggml.eos_token_id", Value::U32(8), "8 is not among the 8 tokens"),
        ("tokenizer.ggml.add_bos_token", Value::Bool(true), "`tokenizer.ggml.bos_token_id` is missing"),
        ("tokenizer.ggml.add_space_prefix", Value::Bool(true), "is not supported"),
    ] {
        let mut sample = Sample::llama();
        sample.set(key, value);
        let found = sample.refusal();
        assert!(found.contains(expected), "{key}: {found}");
    }
}

/// The fixture is a small model trained by SentencePiece 0.2.3 (BPE, byte fallback, no normalisation), and the ids
/// that SentencePiece itself gives for each line.
#[test]
fn sentencepiece_ids_are_those_of_sentencepiece() {
    let fixture: serde_json::Value =
        serde_json::from_str(include_str!("../fixtures/sentencepiece.json")).expect("a sound fixture");
    let list = |key: &str| fixture[key].as_array().expect("a list");
    let tokens: Vec<&str> = list("tokens").iter().map(|token| token.as_str().expect("text")).collect();
    let vocab = tokens.len() as u64;
    let types = list("types").iter().map(|kind| kind.as_i64().expect("a number") as i32).collect();
    let scores = list("scores").iter().map(|score| score.as_f64().expect("a number") as f32).collect();

    let mut sample = Sample::llama();
    for key in ["tokenizer.ggml.merges", "tokenizer.ggml.pre"] {
        sample.remove(key);
    }
    sample.set("tokenizer.ggml.model", text("llama"));
    sample.set("tokenizer.ggml.tokens", texts(&tokens));
    sample.set("tokenizer.ggml.token_type", Value::I32s(types));
    sample.set("tokenizer.ggml.scores", Value::F32s(scores));
    for (key, id) in [("unknown", 0), ("bos", 1), ("eos", 2)] {
        sample.set(&format!("tokenizer.ggml.{key}_token_id"), Value::U32(id));
    }
    sample.set_tensor("token_embd.weight", &[HIDDEN, vocab], F32, f32_bytes(&numbers(HIDDEN * vocab, 0.0)));
    let tokenizer = sample.import().expect("a sound file").tokenizer();

    for line in list("lines") {
        let text = line["text"].as_str().expect("text");
        let ids = tokenizer.encode(text, false).expect("text").get_ids().to_vec();
        assert_eq!(json!(ids), line["ids"], "{text:?}");
        assert_eq!(tokenizer.decode(&ids, false).expect("ids"), text);
    }
    let ids = tokenizer.encode("a</s>", true).expect("text").get_ids().to_vec();
    assert_eq!((ids.first(), ids.last()), (Some(&1), Some(&2)), "bos comes first, and </s> is one token");
}

/// Texts and ids: transformers with the vocabulary of the file and SmolLM2's own rule to cut text.
pub(super) fn check_smollm2_ids(tokenizer: &tokenizers::Tokenizer) {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/import/fixtures/smollm2_ids.json");
    let lines = json_at(path.as_ref());
    let lines = lines.as_array().expect("a list");
    assert!(lines.len() > 20);
    for line in lines {
        let text = line["text"].as_str().expect("text");
        let ids = tokenizer.encode(text, true).expect("text").get_ids().to_vec();
        assert_eq!(json!(ids), line["ids"], "{text:?}");
        assert_eq!(tokenizer.decode(&ids, false).expect("ids"), text);
    }
}
