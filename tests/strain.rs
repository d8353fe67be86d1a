//! The running server under load, in short: what `cargo tools strain` does for hours, with a tiny model for seconds.
//!
//! Counts only. Times are printed by the commands, and judged on a machine that does nothing else.

use crate::tiny_model::tiny_model;

/// Runs a load against a server of its own; every bound but those on time has to be kept.
#[track_caller]
fn strained(load: &str, rounds: usize, more: &[&str]) {
    let model = tiny_model("qwen3_moe");
    let rounds = rounds.to_string();
    let folder = model.path().to_str().unwrap();
    let program = env!("CARGO_BIN_EXE_nightmonk");
    let line = [load, "--program", program, "-m", folder, "--rounds", &rounds, "--serve-flags=--threads 1"];
    let report = ::strain::run(line.iter().chain(more)).unwrap();
    let broken = report.broken_counts();
    assert!(broken.is_empty(), "{report}");
    assert!(report.rows.iter().any(|row| !row.bound.is_empty()), "{report}");
}

#[test]
fn clients_that_leave_take_nothing_with_them() {
    strained("aborts", 12, &[]);
}

#[test]
fn many_clients_get_what_they_asked_for() {
    strained("load", 150, &["--clients", "16"]);
}

#[test]
fn nothing_of_a_request_comes_out_of_another() {
    strained("isolation", 6, &[]);
}

#[test]
fn answers_keep_their_schemas_and_bad_schemas_are_refused() {
    strained("schemas", 10, &[]);
}

#[test]
fn a_request_has_the_same_bytes_alone_in_company_and_after_a_restart() {
    strained("same-bytes", 3, &[]);
}

#[test]
fn connections_that_give_nothing_are_closed() {
    strained("slow", 10, &[]);
}

#[test]
fn names_origins_and_keys_that_are_not_the_servers_are_refused() {
    strained("hosts", 150, &[]);
}

#[test]
fn no_request_whatever_it_says_is_answered_with_5xx() {
    strained("malformed", 240, &[]);
}

#[test]
fn ordinary_use_leaves_nothing_behind() {
    strained("soak", 80, &[]);
}
