//! The store: every finished step, on the disk before it counts.
//!
//! One SQLite database in a folder `.nightmonk` beside the report (or in a folder of the user's choice), with a
//! write-ahead log and `synchronous=FULL`: a commit that returned survives power loss. One commit holds one step's
//! result, whole. Several jobs may share a store and run at once: SQLite serialises their short commits, and each
//! job holds the lock of its own file `<job>.lock`, which the kernel releases when the process ends, however it
//! ends. That serves one machine and one user, on a local disk: SQLite's log shares memory between processes.
//!
//! *What is a step's name?* `input`: a hash of the generator's fingerprint and of the request, that is, of all that
//! decides the answer's bytes. So `record`, the truth, is keyed by job and input, and needs no position: when a note
//! is changed, added or taken away, every record whose input is still asked for is still right. `step` is the current
//! run's plan: which input stands at which position, and in what state. It can be made again from notes and records.
//!
//! ```text
//! job    (id → output, title, state, manifest, report, date)    one for each report
//! step   (job, kind, round, position → input, state, attempt)   the plan of the current run
//! record (job, input → output, finish_reason, tokens)           append only
//! ```

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use engine_core::text::CivilTime;
use rusqlite::{Connection, ErrorCode, OptionalExtension, TransactionBehavior, named_params};

use crate::generator::{Completion, FinishReason};

/// `NiMo`, so that `file` and a person can tell whose database it is.
const APPLICATION_ID: i32 = 0x4e69_4d6f;
/// Each entry takes the schema from version i to i + 1.
const MIGRATIONS: [&str; 2] = [include_str!("store/1.sql"), include_str!("store/2.sql")];
/// Another job's commit takes milliseconds; a disk that takes longer than this is in trouble.
const BUSY_TIMEOUT: Duration = Duration::from_secs(60);

/// An open store.
#[derive(Debug)]
pub struct Store {
    connection: Connection,
    folder: PathBuf,
    path: PathBuf,
}

/// One job in its store, locked against a second runner for as long as this value lives.
#[derive(Debug)]
pub struct JobStore {
    pub(crate) store: Store,
    job: String,
    _lock: File,
}

/// Where a job or a step stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Waiting for its turn.
    Available,
    /// Handed to a generator, or, for a job, to a runner.
    Running,
    /// Failed in a way that another attempt can mend.
    Retryable,
    /// Recorded; for a job: the report is written.
    Completed,
    /// Ended by the user.
    Cancelled,
    /// Given up, or no longer part of the job.
    Discarded,
}

/// What kind of prompt a step is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepKind {
    /// One note, or one part of it.
    Map,
    /// Answers merged.
    Reduce,
}

/// A step's result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    /// The model's answer, byte for byte.
    pub(crate) output: String,
    pub(crate) finish_reason: FinishReason,
    pub(crate) prompt_tokens: usize,
    pub(crate) completion_tokens: usize,
}

/// What went wrong with the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A folder or lock file of the store.
    #[error("the store {}: {source}", path.display())]
    File {
        /// The folder or file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// No space is left.
    #[error(
        "the disk of the store {} is full; make space and start the job again: it goes on with the first step that has no record",
        path.display()
    )]
    Full {
        /// The database.
        path: PathBuf,
    },
    /// The disk failed to read, write or sync.
    #[error("the disk of the store {} failed ({source}); check space and disk, then start the job again: all records made so far are kept", path.display())]
    Disk {
        /// The database.
        path: PathBuf,
        /// SQLite's words.
        source: rusqlite::Error,
    },
    /// It is no store, or a newer Nightmonk's.
    #[error("{} is not a store that this version reads: {message}", path.display())]
    Foreign {
        /// The database.
        path: PathBuf,
        /// Why not.
        message: String,
    },
    /// Another process runs this job.
    #[error("this job is running already: another process holds {}", lock.display())]
    Running {
        /// The lock file.
        lock: PathBuf,
    },
    /// Anything else that SQLite says.
    #[error("the store {}: {source}", path.display())]
    Database {
        /// The database.
        path: PathBuf,
        /// SQLite's words.
        source: rusqlite::Error,
    },
}

impl Store {
    /// The store's folder for a report when the user names none: `.nightmonk` beside the report.
    pub fn folder_beside(report: &Path) -> PathBuf {
        report.parent().unwrap_or(Path::new("")).join(".nightmonk")
    }

    /// Opens the store in `folder`, making both where they are missing. Only the user can read it.
    pub fn open(folder: &Path) -> Result<Self, StoreError> {
        let file_error = |path: &Path| {
            let path = path.to_owned();
            move |source| StoreError::File { path, source }
        };
        DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(file_error(folder))?;
        let folder = fs::canonicalize(folder).map_err(file_error(folder))?;
        let path = folder.join("night.sqlite");
        // Made here, so that nobody else can read it from its first byte on; SQLite gives its log the same mode.
        private(&path).map_err(file_error(&path))?;
        let parent = folder.parent().unwrap_or(&folder);
        for made in [&*folder, parent] {
            File::open(made).and_then(|folder| folder.sync_all()).map_err(file_error(made))?;
        }
        let store = Self { connection: Connection::open(&path).map_err(|e| classify(&path, e))?, folder, path };
        store.set_up()?;
        Ok(store)
    }

    /// Registers the job that writes `report` and locks it.
    pub fn claim(self, report: &Path, title: &str) -> Result<JobStore, StoreError> {
        // A folder that is moved with its report and store keeps its records.
        let beside = self.folder.parent().and_then(|parent| report.strip_prefix(parent).ok());
        let output = beside.unwrap_or(report).to_string_lossy().into_owned();
        let job = blake3::derive_key("nightmonk 2026-11 job", output.as_bytes());
        let job = blake3::Hash::from_bytes(job).to_hex()[..16].to_owned();

        let path = self.folder.join(format!("{job}.lock"));
        let lock = private(&path).map_err(|source| StoreError::File { path: path.clone(), source })?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(StoreError::Running { lock: path }),
            Err(TryLockError::Error(source)) => return Err(StoreError::File { path, source }),
        }
        self.change(|db| {
            db.execute(
                "INSERT INTO job (id, output, title, state) VALUES (:job, :output, :title, 'available')
                 ON CONFLICT (id) DO UPDATE SET title = excluded.title WHERE title <> excluded.title",
                named_params! { ":job": job, ":output": output, ":title": title },
            )
        })?;
        Ok(JobStore { store: self, job, _lock: lock })
    }

    /// The database file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn set_up(&self) -> Result<(), StoreError> {
        let db = &self.connection;
        let foreign = |message| StoreError::Foreign { path: self.path.clone(), message };
        let classify = |e| classify(&self.path, e);
        db.busy_timeout(BUSY_TIMEOUT).map_err(classify)?;
        db.execute_batch("PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON; PRAGMA trusted_schema = OFF;")
            .map_err(classify)?;
        let mode: String = db.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0)).map_err(classify)?;
        if mode != "wal" {
            return Err(foreign(format!(
                "its file system allows no write-ahead log (it offers {mode:?}); use a local disk"
            )));
        }
        self.change(|db| {
            let version: usize = db.query_row("PRAGMA user_version", [], |row| row.get(0))?;
            let id: i32 = db.query_row("PRAGMA application_id", [], |row| row.get(0))?;
            let tables: usize = db.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
            if (id, version, tables) != (0, 0, 0) && id != APPLICATION_ID {
                return Ok(Err("it is another program's database".to_owned()));
            }
            if version > MIGRATIONS.len() {
                let known = MIGRATIONS.len();
                return Ok(Err(format!(
                    "its schema is version {version}, this Nightmonk knows up to {known}; use the newer one"
                )));
            }
            for (from, migration) in MIGRATIONS.iter().enumerate().skip(version) {
                db.execute_batch(migration)?;
                db.pragma_update(None, "user_version", from + 1)?;
            }
            if id != APPLICATION_ID {
                db.pragma_update(None, "application_id", APPLICATION_ID)?;
            }
            Ok(Ok(()))
        })?
        .map_err(foreign)
    }

    /// Runs `change` as one transaction: all of it is on the disk when this returns, or none of it.
    fn change<T>(&self, change: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, StoreError> {
        let run = || {
            let transaction = rusqlite::Transaction::new_unchecked(&self.connection, TransactionBehavior::Immediate)?;
            let result = change(&transaction)?;
            transaction.commit()?;
            Ok(result)
        };
        run().map_err(|e| classify(&self.path, e))
    }
}

impl JobStore {
    /// The job's identity in its store: 16 hexadecimal digits.
    pub fn job(&self) -> &str {
        &self.job
    }

    /// The store.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Whether this job has ever written its report.
    pub fn has_reported(&self) -> Result<bool, StoreError> {
        self.read(|db| {
            db.query_row(
                "SELECT report IS NOT NULL FROM job WHERE id = :job",
                named_params! { ":job": self.job },
                |row| row.get(0),
            )
        })
    }

    /// Where the job stands.
    pub fn state(&self) -> Result<State, StoreError> {
        let job = named_params! { ":job": self.job };
        let state: String =
            self.read(|db| db.query_row("SELECT state FROM job WHERE id = :job", job, |row| row.get(0)))?;
        let message = || format!("a job is in the unknown state {state:?}");
        State::from_name(&state)
            .ok_or_else(|| StoreError::Foreign { path: self.store.path.clone(), message: message() })
    }

    /// The job's date, once it has one.
    pub fn date(&self) -> Result<Option<CivilTime>, StoreError> {
        let job = named_params! { ":job": self.job };
        let date: Option<String> =
            self.read(|db| db.query_row("SELECT date FROM job WHERE id = :job", job, |row| row.get(0)))?;
        let read = |date: String| {
            let message = || format!("a job has the date {date:?}");
            CivilTime::from_iso_date(&date)
                .ok_or_else(|| StoreError::Foreign { path: self.store.path.clone(), message: message() })
        };
        date.map(read).transpose()
    }

    /// Gives the job its date. It keeps the first one that it was given.
    pub(crate) fn set_date(&self, date: CivilTime) -> Result<(), StoreError> {
        self.store.change(|db| {
            db.execute(
                "UPDATE job SET date = :date WHERE id = :job AND date IS NULL",
                named_params! { ":job": self.job, ":date": date.iso_date() },
            )
        })?;
        Ok(())
    }

    /// Begins a run under `manifest` (JSON). Returns whether the last run of this job had another one.
    pub(crate) fn begin(&self, manifest: &str) -> Result<bool, StoreError> {
        self.store.change(|db| {
            let last: Option<String> =
                db.query_row("SELECT manifest FROM job WHERE id = :job", named_params! { ":job": self.job }, |row| {
                    row.get(0)
                })?;
            db.execute(
                "UPDATE job SET manifest = :manifest, state = 'running' WHERE id = :job",
                named_params! { ":job": self.job, ":manifest": manifest },
            )?;
            Ok(last.is_some_and(|last| last != manifest))
        })
    }

    /// Lays down the steps of one round; those with a record are completed, the others available. A position that
    /// already held the same input keeps its attempts.
    pub(crate) fn plan(&self, kind: StepKind, round: usize, inputs: &[String]) -> Result<(), StoreError> {
        self.store.change(|db| {
            let mut put = db.prepare(
                "INSERT INTO step (job, kind, round, position, input, state)
                 SELECT :job, :kind, :round, :position, :input,
                        iif(EXISTS (SELECT 1 FROM record WHERE job = :job AND input = :input), 'completed', 'available')
                 WHERE true
                 ON CONFLICT (job, kind, round, position) DO UPDATE SET
                   attempt = iif(input = excluded.input, attempt, 0), input = excluded.input, state = excluded.state
                 WHERE input <> excluded.input OR state <> excluded.state",
            )?;
            for (position, input) in inputs.iter().enumerate() {
                put.execute(named_params! {
                    ":job": self.job, ":kind": kind.name(), ":round": round, ":position": position, ":input": input,
                })?;
            }
            self.drop_steps(db, kind, round, inputs.len())
        })
    }

    /// Forgets the plan beyond the job's last round: a run before had more rounds.
    pub(crate) fn end_plan(&self, last_round: usize) -> Result<(), StoreError> {
        self.store.change(|db| {
            db.execute(
                "DELETE FROM step WHERE job = :job AND kind = 'reduce' AND round > :round",
                named_params! { ":job": self.job, ":round": last_round },
            )
        })?;
        Ok(())
    }

    fn drop_steps(&self, db: &Connection, kind: StepKind, round: usize, from: usize) -> rusqlite::Result<()> {
        db.execute(
            "DELETE FROM step WHERE job = :job AND kind = :kind AND round = :round AND position >= :from",
            named_params! { ":job": self.job, ":kind": kind.name(), ":round": round, ":from": from },
        )?;
        Ok(())
    }

    /// The available steps of a round go to a generator: one more attempt each.
    pub(crate) fn start(&self, kind: StepKind, round: usize) -> Result<(), StoreError> {
        self.store.change(|db| {
            db.execute(
                "UPDATE step SET state = 'running', attempt = attempt + 1
                 WHERE job = :job AND kind = :kind AND round = :round AND state IN ('available', 'retryable')",
                named_params! { ":job": self.job, ":kind": kind.name(), ":round": round },
            )
        })?;
        Ok(())
    }

    /// Records the answer to `input`. When this returns, the answer is on the disk and will not be asked for again.
    pub(crate) fn record(&self, input: &str, completion: &Completion) -> Result<(), StoreError> {
        let finish_reason = match completion.finish_reason {
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
        };
        self.store.change(|db| {
            // No OR IGNORE: a second answer to one input is a bug, and must not pass unseen.
            db.prepare_cached(
                "INSERT INTO record (job, input, output, finish_reason, prompt_tokens, completion_tokens)
                 VALUES (:job, :input, :output, :finish_reason, :prompt_tokens, :completion_tokens)",
            )?
            .execute(named_params! {
                ":job": self.job, ":input": input, ":output": completion.text, ":finish_reason": finish_reason,
                ":prompt_tokens": completion.prompt_tokens, ":completion_tokens": completion.completion_tokens,
            })?;
            db.prepare_cached("UPDATE step SET state = 'completed' WHERE job = :job AND input = :input")?
                .execute(named_params! { ":job": self.job, ":input": input })
        })?;
        Ok(())
    }

    /// The recorded answer to `input`.
    pub(crate) fn recorded(&self, input: &str) -> Result<Option<Record>, StoreError> {
        self.read(|db| {
            db.prepare_cached(
                "SELECT output, finish_reason, prompt_tokens, completion_tokens FROM record WHERE job = :job AND input = :input",
            )?
            .query_row(named_params! { ":job": self.job, ":input": input }, |row| {
                let finish_reason: String = row.get(1)?;
                Ok(Record {
                    output: row.get(0)?,
                    finish_reason: if finish_reason == "length" { FinishReason::Length } else { FinishReason::Stop },
                    prompt_tokens: row.get(2)?,
                    completion_tokens: row.get(3)?,
                })
            })
            .optional()
        })
    }

    /// The job did not reach its report. What was running can be tried again.
    pub(crate) fn interrupt(&self) -> Result<(), StoreError> {
        self.store.change(|db| {
            let job = named_params! { ":job": self.job };
            db.execute("UPDATE step SET state = 'retryable' WHERE job = :job AND state = 'running'", job)?;
            db.execute("UPDATE job SET state = 'retryable' WHERE id = :job", job)
        })?;
        Ok(())
    }

    /// The report is written; `hash` is BLAKE3 of its bytes.
    pub(crate) fn complete(&self, hash: &str) -> Result<(), StoreError> {
        self.store.change(|db| {
            db.execute(
                "UPDATE job SET state = 'completed', report = :hash WHERE id = :job",
                named_params! { ":job": self.job, ":hash": hash },
            )
        })?;
        Ok(())
    }

    fn read<T>(&self, query: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, StoreError> {
        query(&self.store.connection).map_err(|e| classify(&self.store.path, e))
    }
}

#[cfg(test)]
impl Store {
    /// Lets the database grow to this many pages, as a disk of that size would.
    pub(crate) fn set_page_limit(&self, pages: u32) {
        self.connection.pragma_update_and_check(None, "max_page_count", pages, |_| Ok(())).unwrap();
    }

    pub(crate) fn set_version(&self, version: u32) {
        self.connection.pragma_update(None, "user_version", version).unwrap();
    }

    pub(crate) fn back_to_version_1(&self) {
        self.connection.execute_batch("ALTER TABLE job DROP COLUMN date; PRAGMA user_version = 1").unwrap();
    }

    pub(crate) fn pragma<T: rusqlite::types::FromSql>(&self, name: &str) -> T {
        self.connection.query_row(&format!("PRAGMA {name}"), [], |row| row.get(0)).unwrap()
    }
}

impl State {
    fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "available" => Self::Available,
            "running" => Self::Running,
            "retryable" => Self::Retryable,
            "completed" => Self::Completed,
            "cancelled" => Self::Cancelled,
            "discarded" => Self::Discarded,
            _ => return None,
        })
    }
}

impl StepKind {
    fn name(self) -> &'static str {
        match self {
            Self::Map => "map",
            Self::Reduce => "reduce",
        }
    }
}

fn private(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

fn classify(path: &Path, source: rusqlite::Error) -> StoreError {
    let path = path.to_owned();
    match source.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => StoreError::Full { path },
        Some(ErrorCode::SystemIoFailure) => StoreError::Disk { path, source },
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => {
            StoreError::Foreign { path, message: format!("{source}; move it away to begin anew") }
        }
        _ => StoreError::Database { path, source },
    }
}
