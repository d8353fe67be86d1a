//! Full disks: what was asked for is not there, what was there is, and the next run makes good.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{Job, assert_refused, program, run, text};
use crate::tiny_model::tiny_model;

/// A file system of a few pages in memory. Mounting one takes privileges that a test may not have.
pub(crate) struct SmallDisk(PathBuf);

impl SmallDisk {
    pub(crate) fn mount(at: &Path, kib: usize) -> Option<Self> {
        fs::create_dir_all(at).unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={kib}k"), "tmpfs"])
            .arg(at)
            .stderr(Stdio::null())
            .status();
        match mounted {
            Ok(status) if status.success() => Some(Self(at.into())),
            _ => {
                eprintln!("SKIPPED: this test mounts a small tmpfs, which this process may not");
                None
            }
        }
    }

    /// Another size, with all that is there.
    pub(crate) fn resize(&self, kib: usize) {
        let size = format!("remount,size={kib}k");
        assert!(Command::new("mount").args(["-o", &size]).arg(&self.0).status().unwrap().success());
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Leaves room for `kib`; the file that takes the rest.
    fn fill_up_to(&self, total_kib: usize, kib: usize) -> PathBuf {
        let path = self.path("filler");
        fs::write(&path, vec![1; (total_kib - kib) * 1024]).unwrap();
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

fn full() -> Stdio {
    File::options().write(true).open("/dev/full").unwrap().into()
}

#[test]
fn a_full_output_file_is_named() {
    let model = tiny_model("qwen3_moe");
    let tokens = model.path().join("tokens.json");
    fs::write(&tokens, "[1, 2, 3]").unwrap();
    let logits = model.path().join("logits.npy");
    let base = ["logits", "-m", text(model.path()), "--tokens", text(&tokens), "--output"];
    let output = run(&[&base[..], &["/dev/full"]].concat());
    assert_refused("logits", &output, 1, &["cannot write /dev/full", "No space left"]);
    let output = run(&[&base[..], &[text(&logits), "--router", "/dev/full"]].concat());
    assert_refused("router", &output, 1, &["cannot write /dev/full", "No space left"]);
    let output = run(&[&base[..], &["/nowhere/logits.npy"]].concat());
    assert_refused("no folder", &output, 1, &["cannot write /nowhere/logits.npy", "No such file"]);
}

#[test]
fn a_full_standard_output_is_an_error_and_a_full_standard_error_is_not() {
    let model = tiny_model("llama");
    let folder = text(model.path());
    for arguments in [
        vec!["generate", "-m", folder, "-p", "x", "-n", "3"],
        vec!["generate", "-m", folder, "-p", "x", "-n", "3", "-o", "json"],
        vec!["plan", "-m", folder],
        vec!["plan", "-m", folder, "-o", "json"],
    ] {
        let output = program(&arguments).stdout(full()).output().unwrap();
        assert_refused(&arguments.join(" "), &output, 1, &["standard output", "No space left"]);
        let output = program(&arguments).stderr(full()).output().unwrap();
        assert!(output.status.success() && !output.stdout.is_empty(), "{arguments:?}");
    }
    let job = Job::new();
    let output = program(&["night", "run", text(&job.path("job.toml"))]).stderr(full()).output().unwrap();
    assert!(output.status.success());
    assert_eq!(fs::read(job.path("report.md")).unwrap(), Job::undisturbed());
}

#[test]
fn logits_on_a_full_disk_are_refused_and_written_when_there_is_space() {
    let model = tiny_model("llama");
    let Some(disk) = SmallDisk::mount(&model.path().join("disk"), 64) else { return };
    let tokens = model.path().join("tokens.json");
    fs::write(&tokens, format!("{:?}", (0..60).collect::<Vec<_>>())).unwrap(); // 60 x 320 x 4 bytes: 75 KiB
    let logits = disk.path("logits.npy");
    let logits_of = |out: &Path| run(&["logits", "-m", text(model.path()), "--tokens", text(&tokens), "-o", text(out)]);
    assert_refused("logits", &logits_of(&logits), 1, &[text(&logits), "No space left"]);
    fs::write(&tokens, "[1, 2, 3]").unwrap();
    assert!(logits_of(&logits).status.success());
}

#[test]
fn a_job_on_a_full_disk_loses_nothing_and_ends_with_the_same_bytes() {
    const DISK: usize = 512;
    let want = Job::undisturbed();
    let job = Job::new();
    let Some(disk) = SmallDisk::mount(&job.path("disk"), DISK) else { return };
    job.write("notes", "disk/out/report.md", super::RECIPE);
    let mut refused = 0;
    let mut before_any = 0;
    for room in (0..=240).step_by(8) {
        let filler = disk.fill_up_to(DISK, room);
        let output = job.run();
        let report = disk.path("out/report.md");
        if output.status.success() {
            assert_eq!(fs::read(&report).unwrap(), want, "{room} KiB of room");
        } else {
            refused += 1;
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            before_any += usize::from(!said.contains("step 1 of"));
            assert_refused(&format!("{room} KiB of room"), &output, 1, &[text(&job.path("disk")), "space"]);
            // It is whole where only the word that the job is done found no room.
            assert!(fs::read(&report).map_or(true, |report| report == want), "{room} KiB of room: half a report");
        }
        fs::remove_file(filler).unwrap();
        let output = job.run();
        assert!(output.status.success(), "{room}: {}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(fs::read(&report).unwrap(), want, "{room} KiB of room, then space");
        fs::remove_dir_all(disk.path("out")).unwrap();
    }
    assert!(before_any > 0, "no run was refused before its first step");
    assert!(refused > before_any, "no run was refused after its first step: {refused} refused");
    assert!(refused < 31, "no run fitted");
}

#[test]
fn an_import_on_a_full_disk_leaves_nothing_half_done() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("model.gguf");
    fs::write(&source, gguf()).unwrap();
    let Some(disk) = SmallDisk::mount(&folder.path().join("disk"), 256) else { return };
    let target = disk.path("model");
    for room in [0, 4, 40, 100] {
        let filler = disk.fill_up_to(256, room);
        let output = run(&["import", text(&source), "-o", text(&target)]);
        assert_refused(&format!("{room} KiB of room"), &output, 1, &[text(&folder.path().join("disk")), "space"]);
        let left: Vec<_> = fs::read_dir(&disk.0).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["filler"], "{room} KiB of room");
        fs::remove_file(filler).unwrap();
    }
    let output = run(&["import", text(&source), "-o", text(&target)]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(run(&["plan", "-m", text(&target)]).status.success());

    let again = run(&["import", text(&folder.path().join("none.gguf")), "-o", text(&target)]);
    assert_refused("no file", &again, 1, &["none.gguf"]);
    fs::write(&source, b"GGUF\x03\0\0\0").unwrap();
    let cut = run(&["import", text(&source), "-o", text(&folder.path().join("other"))]);
    assert_refused("cut", &cut, 1, &["model.gguf"]);
    assert!(!folder.path().join("other").exists());
}

/// A llama model of one layer in GGUF, float32, with a vocabulary of seven tokens.
fn gguf() -> Vec<u8> {
    const HIDDEN: u64 = 32;
    let string = |value: &str| [&(value.len() as u64).to_le_bytes(), value.as_bytes()].concat();
    let strings = |values: &[&str]| {
        let head = [&9u32.to_le_bytes()[..], &8u32.to_le_bytes(), &(values.len() as u64).to_le_bytes()].concat();
        [head, values.iter().flat_map(|value| string(value)).collect()].concat()
    };
    let types = |values: &[i32]| {
        let head = [&9u32.to_le_bytes()[..], &5u32.to_le_bytes(), &(values.len() as u64).to_le_bytes()].concat();
        [head, values.iter().flat_map(|value| value.to_le_bytes()).collect()].concat()
    };
    let word = |value: &str| [&8u32.to_le_bytes()[..], &string(value)].concat();
    let number = |value: u32| [4u32.to_le_bytes(), value.to_le_bytes()].concat();
    let float = |value: f32| [6u32.to_le_bytes(), value.to_le_bytes()].concat();
    let keys = [
        ("general.architecture", word("llama")),
        ("llama.block_count", number(1)),
        ("llama.context_length", number(128)),
        ("llama.embedding_length", number(HIDDEN as u32)),
        ("llama.feed_forward_length", number(64)),
        ("llama.attention.head_count", number(2)),
        ("llama.attention.head_count_kv", number(1)),
        ("llama.attention.layer_norm_rms_epsilon", float(1e-5)),
        ("tokenizer.ggml.model", word("gpt2")),
        ("tokenizer.ggml.pre", word("smollm")),
        ("tokenizer.ggml.tokens", strings(&["<|end|>", "a", "b", "ab", "Ġ", "Ġa", "1"])),
        ("tokenizer.ggml.token_type", types(&[3, 1, 1, 1, 1, 1, 1])),
        ("tokenizer.ggml.merges", strings(&["a b", "Ġ a"])),
        ("tokenizer.ggml.eos_token_id", number(0)),
    ];
    let tensors = [
        ("token_embd.weight", vec![HIDDEN, 7]),
        ("blk.0.attn_norm.weight", vec![HIDDEN]),
        ("blk.0.attn_q.weight", vec![HIDDEN, HIDDEN]),
        ("blk.0.attn_k.weight", vec![HIDDEN, 16]),
        ("blk.0.attn_v.weight", vec![HIDDEN, 16]),
        ("blk.0.attn_output.weight", vec![HIDDEN, HIDDEN]),
        ("blk.0.ffn_norm.weight", vec![HIDDEN]),
        ("blk.0.ffn_gate.weight", vec![HIDDEN, 64]),
        ("blk.0.ffn_up.weight", vec![HIDDEN, 64]),
        ("blk.0.ffn_down.weight", vec![64, HIDDEN]),
        ("output_norm.weight", vec![HIDDEN]),
    ];
    let mut file = b"GGUF".to_vec();
    file.extend(3u32.to_le_bytes());
    file.extend((tensors.len() as u64).to_le_bytes());
    file.extend((keys.len() as u64).to_le_bytes());
    for (key, value) in keys {
        file.extend(string(key));
        file.extend(value);
    }
    let mut data = Vec::new();
    for (name, dims) in tensors {
        file.extend(string(name));
        file.extend((dims.len() as u32).to_le_bytes());
        file.extend(dims.iter().flat_map(|dim| dim.to_le_bytes()));
        file.extend(0u32.to_le_bytes());
        file.extend((data.len() as u64).to_le_bytes());
        // Every size here is a multiple of the 32 bytes that tensors are aligned to.
        data.extend((0..dims.iter().product()).flat_map(|i: u64| ((i % 17) as f32 / 16.0).to_le_bytes()));
    }
    file.resize(file.len().next_multiple_of(32), 0);
    file.extend(data);
    file
}
