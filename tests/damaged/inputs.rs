//! Flags, tokens, jobs and notes that cannot be meant.

use std::fs;
use std::os::unix::ffi::OsStrExt;

use super::{Job, assert_refused, run, text};
use crate::tiny_model::tiny_model;

#[test]
fn tokens_that_are_no_list_of_the_vocabulary_are_refused() {
    let model = tiny_model("llama");
    let tokens = model.path().join("tokens.json");
    let logits = model.path().join("logits.npy");
    let logits_of = |tokens: &str, more: &[&str]| {
        let base = ["logits", "-m", text(model.path()), "--tokens", tokens, "--output", text(&logits)];
        run(&[&base, more].concat())
    };
    for (content, parts) in [
        ("", &["tokens.json", "[1, 2, 3]"][..]),
        ("[]", &["tokens.json", "empty"]),
        ("[1, 2", &["tokens.json", "[1, 2, 3]"]),
        ("[1, -2]", &["tokens.json", "-2"]),
        ("[1, 4294967296]", &["tokens.json", "4294967296"]),
        ("[1.5]", &["tokens.json", "1.5"]),
        ("{\"tokens\": [1]}", &["tokens.json", "map"]),
        ("\"\u{202e}\"", &["tokens.json"]),
        ("[1, 2, 320]", &["token 320", "vocabulary of 320"]),
        ("[4294967295]", &["token 4294967295", "vocabulary"]),
    ] {
        fs::write(&tokens, content).unwrap();
        assert_refused(content, &logits_of(text(&tokens), &[]), 2, parts);
    }
    assert_refused("a device", &logits_of("/dev/zero", &[]), 2, &["/dev/zero", "bytes that are read"]);
    assert_refused("a folder", &logits_of(text(model.path()), &[]), 2, &[text(model.path()), "directory"]);
    assert_refused("no file", &logits_of("/nowhere/x.json", &[]), 2, &["/nowhere/x.json", "No such file"]);
    fs::write(&tokens, "[1, 2, 3, 4, 5]").unwrap();
    assert_refused("context too small", &logits_of(text(&tokens), &["-c", "4"]), 2, &["5 tokens", "--ctx-size 4"]);
    assert_refused("no experts", &logits_of(text(&tokens), &["--router", "x.npy"]), 2, &["--router", "no experts"]);
    assert!(!logits.exists());
    assert!(logits_of(text(&tokens), &["-c", "5"]).status.success());
}

#[test]
fn flags_that_this_machine_or_model_cannot_honour_are_refused() {
    let model = tiny_model("llama");
    let folder = text(model.path());
    let huge = u64::MAX.to_string();
    for (flags, parts) in [
        (vec!["--gpu", "require"], &["--gpu require", "CPU alone", "leave the flag out"][..]),
        (vec!["--isa", "sse9"], &["--isa", "sse9", "scalar, avx2"]),
        (vec!["-c", "0"], &["--ctx-size"]),
        (vec!["-c", "8193"], &["--ctx-size 8193", "8192 positions"]),
        (vec!["-c", &huge], &["--ctx-size", "8192 positions"]),
        (vec!["-t", "0"], &["--threads"]),
        (vec!["-t", &huge], &["--threads", "at most 4096"]),
        (vec!["-ctk", "q8_0"], &["--cache-type-k", "f16, bf16, f32"]),
        (vec!["-ctv", "f32"], &["--cache-type-v", "one type"]),
        (vec!["--activations", "int8"], &["--activations", "bf16x2"]),
        (vec!["--load", "gpu"], &["--load", "mapped, resident"]),
    ] {
        for command in [vec!["plan"], vec!["generate", "-p", "x", "-n", "1"]] {
            let output = run(&[&command[..], &["-m", folder], &flags].concat());
            assert_refused(&format!("{} {flags:?}", command[0]), &output, 2, parts);
        }
    }
    assert_refused("width", &run(&["plan", "-m", folder, "--width", &huge]), 2, &["--width", "at most 65536"]);
    assert_refused("ram", &run(&["plan", "-m", folder, "--ram", "lots"]), 2, &["--ram", "lots"]);
    let output = run(&["bench", "-m", folder, "-p", "1", "-n", "1", "-d", &huge]);
    assert_refused("depth", &output, 2, &["--ctx-size", "8192 positions"]);
    let long = "x".repeat(100);
    let output = run(&["generate", "-m", folder, "-p", &long, "-n", "1", "-c", "64"]);
    assert_refused("prompt", &output, 2, &["100 tokens of the prompt", "context of 64", "8192"]);
    for (flag, value) in [("--temp", "-1"), ("--temp", "NaN"), ("--top-p", "0"), ("--top-p", "2"), ("--min-p", "-1")] {
        let flag_and_value = format!("{flag}={value}");
        let output = run(&["generate", "-m", folder, "-p", "x", "-n", "1", &flag_and_value]);
        assert_refused(&flag_and_value, &output, 2, &["nightmonk help"]);
    }
}

#[test]
fn a_run_that_does_not_fit_is_refused_with_the_context_that_does() {
    let model = tiny_model("qwen3_moe");
    let folder = text(model.path());
    for (ram, width) in [("2MiB", "1"), ("4MiB", "1"), ("8MiB", "4"), ("3000KB", "2")] {
        let plan = |ctx_size: &str| run(&["plan", "-m", folder, "--ram", ram, "--width", width, "-c", ctx_size]);
        let said = assert_refused(ram, &plan("8192"), 3, &["needs", "available", "--ctx-size"]);
        let fits: usize = said.split("--ctx-size ").nth(1).unwrap().split('`').next().unwrap().parse().unwrap();
        assert!(plan(&fits.to_string()).status.success(), "{ram}: {fits} does not fit after all");
        assert_refused(ram, &plan(&(fits + 1).to_string()), 3, &[&format!("--ctx-size {fits}")]);
    }
    let output = run(&["plan", "-m", folder, "--ram", "100KiB", "--width", "4"]);
    assert_refused("100 KiB", &output, 3, &["no context fits", "--width 1"]);
    // A config.json alone is enough for a plan.
    let config = model.path().join("config.json");
    assert_refused("config.json", &run(&["plan", "-m", text(&config), "--ram", "2MiB"]), 3, &["--ctx-size"]);
}

#[test]
fn a_job_file_that_is_wrong_is_refused_with_the_key_and_the_line() {
    for (rest, parts) in [
        ("max_tokens = 5\n", &["job.toml", "max_tokens", "line 5"][..]),
        ("recipe = 'summery'\n", &["job.toml", "summery", "summary"]),
        ("[map]\nprompt = '{{ note.txt }}'\n[reduce]\nprompt = 'x'\n", &["job.toml", "map", "note.txt"]),
        ("[map]\nprompt = '{% for %}'\n[reduce]\nprompt = 'x'\n", &["job.toml", "map", "syntax error"]),
        ("recipe = 'summary'\n[sampling]\ntemperature = 'hot'\n", &["job.toml", "temperature", "hot"]),
        ("recipe = 'summary'\n[map]\nmax_tokens = 0\n", &["job.toml", "max_tokens"]),
        ("recipe = [[[[\n", &["job.toml"]),
    ] {
        let job = Job::new();
        job.write("notes", "report.md", rest);
        assert_refused(rest, &job.run(), 2, parts);
        assert!(!job.path("report.md").exists() && !job.path(".nightmonk").exists(), "{rest}");
    }
}

#[test]
fn notes_that_are_not_there_or_no_text_are_refused_by_name() {
    let refused = |what: &str, notes: &str, damage: &dyn Fn(&Job), parts: &[&str]| {
        let job = Job::new();
        job.write(notes, "report.md", super::RECIPE);
        damage(&job);
        assert_refused(what, &job.run(), 1, parts);
        assert!(!job.path("report.md").exists(), "{what}");
    };
    refused("empty folder", "none", &|job| fs::create_dir(job.path("none")).unwrap(), &["none", "note"]);
    refused("no folder", "nowhere", &|_| (), &["nowhere"]);
    refused("a folder below a file", "job.toml/notes", &|_| (), &["job.toml/notes"]);
    refused(
        "not UTF-8",
        "notes",
        &|job| fs::write(job.path("notes/latin.md"), b"caf\xe9").unwrap(),
        &["latin.md", "UTF-8"],
    );
    refused(
        "a name that is not UTF-8",
        "notes",
        &|job| fs::write(job.path("notes").join(std::ffi::OsStr::from_bytes(b"caf\xe9.md")), "x").unwrap(),
        &["notes", "UTF-8"],
    );
}

#[test]
fn a_report_that_cannot_be_written_is_refused_before_the_model_is_asked() {
    for (output, parts) in
        [("job.toml/report.md", &["job.toml"][..]), ("notes", &["notes"]), ("job.toml", &["job.toml"])]
    {
        let job = Job::new();
        let before = fs::read(job.path("notes/two.md")).unwrap();
        job.write("notes", output, super::RECIPE);
        let said = assert_refused(output, &job.run(), 1, parts);
        assert!(!said.contains("parameters"), "{output}: a model was loaded first: {said}");
        assert_eq!(fs::read(job.path("notes/two.md")).unwrap(), before);
        assert!(fs::read_to_string(job.path("job.toml")).unwrap().contains("title"), "the job file is untouched");
    }
}
