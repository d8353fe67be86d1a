//! SmolLM2-135M-Instruct as a GGUF file: named by `NIGHTMONK_SMOLLM2_GGUF`, because it is too large for the repository.

use std::path::PathBuf;

use super::sample::json_at;
use super::vocabulary::check_smollm2_ids;
use crate::import::{ImportOptions, import_gguf};

#[test]
fn smollm2_becomes_a_folder_with_its_own_tokenizer() {
    let Some(source) = std::env::var_os("NIGHTMONK_SMOLLM2_GGUF").map(PathBuf::from) else {
        let required = std::env::var_os("NIGHTMONK_REQUIRE_MODEL").is_some_and(|value| value == "1");
        assert!(!required, "NIGHTMONK_REQUIRE_MODEL=1, but NIGHTMONK_SMOLLM2_GGUF names no file");
        eprintln!("*** NOT TESTED: the import of a real model. Set NIGHTMONK_SMOLLM2_GGUF to its GGUF file. ***");
        return;
    };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let target = folder.path().join("smollm2");
    let report = import_gguf(&source, &target, &ImportOptions::default(), &mut |_| {}).expect("a sound model");
    assert_eq!(report.parameters, 134_515_008);
    assert_eq!((report.quantized.len(), report.rounding, report.notes.len()), (211, None, 0));

    let config = json_at(&target.join("config.json"));
    for (key, wanted) in [
        ("hidden_size", 576.0),
        ("num_hidden_layers", 30.0),
        ("num_attention_heads", 9.0),
        ("num_key_value_heads", 3.0),
        ("head_dim", 64.0),
        ("intermediate_size", 1536.0),
        ("vocab_size", 49152.0),
        ("rope_theta", 1e5),
        ("rms_norm_eps", 1e-5),
        ("max_position_embeddings", 8192.0),
    ] {
        assert_eq!(config[key].as_f64(), Some(wanted), "{key}");
    }
    assert_eq!(config["tie_word_embeddings"], true);
    let tokenizer_config = json_at(&target.join("tokenizer_config.json"));
    assert_eq!(tokenizer_config["eos_token"], "<|im_end|>");
    assert!(tokenizer_config["chat_template"].as_str().is_some_and(|template| template.contains("<|im_start|>")));

    // Equal digest, equal bits: this one is of the file whose 273 tensors were compared with those that transformers
    // reads from the GGUF file, and were equal bit by bit.
    let weights = std::fs::File::open(target.join("model.safetensors")).expect("the weights");
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(weights).expect("the weights can be read");
    assert_eq!(hasher.finalize().to_hex().as_str(), "35ab1ec3d0c6b487a08113111096886d92b83e47f2dfaa5a073e9a179feda9e1");

    check_smollm2_ids(&tokenizers::Tokenizer::from_file(target.join("tokenizer.json")).expect("a tokenizer"));
}
