//! GPT-OSS, whose blocks of MXFP4 are turned and whose gate and up come apart.

use std::collections::HashMap;

use simd::oracle;

use super::*;

/// A header's texts and numbers, as little as these tests need: the importer refuses files with MXFP4.
struct Reader<'f>(&'f [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (head, rest) = self.0.split_first_chunk().unwrap();
        self.0 = rest;
        *head
    }

    fn count(&mut self) -> usize {
        u64::from_le_bytes(self.take()) as usize
    }

    fn text(&mut self) -> String {
        let len = self.count();
        let (text, rest) = self.0.split_at(len);
        self.0 = rest;
        String::from_utf8(text.to_vec()).unwrap()
    }
}

struct Written {
    /// Integers and float32 as their bits.
    numbers: HashMap<String, u32>,
    texts: HashMap<String, String>,
    /// Sizes (the fastest first), number of the type, bytes up to the end of the file.
    tensors: HashMap<String, (Vec<usize>, u32, Vec<u8>)>,
}

fn read(file: &[u8]) -> Written {
    let mut reader = Reader(file);
    assert_eq!((reader.take(), u32::from_le_bytes(reader.take())), (*b"GGUF", 3));
    let (tensors, entries) = (reader.count(), reader.count());
    let (mut numbers, mut texts) = (HashMap::new(), HashMap::new());
    for _ in 0..entries {
        let key = reader.text();
        match u32::from_le_bytes(reader.take()) {
            8 => drop(texts.insert(key, reader.text())),
            _ => drop(numbers.insert(key, u32::from_le_bytes(reader.take()))),
        }
    }
    let infos: Vec<_> = (0..tensors)
        .map(|_| {
            let name = reader.text();
            let dims = u32::from_le_bytes(reader.take());
            let dims: Vec<usize> = (0..dims).map(|_| reader.count()).collect();
            (name, dims, u32::from_le_bytes(reader.take()), reader.count())
        })
        .collect();
    let start = (file.len() - reader.0.len()).next_multiple_of(ALIGNMENT);
    let tensors =
        infos.into_iter().map(|(name, dims, kind, offset)| (name, (dims, kind, file[start + offset..].into())));
    Written { numbers, texts, tensors: tensors.collect() }
}

fn gpt_oss() -> Value {
    let mut config = synth::shapes::config("gpt-oss-20b", Some(2)).unwrap();
    for (field, size) in [
        ("hidden_size", 64),
        ("head_dim", 16),
        ("num_attention_heads", 4),
        ("num_key_value_heads", 2),
        ("num_local_experts", 3),
        ("num_experts_per_tok", 2),
        ("intermediate_size", 96),
        ("vocab_size", 101),
        ("sliding_window", 8),
    ] {
        config[field] = size.into();
    }
    config
}

fn write_gpt_oss(config: &Value) -> (tempfile::TempDir, Checkpoint, Result<Vec<u8>, String>) {
    let folder = tempfile::tempdir().unwrap();
    synth::write_checkpoint(config, folder.path(), 1, &mut |_, _| {}).unwrap();
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let path = folder.path().join("model.gguf");
    let file = write(&checkpoint, &path).map(|()| fs::read(&path).unwrap());
    (folder, checkpoint, file)
}

/// The weights of ggml's blocks, in their order in the row.
fn weights(blocks: &[[u8; 17]]) -> Vec<f64> {
    let nibbles: Vec<u8> = blocks.iter().flat_map(|block| block[1..].iter().copied()).collect();
    let scales: Vec<u8> = blocks.iter().map(|block| block[0]).collect();
    let by_byte = oracle::mxfp4(&nibbles, &scales);
    let in_order = |block: &[f64]| (0..32).map(|i| block[2 * (i % 16) + i / 16]).collect::<Vec<_>>();
    by_byte.chunks(32).flat_map(in_order).collect()
}

#[test]
fn gpt_oss_keeps_every_weight_and_has_gate_and_up_apart() {
    let (_folder, checkpoint, file) = write_gpt_oss(&gpt_oss());
    let written = read(&file.unwrap());
    let published = |stack: &str| {
        let bytes =
            |part: &str| checkpoint.bytes(&checkpoint.location(&format!("model.layers.1.mlp.experts.{stack}_{part}")));
        oracle::mxfp4(bytes("blocks"), bytes("scales"))
    };
    let stored = |part: &str, dims: [usize; 3]| {
        let (got_dims, kind, bytes) = &written.tensors[&format!("blk.1.ffn_{part}_exps.weight")];
        assert_eq!((&got_dims[..], *kind), (&dims[..], 39));
        weights(&bytes.as_chunks().0[..dims.iter().product::<usize>() / 32])
    };
    let gate_up = published("gate_up_proj");
    let every_second = |first: usize| gate_up.chunks(64).skip(first).step_by(2).flatten().copied().collect::<Vec<_>>();
    assert_eq!(stored("gate", [64, 96, 3]), every_second(0));
    assert_eq!(stored("up", [64, 96, 3]), every_second(1));
    assert_eq!(stored("down", [96, 64, 3]), published("down_proj"));

    let floats = |name: &str, count: usize| {
        let (dims, kind, bytes) = &written.tensors[name];
        assert_eq!((dims.iter().product(), *kind), (count, 0), "{name}");
        bytes.as_chunks().0.iter().take(count).map(|float| f32::from_le_bytes(*float)).collect::<Vec<_>>()
    };
    let numbers = |name: &str| {
        let Tensor { dtype, bytes, .. } = checkpoint.tensor(&format!("model.layers.0.{name}"));
        let mut floats = vec![0.0; bytes.len() / dtype.size()];
        dtype.widen(bytes, &mut floats);
        floats
    };
    let up = numbers("mlp.experts.gate_up_proj_bias").into_iter().skip(1).step_by(2).collect::<Vec<_>>();
    assert_eq!(floats("blk.0.ffn_up_exps.bias", 3 * 96), up);
    assert_eq!(floats("blk.0.ffn_down_exps.bias", 3 * 64), numbers("mlp.experts.down_proj_bias"));
    assert_eq!(floats("blk.0.attn_sinks.weight", 4), numbers("self_attn.sinks"));
    assert_eq!(floats("blk.0.attn_output.bias", 64), numbers("self_attn.o_proj.bias"));
    assert_eq!(floats("blk.0.ffn_gate_inp.bias", 3), numbers("mlp.router.bias"));
    assert_eq!(floats("blk.0.post_attention_norm.weight", 64), numbers("post_attention_layernorm.weight"));
    assert_eq!(written.tensors.len(), 3 + 2 * 19);
}

#[test]
fn gpt_oss_says_what_llama_cpp_asks_for_first() {
    let (_folder, _, file) = write_gpt_oss(&gpt_oss());
    let Written { numbers, texts, .. } = read(&file.unwrap());
    assert_eq!(texts["general.architecture"], "gpt-oss");
    assert_eq!(texts["gpt-oss.rope.scaling.type"], "yarn");
    for (key, count) in [
        ("block_count", 2),
        ("context_length", 131_072),
        ("rope.dimension_count", 16),
        ("rope.scaling.original_context_length", 4096),
        ("attention.sliding_window", 8),
        ("attention.key_length", 16),
        ("expert_count", 3),
        ("expert_used_count", 2),
        ("expert_feed_forward_length", 96),
        ("feed_forward_length", 96),
    ] {
        assert_eq!(numbers[&format!("gpt-oss.{key}")], count, "{key}");
    }
    for (key, float) in [
        ("rope.freq_base", 150_000.0_f32),
        ("rope.scaling.factor", 32.0),
        ("rope.scaling.yarn_beta_fast", 32.0),
        ("rope.scaling.yarn_beta_slow", 1.0),
        ("attention.layer_norm_rms_epsilon", 1e-5),
    ] {
        assert_eq!(f32::from_bits(numbers[&format!("gpt-oss.{key}")]), float, "{key}");
    }
    assert_eq!(numbers["general.file_type"], 38);
}

#[test]
fn a_gpt_oss_that_llama_cpp_would_compute_otherwise_is_refused() {
    let full = json!(["full_attention", "full_attention"]);
    for (field, value, why) in [("swiglu_limit", json!(6.0), "swiglu_limit"), ("layer_types", full, "sliding window")] {
        let mut config = gpt_oss();
        config[field] = value;
        let refused = write_gpt_oss(&config).2.unwrap_err();
        assert!(refused.contains(why), "{refused}");
    }
}
