//! Whole jobs with a generator that is too simple to be wrong: its answers are a hash of what it was asked.

mod limits;
mod report;
mod resume;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::{
    Abort, Completion, FinishReason, GenerateError, Generator, Job, JobError, Progress, Prompt, PromptRequest, Report,
    prepare,
};

/// Tokens are words. The answer is made from a hash of fingerprint and request, as the contract of [`Generator`] asks.
struct Fake {
    fingerprint: &'static str,
    context_size: usize,
    /// Requests end in an order that this decides.
    order: u64,
    /// What happens at the nth end of a request, counted from 0 over the whole run.
    crash: Option<(usize, Crash)>,
    /// Copies the job's folder there at the crash: what is in it then is what kill -9 would leave.
    image: Option<(PathBuf, PathBuf)>,
    /// Replaces the answer to every merging prompt.
    says: Option<&'static str>,
    /// What was asked, in the order of the ends.
    asked: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Crash {
    BeforeTheRecord,
    AfterTheRecord,
}

impl Fake {
    fn new() -> Self {
        Self {
            fingerprint: "fake",
            context_size: 80,
            order: 1,
            crash: None,
            image: None,
            says: None,
            asked: Vec::new(),
        }
    }

    fn crash(&self) -> GenerateError {
        if let Some((from, to)) = &self.image {
            copy(from, to);
        }
        GenerateError::Failed("killed".into())
    }
}

impl Generator for Fake {
    fn fingerprint(&self) -> String {
        self.fingerprint.to_owned()
    }

    fn context_size(&self) -> usize {
        self.context_size
    }

    fn count_tokens(&self, prompt: &Prompt) -> Result<usize, GenerateError> {
        let system = prompt.system.as_deref().unwrap_or_default();
        Ok(3 + system.split_whitespace().count() + prompt.user.split_whitespace().count())
    }

    fn generate(
        &mut self,
        requests: &[PromptRequest],
        finished: &mut dyn FnMut(usize, Completion) -> Result<(), Abort>,
    ) -> Result<(), GenerateError> {
        let mut order: Vec<_> = (0..requests.len()).collect();
        order.sort_by_key(|i| blake3::hash(format!("{} {i}", self.order).as_bytes()).to_hex().to_string());
        for index in order {
            let request = &requests[index];
            let prompt_tokens = self.count_tokens(&request.prompt)?;
            assert!(prompt_tokens + request.max_tokens <= self.context_size, "a prompt that does not fit was asked");
            let now = self.crash.filter(|(at, _)| *at == self.asked.len()).map(|(_, crash)| crash);
            if now == Some(Crash::BeforeTheRecord) {
                return Err(self.crash());
            }
            self.asked.push(request.prompt.user.clone());
            let completion = answer(self.fingerprint, request, prompt_tokens, self.says);
            finished(index, completion).map_err(|Abort| GenerateError::Aborted)?;
            if now == Some(Crash::AfterTheRecord) {
                return Err(self.crash());
            }
        }
        Ok(())
    }
}

fn answer(fingerprint: &str, request: &PromptRequest, prompt_tokens: usize, says: Option<&str>) -> Completion {
    let hash = *blake3::hash(format!("{fingerprint} {request:?}").as_bytes()).as_bytes();
    let wanted = 2 + usize::from(hash[0]) % 14;
    let completion_tokens = wanted.min(request.max_tokens);
    let words = hash[1..].iter().take(completion_tokens).map(|byte| format!("w{byte}"));
    let text = match says {
        Some(says) if request.prompt.user.starts_with("merge") => says.to_owned(),
        _ => words.collect::<Vec<_>>().join(" "),
    };
    let finish_reason = if wanted > completion_tokens { FinishReason::Length } else { FinishReason::Stop };
    Completion { text, finish_reason, prompt_tokens, completion_tokens }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// A folder with a job: six notes, one of them too long for the context, one empty; merged in two rounds or more.
fn folder() -> TempDir {
    let folder = TempDir::new().unwrap();
    let notes = folder.path().join("notes");
    fs::create_dir_all(notes.join("old")).unwrap();
    let long: String = (0..4).map(|i| format!("## Part {i}\n\n{}\n\n", "слово word ".repeat(15))).collect();
    for (name, text) in [
        ("dome.md", "# Dome\nThe dome closes at 14 m/s."),
        ("wind.md", "# Wind\nThe mast reads once a second."),
        ("log.md", "# Log\nJanuary."),
        ("old/log.md", "# Old log\nDecember."),
        ("long.md", &long),
        ("empty.md", " \n"),
    ] {
        fs::write(notes.join(name), text).unwrap();
    }
    write_job(folder.path(), "");
    folder
}

const JOB: &str = r#"
model = "models/Fake-1B"
notes = "notes"
output = "out/report.md"
title = "Night watch"

[map]
prompt = "note {{ note.title }} {{ part }}/{{ parts }}: {{ note.text }}"
max_tokens = 12

[reduce]
prompt = "merge {{ round }} {{ last }}{% for item in items %} {{ item.links | join(',') }} {{ item.text }}{% endfor %}"
system = "You merge."
max_tokens = 14
"#;

fn write_job(folder: &Path, more: &str) {
    fs::write(folder.join("job.toml"), format!("{JOB}{more}")).unwrap();
}

fn run(folder: &Path, fake: &mut Fake) -> Result<Report, JobError> {
    run_watched(folder, fake, &mut |_| ())
}

fn run_watched(folder: &Path, fake: &mut Fake, observer: &mut dyn FnMut(Progress)) -> Result<Report, JobError> {
    prepare(Job::load(&folder.join("job.toml")).unwrap(), None)?.run(fake, observer)
}

fn report_text(folder: &Path) -> String {
    fs::read_to_string(folder.join("out/report.md")).unwrap()
}

/// The report of an undisturbed run, and how many steps it took.
fn undisturbed() -> (String, usize) {
    let folder = folder();
    let report = run(folder.path(), &mut Fake::new()).unwrap();
    (report_text(folder.path()), report.steps)
}

fn assert_distinct(asked: &[String]) {
    let distinct: BTreeSet<_> = asked.iter().collect();
    assert_eq!(distinct.len(), asked.len(), "a step was done twice");
}
