//! Models that can speak: a golden checkpoint with a tokenizer around it, small enough to make one for each test.
//!
//! Golden vocabularies are too small for a byte-level tokenizer, so the embedding and the output matrix get more rows.
//! What such a model says is noise, but always the same noise: any byte may come, characters cut in half included.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use crate::models::golden;

/// Rows of the embedding: 256 bytes, three control tokens, the rest padding that no token names.
pub(crate) const VOCAB_SIZE: usize = 320;
/// Positions of every tiny model. A token is a byte, so prompts are long.
pub(crate) const MAX_POSITION_EMBEDDINGS: usize = 8192;

const CONTROL_TOKENS: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];
/// `<|im_end|>`
const EOS: usize = 258;

const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] \
                      + '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}\
                      {% endif %}";

/// A folder of its own with the model of a golden family, deleted when dropped.
pub(crate) fn tiny_model(family: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    write_tiny_model(family, folder.path());
    folder
}

/// Writes config, shards, tokenizer, ChatML template and defaults of a golden family's model into `folder`.
pub(crate) fn write_tiny_model(family: &str, folder: &Path) {
    fs::create_dir_all(folder).unwrap();
    let source = golden().join(family);
    let write = |name: &str, value: &Value| fs::write(folder.join(name), value.to_string()).unwrap();

    let mut config: Value = serde_json::from_slice(&fs::read(source.join("config.json")).unwrap()).unwrap();
    config["vocab_size"] = VOCAB_SIZE.into();
    config["max_position_embeddings"] = MAX_POSITION_EMBEDDINGS.into();
    config["eos_token_id"] = EOS.into();
    write("config.json", &config);
    write("generation_config.json", &json!({"do_sample": false, "eos_token_id": [EOS]}));
    write("tokenizer.json", &byte_level_tokenizer());
    write("tokenizer_config.json", &json!({"chat_template": CHATML, "eos_token": CONTROL_TOKENS[2]}));

    for entry in fs::read_dir(source).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if name.starts_with("model") && name.ends_with(".safetensors") {
            grow_shard(&path, &folder.join(name));
        } else if name.ends_with(".index.json") {
            fs::copy(&path, folder.join(name)).unwrap();
        }
    }
}

/// Copies a shard; matrices with a row a token get [`VOCAB_SIZE`] rows.
fn grow_shard(from: &Path, to: &Path) {
    let file = fs::read(from).unwrap();
    let shard = SafeTensors::deserialize(&file).unwrap();
    let mut tensors: HashMap<String, (safetensors::Dtype, Vec<usize>, Vec<u8>)> = HashMap::new();
    for (name, tensor) in shard.iter() {
        let (mut shape, mut bytes) = (tensor.shape().to_vec(), tensor.data().to_vec());
        if name == "model.embed_tokens.weight" || name == "lm_head.weight" {
            let row_bytes = bytes.len() / shape[0];
            // A new row is an old one turned by one column: as likely as any row, and equal to none.
            for row in 0..VOCAB_SIZE - shape[0] {
                let row = row * row_bytes..(row + 1) * row_bytes;
                bytes.extend_from_within(row.start + 2..row.end);
                bytes.extend_from_within(row.start..row.start + 2);
            }
            shape[0] = VOCAB_SIZE;
        }
        tensors.insert(name.into(), (tensor.dtype(), shape, bytes));
    }
    let views = tensors
        .iter()
        .map(|(name, (dtype, shape, bytes))| (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    safetensors::serialize_to_file(views, None, to).unwrap();
}

/// 256 bytes and three control tokens, no merges: a text has as many tokens as bytes.
fn byte_level_tokenizer() -> Value {
    let printable = |byte: u8| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    // GPT-2's alphabet: bytes without a glyph of their own stand behind U+0100, in their order.
    let character = |byte: u8| match printable(byte) {
        true => char::from(byte),
        false => char::from_u32(0x100 + (0..byte).filter(|before| !printable(*before)).count() as u32).unwrap(),
    };
    let mut vocab: Map<String, Value> = (0..=255).map(|byte| (character(byte).to_string(), byte.into())).collect();
    let mut added = Vec::new();
    for (index, content) in CONTROL_TOKENS.iter().enumerate() {
        let id = 256 + index;
        vocab.insert((*content).into(), id.into());
        added.push(json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                          "normalized": false, "special": true}));
    }
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false});
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": byte_level, "post_processor": byte_level, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "",
                  "end_of_word_suffix": "", "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                  "vocab": vocab, "merges": []},
    })
}
