//! Damaged inputs, seen by the person who runs the program: a message that helps, an exit code, nothing lost.

use std::path::Path;
use std::process::{Command, Output};

use crate::models::FAMILIES;
use crate::tiny_model::tiny_model;

fn nightmonk(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_nightmonk")).args(arguments).output().unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn an_undamaged_tiny_model_of_every_family_speaks() {
    for family in FAMILIES {
        let model = tiny_model(family);
        let run = ["generate", "-m", text(model.path()), "-p", "Ночь and day", "--chat", "-n", "4", "-o", "json"];
        let output = nightmonk(&run);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{family}: {errors}");
        let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(answer.is_object(), "{family}: {answer}");
    }
}
