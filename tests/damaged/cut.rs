//! A shard that is cut short while a run reads it in its map.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Stdio};

use super::{Job, assert_refused, program, run, text};
use crate::tiny_model::tiny_model;

const SHARD: &str = "model-00002-of-00002.safetensors";

/// Cuts `shard` to nothing, and gives what it held.
fn cut(shard: &Path) -> Vec<u8> {
    let whole = fs::read(shard).unwrap();
    fs::File::options().write(true).open(shard).unwrap().set_len(0).unwrap();
    whole
}

/// The program ends by itself, not by a signal, and names the shard.
fn assert_broken(what: &str, child: Child) {
    let mut output = child.wait_with_output().unwrap();
    output.stdout.clear();
    assert_refused(what, &output, 1, &[SHARD, "was cut short or cannot be read", "restore the file"]);
}

#[test]
fn a_generation_over_a_shard_that_is_cut_short_ends_with_its_name_and_without_another_word() {
    let model = tiny_model("qwen3_moe");
    // Without rows for its control tokens, of [320, 48] in BF16 that lie first, it goes on to the end of its context.
    let shard = model.path().join(SHARD);
    let mut file = fs::read(&shard).unwrap();
    let data = 8 + u64::from_le_bytes(*file.first_chunk().unwrap()) as usize;
    file[data + 256 * 96..data + 320 * 96].fill(0);
    fs::write(&shard, file).unwrap();
    let arguments = ["generate", "-m", text(model.path()), "-p", "The tide", "-n", "3000", "--load", "mapped"];
    let whole = run(&arguments);
    assert!(whole.status.success(), "{}", String::from_utf8_lossy(&whole.stderr));
    // The smallest pipe that there is.
    const PIPE: usize = 4096;
    assert!(whole.stdout.len() > PIPE + 512, "{} bytes do not fill a pipe", whole.stdout.len());

    let mut child = program(&arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    rustix::pipe::fcntl_setpipe_size(&stdout, PIPE).unwrap();
    let mut said = vec![0];
    stdout.read_exact(&mut said).unwrap();
    // It is still at work: nobody takes more of its words.
    cut(&shard);
    stdout.read_to_end(&mut said).unwrap();
    assert_broken("generate", child);
    assert!(said.len() < whole.stdout.len() && whole.stdout.starts_with(&said), "words of a broken model");
}

#[test]
fn a_night_over_a_shard_that_is_cut_short_records_nothing_more_and_goes_on_once_it_is_restored() {
    let recipe = super::RECIPE.replace("max_tokens = 24", "max_tokens = 300");
    let job = Job::new();
    job.write("notes", "report.md", &recipe);
    let path = job.path("job.toml");
    let arguments = ["night", "run", text(&path), "--load", "mapped", "--width", "1"];
    let mut child = program(&arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().starts_with("step 1 of")), "no first step");
    let whole = cut(&job.path("model").join(SHARD));
    let said: Vec<String> = lines.map(Result::unwrap).collect();
    let status = child.wait().unwrap();
    let said = said.join("\n");
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains(SHARD) && said.contains("restore the file"), "{said}");
    assert!(!job.path("report.md").exists());
    let recorded = 1 + said.matches("step ").count();

    fs::write(job.path("model").join(SHARD), whole).unwrap();
    let again = run(&arguments);
    let said = String::from_utf8(again.stderr).unwrap();
    assert!(again.status.success(), "{said}");
    assert!(said.contains(&format!(" {recorded} of them done already")), "{recorded} were recorded: {said}");

    let undisturbed = Job::new();
    undisturbed.write("notes", "report.md", &recipe);
    assert!(undisturbed.run().status.success());
    let [report, want] = [&job, &undisturbed].map(|job| fs::read(job.path("report.md")).unwrap());
    assert!(report == want, "another report than that of an undisturbed night");
}
