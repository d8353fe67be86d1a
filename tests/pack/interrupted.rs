//! Killed and started again: the same bytes.

use std::fs;
use std::time::Duration;

use super::{files, golden, pack, program, text};

#[test]
fn a_pack_that_is_killed_goes_on_and_ends_with_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let source = golden().join("qwen3_moe");
    let undisturbed = folder.path().join("undisturbed");
    pack(&source, &undisturbed, false).unwrap();
    let want = files(&undisturbed);
    let mut went_on = 0;
    for (round, ms) in [0, 4, 8, 14, 22, 35, 60].into_iter().enumerate() {
        let target = folder.path().join(round.to_string());
        let arguments = ["pack", "-m", text(&source), "-o", text(&target), "--max-shard-size", "100000"];
        for _ in 0..3 {
            let mut child = program(&arguments)
                .stdout(std::process::Stdio::null())
                .stderr(std::process::Stdio::null())
                .spawn()
                .unwrap();
            std::thread::sleep(Duration::from_millis(ms));
            child.kill().unwrap();
            child.wait().unwrap();
        }
        let before = files_or_none(&target);
        went_on += usize::from(before > 0 && before < want.len());
        let output = program(&arguments).output().unwrap();
        assert!(output.status.success(), "after {ms} ms: {}", String::from_utf8_lossy(&output.stderr));
        assert!(files(&target) == want, "after {ms} ms the bytes differ");
    }
    println!("{went_on} of the rounds were killed in the midst of it");
}

fn files_or_none(folder: &std::path::Path) -> usize {
    if folder.exists() { files(folder).len() } else { 0 }
}

#[test]
fn any_set_of_finished_files_is_gone_on_from() {
    let folder = tempfile::tempdir().unwrap();
    let source = golden().join("qwen3_moe");
    let target = folder.path().join("target");
    pack(&source, &target, false).unwrap();
    let want = files(&target);
    // The marker holds the digest that the shards repeat.
    let shard = want.iter().find(|(name, _)| name.starts_with("model-00001")).unwrap().1;
    let header = String::from_utf8_lossy(&shard[8..]);
    let digest = header.split("\"nightmonk.source\":\"").nth(1).unwrap()[..64].to_owned();
    for (index, keep) in [0b0000, 0b0001, 0b0100, 0b1011, 0b1111].into_iter().enumerate() {
        let target = folder.path().join(format!("kept-{index}"));
        fs::create_dir(&target).unwrap();
        fs::write(target.join("nightmonk-pack.unfinished"), &digest).unwrap();
        for (bit, (name, bytes)) in want.iter().filter(|(name, _)| name.ends_with(".safetensors")).enumerate() {
            match keep >> bit & 1 == 1 {
                true => fs::write(target.join(name), bytes).unwrap(),
                false => fs::write(target.join(format!("{name}.unfinished")), &bytes[..bytes.len() / 2]).unwrap(),
            }
        }
        let report = pack(&source, &target, false).unwrap();
        assert_eq!(report.kept_shards, usize::try_from(u32::from(keep as u8).count_ones()).unwrap());
        assert!(files(&target).iter().all(|(name, bytes)| want.get(name) == Some(bytes)), "{keep:b}");
        assert_eq!(files(&target).len(), want.len(), "{keep:b}");
    }
    // With other options, or another model, it is not the same work.
    fs::write(target.join("nightmonk-pack.unfinished"), &digest).unwrap();
    let other = pack(&source, &target, true).unwrap_err().to_string();
    assert!(other.contains("was begun from another model, or with other options"), "{other}");
    assert!(files(&target).iter().all(|(name, bytes)| want.get(name).is_none_or(|want| want == bytes)));
}
