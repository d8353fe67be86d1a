//! Values: equal to the reference bit by bit, and only rounded where that was asked for.

use half::{bf16, f16};

use super::sample::{BF16, F16, F32, HEAD_DIM, HIDDEN, Q8_0, Sample, VOCAB, f32_bytes, numbers};
use crate::import::gguf::TensorType;
use crate::import::{Dtype, ImportOptions, Rounding, dequantize};

#[test]
fn every_type_expands_to_the_reference_bits() {
    for (kind, fixture) in [
        (TensorType::Q4_0, &include_bytes!("../fixtures/q4_0.bin")[..]),
        (TensorType::Q4_1, include_bytes!("../fixtures/q4_1.bin")),
        (TensorType::Q8_0, include_bytes!("../fixtures/q8_0.bin")),
        (TensorType::Q4K, include_bytes!("../fixtures/q4_k.bin")),
        (TensorType::Q6K, include_bytes!("../fixtures/q6_k.bin")),
    ] {
        let blocks = fixture.len() / (kind.block_bytes() + 4 * kind.block_len());
        let (blocks, wanted) = fixture.split_at(blocks * kind.block_bytes());
        let mut values = vec![0.0; wanted.len() / 4];
        dequantize(kind, blocks, &mut values);
        for (i, (value, wanted)) in values.iter().zip(wanted.as_chunks().0).enumerate() {
            let wanted = f32::from_le_bytes(*wanted);
            assert_eq!(value.to_bits(), wanted.to_bits(), "{} value {i}: {value} for {wanted}", kind.name());
        }
    }
}

#[test]
fn unquantized_tensors_keep_their_bytes() {
    let values = numbers(HIDDEN * HIDDEN, 1.0);
    for (kind, name, bytes) in [
        (F32, "F32", f32_bytes(&values)),
        (F16, "F16", values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect::<Vec<_>>()),
        (BF16, "BF16", values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect()),
    ] {
        let mut sample = Sample::llama();
        sample.set_tensor("blk.0.attn_output.weight", &[HIDDEN, HIDDEN], kind, bytes.clone());
        // Also when quantized tensors are to be made smaller.
        let options = ImportOptions { expand_to: Dtype::F16, ..ImportOptions::default() };
        let imported = sample.import_with(&options).expect("a sound file");
        let want = (name.to_owned(), vec![HIDDEN as usize; 2], bytes);
        assert_eq!(imported.tensor("model.layers.0.self_attn.o_proj.weight"), want);
        assert_eq!(imported.report.rounding, None);
        assert!(imported.report.quantized.is_empty());
    }
}

/// What the converter does to the rows of query and key heads.
fn permute(rows: &[Vec<f32>], heads: usize) -> Vec<f32> {
    let half = rows.len() / heads / 2;
    let mut permuted = Vec::new();
    for head in 0..heads {
        for i in 0..half {
            for part in 0..2 {
                permuted.extend(&rows[head * 2 * half + part * half + i]);
            }
        }
    }
    permuted
}

#[test]
fn rows_of_query_and_key_heads_are_put_back_in_order() {
    let (hidden, head_dim) = (HIDDEN as usize, HEAD_DIM as usize);
    let rows = |count: usize, len: usize| -> Vec<Vec<f32>> {
        (0..count).map(|row| (0..len).map(|column| (row * 100 + column) as f32).collect()).collect()
    };
    let (q, k, q_bias, k_bias) = (rows(hidden, hidden), rows(head_dim, hidden), rows(hidden, 1), rows(head_dim, 1));
    let mut sample = Sample::llama();
    sample.set_tensor("blk.0.attn_q.weight", &[HIDDEN, HIDDEN], F32, f32_bytes(&permute(&q, 2)));
    sample.set_tensor("blk.0.attn_k.weight", &[HIDDEN, HEAD_DIM], F32, f32_bytes(&permute(&k, 1)));
    sample.set_tensor("blk.0.attn_q.bias", &[HIDDEN], F32, f32_bytes(&permute(&q_bias, 2)));
    sample.set_tensor("blk.0.attn_k.bias", &[HEAD_DIM], F32, f32_bytes(&permute(&k_bias, 1)));
    sample.set_tensor("blk.0.attn_v.bias", &[HEAD_DIM], F32, f32_bytes(&numbers(HEAD_DIM, 2.0)));
    sample.set_tensor("blk.0.attn_output.bias", &[HIDDEN], F32, f32_bytes(&numbers(HIDDEN, 3.0)));
    let imported = sample.import().expect("a sound file");
    assert_eq!(imported.json("config.json")["attention_bias"], true);
    for (name, rows) in [("q_proj.weight", q), ("k_proj.weight", k), ("q_proj.bias", q_bias), ("k_proj.bias", k_bias)] {
        let found = imported.f32s(&format!("model.layers.0.self_attn.{name}"));
        assert_eq!(found, rows.concat(), "{name}");
    }
    assert_eq!(imported.f32s("model.layers.0.self_attn.v_proj.bias"), numbers(HEAD_DIM, 2.0));
}

/// Rows of Q8_0 blocks: each value is `scale` times the next of -128 to 127.
fn q8_0(values: u64, scale: f32) -> Vec<u8> {
    let block = |block: u64| {
        let quants = (0..32).map(|i| (block * 32 + i) as u8);
        f16::from_f32(scale).to_le_bytes().into_iter().chain(quants).collect::<Vec<_>>()
    };
    (0..values / 32).flat_map(block).collect()
}

#[test]
fn quantized_tensors_are_expanded_and_the_report_says_so() {
    let mut sample = Sample::llama();
    sample.set_tensor("token_embd.weight", &[HIDDEN, VOCAB], Q8_0, q8_0(HIDDEN * VOCAB, 0.3));
    let imported = sample.import().expect("a sound file");
    let scale = f16::from_f32(0.3).to_f32();
    let wanted: Vec<f32> = (0..HIDDEN * VOCAB).map(|i| scale * f32::from(i as u8 as i8)).collect();
    assert_eq!(imported.f32s("model.embed_tokens.weight"), wanted);

    let report = &imported.report;
    assert_eq!(report.quantized, ["token_embd.weight"]);
    assert_eq!(report.rounding, None);
    let text = report.to_string();
    assert!(text.contains("1 of 11 tensors were quantized: token_embd.weight."), "{text}");
    assert!(text.contains("gave them no precision back") && text.contains("kept exactly"), "{text}");
    assert!(!text.contains("rounded"), "{text}");
    assert_eq!(imported.json("config.json")["nightmonk"]["source_tensors"]["Q8_0"], 1);
}

#[test]
fn rounding_to_a_smaller_format_is_counted() {
    let mut sample = Sample::llama();
    let len = HIDDEN * VOCAB;
    sample.set_tensor("token_embd.weight", &[HIDDEN, VOCAB], Q8_0, q8_0(len, 0.3));
    let options = ImportOptions { expand_to: Dtype::BF16, ..ImportOptions::default() };
    let imported = sample.import_with(&options).expect("a sound file");
    let scale = f16::from_f32(0.3).to_f32();
    let exact: Vec<f32> = (0..len).map(|i| scale * f32::from(i as u8 as i8)).collect();
    let rounded: Vec<f32> = exact.iter().map(|value| bf16::from_f32(*value).to_f32()).collect();
    let errors: Vec<f32> = exact.iter().zip(&rounded).map(|(exact, rounded)| (exact - rounded).abs()).collect();
    let rounding = Rounding {
        values: len,
        changed: errors.iter().filter(|error| **error > 0.0).count() as u64,
        max_abs_error: errors.iter().copied().fold(0.0, f32::max),
    };
    assert!(rounding.changed > 0);
    assert_eq!(imported.report.rounding, Some(rounding));
    assert!(imported.report.to_string().contains("rounded to BF16"), "{}", imported.report);
    let (dtype, _, bytes) = imported.tensor("model.embed_tokens.weight");
    assert_eq!(dtype, "BF16");
    let found: Vec<f32> = bytes.as_chunks().0.iter().map(|half| bf16::from_le_bytes(*half).to_f32()).collect();
    assert_eq!(found, rounded);
}

#[test]
fn values_that_cannot_be_kept_are_refused() {
    let mut sample = Sample::llama();
    sample.set_tensor("token_embd.weight", &[HIDDEN, VOCAB], Q8_0, q8_0(HIDDEN * VOCAB, 1000.0));
    let options = ImportOptions { expand_to: Dtype::F16, ..ImportOptions::default() };
    let error = sample.import_with(&options).err().expect("too large for F16").to_string();
    assert_eq!(error, "tensor `token_embd.weight`: value 66 is too large for F16; choose BF16 or F32");

    let mut norm = numbers(HIDDEN, 0.0);
    norm[5] = f32::NAN;
    sample.set_tensor("output_norm.weight", &[HIDDEN], F32, f32_bytes(&norm));
    assert_eq!(sample.refusal(), "tensor `output_norm.weight`: value 5 is not finite; the file is damaged");
}
