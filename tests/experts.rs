//! What routers choose, as `logits` writes it and as `experts` counts and shows it.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::damaged::{assert_refused, run, text};
use crate::models::Reference;
use crate::tiny_model::{VOCAB_SIZE, tiny_model};

const TOKENS: usize = 90;

/// A tiny model with some token ids beside it.
struct Sample {
    folder: TempDir,
    ids: Vec<usize>,
}

impl Sample {
    fn new(family: &str) -> Self {
        let folder = tiny_model(family);
        let ids: Vec<usize> = (0..TOKENS).map(|index| (index * index * 7 + index) % VOCAB_SIZE).collect();
        fs::write(folder.path().join("ids.json"), json!(ids).to_string()).unwrap();
        Self { folder, ids }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn with_ids(&self, name: &str, ids: &[usize]) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, json!(ids).to_string()).unwrap();
        path
    }

    /// Runs `experts record` and returns the file.
    #[track_caller]
    fn record(&self, name: &str, flags: &[&str]) -> PathBuf {
        let file = self.path(name);
        let base = ["experts", "record", "-m", text(self.folder.path()), "-o", text(&file)];
        let output = run(&[&base[..], flags].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        file
    }
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// Shape and 32-bit words of an .npy file of this type.
pub(crate) fn npy(path: &Path, kind: &str) -> (Vec<usize>, Vec<[u8; 4]>) {
    let bytes = fs::read(path).unwrap();
    let header_len = usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    let header = std::str::from_utf8(&bytes[10..10 + header_len]).unwrap();
    assert!(header.contains(&format!("'descr': '{kind}'")), "{header}");
    let shape = header.split_once('(').unwrap().1.split_once(')').unwrap().0;
    let shape: Vec<usize> =
        shape.split(',').map(str::trim).filter(|size| !size.is_empty()).map(|size| size.parse().unwrap()).collect();
    let words = bytes[10 + header_len..].as_chunks::<4>().0.to_vec();
    assert_eq!(shape.iter().product::<usize>(), words.len());
    (shape, words)
}

fn counts(file: &Value) -> Vec<Vec<u64>> {
    let numbers = |layer: &Value| layer["counts"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).collect();
    file["layers"].as_array().unwrap().iter().map(numbers).collect()
}

#[test]
fn recorded_counts_are_those_of_the_experts_that_logits_writes() {
    for (family, flags) in [("qwen3_moe", &[][..]), ("gpt_oss", &[]), ("qwen3_moe", &["--experts-per-token", "1"])] {
        let sample = Sample::new(family);
        let (ids, router, logits) = (sample.path("ids.json"), sample.path("router.npy"), sample.path("logits.npy"));
        let base = ["logits", "-m", text(sample.folder.path()), "--tokens", text(&ids), "--output", text(&logits)];
        let output = run(&[&base[..], &["--router", text(&router)], flags].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let (shape, chosen) = npy(&router, "<i4");
        assert_eq!(shape[1], TOKENS);

        let recorded = read(&sample.record("counts", &[&["--tokens", text(&ids)], flags].concat()));
        assert_eq!(recorded["workloads"], json!({"ids": TOKENS}));
        assert_eq!(recorded["settings"].as_str().unwrap().is_empty(), flags.is_empty());
        let recorded = counts(&recorded);
        assert_eq!(recorded.len(), shape[0]);
        for (recorded, chosen) in recorded.iter().zip(chosen.chunks(shape[1] * shape[2])) {
            let mut want = vec![0; recorded.len()];
            // Behind the experts of a token that goes through fewer than the model's own stands none: -1.
            chosen.iter().map(|word| i32::from_le_bytes(*word)).filter(|expert| *expert >= 0).for_each(|expert| {
                want[expert as usize] += 1;
            });
            assert_eq!(recorded, &want, "{family} {flags:?}");
            assert!(
                want.iter().filter(|count| **count > 0).count() > 1,
                "a router that always says the same: {want:?}"
            );
        }
    }
}

#[test]
fn the_routers_logits_are_the_references_and_weights_and_experts_follow_from_them() {
    let reference = Reference::of("qwen3_moe");
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::write(path("ids.json"), json!(reference.ids("token_ids")).to_string()).unwrap();
    let [ids, out, router, weights, logits] =
        ["ids.json", "out.npy", "router.npy", "weights.npy", "logits.npy"].map(path);
    let model = crate::models::golden().join("qwen3_moe");
    let base = ["logits", "-m", text(&model), "--tokens", text(&ids), "--output", text(&out), "-ctk", "f32"];
    let more = ["--router", text(&router), "--router-weights", text(&weights), "--router-logits", text(&logits)];
    let output = run(&[&base[..], &more].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    let (shape, experts) = npy(&router, "<i4");
    let (weights_shape, weights) = npy(&weights, "<f4");
    let (logits_shape, logits) = npy(&logits, "<f4");
    assert_eq!(weights_shape, shape);
    assert_eq!(logits_shape[..2], shape[..2]);
    let (k, num_experts) = (shape[2], logits_shape[2]);
    let logits: Vec<f32> = logits.into_iter().map(f32::from_le_bytes).collect();
    let want = reference.floats("router_logits");
    assert_eq!(logits.len(), want.len());
    assert!(logits.iter().zip(&want).all(|(got, want)| (got - want).abs() < 1e-3), "not the reference's logits");
    let rows = logits.chunks(num_experts).zip(experts.chunks(k)).zip(weights.chunks(k));
    for ((logits, experts), weights) in rows {
        let chosen: Vec<usize> = experts.iter().map(|word| i32::from_le_bytes(*word) as usize).collect();
        let mut best: Vec<usize> = (0..num_experts).collect();
        best.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
        assert_eq!(chosen, best[..k]);
        // Of a model with norm_topk_prob: the softmax of the chosen logits.
        let exps: Vec<f64> = chosen.iter().map(|expert| f64::from(logits[*expert]).exp()).collect();
        for (weight, exp) in weights.iter().zip(&exps) {
            let (weight, want) = (f64::from(f32::from_le_bytes(*weight)), exp / exps.iter().sum::<f64>());
            assert!((weight - want).abs() < 1e-5, "{weight}, and {want} follows from the logits");
        }
    }
}

#[test]
fn windows_are_sequences_of_their_own_and_merged_counts_are_those_of_one_recording() {
    let sample = Sample::new("qwen3_moe");
    let ids = sample.path("ids.json");
    let whole = sample.record("whole", &["--tokens", text(&ids), "-c", "40", "-ub", "16", "--workload", "all"]);
    let parts: Vec<PathBuf> = sample
        .ids
        .chunks(40)
        .enumerate()
        .map(|(index, part)| {
            let part = sample.with_ids(&format!("part{index}.json"), part);
            sample.record(&format!("counts{index}"), &["--tokens", text(&part), "--workload", "all"])
        })
        .collect();
    assert_eq!(parts.len(), 3);
    let merged = sample.path("merged");
    let files: Vec<&str> = parts.iter().map(|part| text(part)).collect();
    let output = run(&[&["experts", "merge"], &files[..], &["-o", text(&merged)]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(read(&merged), read(&whole));

    // Other names stay apart, and their counts add up all the same.
    let other = sample.record("other", &["--tokens", text(&ids), "--workload", "other"]);
    let output = run(&["experts", "merge", text(&whole), text(&other), "-o", text(&merged)]);
    assert!(output.status.success());
    let sum = read(&merged);
    assert_eq!(sum["workloads"], json!({"all": TOKENS, "other": TOKENS}));
    for ((sum, a), b) in counts(&sum).iter().zip(counts(&read(&whole))).zip(counts(&read(&other))) {
        assert_eq!(sum, &a.iter().zip(b).map(|(a, b)| a + b).collect::<Vec<_>>());
    }
}

#[test]
fn a_text_is_counted_like_its_tokens() {
    let sample = Sample::new("qwen3_moe");
    let note = sample.path("note.txt");
    fs::write(&note, "Experts, эксперты.\n").unwrap();
    // A token of this model is a byte.
    let ids: Vec<usize> = fs::read(&note).unwrap().into_iter().map(usize::from).collect();
    let of_ids = sample.with_ids("note.json", &ids);
    let (a, b) = (sample.record("a", &["-f", text(&note)]), sample.record("b", &["--tokens", text(&of_ids)]));
    assert_eq!(read(&a), read(&b));
}

#[test]
fn show_prints_a_line_and_a_row_of_shades_a_layer_and_draws_well_formed_svg() {
    let sample = Sample::new("qwen3_moe");
    let (ids, svg) = (sample.path("ids.json"), sample.path("map.svg"));
    let file = sample.record("counts", &["--tokens", text(&ids), "--workload", "a <b> & \"c\""]);
    let output = run(&["experts", "show", text(&file), "--svg", text(&svg), "--columns", "11"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let shown = String::from_utf8(output.stdout).unwrap();
    let recorded = read(&file);
    for layer in recorded["layers"].as_array().unwrap() {
        let begin = format!("{:>5} ", layer["layer"].as_u64().unwrap());
        let lines: Vec<&str> = shown.lines().filter(|line| line.starts_with(&begin)).collect();
        assert!(lines.len() == 2 && lines[0].contains("bits") && lines[1].ends_with('|'), "{shown}");
        assert_eq!(lines[1].chars().count(), 11, "{shown}");
    }
    assert_well_formed(&fs::read_to_string(&svg).unwrap());

    let output = run(&["experts", "show", text(&file), "-o", "json"]);
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["tokens"], TOKENS);
    assert_eq!(document["model"], recorded["model"]);
    for (layer, counts) in document["layers"].as_array().unwrap().iter().zip(counts(&recorded)) {
        let total = counts.iter().sum::<u64>() as f64;
        let entropy: f64 = counts.iter().filter(|n| **n > 0).map(|n| *n as f64 / total).map(|p| -p * p.log2()).sum();
        assert!((layer["entropy_bits"].as_f64().unwrap() - entropy).abs() < 1e-9);
        let fraction = entropy / (counts.len() as f64).log2();
        assert!((layer["entropy_fraction"].as_f64().unwrap() - fraction).abs() < 1e-9);
        let mut sorted = counts.clone();
        sorted.sort_by(|a, b| b.cmp(a));
        let half = sorted[..counts.len().div_ceil(2)].iter().sum::<u64>() as f64 / total;
        assert!((layer["coverage"]["50"].as_f64().unwrap() - half).abs() < 1e-9);
    }
}

#[test]
fn what_cannot_be_counted_added_or_shown_is_refused_by_name() {
    let (sample, dense) = (Sample::new("qwen3_moe"), Sample::new("llama"));
    let (ids, out) = (sample.path("ids.json"), sample.path("out"));
    let record = |model: &Path, flags: &[&str]| {
        run(&[&["experts", "record", "-m", text(model), "-o", text(&out)], flags].concat())
    };
    let own = sample.folder.path();
    let (no_file, folder) = (sample.path("none"), dense.folder.path());
    let (latin, empty) = (sample.path("latin.txt"), sample.path("empty.txt"));
    fs::write(&latin, b"caf\xe9").unwrap();
    fs::write(&empty, "").unwrap();
    assert_refused("dense", &record(folder, &["--tokens", text(&ids)]), 2, &[text(folder), "dense", "no experts"]);
    assert_refused("no text", &record(own, &[]), 2, &["--file <TEXT>"]);
    assert_refused("no file", &record(own, &["-f", text(&no_file)]), 2, &[text(&no_file), "No such file"]);
    assert_refused("not UTF-8", &record(own, &["-f", text(&latin)]), 2, &[text(&latin), "UTF-8"]);
    assert_refused("empty", &record(own, &["-f", text(&empty)]), 2, &[text(&empty), "empty"]);
    assert_refused("endless", &record(own, &["-f", "/dev/zero"]), 2, &["/dev/zero", "bytes that are read"]);
    let name = ["--tokens", text(&ids), "--workload", "\u{1b}[2J"];
    assert_refused("name", &record(own, &name), 2, &["no name of a workload"]);
    assert!(!out.exists());
    let full = run(&["experts", "record", "-m", text(own), "-o", "/dev/full", "--tokens", text(&ids)]);
    assert_refused("full disk", &full, 1, &["cannot write /dev/full", "No space left"]);

    // Counts of the same tensors under another tokenizer are of another model, and so are those of other dials.
    let counts = sample.record("counts", &["--tokens", text(&ids)]);
    let other = Sample::new("qwen3_moe_unnormed");
    let of_other = other.record("counts", &["--tokens", text(&ids)]);
    let turned = sample.record("turned", &["--tokens", text(&ids), "--experts-per-token", "1"]);
    let merge = |file: &Path| run(&["experts", "merge", text(&counts), text(file), "-o", text(&out)]);
    assert_refused("other model", &merge(&of_other), 2, &[text(&of_other), text(&counts), "digest"]);
    assert_refused("other dials", &merge(&turned), 2, &[text(&turned), "settings", "none"]);
    assert_refused("no counts", &merge(&ids), 1, &[text(&ids), "no file of counts"]);
    assert!(!out.exists());
    let show = |file: &str| run(&["experts", "show", file]);
    assert_refused("endless", &show("/dev/zero"), 1, &["/dev/zero", "bytes that are read"]);
    let svg = run(&["experts", "show", text(&counts), "--svg", "/nowhere/map.svg"]);
    assert_refused("no folder", &svg, 1, &["cannot write /nowhere/map.svg"]);

    let (npy, logits) = (sample.path("x.npy"), ["--router", "--router-weights", "--router-logits"]);
    for flag in logits {
        let base = ["logits", "--tokens", text(&ids), "--output", text(&npy), flag];
        let same = run(&[&base[..], &[text(&npy), "-m", text(own)]].concat());
        assert_refused("same file", &same, 2, &[flag, "--output", "same file"]);
        let of_dense = run(&[&base[..], &["y.npy", "-m", text(folder)]].concat());
        assert_refused("no experts", &of_dense, 2, &[flag, "no experts"]);
    }
}

/// Every tag is closed in its order, every attribute is quoted, and text has no bare `&` or `<`.
#[track_caller]
pub(crate) fn assert_well_formed(xml: &str) {
    let mut open: Vec<&str> = Vec::new();
    let mut rest = xml;
    let mut elements = 0;
    while let Some((before, after)) = rest.split_once('<') {
        assert!(!before.contains('>'), "{before}");
        assert!(open.is_empty() == before.trim().is_empty() || before.trim().is_empty(), "text outside: {before}");
        for (at, _) in before.match_indices('&') {
            assert!(["&amp;", "&lt;", "&gt;"].iter().any(|entity| before[at..].starts_with(entity)), "{before}");
        }
        let (tag, after) = after.split_once('>').expect("a tag ends");
        rest = after;
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name));
            continue;
        }
        elements += 1;
        assert!(tag.matches('"').count().is_multiple_of(2) && !tag.contains('&'), "{tag}");
        let name = tag.split([' ', '/']).next().unwrap();
        assert!(name.chars().all(|c| c.is_ascii_lowercase()) && !name.is_empty(), "{tag}");
        if !tag.ends_with('/') {
            open.push(name);
        }
    }
    assert!(open.is_empty() && rest.trim().is_empty() && elements > 20, "{open:?}, {elements} elements");
}
