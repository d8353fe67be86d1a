//! Models that are not understood as a whole are refused by name, never imported in part.

use super::sample::{F32, HEAD_DIM, HIDDEN, Sample, Value, f32_bytes, text};

#[test]
fn unknown_and_missing_tensors_are_named() {
    let mut sample = Sample::llama();
    sample.set_tensor("blk.0.attn_q_norm.weight", &[HEAD_DIM], F32, f32_bytes(&[1.0; 16]));
    sample.set_tensor("blk.1.attn_norm.weight", &[HIDDEN], F32, f32_bytes(&[1.0; 32]));
    let found = sample.refusal();
    assert!(found.ends_with("does not have: `blk.0.attn_q_norm.weight`, `blk.1.attn_norm.weight`"), "{found}");

    let mut sample = Sample::llama();
    sample.remove_tensor("blk.0.ffn_up.weight");
    assert!(sample.refusal().starts_with("tensor `blk.0.ffn_up.weight` is missing"), "{}", sample.refusal());

    let mut sample = Sample::llama();
    sample.set_tensor("blk.0.attn_k.weight", &[HIDDEN, HIDDEN], F32, vec![0; 4 * 32 * 32]);
    let found = sample.refusal();
    assert!(found.contains("`blk.0.attn_k.weight` has shape [32, 32], but the metadata ask for [32, 16]"), "{found}");
}

#[test]
fn settings_that_would_change_the_model_are_not_left_out() {
    for (key, value, expected) in [
        ("general.architecture", text("qwen2"), "`qwen2` is not supported; `llama` is"),
        ("split.count", Value::U32(3), "one of 3 parts; merge them first"),
        ("llama.attention.sliding_window", Value::U32(4096), "`llama.attention.sliding_window` is not understood"),
        ("llama.logit_scale", Value::F32(2.0), "`llama.logit_scale` is not understood"),
        ("llama.rope.scaling.type", text("longrope"), "`longrope` is not supported; none, linear and yarn are"),
        ("llama.rope.scaling.type", text("linear"), "`llama.rope.scaling.factor` is missing"),
        ("llama.rope.scaling.attn_factor", Value::F32(1.5), "1.5 is not supported (only 1 is)"),
        ("llama.attention.value_length", Value::U32(8), "8 differs from the head dimension 16"),
        ("llama.vocab_size", Value::U32(11), "11 tokens do not fit the 10 rows"),
        ("llama.attention.head_count", Value::U32(0), "`llama.attention.head_count` is missing"),
        ("llama.attention.head_count_kv", Value::U32(3), "2 heads cannot share 3 key and value heads"),
        ("llama.block_count", Value::U32(1_000_000), "1000000 is above the limit of 512"),
        ("llama.block_count", text("one"), "it must be a whole number, not negative, but is a string"),
        ("llama.attention.layer_norm_rms_epsilon", Value::F32(f32::NAN), "it must be a finite floating-point number"),
        ("general.alignment", Value::U32(24), "the alignment 24 is not a power of two"),
    ] {
        let mut sample = Sample::llama();
        sample.set(key, value);
        let found = sample.refusal();
        assert!(found.contains(expected), "{key}: {found}");
    }
}

#[test]
fn heads_that_rotate_in_part_are_refused() {
    let mut sample = Sample::llama();
    sample.set("llama.attention.key_length", Value::U32(HEAD_DIM as u32));
    sample.set("llama.rope.dimension_count", Value::U32(8));
    let found = sample.refusal();
    assert!(found.starts_with("`llama.rope.dimension_count`: 8 differs from the head dimension 16"), "{found}");
}

/// Divisors as a converter writes them for llama3 scaling.
fn llama3_table(theta: f64, factor: f64, original: f64) -> Vec<f32> {
    let divisor = |i: u64| {
        let wavelength = std::f64::consts::TAU * theta.powf(2.0 * i as f64 / HEAD_DIM as f64);
        let smooth = ((original / wavelength - 1.0) / 3.0).clamp(0.0, 1.0);
        (1.0 / ((1.0 - smooth) / factor + smooth)) as f32
    };
    (0..HEAD_DIM / 2).map(divisor).collect()
}

#[test]
fn a_frequency_table_becomes_llama3_scaling_or_is_refused() {
    let mut sample = Sample::llama();
    sample.set("llama.rope.freq_base", Value::F32(500_000.0));
    let table = llama3_table(500_000.0, 32.0, 8192.0);
    assert!(table.iter().any(|divisor| *divisor > 1.0 && *divisor < 32.0), "the table has a smooth part: {table:?}");
    sample.set_tensor("rope_freqs.weight", &[HEAD_DIM / 2], F32, f32_bytes(&table));
    let scaling = sample.import().expect("a sound file").json("config.json")["rope_scaling"].clone();
    assert_eq!((&scaling["rope_type"], &scaling["factor"]), (&"llama3".into(), &32.0.into()));
    assert_eq!(scaling["original_max_position_embeddings"], 8192);
    assert_eq!((&scaling["low_freq_factor"], &scaling["high_freq_factor"]), (&1.0.into(), &4.0.into()));

    let mut other = table.clone();
    other[3] += 0.5;
    sample.set_tensor("rope_freqs.weight", &[HEAD_DIM / 2], F32, f32_bytes(&other));
    assert!(
        sample.refusal().starts_with("tensor `rope_freqs.weight` scales rotary frequencies"),
        "{}",
        sample.refusal()
    );

    sample.set_tensor("rope_freqs.weight", &[HEAD_DIM / 2], F32, f32_bytes(&[1.0; 8]));
    let config = sample.import().expect("a sound file").json("config.json");
    assert!(config["rope_scaling"].is_null(), "ones scale nothing");
}
