//! Killed and started again: the same bytes, and no recorded step done twice.

use std::cell::RefCell;

use super::*;
use crate::{State, Store, StoreError, Written};

#[test]
fn a_crash_at_any_step_loses_no_record_and_changes_no_byte() {
    let (want, steps) = undisturbed();
    assert!(steps > 10, "the job has too few steps to say anything: {steps}");
    for at in 0..steps {
        for crash in [Crash::BeforeTheRecord, Crash::AfterTheRecord] {
            for is_image in [false, true] {
                let (folder, image) = (folder(), TempDir::new().unwrap());
                let copy = image.path().join("job");
                let mut first = Fake { crash: Some((at, crash)), ..Fake::new() };
                first.image = is_image.then(|| (folder.path().to_owned(), copy.clone()));
                let error = run(folder.path(), &mut first).unwrap_err();
                assert!(error.to_string().contains("killed"), "{error}");
                assert!(!folder.path().join("out/report.md").exists());

                // With another order of ends, as another machine load would give.
                let mut second = Fake { order: 2, ..Fake::new() };
                let again = if is_image { &copy } else { folder.path() };
                let report = run(again, &mut second).unwrap();
                assert_eq!(report_text(again), want, "crash {crash:?} at step {at}");
                assert_eq!(report.reused, first.asked.len());
                assert_eq!(first.asked.len() + second.asked.len(), steps);
                first.asked.append(&mut second.asked);
                assert_distinct(&first.asked);
            }
        }
    }
}

#[test]
fn a_job_that_is_done_generates_nothing_and_leaves_its_report_alone() {
    let folder = folder();
    let first = run(folder.path(), &mut Fake::new()).unwrap();
    assert_eq!(first.written, Written::New);
    let path = folder.path().join("out/report.md");
    let modified = fs::metadata(&path).unwrap().modified().unwrap();

    let mut fake = Fake::new();
    let second = run(folder.path(), &mut fake).unwrap();
    assert_eq!((second.written, second.reused, fake.asked.len()), (Written::Unchanged, first.steps, 0));
    assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), modified);
}

#[test]
fn a_report_that_is_gone_or_edited_comes_back_from_the_records() {
    let (want, _) = undisturbed();
    let folder = folder();
    run(folder.path(), &mut Fake::new()).unwrap();
    let path = folder.path().join("out/report.md");
    let mut fake = Fake::new();
    fs::write(&path, "edited").unwrap();
    assert_eq!(run(folder.path(), &mut fake).unwrap().written, Written::Replaced);
    assert_eq!(report_text(folder.path()), want);
    fs::remove_file(&path).unwrap();
    assert_eq!(run(folder.path(), &mut fake).unwrap().written, Written::New);
    assert_eq!(report_text(folder.path()), want);
    assert_eq!(fake.asked.len(), 0);
}

#[test]
fn a_changed_or_added_note_costs_its_own_steps_and_the_merging_only() {
    let folder = folder();
    let first = run(folder.path(), &mut Fake::new()).unwrap();
    fs::write(folder.path().join("notes/wind.md"), "# Wind\nThe mast reads twice a second.").unwrap();
    fs::write(folder.path().join("notes/a new one.md"), "# First\nBefore all others.").unwrap();
    let began = RefCell::new(Vec::new());
    let mut fake = Fake::new();
    let second = run_watched(folder.path(), &mut fake, &mut |progress| {
        if let Progress::Began { changed, notes, .. } = progress {
            began.borrow_mut().push((changed, notes));
        }
    });
    assert_eq!(began.into_inner(), [(true, 7)]);
    let notes: Vec<_> = fake.asked.iter().filter(|prompt| prompt.starts_with("note")).collect();
    assert_eq!(notes.len(), 2, "{notes:?}");
    assert!(second.unwrap().reused < first.steps);
    assert!(report_text(folder.path()).contains("[[a new one]]"));
}

#[test]
fn another_model_reuses_nothing_and_the_first_one_finds_its_records_again() {
    let (want, steps) = undisturbed();
    let folder = folder();
    run(folder.path(), &mut Fake::new()).unwrap();
    let other = run(folder.path(), &mut Fake { fingerprint: "other", ..Fake::new() }).unwrap();
    assert_eq!((other.reused, other.written), (0, Written::Replaced));
    assert_ne!(report_text(folder.path()), want);
    assert_eq!(run(folder.path(), &mut Fake::new()).unwrap().reused, steps);
    assert_eq!(report_text(folder.path()), want);
}

#[test]
fn settings_that_change_an_answer_change_its_step() {
    let folder = folder();
    run(folder.path(), &mut Fake::new()).unwrap();
    for more in ["[sampling]\ntemperature = 0.5\n", "[sampling]\ntop_k = 3\n"] {
        write_job(folder.path(), more);
        assert_eq!(run(folder.path(), &mut Fake::new()).unwrap().reused, 0);
    }
}

#[test]
fn the_jobs_state_says_where_it_stands() {
    let folder = folder();
    let state = || {
        let out = folder.path().join("out").canonicalize().unwrap();
        Store::open(&out.join(".nightmonk")).unwrap().claim(&out.join("report.md"), "t").unwrap().state().unwrap()
    };
    run(folder.path(), &mut Fake { crash: Some((2, Crash::AfterTheRecord)), ..Fake::new() }).unwrap_err();
    assert_eq!(state(), State::Retryable);
    run(folder.path(), &mut Fake::new()).unwrap();
    assert_eq!(state(), State::Completed);
}

#[test]
fn a_second_runner_of_one_job_is_refused_and_another_job_is_not() {
    let folder = folder();
    let load = || Job::load(&folder.path().join("job.toml")).unwrap();
    let mut first = prepare(load(), None).unwrap();
    let error = prepare(load(), None).unwrap_err();
    assert!(matches!(error, JobError::Store(StoreError::Running { .. })), "{error}");
    assert!(error.to_string().contains("running already"), "{error}");

    let mut other = load();
    other.output = folder.path().join("out/other.md");
    let mut second = prepare(other, None).unwrap();
    let both = [first.run(&mut Fake::new(), &mut |_| ()), second.run(&mut Fake::new(), &mut |_| ())];
    assert!(both.iter().all(Result::is_ok), "{both:?}");
    drop((first, second));
    assert!(prepare(load(), None).is_ok());
}

#[test]
fn a_folder_moved_with_its_report_keeps_its_records() {
    let folder = folder();
    let first = run(folder.path(), &mut Fake::new()).unwrap();
    let elsewhere = TempDir::new().unwrap();
    let moved = elsewhere.path().join("moved");
    fs::rename(folder.path(), &moved).unwrap();
    fs::create_dir(folder.path()).unwrap();
    let second = run(&moved, &mut Fake::new()).unwrap();
    assert_eq!((second.reused, second.written), (first.steps, Written::Unchanged));
}
