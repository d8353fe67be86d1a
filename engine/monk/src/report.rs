//! The report: a function of notes, recipe and records, and of nothing else.
//!
//! No time, no speed, no word on restarts stands in it: run twice, it has the same bytes. Every note is cited because
//! the section "Sources" is made from the list of notes, not from what the model chose to mention.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read, Write as _};
use std::path::{Path, PathBuf};

use engine_core::whole_file::WholeFile;

use crate::generator::{FinishReason, Sampling};
use crate::markdown::{defuse, defuse_inline};
use crate::notes::{Note, Notes};
use crate::recipe::Job;
use crate::store::Record;

/// Stands near the top of every report, so that a file of the user's own is not mistaken for one.
const MARK: &str = "<!-- Written by Nightmonk. -->";
const MARK_WITHIN_BYTES: u64 = 8 << 10;

/// What became of the report's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// There was none.
    New,
    /// It held these bytes already and was not touched.
    Unchanged,
    /// It held others (an older report, or one that was edited) and was replaced.
    Replaced,
}

/// Why the report cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// No space is left.
    #[error("the disk is full while writing {}; make space and start the job again: no step is done twice", .0.display())]
    Full(PathBuf),
    /// The file or its folder.
    #[error("cannot write the report {}: {source}", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Something of the user's lies where the report should go.
    #[error("{} exists and is not a report of this job; move it away or choose another `output`", .0.display())]
    NotOurs(PathBuf),
}

/// All that the report says.
pub(crate) struct Contents<'a> {
    pub(crate) job: &'a Job,
    pub(crate) notes: &'a Notes,
    /// For each note its parts' answers, in order; none for an empty note.
    pub(crate) answers: &'a [Vec<Record>],
    pub(crate) merged: &'a Record,
    /// Rounds of merging, the last one included.
    pub(crate) rounds: usize,
    /// Answers of rounds before the last that were cut.
    pub(crate) cut_merges: usize,
    /// The manifest's hash.
    pub(crate) run: &'a str,
}

pub(crate) fn markdown(contents: &Contents) -> String {
    let Contents { job, notes, answers, merged, .. } = contents;
    let links: HashSet<&str> = notes.iter().map(|note| &*note.link).collect();
    let mut out = format!("# {}\n\n{MARK}\n\n", defuse_inline(&job.title));
    foreword(contents, &mut out);
    out.push_str("\n## Result\n\n");
    answer(merged, 3, &links, &mut out);
    out.push_str("\n## Sources\n");
    for (note, parts) in notes.iter().zip(*answers) {
        source(note, parts, &links, &mut out);
    }
    out
}

fn foreword(contents: &Contents, out: &mut String) {
    let Contents { job, notes, answers, rounds, cut_merges, run, .. } = contents;
    let notes = notes.len();
    let parts: usize = answers.iter().map(Vec::len).sum();
    let mut line = |name: &str, value: String| writeln!(out, "- {name}: {value}").expect("a string takes all");
    line("Recipe", job.recipe.name.clone());
    line("Model", defuse_inline(&model_name(&job.model)));
    line("Notes", format!("{notes}, read in {parts} {}", if parts == 1 { "piece" } else { "pieces" }));
    line("Settings", settings(job));
    line("Merging", format!("{rounds} {}", if *rounds == 1 { "round" } else { "rounds" }));
    if *cut_merges > 0 {
        let tokens = job.recipe.reduce.max_tokens;
        line("Cut", format!("{cut_merges} answers of rounds before the last ended at {tokens} tokens, unfinished"));
    }
    line("Run", (*run).to_owned());
    out.push_str(
        "\nA language model wrote the result and the points under each source: check them against the notes. \
         ⟦Such brackets⟧ mark a link of the model's to no note of this job.\n",
    );
}

fn settings(job: &Job) -> String {
    let Sampling { temperature, top_k, top_p, min_p } = job.sampling;
    let mut out = format!("temperature {temperature}");
    if temperature > 0.0 {
        write!(out, ", top-k {top_k}, top-p {top_p}, min-p {min_p}").expect("a string takes all");
    }
    let (map, reduce) = (job.recipe.map.max_tokens, job.recipe.reduce.max_tokens);
    write!(out, ", seed {}, at most {map} tokens for a note and {reduce} for a merge", job.seed)
        .expect("a string takes all");
    if let Some(language) = &job.language {
        write!(out, ", language {}", defuse_inline(language)).expect("a string takes all");
    }
    out
}

/// The checkpoint's folder by its own name: where it lies says nothing about the report.
pub(crate) fn model_name(model: &Path) -> String {
    let resolved = if model.file_name().is_none() { fs::canonicalize(model).ok() } else { None };
    let name = resolved.as_deref().unwrap_or(model).file_name();
    name.map_or_else(|| model.display().to_string(), |name| name.to_string_lossy().into_owned())
}

fn source(note: &Note, parts: &[Record], links: &HashSet<&str>, out: &mut String) {
    let Note { link, title, path, .. } = note;
    write!(out, "\n### {link}\n\nTitle: {}. File: {}.", defuse_inline(title), defuse_inline(path))
        .expect("a string takes all");
    out.push_str(if parts.is_empty() { " The note is empty.\n" } else { "\n" });
    for (number, part) in parts.iter().enumerate() {
        if parts.len() > 1 {
            write!(out, "\n#### Part {} of {}\n", number + 1, parts.len()).expect("a string takes all");
        }
        out.push('\n');
        answer(part, 5, links, out);
    }
}

fn answer(record: &Record, top: usize, links: &HashSet<&str>, out: &mut String) {
    let text = defuse(&record.output, top, links);
    out.push_str(if text.is_empty() { "(The model's answer is empty.)" } else { &text });
    out.push('\n');
    if record.finish_reason == FinishReason::Length {
        writeln!(out, "\n*(Cut at {} tokens: the model had not finished.)*", record.completion_tokens)
            .expect("a string takes all");
    }
}

/// Makes the report's folder and returns the report's path without symbolic links in its folders.
pub(crate) fn place(output: &Path) -> Result<PathBuf, ReportError> {
    let (Some(folder), Some(name)) = (output.parent(), output.file_name()) else {
        return Err(ReportError::NotOurs(output.to_owned()));
    };
    let error = |source| file_error(folder, source);
    fs::create_dir_all(folder).map_err(error)?;
    Ok(fs::canonicalize(folder).map_err(error)?.join(name))
}

/// Refuses a place where something lies that no job has written.
pub(crate) fn check_place(path: &Path) -> Result<(), ReportError> {
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(file_error(path, source)),
        Ok(found) if !found.is_file() => return Err(ReportError::NotOurs(path.to_owned())),
        Ok(_) => {}
    }
    let mut start = Vec::new();
    let file = File::open(path).map_err(|source| file_error(path, source))?;
    file.take(MARK_WITHIN_BYTES).read_to_end(&mut start).map_err(|source| file_error(path, source))?;
    let is_ours = start.windows(MARK.len()).any(|window| window == MARK.as_bytes());
    if is_ours { Ok(()) } else { Err(ReportError::NotOurs(path.to_owned())) }
}

/// Puts `text` at `path`, whole or not at all: a temporary file in the same folder, synced, renamed, the folder synced.
pub(crate) fn write(path: &Path, text: &str) -> Result<Written, ReportError> {
    let written = match fs::read(path) {
        Ok(old) if old == text.as_bytes() => return Ok(Written::Unchanged),
        Ok(_) => Written::Replaced,
        Err(e) if e.kind() == io::ErrorKind::NotFound => Written::New,
        Err(source) => return Err(file_error(path, source)),
    };
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(ReportError::NotOurs(path.to_owned()));
    };
    let mut part_name = std::ffi::OsString::from(".");
    part_name.push(name);
    part_name.push(".part");
    let part = folder.join(part_name);
    let put = || {
        let mut file = WholeFile::create_as(part, path.to_owned())?;
        file.write_all(text.as_bytes())?;
        file.finish()
    };
    put().map_err(|source| file_error(path, source))?;
    Ok(written)
}

fn file_error(path: &Path, source: io::Error) -> ReportError {
    let path = path.to_owned();
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ReportError::Full(path),
        _ => ReportError::File { path, source },
    }
}
