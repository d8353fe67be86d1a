//! JOB.toml: what a night job reads, asks and writes.
//!
//! The file is checked as a whole before anything is loaded: a key that is not known is an error with its name, its
//! line and the known keys, never ignored, because a misspelt `max_tokens` costs a night.
//!
//! ```toml
//! model = "models/Qwen3-30B-A3B"    # folder of the checkpoint
//! notes = "notes"                   # a folder, a *.md file, a glob such as "notes/2026-*.md", or a list of these
//! recipe = "contradictions"         # or "summary", "architecture", or none with [map] and [reduce] of your own
//! output = "report.md"
//! # title = "…"  language = "Russian"  seed = 0
//! # date = 2026-11-23               # for chat templates that write it; without it, the day on which the job was first started
//! # thinking = false                # `enable_thinking` of the chat template; reasoning_effort = "low" | "medium" | "high"
//! # [sampling]  temperature = 0  top_k = 0  top_p = 1  min_p = 0
//! # [map]       prompt = "…"  system = "…"  max_tokens = 256
//! # [reduce]    prompt = "…"  system = "…"  max_tokens = 512
//! ```
//!
//! Relative paths are relative to the folder of JOB.toml. A key of `[map]` or `[reduce]` beside a built-in `recipe`
//! replaces that one key of it.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use engine_core::text::{CivilTime, ReasoningEffort, RenderOptions};
use serde::de::{self, Deserialize, Deserializer, SeqAccess, Visitor};

use crate::generator::Sampling;
use crate::template::{PhaseTemplate, TemplateError};

/// The built-in recipes by name.
const BUILT_IN: [(&str, &str); 3] = [
    ("architecture", include_str!("../recipes/architecture.toml")),
    ("contradictions", include_str!("../recipes/contradictions.toml")),
    ("summary", include_str!("../recipes/summary.toml")),
];

/// A job file is written by hand; one longer than this is another file named by mistake.
const JOB_FILE_BYTES_MAX: u64 = 1 << 20;

const TITLE_BYTES_MAX: usize = 500;
const MAP_MAX_TOKENS: usize = 256;
const REDUCE_MAX_TOKENS: usize = 512;

/// A job as its file describes it, paths made absolute.
#[derive(Clone, Debug)]
pub struct Job {
    /// The checkpoint's folder. Whoever runs the job may put another one here before [`prepare`](crate::prepare).
    pub model: PathBuf,
    /// Folders, files and globs of notes.
    pub notes: Vec<PathBuf>,
    /// Where the report goes.
    pub output: PathBuf,
    /// The report's title.
    pub title: String,
    /// The language that answers should be in, if the job asks for one.
    pub language: Option<String>,
    /// The beginning of the day that chat templates take for today, if the job file says it.
    pub date: Option<CivilTime>,
    /// Whether the model thinks before it answers, if the job file says it.
    pub thinking: Option<bool>,
    /// How much it thinks, if the job file says it.
    pub reasoning_effort: Option<ReasoningEffort>,
    /// The seed of every draw.
    pub seed: u64,
    /// How tokens are drawn.
    pub sampling: Sampling,
    /// What is asked.
    pub recipe: Recipe,
}

/// What is asked of each note, and of the answers together.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// A built-in recipe's name, or `own`; `… (changed)` where the job replaced a key of a built-in one.
    pub name: String,
    /// Asked of each note, or of each part of a note that does not fit the context.
    pub map: Phase,
    /// Merges answers, in rounds while they do not fit the context.
    pub reduce: Phase,
}

/// One kind of prompt.
#[derive(Clone, Debug)]
pub struct Phase {
    pub(crate) template: PhaseTemplate,
    /// The most tokens of an answer.
    pub max_tokens: usize,
}

/// Why a job file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JobFileError {
    /// The file itself cannot be read.
    #[error("cannot read the job file {}: {source}", path.display())]
    Read {
        /// The job file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is not the TOML that a job is.
    #[error("{}: {message}", path.display())]
    Syntax {
        /// The job file.
        path: PathBuf,
        /// Line, column, the line itself, what was expected.
        message: String,
    },
    /// A value is well-formed and cannot be meant.
    #[error("{}: {message}", path.display())]
    Value {
        /// The job file.
        path: PathBuf,
        /// The key, its value, what would help.
        message: String,
    },
    /// A prompt is not a template.
    #[error("{}: {source}", path.display())]
    Template {
        /// The job file.
        path: PathBuf,
        /// Which prompt, which line, what is wrong.
        source: TemplateError,
    },
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct JobFile {
    model: PathBuf,
    notes: OneOrMany,
    recipe: Option<String>,
    output: PathBuf,
    title: Option<String>,
    language: Option<String>,
    date: Option<toml::Value>,
    thinking: Option<bool>,
    reasoning_effort: Option<String>,
    #[serde(default)]
    seed: u64,
    #[serde(default)]
    sampling: SamplingFile,
    #[serde(default)]
    map: PhaseFile,
    #[serde(default)]
    reduce: PhaseFile,
}

#[derive(Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct PhaseFile {
    prompt: Option<String>,
    system: Option<String>,
    max_tokens: Option<usize>,
}

#[derive(Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct SamplingFile {
    temperature: Option<f32>,
    top_k: Option<usize>,
    top_p: Option<f32>,
    min_p: Option<f32>,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct RecipeFile {
    map: PhaseFile,
    reduce: PhaseFile,
}

impl Job {
    /// Reads and checks a job file. Nothing that it names is opened yet.
    pub fn load(path: &Path) -> Result<Self, JobFileError> {
        let read = |source| JobFileError::Read { path: path.to_owned(), source };
        let mut text = String::new();
        let file = File::open(path).map_err(read)?;
        file.take(JOB_FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(read)?;
        if text.len() as u64 > JOB_FILE_BYTES_MAX {
            return Err(read(io::Error::new(
                io::ErrorKind::FileTooLarge,
                format!("longer than {JOB_FILE_BYTES_MAX} bytes, so it is hardly a job file"),
            )));
        }
        let path = std::path::absolute(path).map_err(read)?;
        Self::parse(&text, &path)
    }

    fn parse(text: &str, path: &Path) -> Result<Self, JobFileError> {
        let value = |message| JobFileError::Value { path: path.to_owned(), message };
        let file: JobFile = toml::from_str(text).map_err(|e| JobFileError::Syntax {
            path: path.to_owned(),
            message: e.to_string().trim_end().to_owned(),
        })?;
        let folder = path.parent().unwrap_or(Path::new("/"));

        let recipe = recipe(file.recipe.as_deref(), file.map, file.reduce).map_err(|e| match e {
            RecipeError::Value(message) => value(message),
            RecipeError::Template(source) => JobFileError::Template { path: path.to_owned(), source },
        })?;
        if file.notes.0.is_empty() {
            return Err(value("`notes` is an empty list; name a folder of *.md files".to_owned()));
        }
        let empty = Path::new("");
        for (key, given) in [("model", &file.model), ("output", &file.output)] {
            if given == empty {
                return Err(value(format!("`{key}` is empty; name a path")));
            }
        }
        if file.output.file_name().is_none() {
            return Err(value(format!("`output` = {:?} names no file", file.output)));
        }
        let title = match file.title {
            Some(title) if title.trim().is_empty() || title.contains(['\n', '\r']) || title.len() > TITLE_BYTES_MAX => {
                return Err(value(format!(
                    "`title` must be one line with text in it, of at most {TITLE_BYTES_MAX} bytes"
                )));
            }
            Some(title) => title.trim().to_owned(),
            None => {
                let stem = path.file_stem().unwrap_or_default().to_string_lossy();
                let mut letters = stem.chars();
                letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
            }
        };
        Ok(Self {
            model: folder.join(file.model),
            notes: file.notes.0.iter().map(|entry| folder.join(entry)).collect(),
            output: folder.join(file.output),
            title,
            language: file.language,
            date: file.date.map(|given| date(&given)).transpose().map_err(value)?,
            thinking: file.thinking,
            reasoning_effort: file.reasoning_effort.as_deref().map(reasoning_effort).transpose().map_err(value)?,
            seed: file.seed,
            sampling: sampling(file.sampling).map_err(value)?,
            recipe,
        })
    }
}

impl Job {
    /// What the chat template is told, as far as the job file says it.
    pub fn render_options(&self) -> RenderOptions {
        let effort = self.reasoning_effort.map(|effort| (ReasoningEffort::VARIABLE.into(), effort.name().into()));
        RenderOptions {
            add_generation_prompt: true,
            enable_thinking: self.thinking,
            extra: effort.into_iter().collect(),
            ..RenderOptions::default()
        }
    }
}

enum RecipeError {
    Value(String),
    Template(TemplateError),
}

fn recipe(name: Option<&str>, map: PhaseFile, reduce: PhaseFile) -> Result<Recipe, RecipeError> {
    let changed = [&map, &reduce]
        .iter()
        .any(|phase| phase.prompt.is_some() || phase.system.is_some() || phase.max_tokens.is_some());
    let (name, base) = match name {
        Some(name) => {
            let Some((_, text)) = BUILT_IN.iter().find(|(known, _)| *known == name) else {
                let known = BUILT_IN.map(|(known, _)| format!("`{known}`")).join(", ");
                return Err(RecipeError::Value(format!(
                    "`recipe` = {name:?} is not built in (built in: {known}); for one of your own leave `recipe` out \
                     and write [map] and [reduce], each with a `prompt`"
                )));
            };
            let base: RecipeFile = toml::from_str(text).expect("built-in recipes are checked by a test");
            (if changed { format!("{name} (changed)") } else { name.to_owned() }, base)
        }
        None => ("own".to_owned(), RecipeFile { map: PhaseFile::default(), reduce: PhaseFile::default() }),
    };
    Ok(Recipe {
        name,
        map: phase("map", map, base.map, MAP_MAX_TOKENS)?,
        reduce: phase("reduce", reduce, base.reduce, REDUCE_MAX_TOKENS)?,
    })
}

fn phase(key: &'static str, own: PhaseFile, base: PhaseFile, default_max_tokens: usize) -> Result<Phase, RecipeError> {
    let Some(prompt) = own.prompt.or(base.prompt) else {
        return Err(RecipeError::Value(format!(
            "neither `recipe` nor `{key}.prompt` is given; name a built-in recipe or write [{key}] with a `prompt`"
        )));
    };
    let max_tokens = own.max_tokens.or(base.max_tokens).unwrap_or(default_max_tokens);
    if max_tokens == 0 {
        return Err(RecipeError::Value(format!("`{key}.max_tokens` is 0; an answer needs at least 1 token")));
    }
    let system = own.system.or(base.system);
    let template = PhaseTemplate::new(key, system, prompt).map_err(RecipeError::Template)?;
    Ok(Phase { template, max_tokens })
}

/// TOML's own date, or the same as a text.
fn date(given: &toml::Value) -> Result<CivilTime, String> {
    let text = given.as_str().map_or_else(|| given.to_string(), str::to_owned);
    let help = "write a day, like 2026-11-23, without quotes or in them";
    CivilTime::from_iso_date(&text).ok_or_else(|| format!("`date` = {given} is no day of the calendar; {help}"))
}

fn reasoning_effort(given: &str) -> Result<ReasoningEffort, String> {
    given.parse().map_err(|known| format!("`reasoning_effort` = {given:?}: {known}"))
}

fn sampling(file: SamplingFile) -> Result<Sampling, String> {
    let default = Sampling::default();
    let sampling = Sampling {
        temperature: file.temperature.unwrap_or(default.temperature),
        top_k: file.top_k.unwrap_or(default.top_k),
        top_p: file.top_p.unwrap_or(default.top_p),
        min_p: file.min_p.unwrap_or(default.min_p),
    };
    let Sampling { temperature, top_p, min_p, .. } = sampling;
    if !(0.0..=100.0).contains(&temperature) {
        return Err(format!("`sampling.temperature` = {temperature} must be from 0 to 100"));
    }
    if !(top_p > 0.0 && top_p <= 1.0) {
        return Err(format!("`sampling.top_p` = {top_p} must be above 0 and at most 1"));
    }
    if !(0.0..=1.0).contains(&min_p) {
        return Err(format!("`sampling.min_p` = {min_p} must be from 0 to 1"));
    }
    Ok(sampling)
}

/// `notes = "…"` or `notes = ["…", "…"]`.
struct OneOrMany(Vec<PathBuf>);

impl<'de> Deserialize<'de> for OneOrMany {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = OneOrMany;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a folder, file or glob, or a list of these")
            }
            fn visit_str<E: de::Error>(self, entry: &str) -> Result<OneOrMany, E> {
                Ok(OneOrMany(vec![entry.into()]))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<OneOrMany, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = list.next_element()? {
                    entries.push(entry);
                }
                Ok(OneOrMany(entries))
            }
        }
        deserializer.deserialize_any(Entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str = "model = 'm'\nnotes = 'n'\nrecipe = 'summary'\noutput = 'o.md'\n";

    fn parse(text: &str) -> Result<Job, String> {
        Job::parse(text, Path::new("/jobs/night.toml")).map_err(|e| e.to_string())
    }

    #[test]
    fn relative_paths_are_relative_to_the_job_file() {
        let job = parse(MINIMAL).unwrap();
        assert_eq!(job.model, Path::new("/jobs/m"));
        assert_eq!(job.notes, [Path::new("/jobs/n")]);
        assert_eq!(job.output, Path::new("/jobs/o.md"));
        assert_eq!(job.title, "Night");
        let list = parse(&MINIMAL.replace("'n'", "['a', '/b/*.md']")).unwrap();
        assert_eq!(list.notes, [Path::new("/jobs/a"), Path::new("/b/*.md")]);
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line_and_the_known_keys() {
        let message = parse(&format!("{MINIMAL}temprature = 1\n")).unwrap_err();
        for part in ["/jobs/night.toml", "line 5", "`temprature`", "`model`", "`sampling`", "`reduce`"] {
            assert!(message.contains(part), "{part} is missing in: {message}");
        }
        let message = parse(&format!("{MINIMAL}[map]\nmax_token = 5\n")).unwrap_err();
        for part in ["line 6", "`max_token`", "`max_tokens`"] {
            assert!(message.contains(part), "{part} is missing in: {message}");
        }
    }

    #[test]
    fn every_built_in_recipe_is_a_recipe() {
        for (name, _) in BUILT_IN {
            let job = parse(&MINIMAL.replace("summary", name)).unwrap();
            assert_eq!(job.recipe.name, name);
            let changed = parse(&format!("{}[map]\nmax_tokens = 7\n", MINIMAL.replace("summary", name))).unwrap();
            assert_eq!(changed.recipe.name, format!("{name} (changed)"));
            assert_eq!(changed.recipe.map.max_tokens, 7);
        }
    }

    #[test]
    fn a_date_is_a_day_with_quotes_or_without() {
        let day = CivilTime::from_iso_date("2026-11-23");
        for text in ["2026-11-23", "'2026-11-23'"] {
            assert_eq!(parse(&format!("{MINIMAL}date = {text}\n")).unwrap().date, day);
        }
        assert_eq!(parse(MINIMAL).unwrap().date, None);
        for text in ["2026-11-23T10:00:00", "'yesterday'", "'2026-02-30'", "20261123", "10:00:00", "[2026-11-23]"] {
            let message = parse(&format!("{MINIMAL}date = {text}\n")).unwrap_err();
            assert!(message.contains("`date`") && message.contains("2026-11-23"), "{message}");
        }
    }

    #[test]
    fn values_that_cannot_be_meant_are_refused_by_name() {
        let without = |key: &str| MINIMAL.lines().filter(|line| !line.starts_with(key)).collect::<Vec<_>>().join("\n");
        for (text, part) in [
            (without("model"), "model"),
            (without("recipe"), "[map]"),
            (without("recipe") + "\n[map]\nprompt = 'x'\n", "reduce.prompt"),
            (MINIMAL.replace("summary", "sumary"), "`architecture`, `contradictions`, `summary`"),
            (MINIMAL.replace("'n'", "[]"), "`notes`"),
            (MINIMAL.replace("'n'", "7"), "a folder, file or glob"),
            (MINIMAL.replace("'o.md'", "'..'"), "`output`"),
            (MINIMAL.replace("'m'", "''"), "`model`"),
            (format!("{MINIMAL}seed = -1\n"), "line 5"),
            (format!("{MINIMAL}thinking = 'off'\n"), "line 5"),
            (
                format!("{MINIMAL}reasoning_effort = 'hard'\n"),
                "`reasoning_effort` = \"hard\": known: low, medium, high",
            ),
            (format!("{MINIMAL}title = \"a\\nb\"\n"), "`title`"),
            (format!("{MINIMAL}[sampling]\ntemperature = nan\n"), "temperature"),
            (format!("{MINIMAL}[sampling]\ntop_p = 0\n"), "top_p"),
            (format!("{MINIMAL}[sampling]\nmin_p = 1.5\n"), "min_p"),
            (format!("{MINIMAL}[reduce]\nmax_tokens = 0\n"), "reduce.max_tokens"),
            (format!("{MINIMAL}[map]\nprompt = '{{% for %}}'\n"), "map.prompt"),
            (format!("{MINIMAL}{MINIMAL}"), "duplicate"),
        ] {
            let message = parse(&text).unwrap_err();
            assert!(message.contains(part), "{part} is missing in: {message}");
        }
    }
}
