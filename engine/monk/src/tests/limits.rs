//! What does not fit is refused with its numbers; what breaks says so and loses nothing.

use engine_core::text::CivilTime;

use super::*;
use crate::{StepKind, Store, StoreError};

fn rounds(folder: &Path, fake: &mut Fake) -> Vec<(usize, usize)> {
    let mut rounds = Vec::new();
    run_watched(folder, fake, &mut |progress| {
        if let Progress::Round { kind: StepKind::Reduce, round, steps, .. } = progress {
            rounds.push((round, steps));
        }
    })
    .unwrap();
    rounds
}

#[test]
fn merging_takes_rounds_only_while_the_answers_exceed_the_context() {
    let small = folder();
    let rounds_small = rounds(small.path(), &mut Fake::new());
    assert!(rounds_small.len() >= 2 && rounds_small.last().unwrap().1 == 1, "{rounds_small:?}");
    let large = folder();
    let mut fake = Fake { context_size: 10_000, ..Fake::new() };
    assert_eq!(rounds(large.path(), &mut fake), [(1, 1)]);
    assert!(fake.asked.last().unwrap().starts_with("merge 1 True"), "{:?}", fake.asked.last());
    assert!(!report_text(large.path()).contains("#### Part"));
}

#[test]
fn a_long_note_is_read_whole() {
    let folder = folder();
    let mut fake = Fake::new();
    run(folder.path(), &mut fake).unwrap();
    let read: usize =
        fake.asked.iter().filter(|prompt| prompt.starts_with("note ")).map(|p| p.matches("слово").count()).sum();
    assert_eq!(read, 4 * 15);
}

#[test]
fn a_context_too_small_is_refused_before_anything_is_generated() {
    for (context_size, parts) in [
        (10, ["`map.max_tokens`", "context of 10", "a part of the note dome.md"]),
        (40, ["`reduce.max_tokens`", "context of 40", "merging 2 answers"]),
    ] {
        let folder = folder();
        let mut fake = Fake { context_size, ..Fake::new() };
        let error = run(folder.path(), &mut fake).unwrap_err().to_string();
        for part in parts {
            assert!(error.contains(part), "{part} is missing in: {error}");
        }
        assert!(fake.asked.is_empty());
    }
}

#[test]
fn the_number_that_a_refusal_names_fits() {
    let tiny = folder();
    let error = run(tiny.path(), &mut Fake { context_size: 40, ..Fake::new() }).unwrap_err().to_string();
    let (_, number) = error.split_once("lower `map.max_tokens` and `reduce.max_tokens` to ").unwrap();
    let number = number.split(' ').next().unwrap();
    let job = JOB.replace("max_tokens = 12", &format!("max_tokens = {number}"));
    let job = job.replace("max_tokens = 14", &format!("max_tokens = {number}"));
    fs::write(tiny.path().join("job.toml"), job).unwrap();
    run(tiny.path(), &mut Fake { context_size: 40, ..Fake::new() }).unwrap();
}

#[test]
fn merging_that_does_not_shrink_is_refused_with_the_numbers() {
    let folder = folder();
    // Answers that are longer when read again than they were when written.
    let says = "x ".repeat(60).leak();
    let mut fake = Fake { says: Some(says), ..Fake::new() };
    let error = run(folder.path(), &mut fake).unwrap_err().to_string();
    assert!(error.contains("in round 2") && error.contains("context of 80"), "{error}");
}

#[test]
fn a_full_disk_stops_the_job_with_its_name_and_costs_nothing() {
    let (want, steps) = undisturbed();
    let folder = folder();
    let mut night = prepare(Job::load(&folder.path().join("job.toml")).unwrap(), None).unwrap();
    let says = "x ".repeat(40_000).leak();
    let pages: u32 = night.store().store().pragma("page_count");
    night.store().store().set_page_limit(pages + 4);
    let error = night.run(&mut Fake { says: Some(says), ..Fake::new() }, &mut |_| ()).unwrap_err();
    assert!(matches!(error, JobError::Store(StoreError::Full { .. })), "{error}");
    assert!(error.to_string().contains("night.sqlite") && error.to_string().contains("make space"), "{error}");
    drop(night);

    let mut fake = Fake::new();
    let report = run(folder.path(), &mut fake).unwrap();
    assert!(report.reused > 0);
    assert_eq!(report.reused + fake.asked.len(), steps);
    assert_eq!(report_text(folder.path()), want);
}

#[test]
fn a_store_that_is_something_else_is_left_alone_and_named() {
    let garbage = folder();
    let store = garbage.path().join("out/.nightmonk");
    fs::create_dir_all(&store).unwrap();
    fs::write(store.join("night.sqlite"), "not a database ".repeat(100)).unwrap();
    let error = run(garbage.path(), &mut Fake::new()).unwrap_err().to_string();
    assert!(error.contains("night.sqlite") && error.contains("move it away"), "{error}");

    let newer = folder();
    let night = prepare(Job::load(&newer.path().join("job.toml")).unwrap(), None).unwrap();
    night.store().store().set_version(99);
    drop(night);
    let error = run(newer.path(), &mut Fake::new()).unwrap_err().to_string();
    assert!(error.contains("version 99") && error.contains("newer"), "{error}");
}

#[test]
fn a_store_of_the_first_version_keeps_its_records_and_its_jobs_get_a_date() {
    let folder = folder();
    let first = run(folder.path(), &mut Fake::new()).unwrap();
    let night = prepare(Job::load(&folder.path().join("job.toml")).unwrap(), None).unwrap();
    night.store().store().back_to_version_1();
    drop(night);

    let mut fake = Fake::new();
    assert_eq!(run(folder.path(), &mut fake).unwrap().reused, first.steps);
    let night = prepare(Job::load(&folder.path().join("job.toml")).unwrap(), None).unwrap();
    assert_eq!(night.store().date().unwrap(), None);
    let day = |text| CivilTime::from_iso_date(text).unwrap();
    assert_eq!(night.date(day("2026-11-23")).unwrap(), day("2026-11-23"));
    drop(night);
    // On another day, by another process.
    let night = prepare(Job::load(&folder.path().join("job.toml")).unwrap(), None).unwrap();
    assert_eq!(night.date(day("2026-11-24")).unwrap(), day("2026-11-23"));
}

#[test]
fn many_jobs_may_make_and_use_one_store_at_once() {
    let folder = TempDir::new().unwrap();
    std::thread::scope(|scope| {
        for job in 0..8 {
            let report = folder.path().join(format!("{job}.md"));
            scope.spawn(move || {
                let store = Store::open(&Store::folder_beside(&report)).unwrap();
                store.claim(&report, "t").unwrap().complete("hash").unwrap();
            });
        }
    });
    for job in 0..8 {
        let store = Store::open(&folder.path().join(".nightmonk")).unwrap();
        assert!(store.claim(&folder.path().join(format!("{job}.md")), "t").unwrap().has_reported().unwrap());
    }
}

#[test]
fn a_generator_that_breaks_its_contract_is_found_out() {
    struct Broken(fn(&mut dyn FnMut(usize) -> Result<(), Abort>));
    impl Generator for Broken {
        fn fingerprint(&self) -> String {
            "broken".to_owned()
        }
        fn context_size(&self) -> usize {
            10_000
        }
        fn count_tokens(&self, _: &Prompt) -> Result<usize, GenerateError> {
            Ok(1)
        }
        fn generate(
            &mut self,
            requests: &[PromptRequest],
            finished: &mut dyn FnMut(usize, Completion) -> Result<(), Abort>,
        ) -> Result<(), GenerateError> {
            self.0(&mut |index| finished(index, answer("", &requests[0], 1, None)));
            Ok(())
        }
    }
    for (behaviour, how) in [
        ((|_| ()) as fn(&mut dyn FnMut(usize) -> Result<(), Abort>), "never"),
        (
            |finish| {
                let _ = (finish(0), finish(0));
            },
            "twice",
        ),
        (
            |finish| {
                let _ = finish(999);
            },
            "that it never had",
        ),
    ] {
        let folder = folder();
        let mut night = prepare(Job::load(&folder.path().join("job.toml")).unwrap(), None).unwrap();
        let error = night.run(&mut Broken(behaviour), &mut |_| ()).unwrap_err();
        assert!(matches!(error, JobError::Contract { how: got, .. } if got == how), "{error}");
    }
}

#[test]
fn only_the_user_can_read_the_store() {
    use std::os::unix::fs::PermissionsExt;
    let folder = folder();
    let night = prepare(Job::load(&folder.path().join("job.toml")).unwrap(), None).unwrap();
    let store = folder.path().join("out/.nightmonk");
    assert_eq!(fs::metadata(&store).unwrap().permissions().mode() & 0o777, 0o700);
    for file in fs::read_dir(&store).unwrap() {
        let file = file.unwrap();
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o077, 0, "{:?}", file.file_name());
    }
    drop(night);
}
