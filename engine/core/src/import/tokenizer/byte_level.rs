//! Byte-level BPE (`tokenizer.ggml.model = gpt2`): the way text is cut, by the name in `tokenizer.ggml.pre`.
//!
//! Each entry repeats the `tokenizer.json` of the model family that the name stands for.

use serde_json::{Value, json};

use super::super::ImportError;
use super::super::gguf::Metadata;
use super::{Rules, Vocabulary, merges};

const PRE: &str = "tokenizer.ggml.pre";

/// Llama 3: up to three digits together.
const LLAMA3_SPLIT: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);

/// Qwen 2 and 3: each digit alone.
const QWEN2_SPLIT: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);

fn byte_level(use_regex: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex})
}

fn sequence(first: Value, second: Value) -> Value {
    json!({"type": "Sequence", "pretokenizers": [first, second]})
}

fn split(pattern: &str) -> Value {
    let split = json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
    sequence(split, byte_level(false))
}

pub(super) fn rules(
    metadata: &Metadata,
    vocabulary: &Vocabulary<'_>,
    notes: &mut Vec<String>,
) -> Result<Rules, ImportError> {
    const PREFIX: &str = "tokenizer.ggml.add_space_prefix";
    if metadata.bool(PREFIX)? == Some(true) {
        return Err(ImportError::setting(PREFIX, "a space before byte-level text is not supported".to_owned()));
    }
    let merges = merges(metadata, vocabulary)?.ok_or_else(|| ImportError::missing("tokenizer.ggml.merges"))?;
    let mut rules = Rules {
        normalizer: Value::Null,
        pre_tokenizer: byte_level(true),
        decoder: json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}),
        merges,
        ignore_merges: false,
        unk_token: None,
        byte_fallback: None,
        add_bos: false,
    };
    match metadata.string(PRE)? {
        Some("gpt-2") => {}
        Some("smollm") => {
            rules.pre_tokenizer = sequence(json!({"type": "Digits", "individual_digits": true}), byte_level(true));
        }
        Some("llama-bpe" | "llama3" | "llama-v3") => {
            rules.pre_tokenizer = split(LLAMA3_SPLIT);
            // Its vocabulary has whole words that no sequence of merges reaches.
            rules.ignore_merges = true;
            rules.add_bos = true;
        }
        Some("qwen2") => {
            rules.normalizer = json!({"type": "NFC"});
            rules.pre_tokenizer = split(QWEN2_SPLIT);
        }
        None | Some("default") => notes.push(
            "the file does not say how its tokenizer cuts text; it is cut as for GPT-2, which may differ from \
             training in numbers and punctuation"
                .to_owned(),
        ),
        Some(other) => {
            let reason = format!("`{other}` is not supported; smollm, llama-bpe, qwen2, gpt-2 and default are");
            return Err(ImportError::setting(PRE, reason));
        }
    }
    Ok(rules)
}
