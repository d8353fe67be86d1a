//! A tokenizer for weights that have none: 256 bytes, each a token.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use serde_json::{Map, Value, json};
use tempfile::TempDir;

use crate::Failure;

/// A folder with links to all files of `model`, and a tokenizer; none where `model` has one.
pub(super) fn beside(model: &Path) -> Result<Option<TempDir>, Failure> {
    if model.join("tokenizer.json").exists() {
        return Ok(None);
    }
    let failed = |error| Failure::io(&model.display().to_string(), error);
    let folder = tempfile::tempdir().map_err(failed)?;
    let model = model.canonicalize().map_err(failed)?;
    for entry in fs::read_dir(&model).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        symlink(entry.path(), folder.path().join(entry.file_name())).map_err(failed)?;
    }
    fs::write(folder.path().join("tokenizer.json"), tokenizer().to_string()).map_err(failed)?;
    fs::write(folder.path().join("tokenizer_config.json"), "{}").map_err(failed)?;
    Ok(Some(folder))
}

fn tokenizer() -> Value {
    let printable = |byte: u8| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    // GPT-2's alphabet: bytes without a glyph of their own stand behind U+0100, in their order.
    let character = |byte: u8| match printable(byte) {
        true => char::from(byte),
        false => {
            let place = (0..byte).filter(|before| !printable(*before)).count() as u32;
            char::from_u32(0x100 + place).unwrap_or(char::REPLACEMENT_CHARACTER)
        }
    };
    let vocab: Map<String, Value> = (0..=255).map(|byte| (character(byte).to_string(), byte.into())).collect();
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false});
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": byte_level, "post_processor": byte_level, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "",
                  "end_of_word_suffix": "", "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                  "vocab": vocab, "merges": []},
    })
}
