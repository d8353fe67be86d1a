//! `--mlock`: weights stay in memory, or the run ends with the limit that forbids it; never without a word.

use std::fs;
use std::process::{Command, Output};

use engine_core::model::{Load, ModelOptions};
use simd::Isa;

use crate::damaged::{assert_refused, run, text};
use crate::models::{golden, load, options};
use crate::tiny_model::tiny_model;

/// The program in a process that may lock `kib`, whoever it runs as.
fn run_with_limit(kib: usize, arguments: &[&str], flag: Option<&str>) -> Option<Output> {
    // Root may lock anything unless it gives that away.
    let is_root = rustix::process::geteuid().is_root();
    let give_away = if is_root { "setpriv --bounding-set -ipc_lock" } else { "" };
    let script = format!("ulimit -l {kib} && exec {give_away} \"$0\" \"$@\"");
    if is_root
        && !Command::new("setpriv").args(["--bounding-set", "-ipc_lock", "true"]).status().is_ok_and(|s| s.success())
    {
        eprintln!("SKIPPED: this test runs as root, and setpriv (util-linux) does not take away what root may lock");
        return None;
    }
    let mut command = Command::new("sh");
    command.args(["-c", &script, env!("CARGO_BIN_EXE_nightmonk")]).args(arguments).env("NIGHTMONK_THREADS", "2");
    if let Some(value) = flag {
        command.env("NIGHTMONK_MLOCK", value);
    }
    Some(command.output().unwrap())
}

#[test]
fn a_limit_that_is_too_low_is_named_before_anything_is_loaded() {
    let model = tiny_model("qwen3_moe");
    for load in ["mapped", "resident"] {
        let plain = ["generate", "-m", text(model.path()), "-p", "x", "-n", "3", "--load", load];
        let locked = [&plain[..], &["--mlock"]].concat();
        let parts = ["`--mlock`", "RLIMIT_MEMLOCK", "4096 bytes", "ulimit -l", "LimitMEMLOCK=infinity"];
        for (arguments, flag) in [(&locked[..], None), (&plain[..], Some("1"))] {
            let Some(output) = run_with_limit(4, arguments, flag) else { return };
            let said = assert_refused(load, &output, 1, &parts);
            assert!(!said.contains("loaded in"), "{said}");
        }
        // Without the flag nothing is locked, and nobody asks.
        for flag in [None, Some("0")] {
            let Some(output) = run_with_limit(4, &plain, flag) else { return };
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
        // Counting bytes locks none.
        let Some(output) = run_with_limit(4, &["plan", "-m", text(model.path()), "--mlock"], None) else { return };
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn locked_weights_say_the_same() {
    let model = tiny_model("qwen3_moe");
    for load in ["mapped", "resident"] {
        let plain = ["generate", "-m", text(model.path()), "-p", "x", "-n", "8", "--load", load];
        let (want, got) = (run(&plain), run(&[&plain[..], &["--mlock"]].concat()));
        let said = String::from_utf8(got.stderr).unwrap();
        if got.status.code() == Some(1) && said.contains("RLIMIT_MEMLOCK") {
            eprintln!("SKIPPED: this process may not lock a tiny model");
            return;
        }
        assert!(got.status.success() && said.contains(&format!("{load} weights, locked")), "{said}");
        assert_eq!(want.stdout, got.stdout, "{load}");
    }
}

#[test]
fn all_weights_are_locked_wherever_they_live() {
    for load_as in [Load::Resident, Load::Mapped] {
        let model = load(&golden().join("llama"), ModelOptions { load: load_as, ..options(Isa::detect()) });
        let shards: usize = model.checkpoint().shards().map(|(_, bytes)| bytes.len()).sum();
        let embedding = model.checkpoint().location("model.embed_tokens.weight").size();
        let want = if load_as == Load::Mapped { shards } else { model.resident_bytes() + embedding };
        if let Err(error) = numa::check_lockable(2 * want) {
            eprintln!("SKIPPED: {error}");
            return;
        }
        let before = locked_kib();
        model.lock().unwrap();
        let locked = locked_kib() - before;
        assert!(locked >= want / 1024, "{load_as}: {locked} KiB of {want} bytes");
        drop(model);
        assert!(locked_kib() <= before, "{load_as}: what is given back is locked no longer");
    }
}

/// What this process has locked.
fn locked_kib() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmLck:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
