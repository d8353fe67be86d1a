//! What a job tells the chat template: the date, which it keeps on whatever day it is started again, and how much the
//! model is to think.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use engine_core::text::CivilTime;
use tempfile::TempDir;

use super::{Desk, Running};
use crate::models::golden;
use crate::tiny_model::tiny_model;

/// A model whose chat template is that of a golden one.
fn model(template: &str) -> TempDir {
    let model = tiny_model("qwen3_moe");
    let template = golden().join("templates").join(template).join("chat_template.jinja");
    fs::copy(template, model.path().join("chat_template.jinja")).unwrap();
    model
}

/// A desk with two short notes, and this line in its job file.
fn desk(model: &TempDir, line: &str) -> Desk {
    let mut desk = Desk::bare(model);
    // A token is a byte.
    desk.ctx_size = 3000;
    for (name, text) in [("dome.md", "# Dome\nIt closes at 14 m/s."), ("mast.md", "# Mast\nЧитается раз в секунду.")]
    {
        fs::write(desk.notes().join(name), text).unwrap();
    }
    write_job(&desk, line);
    desk
}

/// With this line in the job file, or none.
fn write_job(desk: &Desk, line: &str) {
    desk.write_job("Contradictions");
    let job = fs::read_to_string(desk.path("job.toml")).unwrap();
    fs::write(desk.path("job.toml"), format!("{line}\n{job}")).unwrap();
}

fn date_in_store(desk: &Desk) -> Option<String> {
    let (_copy, db) = desk.database();
    db.query_row("SELECT date FROM job", [], |row| row.get(0)).unwrap()
}

fn today() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    CivilTime::from_unix(seconds.try_into().unwrap(), 0).iso_date()
}

#[test]
fn a_job_goes_on_with_the_date_of_its_first_start() {
    for template in ["gpt_oss", "llama3_1"] {
        let model = model(template);
        let whole = desk(&model, "date = 2026-01-02");
        let (want, _) = whole.run(&[]);

        let desk_of_two_days = desk(&model, "date = 2026-01-02");
        let mut first = Running::new(desk_of_two_days.command(&["--width", "1"]));
        assert_eq!(first.read_steps(1), 1);
        first.kill();
        let before = desk_of_two_days.store();
        assert!(!before.records.is_empty());
        // Nothing but the store says now that it is not the day on which this test runs.
        write_job(&desk_of_two_days, "");
        let (report, _) = desk_of_two_days.run(&[]);
        assert!(report == want, "{template}: another report after the restart");
        desk_of_two_days.store().assert_keeps(&before);
        assert_eq!(desk_of_two_days.store().answers(), whole.store().answers());
        assert_eq!(date_in_store(&desk_of_two_days).as_deref(), Some("2026-01-02"));

        let another_day = desk(&model, "date = 2026-01-03");
        another_day.run(&[]);
        let (one, other) = (whole.store(), another_day.store());
        assert!(one.records.values().all(|record| !other.has(&record.0)), "{template}: a step does not know its day");
        // What this model says in harmony's channels is noise without an answer.
        if template == "llama3_1" {
            let outputs =
                |store: &super::Store| store.records.values().map(|record| record.1.clone()).collect::<Vec<_>>();
            assert_ne!(outputs(&one), outputs(&other), "the prompt does not hold the date");
        }
    }
}

#[test]
fn a_job_that_names_no_date_takes_the_day_on_which_it_is_started() {
    let model = model("llama3_1");
    let unnamed = desk(&model, "");
    let before = today();
    let (report, _) = unnamed.run(&[]);
    let date = date_in_store(&unnamed).unwrap();
    assert!(date == before || date == today(), "{date}");
    assert!(report == desk(&model, &format!("date = '{date}'")).run(&[]).0);
}

#[test]
fn a_date_other_than_the_jobs_own_is_refused_and_its_own_is_not() {
    let model = model("llama3_1");
    let desk = desk(&model, "date = 2026-01-02");
    let (report, _) = desk.run(&[]);
    let before = desk.store();

    write_job(&desk, "date = 2026-01-03");
    let refused = desk.command(&[]).output().unwrap();
    let said = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(1), "{said}");
    for part in ["2026-01-02", "`date` = 2026-01-03", "`output`"] {
        assert!(said.contains(part), "{part} is missing in: {said}");
    }
    assert!(desk.store() == before);

    write_job(&desk, "date = 2026-01-02");
    assert!(desk.run(&[]).0 == report);
}

#[test]
fn where_the_template_writes_no_date_it_decides_nothing() {
    let model = tiny_model("qwen3_moe");
    let (one, other) = (desk(&model, "date = 2026-01-02"), desk(&model, "date = 2026-01-03"));
    assert!(one.run(&[]).0 == other.run(&[]).0);
    assert_eq!(one.store().answers(), other.store().answers());
}

#[test]
fn how_much_the_model_thinks_is_part_of_a_step_and_refused_where_its_template_does_not_know_it() {
    let model = model("gpt_oss");
    let desk = desk(&model, "date = 2026-01-02");
    desk.run(&[]);
    let count = desk.store().records.len();
    for line in ["reasoning_effort = 'low'", "reasoning_effort = 'high'"] {
        write_job(&desk, line);
        let (_, stderr) = desk.run(&[]);
        assert!(stderr.contains(", 0 of them done before this run"), "{line}: {stderr}");
    }
    write_job(&desk, "");
    let (_, stderr) = desk.run(&[]);
    assert!(stderr.contains(&format!("{count} steps, {count} of them done before this run")), "{stderr}");

    write_job(&desk, "thinking = false");
    let refused = desk.command(&[]).output().unwrap();
    let said = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(2), "{said}");
    assert!(said.contains("`enable_thinking` is nowhere in it") && said.contains("job.toml"), "{said}");

    let template = golden().join("templates/qwen3/chat_template.jinja");
    fs::copy(template, model.path().join("chat_template.jinja")).unwrap();
    write_job(&desk, "thinking = true");
    let (_, stderr) = desk.run(&[]);
    assert!(stderr.contains(", 0 of them done before this run"), "{stderr}");
    write_job(&desk, "thinking = false");
    let (_, stderr) = desk.run(&[]);
    assert!(stderr.contains(", 0 of them done before this run"), "{stderr}");
}
