//! From notes to report, step by step.
//!
//! The runner plans, asks and records; it holds no truth of its own. Killed at any moment and started again it plans
//! the same steps, finds the records of those that were finished, and asks only for the rest. Nothing that it knows
//! besides decides a byte of the report.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

use engine_core::text::CivilTime;

use crate::generator::{Abort, Completion, FinishReason, GenerateError, Generator, Prompt, PromptRequest};
use crate::manifest;
use crate::notes::{Note, Notes, NotesError};
use crate::recipe::{Job, Phase};
use crate::report::{self, Contents, ReportError, Written};
use crate::split::{largest_prefix, split};
use crate::store::{JobStore, Record, StepKind, Store, StoreError};
use crate::template::{Item, MapVariables, ReduceVariables, TemplateError};

/// While a note is cut nobody knows into how many parts; this number is as long as any that will come.
const PARTS_NOT_YET_KNOWN: usize = 99_999;

/// Why a job did not reach its report. Whatever was recorded stays.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// The notes.
    #[error(transparent)]
    Notes(#[from] NotesError),
    /// A prompt cannot be made.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The report's file.
    #[error(transparent)]
    Report(#[from] ReportError),
    /// The model.
    #[error("the model gave no answer: {0}")]
    Generate(#[from] GenerateError),
    /// The generator broke its contract; a bug in it.
    #[error("the generator finished request {index} of {requests} {how}; this is a bug in it")]
    Contract {
        /// The index that it named, or that it left out.
        index: usize,
        /// How many requests it had.
        requests: usize,
        /// What is wrong.
        how: &'static str,
    },
    /// The job file asks for another date than the one that the job has.
    #[error(
        "this job was started with the date {recorded}, and its prompts keep it; `date` = {asked} in the job file is \
         another one: take it out, or start a new job by giving this one another `output`"
    )]
    Date {
        /// The date in the store.
        recorded: String,
        /// The date in the job file.
        asked: String,
    },
    /// A prompt does not fit and cannot be made shorter.
    #[error(
        "{what} does not fit: the prompt has {prompt_tokens} tokens and its answer may have {max_tokens} \
         (`{key}.max_tokens`), together more than the context of {context_size}; {help}"
    )]
    TooLong {
        /// Which prompt.
        what: String,
        /// Tokens of the shortest prompt that there is.
        prompt_tokens: usize,
        /// The phase in the job file, `map` or `reduce`.
        key: &'static str,
        /// The most tokens of its answer.
        max_tokens: usize,
        /// The generator's context, in tokens.
        context_size: usize,
        /// What would help.
        help: String,
    },
}

/// What a run tells while it goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The run begins.
    Began {
        /// Notes of the job.
        notes: usize,
        /// Bytes of their text.
        text_bytes: u64,
        /// Whether notes, recipe, settings or model differ from this job's last run. Records of steps that are still
        /// the same are used again all the same.
        changed: bool,
    },
    /// A round begins: the map, or one round of merging.
    Round {
        /// Map or reduce.
        kind: StepKind,
        /// 0 for the map, from 1 for merging.
        round: usize,
        /// Different steps of the round.
        steps: usize,
        /// Those among them that have a record already.
        recorded: usize,
    },
    /// A step was finished and recorded.
    Step {
        /// Map or reduce.
        kind: StepKind,
        /// As in [`Progress::Round`].
        round: usize,
        /// Steps of the round that have a record, this one included.
        done: usize,
        /// Steps of the round.
        steps: usize,
        /// Tokens fed for this step.
        prompt_tokens: usize,
        /// Tokens generated for this step.
        completion_tokens: usize,
    },
}

/// What a run did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The report's file.
    pub path: PathBuf,
    /// What became of it.
    pub written: Written,
    /// Notes of the job, each cited.
    pub notes: usize,
    /// Steps that the report is made of.
    pub steps: usize,
    /// Those that had a record before this run.
    pub reused: usize,
    /// Steps whose answer was cut at its limit of tokens.
    pub cut: usize,
    /// Tokens fed in this run.
    pub prompt_tokens: u64,
    /// Tokens generated in this run.
    pub completion_tokens: u64,
}

/// A job that is ready for its model: notes read, store open, locked.
#[derive(Debug)]
pub struct Night {
    job: Job,
    notes: Notes,
    store: JobStore,
    report: PathBuf,
}

/// Makes a job ready: all that can be wrong without a model is found here, before one is loaded.
///
/// `store` is the folder of the store; without it that is [`Store::folder_beside`] the report.
pub fn prepare(job: Job, store: Option<&Path>) -> Result<Night, JobError> {
    let notes = Notes::read(&job.notes, &job.output)?;
    let report = report::place(&job.output)?;
    let beside = Store::folder_beside(&report);
    let store = Store::open(store.unwrap_or(&beside))?.claim(&report, &job.title)?;
    if let (Some(recorded), Some(asked)) = (store.date()?, job.date)
        && recorded != asked
    {
        return Err(JobError::Date { recorded: recorded.iso_date(), asked: asked.iso_date() });
    }
    if !store.has_reported()? {
        report::check_place(&report)?;
    }
    Ok(Night { job, notes, store, report })
}

impl Night {
    /// The job.
    pub fn job(&self) -> &Job {
        &self.job
    }

    /// The notes as they were read.
    pub fn notes(&self) -> &Notes {
        &self.notes
    }

    /// The store, locked for this job.
    pub fn store(&self) -> &JobStore {
        &self.store
    }

    /// The date that templates of prompts write, all through the job's life: a prompt that changed at midnight would make
    /// another report after a restart. It is fixed, on the disk, when this is first called: as the job file's `date`, else
    /// as the day of `now`.
    pub fn date(&self, now: CivilTime) -> Result<CivilTime, JobError> {
        let given = self.job.date.unwrap_or(now);
        if let Some(recorded) = self.store.date()? {
            return Ok(recorded);
        }
        self.store.set_date(given)?;
        Ok(self.store.date()?.expect("it was just recorded"))
    }

    /// Runs the job to its report. Steps that have a record are not run again; a job that is done generates nothing.
    pub fn run(
        &mut self,
        generator: &mut dyn Generator,
        observer: &mut dyn FnMut(Progress),
    ) -> Result<Report, JobError> {
        let run = Run {
            fingerprint: generator.fingerprint(),
            context_size: generator.context_size(),
            job: &self.job,
            notes: &self.notes,
            store: &self.store,
            generator,
            observer,
            counts: Counts::default(),
        };
        let result = run.run(&self.report);
        // A store that has failed is not written to again: the next run recovers it, and takes steps that it finds
        // "running" for what they are.
        if result.as_ref().is_err_and(|error| !matches!(error, JobError::Store(_))) {
            // The error that ended the run is the one to tell.
            let _ = self.store.interrupt();
        }
        result
    }
}

#[derive(Default)]
struct Counts {
    steps: usize,
    reused: usize,
    cut: usize,
    prompt_tokens: u64,
    completion_tokens: u64,
}

struct Run<'a> {
    job: &'a Job,
    notes: &'a Notes,
    store: &'a JobStore,
    generator: &'a mut dyn Generator,
    observer: &'a mut dyn FnMut(Progress),
    fingerprint: String,
    context_size: usize,
    counts: Counts,
}

/// The answer of the last round, and how it came about.
struct Merged {
    answer: Record,
    rounds: usize,
    cut_merges: usize,
}

impl Run<'_> {
    fn run(mut self, report: &Path) -> Result<Report, JobError> {
        let manifest = manifest::of_run(self.job, self.notes, &self.fingerprint, self.context_size);
        let changed = self.store.begin(&manifest)?;
        let (notes, text_bytes) = (self.notes.len(), self.notes.text_bytes());
        (self.observer)(Progress::Began { notes, text_bytes, changed });

        let answers = self.map()?;
        let merged = self.reduce(&answers)?;
        let text = report::markdown(&Contents {
            job: self.job,
            notes: self.notes,
            answers: &answers,
            merged: &merged.answer,
            rounds: merged.rounds,
            cut_merges: merged.cut_merges,
            run: &manifest::short_hash(&manifest),
        });
        let written = report::write(report, &text)?;
        self.store.complete(&blake3::hash(text.as_bytes()).to_hex())?;

        let Counts { steps, reused, cut, prompt_tokens, completion_tokens } = self.counts;
        Ok(Report { path: report.to_owned(), written, notes, steps, reused, cut, prompt_tokens, completion_tokens })
    }

    /// Asks about each note, in parts where it is long. Gives the answers of each note's parts.
    fn map(&mut self) -> Result<Vec<Vec<Record>>, JobError> {
        let mut requests = Vec::new();
        let mut parts_of_notes = Vec::with_capacity(self.notes.len());
        let notes = self.notes;
        for note in notes.iter() {
            let prompts = self.map_prompts(note)?;
            parts_of_notes.push(prompts.len());
            requests.extend(prompts.into_iter().map(|prompt| self.request(prompt, &self.job.recipe.map)));
        }
        self.check_that_merging_can_end(&parts_of_notes)?;
        let mut answers = self.steps(StepKind::Map, 0, requests)?.into_iter();
        Ok(parts_of_notes.into_iter().map(|parts| answers.by_ref().take(parts).collect()).collect())
    }

    /// The prompts of a note's parts; none if there is nothing in the note.
    fn map_prompts(&self, note: &Note) -> Result<Vec<Prompt>, JobError> {
        if note.text.trim().is_empty() {
            return Ok(Vec::new());
        }
        let map = &self.job.recipe.map;
        let prompt = |text: &str, part, parts| {
            let Note { path, title, .. } = note;
            let language = self.job.language.as_deref();
            map.template.map_prompt(&MapVariables { path, title, text, part, parts, language })
        };
        let whole = prompt(&note.text, 1, 1)?;
        if self.fits(&whole, map)? {
            return Ok(vec![whole]);
        }
        let mut fits = |text: &str| self.fits(&prompt(text, PARTS_NOT_YET_KNOWN, PARTS_NOT_YET_KNOWN)?, map);
        let too_long = |prompt: &Prompt| {
            let help = "shorten the prompt, lower `map.max_tokens` or give the model a larger context".to_owned();
            self.too_long(format!("a part of the note {}", note.path), prompt, "map", map, help)
        };
        let Some(texts) = split(&note.text, &mut fits)? else {
            return Err(too_long(&prompt("", PARTS_NOT_YET_KNOWN, PARTS_NOT_YET_KNOWN)?));
        };
        let parts = texts.len();
        let mut prompts = Vec::with_capacity(parts);
        for (number, text) in texts.into_iter().enumerate() {
            let prompt = prompt(text, number + 1, parts)?;
            if !self.fits(&prompt, map)? {
                return Err(too_long(&prompt));
            }
            prompts.push(prompt);
        }
        Ok(prompts)
    }

    /// Refuses in the evening what would fail in the morning: two answers of full length must fit one merging prompt,
    /// or else merging never ends (unless all answers fit together).
    fn check_that_merging_can_end(&self, parts_of_notes: &[usize]) -> Result<(), JobError> {
        let (map, reduce) = (&self.job.recipe.map, &self.job.recipe.reduce);
        let items: Vec<_> = self
            .notes
            .iter()
            .zip(parts_of_notes)
            .flat_map(|(note, parts)| std::iter::repeat_n(item(note, String::new()), *parts))
            .collect();
        let all_tokens = items.len().saturating_mul(map.max_tokens);
        if all_tokens < self.context_size {
            let prompt = self.reduce_prompt(&items, 1, true)?;
            if self.count(&prompt)?.saturating_add(all_tokens).saturating_add(reduce.max_tokens) <= self.context_size {
                return Ok(());
            }
        }
        let mut longest: Vec<_> = items;
        longest.sort_by_key(|item| std::cmp::Reverse(item.links[0].len()));
        longest.truncate(2);
        let items = longest.len();
        // Answers of a later round are merged answers; with one item there is no later round.
        let answer = if items > 1 { map.max_tokens.max(reduce.max_tokens) } else { map.max_tokens };
        let bare_tokens = self.count(&self.reduce_prompt(&longest, 1, items < 2)?)?;
        let prompt_tokens = bare_tokens.saturating_add(answer.saturating_mul(items));
        if prompt_tokens.saturating_add(reduce.max_tokens) <= self.context_size {
            return Ok(());
        }
        let larger = "give the model a larger context";
        let help = match self.context_size.saturating_sub(bare_tokens) / (items + 1) {
            0 => larger.to_owned(),
            fitting => format!("lower `map.max_tokens` and `reduce.max_tokens` to {fitting} or {larger}"),
        };
        let (max_tokens, context_size) = (reduce.max_tokens, self.context_size);
        let what = format!("merging {items} answers of up to {answer} tokens");
        Err(JobError::TooLong { what, prompt_tokens, key: "reduce", max_tokens, context_size, help })
    }

    /// Merges answers, in rounds while they do not fit one prompt. A round leaves fewer of them or is the last.
    fn reduce(&mut self, answers: &[Vec<Record>]) -> Result<Merged, JobError> {
        let mut items: Vec<_> = self
            .notes
            .iter()
            .zip(answers)
            .flat_map(|(note, parts)| parts.iter().map(|part| item(note, part.output.clone())))
            .collect();
        let mut cut_merges = 0;
        let mut round = 0;
        loop {
            round += 1;
            if self.fitting(&items, round, true)? == items.len() {
                let request = self.request(self.reduce_prompt(&items, round, true)?, &self.job.recipe.reduce);
                let answer = self.steps(StepKind::Reduce, round, vec![request])?.swap_remove(0);
                self.store.end_plan(round)?;
                return Ok(Merged { answer, rounds: round, cut_merges });
            }
            let groups = self.groups(&items, round)?;
            let mut requests = Vec::new();
            for group in groups.iter().filter(|group| group.len() > 1) {
                let prompt = self.reduce_prompt(&items[group.clone()], round, false)?;
                requests.push(self.request(prompt, &self.job.recipe.reduce));
            }
            let mut merged = self.steps(StepKind::Reduce, round, requests)?.into_iter();
            items = groups
                .into_iter()
                .map(|group| {
                    // One that stands alone waits for the next round as it is.
                    if group.len() == 1 {
                        return items[group.start].clone();
                    }
                    let answer = merged.next().expect("one answer for each request");
                    cut_merges += usize::from(answer.finish_reason == FinishReason::Length);
                    let mut seen = HashSet::new();
                    let links =
                        items[group].iter().flat_map(|item| &item.links).filter(|link| seen.insert(*link)).cloned();
                    Item { links: links.collect(), text: answer.output }
                })
                .collect();
        }
    }

    /// Items packed in their order, as many to a prompt as fit; fewer groups than items.
    fn groups(&self, items: &[Item], round: usize) -> Result<Vec<Range<usize>>, JobError> {
        let mut groups = Vec::new();
        let mut start = 0;
        while start < items.len() {
            // One that does not fit even alone may still fit when others have become shorter.
            let fitting = self.fitting(&items[start..], round, false)?.max(1);
            groups.push(start..start + fitting);
            start += fitting;
        }
        if groups.len() < items.len() {
            return Ok(groups);
        }
        let reduce = &self.job.recipe.reduce;
        let first = &items[..items.len().min(2)];
        let what = format!("merging {} answers in round {round}, even the first {} of them,", items.len(), first.len());
        let help = "lower `map.max_tokens` or `reduce.max_tokens` or give the model a larger context".to_owned();
        Err(self.too_long(what, &self.reduce_prompt(first, round, items.len() < 2)?, "reduce", reduce, help))
    }

    fn fitting(&self, items: &[Item], round: usize, last: bool) -> Result<usize, JobError> {
        largest_prefix(items.len(), &mut |n| {
            self.fits(&self.reduce_prompt(&items[..n], round, last)?, &self.job.recipe.reduce)
        })
    }

    /// The answers to `requests`, from their records where there are some, else from the generator by way of a record.
    fn steps(&mut self, kind: StepKind, round: usize, requests: Vec<PromptRequest>) -> Result<Vec<Record>, JobError> {
        let inputs: Vec<_> = requests.iter().map(|request| manifest::of_step(&self.fingerprint, request)).collect();
        self.store.plan(kind, round, &inputs)?;
        let mut answers = HashMap::new();
        // Equal requests have equal answers: they are one step.
        let mut seen = HashSet::new();
        let mut missing = Vec::new();
        let mut pending = Vec::new();
        for (input, request) in inputs.iter().zip(requests) {
            if !seen.insert(input) {
                continue;
            }
            match self.store.recorded(input)? {
                Some(record) => drop(answers.insert(&**input, record)),
                None => {
                    missing.push(&**input);
                    pending.push(request);
                }
            }
        }
        let (steps, recorded) = (seen.len(), answers.len());
        self.counts.steps += steps;
        self.counts.reused += recorded;
        (self.observer)(Progress::Round { kind, round, steps, recorded });
        if !pending.is_empty() {
            self.store.start(kind, round)?;
            self.generate(kind, round, &missing, &pending, &mut answers)?;
        }
        self.counts.cut += answers.values().filter(|answer| answer.finish_reason == FinishReason::Length).count();
        Ok(inputs.iter().map(|input| answers[&**input].clone()).collect())
    }

    /// Has `pending` answered and each answer recorded under its input in `missing` before it joins `answers`.
    fn generate<'i>(
        &mut self,
        kind: StepKind,
        round: usize,
        missing: &[&'i str],
        pending: &[PromptRequest],
        answers: &mut HashMap<&'i str, Record>,
    ) -> Result<(), JobError> {
        let requests = pending.len();
        let steps = answers.len() + requests;
        let (store, observer, counts) = (self.store, &mut *self.observer, &mut self.counts);
        let mut finish = |index: usize, completion: Completion| -> Result<(), JobError> {
            let contract = |how| JobError::Contract { index, requests, how };
            let input = *missing.get(index).ok_or_else(|| contract("that it never had"))?;
            if answers.contains_key(input) {
                return Err(contract("twice"));
            }
            store.record(input, &completion)?;
            let Completion { text, finish_reason, prompt_tokens, completion_tokens } = completion;
            answers.insert(input, Record { output: text, finish_reason, prompt_tokens, completion_tokens });
            counts.prompt_tokens += prompt_tokens as u64;
            counts.completion_tokens += completion_tokens as u64;
            observer(Progress::Step { kind, round, done: answers.len(), steps, prompt_tokens, completion_tokens });
            Ok(())
        };
        let mut failure = None;
        let generated = self.generator.generate(pending, &mut |index, completion| {
            if failure.is_none() {
                failure = finish(index, completion).err();
            }
            if failure.is_some() { Err(Abort) } else { Ok(()) }
        });
        if let Some(failure) = failure {
            return Err(failure);
        }
        generated?;
        match missing.iter().position(|input| !answers.contains_key(input)) {
            Some(index) => Err(JobError::Contract { index, requests, how: "never" }),
            None => Ok(()),
        }
    }

    fn request(&self, prompt: Prompt, phase: &Phase) -> PromptRequest {
        PromptRequest { prompt, max_tokens: phase.max_tokens, sampling: self.job.sampling, seed: self.job.seed }
    }

    fn reduce_prompt(&self, items: &[Item], round: usize, last: bool) -> Result<Prompt, TemplateError> {
        let (notes, language) = (self.notes.len(), self.job.language.as_deref());
        self.job.recipe.reduce.template.reduce_prompt(&ReduceVariables { items, notes, round, last, language })
    }

    fn count(&self, prompt: &Prompt) -> Result<usize, JobError> {
        Ok(self.generator.count_tokens(prompt)?)
    }

    fn fits(&self, prompt: &Prompt, phase: &Phase) -> Result<bool, JobError> {
        Ok(self.count(prompt)?.saturating_add(phase.max_tokens) <= self.context_size)
    }

    fn too_long(&self, what: String, prompt: &Prompt, key: &'static str, phase: &Phase, help: String) -> JobError {
        match self.count(prompt) {
            Ok(prompt_tokens) => JobError::TooLong {
                what,
                prompt_tokens,
                key,
                max_tokens: phase.max_tokens,
                context_size: self.context_size,
                help,
            },
            Err(e) => e,
        }
    }
}

fn item(note: &Note, text: String) -> Item {
    Item { links: vec![note.link.clone()], text }
}
