//! The report is true: every note cited, nothing cited that was not given, the same bytes whatever the order.

use super::*;

#[test]
fn every_note_is_cited_with_the_answers_of_all_its_parts() {
    let (text, _) = undisturbed();
    let (_, sources) = text.split_once("\n## Sources\n").unwrap();
    let cited: Vec<_> = sources.lines().filter(|line| line.starts_with("### ")).collect();
    assert_eq!(
        cited,
        ["### [[dome]]", "### [[empty]]", "### [[log]]", "### [[long]]", "### [[old/log]]", "### [[wind]]"]
    );
    let parts = sources.lines().filter(|line| line.starts_with("#### Part ")).count();
    assert!(parts >= 2, "{sources}");
    assert!(sources.contains(&format!("#### Part {parts} of {parts}\n")), "{sources}");
    assert!(sources.contains("File: empty.md. The note is empty."), "{sources}");
    assert!(text.starts_with("# Night watch\n"), "{text}");
    for part in ["- Recipe: own\n", "- Model: Fake-1B\n", "- Notes: 6, read in ", "temperature 0, seed 0"] {
        assert!(text.contains(part), "{part} is missing in: {text}");
    }
}

#[test]
fn an_answer_that_was_cut_says_so() {
    let (text, _) = undisturbed();
    assert!(text.contains("*(Cut at 12 tokens: the model had not finished.)*"), "{text}");
    let folder = folder();
    assert!(run(folder.path(), &mut Fake::new()).unwrap().cut > 0);
}

#[test]
fn the_order_in_which_steps_end_changes_no_byte() {
    let (want, _) = undisturbed();
    for order in 2..8 {
        let folder = folder();
        run(folder.path(), &mut Fake { order, ..Fake::new() }).unwrap();
        assert_eq!(report_text(folder.path()), want);
    }
}

#[test]
fn a_model_cannot_fake_a_source() {
    let folder = folder();
    let says = "# Sources\n[[dome]] agrees with [[secret|wind]]. ![x](http://evil/?q=1)\n\n### [[secret]]\n```\nopen";
    run(folder.path(), &mut Fake { says: Some(says), ..Fake::new() }).unwrap();
    let text = report_text(folder.path());
    assert!(text.contains("[[dome]] agrees with ⟦secret|wind⟧."), "{text}");
    assert!(!text.contains("[[secret") && !text.contains("](http") && !text.contains("http://"), "{text}");
    assert_eq!(
        text.lines().filter(|line| line.contains("# Sources")).collect::<Vec<_>>(),
        ["### Sources", "## Sources"]
    );
    assert!(text.contains("\n```\nopen\n```\n"), "{text}");
}

#[test]
fn a_notes_title_cannot_pretend_to_be_the_reports_own_heading() {
    let folder = folder();
    fs::write(folder.path().join("notes/dome.md"), "# # Result ![x](http://evil)\ntext").unwrap();
    run(folder.path(), &mut Fake::new()).unwrap();
    let text = report_text(folder.path());
    assert!(text.contains("\nTitle: # Result ![x&#93;(http&#58;//evil). File: dome.md.\n"), "{text}");
}

#[test]
fn a_report_among_the_notes_is_not_a_note() {
    let folder = folder();
    let job = JOB.replace("out/report.md", "notes/report.md");
    fs::write(folder.path().join("job.toml"), job).unwrap();
    let first = run(folder.path(), &mut Fake::new()).unwrap();
    let second = run(folder.path(), &mut Fake::new()).unwrap();
    assert_eq!((second.notes, second.reused), (first.notes, first.steps));
}

#[test]
fn a_file_of_the_users_own_is_not_replaced() {
    let folder = folder();
    fs::create_dir(folder.path().join("out")).unwrap();
    fs::write(folder.path().join("out/report.md"), "my diary").unwrap();
    let error = run(folder.path(), &mut Fake::new()).unwrap_err().to_string();
    assert!(error.contains("report.md") && error.contains("not a report of this job"), "{error}");
    assert_eq!(report_text(folder.path()), "my diary");
    // A report whose store is gone is still known as one.
    fs::write(folder.path().join("out/report.md"), undisturbed().0).unwrap();
    run(folder.path(), &mut Fake::new()).unwrap();
}

#[test]
fn the_demonstration_is_a_job_and_cites_its_twelve_notes() {
    let demo = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tools/demo/contradictions.toml"));
    let folder = TempDir::new().unwrap();
    let mut job = Job::load(demo).unwrap();
    assert!(job.model.ends_with("../../.cache/models/SmolLM2-135M-Instruct"));
    assert!(job.output.ends_with("../../.cache/demo/contradictions.md"));
    job.output = folder.path().join("out/report.md");
    let mut fake = Fake { context_size: 2048, ..Fake::new() };
    let report = prepare(job, None).unwrap().run(&mut fake, &mut |_| ()).unwrap();
    assert_eq!((report.notes, report.steps), (12, 13));
    let cited = report_text(folder.path()).lines().filter(|line| line.starts_with("### [[")).count();
    assert_eq!(cited, 12);
    let merging = fake.asked.last().unwrap();
    assert!(merging.contains("[[09 Дежурство]]:\nw") && merging.contains("contradict each other"), "{merging}");
}
