//! Files are written from small random checkpoints and read by the importer, which shares nothing with the writer.

mod gpt_oss;

use engine_core::import::gguf::{Gguf, TensorType};
use serde_json::{Value, json};

use super::*;

struct Both {
    checkpoint: Checkpoint,
    gguf: Gguf,
    file: Vec<u8>,
    _folder: tempfile::TempDir,
}

impl Both {
    fn of(config: &Value) -> Self {
        let folder = tempfile::tempdir().unwrap();
        synth::write_checkpoint(config, folder.path(), 1, &mut |_, _| {}).unwrap();
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        let path = folder.path().join("model.gguf");
        write(&checkpoint, &path).unwrap();
        let file = fs::read(&path).unwrap();
        let gguf = Gguf::read(&file.as_slice()).unwrap();
        Self { checkpoint, gguf, file, _folder: folder }
    }

    fn tensor(&self, name: &str) -> (&[u64], TensorType, &[u8]) {
        let tensor = self.gguf.tensors.iter().find(|tensor| tensor.name == name).unwrap();
        (&tensor.dims, tensor.kind, &self.file[tensor.offset as usize..][..tensor.bytes as usize])
    }
}

fn config(kind: &str, class: &str) -> Value {
    json!({
        "architectures": [class], "model_type": kind, "hidden_size": 32, "head_dim": 16, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 48, "num_hidden_layers": 2, "rope_theta": 1e6,
        "rms_norm_eps": 1e-6, "vocab_size": 101, "tie_word_embeddings": false, "max_position_embeddings": 128,
        "torch_dtype": "bfloat16",
    })
}

#[test]
fn a_mixture_of_experts_is_stacked_and_keeps_its_bytes() {
    let mut config = config("qwen3_moe", "Qwen3MoeForCausalLM");
    config["num_experts"] = 3.into();
    config["num_experts_per_tok"] = 2.into();
    config["moe_intermediate_size"] = 16.into();
    config["norm_topk_prob"] = true.into();
    let both = Both::of(&config);
    let text = |key| both.gguf.metadata.string(key).unwrap();
    let count = |key| both.gguf.metadata.count(key).unwrap();
    assert_eq!(text("general.architecture"), Some("qwen3moe"));
    assert_eq!(text("tokenizer.ggml.model"), Some("no_vocab"));
    assert_eq!(count("qwen3moe.vocab_size"), Some(101));
    assert_eq!(count("qwen3moe.expert_used_count"), Some(2));
    assert_eq!(count("qwen3moe.expert_feed_forward_length"), Some(16));

    let (dims, kind, bytes) = both.tensor("blk.1.ffn_down_exps.weight");
    assert_eq!((dims, kind), (&[16, 32, 3][..], TensorType::BF16));
    let expert = |index| format!("model.layers.1.mlp.experts.{index}.down_proj.weight");
    let want: Vec<u8> = (0..3).flat_map(|index| both.checkpoint.tensor(&expert(index)).bytes.iter().copied()).collect();
    assert_eq!(bytes, want);
    let (dims, kind, _) = both.tensor("blk.0.ffn_gate_inp.weight");
    assert_eq!((dims, kind), (&[32, 3][..], TensorType::F32));
    let (dims, kind, bytes) = both.tensor("blk.0.attn_q_norm.weight");
    assert_eq!((dims, kind), (&[16][..], TensorType::F32));
    assert!(bytes.chunks(4).all(|one| one == 1_f32.to_le_bytes()));
    let (_, _, bytes) = both.tensor("blk.0.attn_q.weight");
    assert_eq!(bytes, both.checkpoint.tensor("model.layers.0.self_attn.q_proj.weight").bytes);
    assert_eq!(both.gguf.tensors.len(), 3 + 2 * 12);
}

#[test]
fn only_llama_has_the_rows_of_queries_and_keys_interleaved() {
    let both = Both::of(&config("llama", "LlamaForCausalLM"));
    let (_, _, bytes) = both.tensor("blk.0.attn_k.weight");
    let published = both.checkpoint.tensor("model.layers.0.self_attn.k_proj.weight").bytes;
    let row = |bytes: &[u8], row: usize| bytes[row * 64..][..64].to_vec();
    for (here, there) in [(0, 0), (1, 8), (2, 1), (15, 15), (16, 16), (17, 24)] {
        assert_eq!(row(bytes, here), row(published, there), "row {here}");
    }
    let (_, _, values) = both.tensor("blk.0.attn_v.weight");
    assert_eq!(values, both.checkpoint.tensor("model.layers.0.self_attn.v_proj.weight").bytes);
}

#[test]
fn a_llama_3_carries_its_frequencies_and_others_with_scaling_are_refused() {
    let scaling = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    });
    let mut llama = config("llama", "LlamaForCausalLM");
    llama["rope_scaling"] = scaling.clone();
    let both = Both::of(&llama);
    let (dims, _, bytes) = both.tensor("rope_freqs.weight");
    assert_eq!(dims, [8]);
    let divisor = |index: usize| f32::from_le_bytes(bytes[index * 4..][..4].try_into().unwrap());
    assert!((divisor(0) - 1.0).abs() < 1e-6 && (divisor(7) - 8.0).abs() < 1e-5);

    let mut qwen = config("qwen3", "Qwen3ForCausalLM");
    qwen["rope_scaling"] = scaling;
    let folder = tempfile::tempdir().unwrap();
    synth::write_checkpoint(&qwen, folder.path(), 1, &mut |_, _| {}).unwrap();
    let why = write(&Checkpoint::open(folder.path()).unwrap(), &folder.path().join("no.gguf")).unwrap_err();
    assert!(why.contains("rope_scaling"), "{why}");
}
