//! `--lora`, as the person sees it who runs the program.

use std::fs;

use serde_json::Value;

use super::folder;
use crate::damaged::{Job, run, text};
use crate::tiny_model::tiny_model;

fn answer(arguments: &[&str]) -> Value {
    let output = run(arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn a_generation_goes_through_the_adapters_that_flags_name() {
    let model = tiny_model("llama");
    let (attention, mlp) = (folder("llama_attention"), folder("llama_mlp"));
    let half = format!("{}:0.5", text(&attention));
    let generate = |flags: &[&str]| {
        let base = ["generate", "-m", text(model.path()), "-p", "bees", "-n", "12", "--temp", "1", "-o", "json"];
        answer(&[&base[..], flags].concat())["tokens"].clone()
    };
    let base = generate(&[]);
    let one = generate(&["--lora", text(&attention)]);
    assert!(base != one && one != generate(&["--lora-scaled", &half]));
    assert_eq!(one, generate(&["--lora-scaled", &format!("{}:1", text(&attention))]));
    let both = format!("{},{}", text(&attention), text(&mlp));
    assert_eq!(generate(&["--lora", &both]), generate(&["--lora", text(&mlp), "--lora", text(&attention)]));

    let plan = answer(&["plan", "-m", text(model.path()), "--lora", &both, "-o", "json"]);
    assert!(plan["adapter_bytes"].as_u64().unwrap() > 100_000, "{plan}");
    let rows = answer(&[
        "bench",
        "-m",
        text(model.path()),
        "-p",
        "8",
        "-n",
        "4",
        "-r",
        "1",
        "--lora",
        text(&mlp),
        "-o",
        "json",
    ]);
    assert_eq!(rows[0]["adapters"][0], text(&mlp), "{rows}");

    for (flags, code, words) in [
        (["--lora", "/nowhere/at/all"], 1, "adapter_config.json"),
        (["--lora-scaled", "/nowhere"], 2, "a folder, a colon and a number"),
        (["--lora", text(&folder("qwen3_patterns"))], 1, "trained for another model"),
        (["--lora", &format!("{0},{0}", text(&mlp))], 2, "add the two scales"),
    ] {
        let output = run(&[&["generate", "-m", text(model.path()), "-p", "x", "-n", "1"][..], &flags].concat());
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{flags:?}: {said}");
        assert!(said.contains(words), "{flags:?}: {said}");
    }
}

#[test]
fn steps_of_a_night_with_other_adapters_are_other_steps() {
    let job = Job::new();
    let path = job.path("job.toml");
    let adapter = folder("qwen3_moe_experts");
    let night = |flags: &[&str]| {
        let output = run(&[&["night", "run", text(&path)][..], flags].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let last = String::from_utf8(output.stderr).unwrap();
        let reused = last.lines().find_map(|line| line.split_once(" steps, ")?.1.split_once(" of them done before"));
        (reused.unwrap().0.parse::<usize>().unwrap(), fs::read(job.path("report.md")).unwrap())
    };
    let (none, plain) = night(&[]);
    assert_eq!(none, 0);
    let (none, adapted) = night(&["--lora", text(&adapter)]);
    assert_eq!(none, 0, "another adapter, no step is the same");
    assert!(adapted != plain);
    assert!(night(&["--lora-scaled", &format!("{}:0.5", text(&adapter))]).0 == 0, "another scale");
    let (all, again) = night(&["--lora-scaled", &format!("{}:1.0", text(&adapter))]);
    assert!(all > 0 && again == adapted, "the same one under another flag");
}
