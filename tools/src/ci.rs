//! What has to hold before a change is taken, in the order of how soon a step can fail.

use std::ffi::OsString;
use std::fmt;
use std::io::Write as _;
use std::process::Command;
use std::time::{Duration, Instant};

/// Whether the tests are part of the run; a caller that has just run them need not do it again.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tests {
    Run,
    Skip,
}

/// One command of the run, as a person would type it.
#[derive(Clone, Copy)]
struct Step {
    name: &'static str,
    environment: Option<(&'static str, &'static str)>,
    program: &'static str,
    arguments: &'static [&'static str],
}

const fn cargo(name: &'static str, arguments: &'static [&'static str]) -> Step {
    Step { name, environment: None, program: "cargo", arguments }
}

const FORMAT: Step = cargo("format", &["fmt", "--all", "--check"]);
const TIDY: Step = cargo("tidy", &["tools", "tidy"]);
const CLIPPY: Step = cargo("clippy", &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]);
const TESTS: Step = cargo("tests", &["test", "--workspace"]);
/// Each bench once, unmeasured, in the profile that the tests were built in: a bench that no longer runs is found here.
const BENCHES: Step = cargo("benches", &["test", "--workspace", "--bench", "*"]);
const DOCS: Step =
    Step { environment: Some(("RUSTDOCFLAGS", "-D warnings")), ..cargo("docs", &["doc", "--workspace", "--no-deps"]) };

/// Runs every step, or up to the first that fails, and prints what each took.
pub(crate) fn run(tests: Tests) -> Result<(), String> {
    let steps = [FORMAT, TIDY, CLIPPY, TESTS, BENCHES, DOCS];
    let steps = steps.iter().filter(|step| tests == Tests::Run || step.name != TESTS.name);
    let mut took = Vec::new();
    let result = steps.into_iter().try_for_each(|step| {
        eprintln!("== {}: {step}", step.name);
        let start = Instant::now();
        let result = step.run();
        took.push((step.name, start.elapsed(), result.is_ok()));
        result
    });
    let _ = std::io::stderr().write_all(table(&took).as_bytes());
    result
}

fn table(took: &[(&str, Duration, bool)]) -> String {
    let mut table = String::from("== times\n");
    for (name, time, passed) in took {
        table += &format!("{name:<8} {:>7.1} s  {}\n", time.as_secs_f64(), if *passed { "passed" } else { "FAILED" });
    }
    let total: Duration = took.iter().map(|(_, time, _)| *time).sum();
    table + &format!("{:<8} {:>7.1} s\n", "total", total.as_secs_f64())
}

impl Step {
    fn run(&self) -> Result<(), String> {
        // `cargo run` says which cargo it is; a toolchain given by `cargo +NAME` stays the same in each step.
        let program = match self.program {
            "cargo" => std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()),
            program => OsString::from(program),
        };
        let status = Command::new(program).args(self.arguments).envs(self.environment).status();
        match status {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(format!("{} failed ({status}). To repeat this step alone: {self}", self.name)),
            Err(error) => {
                Err(format!("{} could not be started: {error}. To repeat this step alone: {self}", self.name))
            }
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((name, value)) = self.environment {
            write!(f, "{name}=\"{value}\" ")?;
        }
        write!(f, "{} {}", self.program, self.arguments.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_reads_as_a_person_would_type_it() {
        assert_eq!(DOCS.to_string(), "RUSTDOCFLAGS=\"-D warnings\" cargo doc --workspace --no-deps");
        assert_eq!(FORMAT.to_string(), "cargo fmt --all --check");
    }

    #[test]
    fn a_failed_step_says_how_to_repeat_it() {
        let step = |program, arguments| Step { name: "probe", environment: None, program, arguments };
        assert_eq!(step("git", &["--version"]).run(), Ok(()));
        let failed = step("git", &["no-such-command"]).run().unwrap_err();
        assert!(failed.ends_with("To repeat this step alone: git no-such-command"), "{failed}");
        let absent = step("no-such-program", &["now"]).run().unwrap_err();
        assert!(absent.contains("could not be started") && absent.ends_with("no-such-program now"), "{absent}");
    }

    #[test]
    fn the_table_tells_which_step_failed_and_the_total() {
        let table = table(&[("format", Duration::from_millis(1500), true), ("tidy", Duration::from_secs(2), false)]);
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines[1], "format       1.5 s  passed");
        assert_eq!(lines[2], "tidy         2.0 s  FAILED");
        assert_eq!(lines[3], "total        3.5 s");
    }
}
