//! `perplexity` against a sum over what `logits` writes, window by window.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::tiny_model::{VOCAB_SIZE, tiny_model};

/// `<|endoftext|>`, which the tokenizer of [`with_bos`] puts before a text.
const BOS: u32 = 256;

/// 103 bytes, so 103 tokens, without the line break at the end; `<|im_end|>` in it is ten characters.
const TEXT: &str = "Ночью всё тихо, and <|im_end|> is text.\nA window is read whole, and only its end is scored.\n";

fn nightmonk(command: &str, model: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_nightmonk")).arg(command).arg("-m").arg(model).args(arguments).output().unwrap()
}

/// What `perplexity` prints for a text with these flags.
fn perplexity(model: &Path, text: &str, arguments: &[&str]) -> String {
    let file = model.join("text.txt");
    fs::write(&file, text).unwrap();
    let output = nightmonk("perplexity", model, &[&["-f", file.to_str().unwrap()], arguments].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The message of a refusal.
fn refusal(model: &Path, text: &[u8], arguments: &[&str], status: i32) -> String {
    let file = model.join("text.txt");
    fs::write(&file, text).unwrap();
    let output = nightmonk("perplexity", model, &[&["-f", file.to_str().unwrap()], arguments].concat());
    assert_eq!(output.status.code(), Some(status));
    assert!(output.stdout.is_empty());
    String::from_utf8(output.stderr).unwrap()
}

fn with_post_processor(family: &str, single: &Value) -> TempDir {
    let model = tiny_model(family);
    let path = model.path().join("tokenizer.json");
    let mut tokenizer: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let special = json!({"id": "<|endoftext|>", "ids": [BOS], "tokens": ["<|endoftext|>"]});
    tokenizer["post_processor"] = json!({
        "type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": {"<|endoftext|>": special},
    });
    fs::write(path, tokenizer.to_string()).unwrap();
    model
}

/// A tiny model whose tokenizer begins a text with [`BOS`].
fn with_bos(family: &str) -> TempDir {
    let bos = json!({"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}});
    with_post_processor(family, &json!([bos, {"Sequence": {"id": "A", "type_id": 0}}]))
}

/// Negative log-likelihoods of `window[scored..]`, by float64 sums over the logits that `logits` writes.
fn by_hand(model: &Path, window: &[u32], scored: usize) -> Vec<f64> {
    let (tokens, npy) = (model.join("tokens.json"), model.join("logits.npy"));
    fs::write(&tokens, serde_json::to_vec(window).unwrap()).unwrap();
    let flags = ["--tokens", tokens.to_str().unwrap(), "-o", npy.to_str().unwrap()];
    assert!(nightmonk("logits", model, &flags).status.success());
    let file = fs::read(npy).unwrap();
    let values = &file[file.len() - window.len() * VOCAB_SIZE * 4..];
    let logits: Vec<f64> = values.as_chunks().0.iter().map(|bytes| f64::from(f32::from_le_bytes(*bytes))).collect();
    let nll = |index: usize| {
        let row = &logits[(index - 1) * VOCAB_SIZE..][..VOCAB_SIZE];
        row.iter().map(|logit| logit.exp()).sum::<f64>().ln() - row[window[index] as usize]
    };
    (scored..window.len()).map(nll).collect()
}

/// Checks the document of a run against the likelihoods of the tokens that it scores.
fn assert_agrees(document: &str, nll: &[f64], windows: usize) {
    let document: Value = serde_json::from_str(document).unwrap();
    let n = nll.len() as f64;
    let mean = nll.iter().sum::<f64>() / n;
    let variance = nll.iter().map(|nll| (nll - mean).powi(2)).sum::<f64>() / (n - 1.0);
    let near = |name: &str, want: f64| {
        let got = document[name].as_f64().unwrap();
        assert!((got - want).abs() <= 1e-10 * want.abs(), "{name}: {got}, want {want}");
    };
    near("nll", mean);
    near("ppl", mean.exp());
    near("stderr", (variance / n).sqrt() * mean.exp());
    assert_eq!(document["tokens"], nll.len());
    assert_eq!(document["windows"], windows);
}

#[test]
fn second_halves_of_windows_are_scored_after_the_token_that_begins_a_text() {
    for family in ["llama", "qwen3_moe"] {
        let model = with_bos(family);
        let tokens: Vec<u32> = [BOS].into_iter().chain(TEXT.trim_end().bytes().map(u32::from)).collect();
        let nll: Vec<f64> = tokens
            .chunks_exact(33)
            .flat_map(|window| by_hand(model.path(), &[&[BOS], &window[1..]].concat(), 33 / 2 + 1))
            .collect();
        let document = perplexity(model.path(), TEXT, &["-c", "33", "-o", "json"]);
        assert_agrees(&document, &nll, tokens.len() / 33);

        let without = tiny_model(family);
        let tokens = &tokens[1..];
        let nll: Vec<f64> =
            tokens.chunks_exact(20).flat_map(|window| by_hand(without.path(), window, 20 / 2 + 1)).collect();
        let document = perplexity(without.path(), TEXT, &["-c", "20", "-o", "json"]);
        assert_agrees(&document, &nll, tokens.len() / 20);
    }
}

#[test]
fn strided_windows_score_each_token_once_and_reach_the_end() {
    let model = tiny_model("llama");
    let text = &TEXT[..58];
    let tokens: Vec<u32> = text.bytes().map(u32::from).collect();
    for (length, windows) in [(57, 3), (58, 4)] {
        let starts = (0..).step_by(6).take_while(|start| start + 40 <= length);
        let nll: Vec<f64> = starts.flat_map(|start| by_hand(model.path(), &tokens[start..start + 40], 34)).collect();
        assert_eq!(nll.len(), windows * 6);
        let flags = ["-c", "40", "--stride", "6", "-o", "json"];
        assert_agrees(&perplexity(model.path(), &text[..length], &flags), &nll, windows);
    }
}

#[test]
fn threads_and_chunks_change_no_byte() {
    let model = with_bos("qwen3_moe");
    for flags in [&["-c", "32"][..], &["-c", "32", "-o", "json"], &["-c", "32", "--ppl-stride", "8"]] {
        let of = |more: &[&str]| perplexity(model.path(), TEXT, &[flags, more].concat());
        let want = of(&["-ub", "256", "-t", "1"]);
        assert!(want.ends_with('\n') && want.lines().count() == 1, "{want}");
        for more in [["-ub", "7", "-t", "1"], ["-ub", "1", "-t", "2"], ["-ub", "31", "-t", "3"]] {
            assert_eq!(of(&more), want, "{more:?}");
        }
    }
}

#[test]
fn what_cannot_be_scored_is_refused_with_what_would_help() {
    let model = tiny_model("llama");
    let bytes = TEXT.trim_end().len();
    for (text, flags, status, parts) in [
        (TEXT.as_bytes(), &[][..], 2, &[&format!("the text has {bytes} tokens, a window 512"), "--ctx-size"][..]),
        (b"", &["-c", "8"], 2, &["the text has 0 tokens"]),
        (TEXT.as_bytes(), &["-c", "2"], 2, &["at least 3 tokens"]),
        (TEXT.as_bytes(), &["-c", "32", "--stride", "32"], 2, &["`--stride 32` leaves no context"]),
        (TEXT.as_bytes(), &["-c", "32", "--stride", "0"], 2, &["--stride"]),
        (b"\xff\xfe", &["-c", "8"], 2, &["it is not UTF-8"]),
        (&[b'x'; (16 << 20) + 1], &["-c", "8"], 2, &["more than the 16777216 bytes"]),
        (&[b'x'; 8200], &["-c", "8196"], 2, &["beyond the 8192 positions"]),
    ] {
        let said = refusal(model.path(), text, flags, status);
        assert!(parts.iter().all(|part| said.contains(part)), "{said}");
    }
    let eos = json!({"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}});
    let model = with_post_processor("llama", &json!([{"Sequence": {"id": "A", "type_id": 0}}, eos]));
    let said = refusal(model.path(), TEXT.as_bytes(), &["-c", "8"], 1);
    assert!(said.contains("post-processor"), "{said}");
}
