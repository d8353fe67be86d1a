//! Damaged inputs, seen by the person who runs the program: a message with what, where and what would help, an exit
//! code that scripts understand, nothing on standard output, nothing lost, and never a panic.

mod cut;
pub(crate) mod disk;
mod inputs;
mod model;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use crate::models::FAMILIES;
use crate::tiny_model::tiny_model;

/// The program, with two threads: tests run side by side.
pub(crate) fn program(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nightmonk"));
    command.args(arguments).env("NIGHTMONK_THREADS", "2");
    command
}

pub(crate) fn run(arguments: &[&str]) -> Output {
    program(arguments).output().unwrap()
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The program ends with `code` and says all of `parts`. Returns what it said.
pub(crate) fn assert_refused(what: &str, output: &Output, code: i32, parts: &[&str]) -> String {
    let said = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(code), "{what}: {said}");
    for part in parts {
        assert!(said.contains(part), "{what}: `{part}` is not in: {said}");
    }
    assert!(!said.contains("panicked") && !said.contains("internal error"), "{what}: {said}");
    assert!(!said.contains(|c: char| c.is_control() && c != '\n'), "{what}: {said:?}");
    assert!(output.stdout.is_empty(), "{what}: {}", String::from_utf8_lossy(&output.stdout));
    said
}

/// A folder with a job of five notes over a tiny model, recipe and model as small as they can be.
pub(crate) struct Job {
    folder: tempfile::TempDir,
}

const RECIPE: &str = r#"
[map]
max_tokens = 24
prompt = "Note {{ note.title }}: {{ note.text }}"
[reduce]
max_tokens = 24
prompt = "{% for item in items %}{{ item.links | join(' ') }} {{ item.text }}\n{% endfor %}"
"#;

impl Job {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        crate::tiny_model::write_tiny_model("qwen3_moe", &folder.path().join("model"));
        fs::create_dir(folder.path().join("notes")).unwrap();
        for (name, words) in [
            ("один", "Прилив в 4:20."),
            ("two", "High tide at 4:40."),
            ("three", "No."),
            ("four", "Да."),
            ("five", "5"),
        ] {
            fs::write(folder.path().join("notes").join(format!("{name}.md")), words).unwrap();
        }
        let job = Self { folder };
        job.write("notes", "report.md", RECIPE);
        job
    }

    /// Writes the job file: where notes and report are, and the rest of it.
    fn write(&self, notes: &str, output: &str, rest: &str) {
        let head = format!("model = 'model'\nnotes = '{notes}'\noutput = '{output}'\ntitle = 'Tides'\n");
        fs::write(self.path("job.toml"), head + rest).unwrap();
    }

    pub(crate) fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    fn run(&self) -> Output {
        run(&["night", "run", text(&self.path("job.toml"))])
    }

    /// Its report when nothing is in the way.
    fn undisturbed() -> Vec<u8> {
        let job = Self::new();
        let output = job.run();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        fs::read(job.path("report.md")).unwrap()
    }
}

#[test]
fn an_undamaged_tiny_model_of_every_family_speaks() {
    for family in FAMILIES {
        let model = tiny_model(family);
        let arguments = ["generate", "-m", text(model.path()), "-p", "Ночь and day", "--chat", "-n", "4", "-o", "json"];
        let output = run(&arguments);
        assert!(output.status.success(), "{family}: {}", String::from_utf8_lossy(&output.stderr));
        let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(answer["usage"]["completion_tokens"], 4, "{family}: {answer}");
    }
}
