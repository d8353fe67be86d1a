//! The night's promise: whatever happens in between, a job ends with the report of an undisturbed run, to the byte, and
//! no step is done twice after its record.
//!
//! The built program runs the demonstration's notes on a tiny model. The context is so small that long notes are cut in
//! parts and merging takes rounds.

mod date;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::process::{Pid, Signal, WaitOptions};
use tempfile::TempDir;

use crate::tiny_model::tiny_model;

/// Records of a job by row: input, output, finish reason, tokens read, tokens written.
type Records = BTreeMap<i64, (String, String, String, i64, i64)>;
/// Steps of a job by kind, round and position: input, state, attempts.
type Steps = BTreeMap<(String, i64, i64), (String, String, i64)>;

/// A folder with a job in it.
struct Desk {
    folder: TempDir,
    model: PathBuf,
    ctx_size: usize,
}

/// What the store holds.
#[derive(PartialEq)]
struct Store {
    records: Records,
    steps: Steps,
}

impl Desk {
    /// Over copies of the demonstration's notes.
    fn new(model: &TempDir) -> Self {
        let desk = Self::bare(model);
        for note in demo_notes() {
            fs::copy(&note, desk.notes().join(note.file_name().unwrap())).unwrap();
        }
        desk
    }

    fn bare(model: &TempDir) -> Self {
        let desk = Self { folder: tempfile::tempdir().unwrap(), model: model.path().into(), ctx_size: 800 };
        fs::create_dir(desk.notes()).unwrap();
        desk.write_job("Contradictions");
        desk
    }

    fn write_job(&self, title: &str) {
        let job = format!(
            "model = 'model'\nnotes = 'notes'\nrecipe = 'contradictions'\noutput = 'report.md'\ntitle = '{title}'\n\
             [map]\nmax_tokens = 12\n[reduce]\nmax_tokens = 20\n"
        );
        fs::write(self.path("job.toml"), job).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn notes(&self) -> PathBuf {
        self.path("notes")
    }

    fn command(&self, flags: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nightmonk"));
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("NIGHTMONK_")) {
            command.env_remove(name);
        }
        command.args(["night", "run"]).arg(self.path("job.toml")).arg("--model").arg(&self.model);
        command.arg("--ctx-size").arg(self.ctx_size.to_string()).args(flags);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs the job to its end. Gives the report and what was said on the way.
    #[track_caller]
    fn run(&self, flags: &[&str]) -> (String, String) {
        let Output { status, stdout, stderr } = self.command(flags).output().unwrap();
        let stderr = String::from_utf8(stderr).unwrap();
        assert!(status.success(), "{status}: {stderr}");
        let report = fs::canonicalize(self.path("report.md")).unwrap();
        assert_eq!(String::from_utf8(stdout).unwrap().lines().last(), report.to_str(), "the last line is the path");
        (self.report().unwrap(), stderr)
    }

    fn report(&self) -> Option<String> {
        fs::read(self.path("report.md")).ok().map(|bytes| String::from_utf8(bytes).unwrap())
    }

    /// A copy of the store's database: recovering the log of a killed run is left to the program.
    fn database(&self) -> (TempDir, rusqlite::Connection) {
        let (copy, store) = (tempfile::tempdir().unwrap(), self.path(".nightmonk"));
        for file in ["night.sqlite", "night.sqlite-wal"].into_iter().filter(|file| store.join(file).exists()) {
            fs::copy(store.join(file), copy.path().join(file)).unwrap();
        }
        let db = rusqlite::Connection::open(copy.path().join("night.sqlite")).unwrap();
        (copy, db)
    }

    fn store(&self) -> Store {
        let mut read = Store { records: Records::new(), steps: Steps::new() };
        let (_copy, db) = self.database();
        let check: String = db.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
        assert_eq!(check, "ok");
        let tables: i64 =
            db.query_row("SELECT count(*) FROM sqlite_schema WHERE type = 'table'", [], |row| row.get(0)).unwrap();
        if tables == 0 {
            return read;
        }
        let columns = "rowid, input, output, finish_reason, prompt_tokens, completion_tokens";
        let mut query = db.prepare(&format!("SELECT {columns} FROM record")).unwrap();
        let mut rows = query.query([]).unwrap();
        while let Some(row) = rows.next().unwrap() {
            let get = |column| row.get(column).unwrap();
            let record = (get(1), get(2), get(3), row.get(4).unwrap(), row.get(5).unwrap());
            read.records.insert(row.get(0).unwrap(), record);
        }
        let mut query = db.prepare("SELECT kind, round, position, input, state, attempt FROM step").unwrap();
        let mut rows = query.query([]).unwrap();
        while let Some(row) = rows.next().unwrap() {
            let place = (row.get(0).unwrap(), row.get(1).unwrap(), row.get(2).unwrap());
            read.steps.insert(place, (row.get(3).unwrap(), row.get(4).unwrap(), row.get(5).unwrap()));
        }
        read
    }
}

impl Store {
    fn has(&self, input: &str) -> bool {
        self.records.values().any(|record| record.0 == input)
    }

    /// Records without their rows, in an order of their own: those of equal jobs are equal.
    fn answers(&self) -> Vec<&(String, String, String, i64, i64)> {
        let mut answers: Vec<_> = self.records.values().collect();
        answers.sort();
        answers
    }

    /// What was recorded before stands as it stood, and was not so much as begun again.
    #[track_caller]
    fn assert_keeps(&self, before: &Self) {
        for (row, record) in &before.records {
            assert_eq!(self.records.get(row), Some(record), "a record changed");
        }
        for (place, step) in before.steps.iter().filter(|(_, step)| before.has(&step.0)) {
            let (input, state, attempts) = &self.steps[place];
            assert_eq!((input, *attempts), (&step.0, step.2), "the step {place:?} was done again after its record");
            assert_eq!(state, "completed", "{place:?}");
        }
    }
}

fn demo_notes() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tools/demo/notes");
    let mut notes: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    notes.sort();
    assert!(notes.len() >= 12);
    notes
}

/// A step was recorded, as the program says it to a log.
fn is_step(line: &str) -> bool {
    line.starts_with("step ")
}

/// The program at work; it does not outlive the test.
struct Running {
    child: Child,
    stderr: BufReader<ChildStderr>,
}

impl Running {
    fn new(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        Self { child, stderr }
    }

    /// Reads what it says until `steps` more steps are told, or to the end. Gives their number.
    fn read_steps(&mut self, steps: usize) -> usize {
        let mut seen = 0;
        let mut line = String::new();
        while seen < steps && self.stderr.read_line(&mut line).unwrap() > 0 {
            seen += usize::from(is_step(&line));
            line.clear();
        }
        seen
    }

    /// `kill -9`. Gives whether it was still at work.
    fn kill(&mut self) -> bool {
        self.child.kill().unwrap();
        self.child.wait().unwrap().signal() == Some(Signal::KILL.as_raw())
    }

    /// Stops it, and waits until it stands still.
    fn pause(&self) {
        let pid = Pid::from_child(&self.child);
        rustix::process::kill_process(pid, Signal::STOP).unwrap();
        let (_, status) = rustix::process::waitpid(Some(pid), WaitOptions::UNTRACED).unwrap().unwrap();
        assert!(status.stopped(), "{status:?}");
    }

    fn go_on(&self) {
        rustix::process::kill_process(Pid::from_child(&self.child), Signal::CONT).unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail where it has ended, and that is the usual case.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Numbers in [0, 1) from a seed.
fn numbers(seed: u64) -> impl FnMut() -> f64 {
    let mut state = seed;
    move || {
        // SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[test]
fn killed_at_twenty_moments_a_job_ends_with_the_undisturbed_report_and_does_no_step_twice() {
    const JOBS: usize = 5;
    const KILLS: usize = 20;
    /// What comes after the last record (merging its text, writing the report) counts as this many steps.
    const END: usize = 3;

    let model = tiny_model("qwen3_moe");
    let undisturbed = Desk::new(&model);
    let start = Instant::now();
    let (want, _) = undisturbed.run(&[]);
    let all = undisturbed.store();
    let steps = all.records.len();
    let step_time = start.elapsed() / steps as u32;
    assert!(all.steps.keys().any(|(kind, round, _)| kind == "reduce" && *round > 1), "merging took one round only");

    let timed = Desk::new(&model);
    let mut running = Running::new(timed.command(&[]));
    assert_eq!(running.read_steps(steps), steps);
    let end = Instant::now();
    assert!(running.child.wait().unwrap().success());
    let end_time = end.elapsed();
    assert!(timed.report().unwrap() == want);

    // A moment is a number of records, and a part of a step's time to wait when they are there (or of the end's): so
    // moments spread over the whole job on a machine of any speed.
    let mut number = numbers(7);
    let disturb = |moments: &[f64], choice: f64| {
        let desk = Desk::new(&model);
        let mut before = Store { records: Records::new(), steps: Steps::new() };
        let mut hits = 0;
        for (run, moment) in moments.iter().enumerate() {
            // Neither decides a byte, so each run may choose.
            let choice = (choice * 12.0) as usize + run;
            let (width, threads) = (["1", "2", "4", "5"][choice % 4], ["1", "2", "3"][choice % 3]);
            let mut running = Running::new(desk.command(&["--width", width, "--threads", threads]));
            let records = (*moment as usize).min(steps);
            let mut seen = running.read_steps(records.saturating_sub(before.records.len()));
            let part = moment - records as f64;
            thread::sleep(if records < steps { step_time.mul_f64(part) } else { end_time.mul_f64(part / END as f64) });
            hits += usize::from(running.kill());
            seen += running.read_steps(usize::MAX);

            let after = desk.store();
            after.assert_keeps(&before);
            // A record comes before its line, and the kill may have come between.
            let made = after.records.len() - before.records.len();
            assert!((seen..=seen + 1).contains(&made), "{seen} steps were done, {made} recorded");
            assert!(desk.report().is_none_or(|report| report == want), "a report that is not the whole one");
            before = after;
        }
        let (report, stderr) = desk.run(&[]);
        assert!(report == want, "the report differs after kills");
        let after = desk.store();
        after.assert_keeps(&before);
        assert_eq!(stderr.lines().filter(|line| is_step(line)).count(), steps - before.records.len());
        assert_eq!(after.answers(), all.answers());
        hits
    };

    // One moment in each of twenty equal parts, dealt to the jobs in turn.
    let moments: Vec<f64> =
        (0..KILLS).map(|part| (part as f64 + number()) / KILLS as f64 * (steps + END) as f64).collect();
    let dealt = (0..JOBS).map(|first| moments.iter().skip(first).step_by(JOBS).copied().collect::<Vec<_>>());
    let mut hits: usize = dealt.map(|moments| disturb(&moments, number())).sum();
    // A kill may come too late on a busy machine; as many others take its place, each at once behind a record.
    for _ in 0..KILLS {
        if hits < KILLS {
            hits += disturb(&[(number() * (steps - 2) as f64).floor()], number());
        }
    }
    assert!(hits >= KILLS, "only {hits} kills found the program at work");
}

#[test]
fn killed_while_it_writes_the_report_a_job_leaves_the_old_report_whole() {
    let model = tiny_model("qwen3_moe");
    let desk = Desk::bare(&model);
    fs::write(desk.notes().join("One.md"), "One note with text.\n").unwrap();
    // Empty notes are cited, too: they make a report that is longer than a pipe.
    for number in 0..300 {
        fs::write(desk.notes().join(format!("{number} {}.md", "long name ".repeat(12).trim())), "").unwrap();
    }
    let (old, _) = desk.run(&[]);
    assert!(old.len() > 100_000);
    let before = desk.store();

    // A pipe in the temporary file's place holds the writer up in the middle of the text.
    desk.write_job("Another title");
    let part = desk.path(".report.md.part");
    rustix::fs::mknodat(rustix::fs::CWD, &part, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let flags = OFlags::NONBLOCK.bits().try_into().unwrap();
    let mut pipe = fs::OpenOptions::new().read(true).custom_flags(flags).open(&part).unwrap();
    let mut running = Running::new(desk.command(&[]));
    let mut half = vec![0; 5000];
    let mut filled = 0;
    while filled < half.len() {
        match pipe.read(&mut half[filled..]) {
            Ok(bytes) if bytes > 0 => filled += bytes,
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => panic!("{error}"),
            // Nobody writes yet.
            Ok(_) | Err(_) => {
                if running.child.try_wait().unwrap().is_some() {
                    let mut said = String::new();
                    running.stderr.read_to_string(&mut said).unwrap();
                    panic!("the program ended without writing to {}: {said}", part.display());
                }
                thread::sleep(Duration::from_millis(1));
            }
        }
    }
    assert!(running.kill(), "the program had ended before");
    assert!(half.starts_with(b"# Another title\n"));
    assert!(desk.report().unwrap() == old, "the old report was touched");

    // What a killed writer leaves is no hindrance.
    fs::remove_file(&part).unwrap();
    fs::write(&part, half).unwrap();
    let (new, _) = desk.run(&[]);
    assert!(new == old.replace("# Contradictions", "# Another title").replace(run(&old), run(&new)));
    assert!(!part.exists());
    desk.store().assert_keeps(&before);
}

/// The run's name in a report.
fn run(report: &str) -> &str {
    report.lines().find(|line| line.starts_with("- Run: ")).unwrap()
}

#[test]
fn a_second_runner_of_a_job_is_refused_while_the_first_one_lives() {
    let model = tiny_model("qwen3_moe");
    let desk = Desk::new(&model);
    let mut first = Running::new(desk.command(&[]));
    assert_eq!(first.read_steps(1), 1);
    first.pause();
    let before = desk.store();

    let second = desk.command(&[]).output().unwrap();
    let said = String::from_utf8(second.stderr).unwrap();
    assert_eq!(second.status.code(), Some(1), "{said}");
    assert!(said.contains("running already") && said.contains(".nightmonk"), "{said}");
    assert!(desk.store() == before, "the second runner changed the store");

    first.go_on();
    first.read_steps(usize::MAX);
    assert!(first.child.wait().unwrap().success());
    let report = desk.report().unwrap();
    assert!(report == Desk::new(&model).run(&[]).0);
}

#[test]
fn width_threads_chunks_and_mapped_weights_decide_no_byte_of_a_report() {
    let model = tiny_model("qwen3_moe");
    let desk = Desk::new(&model);
    let (want, _) = desk.run(&["--width", "1", "--threads", "1"]);
    let all = desk.store();
    for flags in [
        ["--width", "4", "--threads", "3"],
        ["--width", "4", "--ubatch-size", "7"],
        ["--threads", "3", "--ubatch-size", "256"],
        ["--width", "3", "--load", "mapped"],
    ] {
        let desk = Desk::new(&model);
        assert!(desk.run(&flags).0 == want, "{flags:?} change the report");
        assert_eq!(desk.store().answers(), all.answers(), "{flags:?}");
    }
}

#[test]
fn shared_beginnings_decide_no_byte_of_a_report() {
    let model = tiny_model("qwen3_moe");
    let desk = Desk::new(&model);
    let (want, _) = desk.run(&["--width", "3", "--ubatch-size", "40"]);
    let all = desk.store();
    for width in ["1", "3"] {
        let desk = Desk::new(&model);
        let (report, _) = desk.run(&["--width", width, "--no-prefix-cache"]);
        assert!(report == want, "without a prefix cache the report is another, at a width of {width}");
        assert_eq!(desk.store().answers(), all.answers(), "width {width}");
    }
}

#[test]
fn a_job_that_is_done_does_nothing_and_its_report_cites_every_note() {
    let model = tiny_model("qwen3_moe");
    let desk = Desk::new(&model);
    let (report, _) = desk.run(&[]);
    for note in demo_notes() {
        let name = note.file_stem().unwrap().to_str().unwrap().to_owned();
        assert!(report.contains(&format!("[[{name}]]")), "{name} is not cited");
    }

    let before = desk.store();
    let changed = || fs::metadata(desk.path("report.md")).unwrap().modified().unwrap();
    let changed_before = changed();
    let (again, stderr) = desk.run(&[]);
    assert!(again == report);
    assert_eq!(changed(), changed_before, "the report was written again");
    assert!(desk.store() == before, "the store was changed");
    assert_eq!(stderr.lines().filter(|line| is_step(line)).count(), 0, "{stderr}");
    let count = before.records.len();
    assert!(stderr.contains(&format!("{count} steps, {count} of them done before this run")), "{stderr}");
}

#[test]
fn a_turned_dial_does_every_step_anew_and_turned_back_none() {
    let model = tiny_model("qwen3_moe");
    let desk = Desk::new(&model);
    let (plain, _) = desk.run(&[]);
    let count = desk.store().records.len();
    for dial in [["--experts-per-token", "2"], ["--rope-freq-base", "20000"], ["--attention-window", "9"]] {
        let (turned, stderr) = desk.run(&dial);
        assert!(turned != plain && run(&turned) != run(&plain), "{dial:?} changes nothing");
        assert!(stderr.contains(", 0 of them done before this run"), "{dial:?}: {stderr}");
    }
    let (again, stderr) = desk.run(&[]);
    assert!(again == plain);
    assert!(stderr.contains(&format!("{count} steps, {count} of them done before this run")), "{stderr}");
}

#[test]
fn nothing_of_notes_and_answers_is_logged() {
    let model = tiny_model("qwen3_moe");
    let desk = Desk::new(&model);
    let (_, stderr) = desk.run(&[]);
    for note in demo_notes() {
        let text = fs::read_to_string(note).unwrap();
        for line in text.lines().filter(|line| line.chars().count() > 20) {
            assert!(!stderr.contains(line.trim()), "a line of a note was logged: {line}");
        }
    }
    for (_, output, ..) in desk.store().records.values() {
        let answer = output.trim();
        assert!(answer.len() < 8 || !stderr.contains(answer), "an answer was logged: {answer}");
    }
}
