//! Night jobs: recipes over notes, with a durable store.
//!
//! A night job must end in the morning with the report that an undisturbed night would have given, whatever
//! happened in between. So everything here follows from one sentence: *the store is the only truth*. A step is
//! named by a hash of all that decides its bytes; its result is recorded, synced, before it counts; and the report
//! is nothing but a function of the notes, the recipe and the records.
//!
//! ```text
//! JOB.toml → Job ─┐
//! notes  → Notes ─┴→ prepare → Night ── run(generator) ──→ Report
//!                      │         │ map: one step for each note, or for each part of a long one
//!                      │         │ reduce: rounds of merging until one answer is left
//!                      └ Store ←─┘ every finished step, before it counts
//! ```
//!
//! Nothing here but [`EngineGenerator`] knows a model: jobs ask a [`Generator`] for completions. Note text and prompts are never logged;
//! errors name paths and numbers only.
#![forbid(unsafe_code)]

mod engine_generator;
mod generator;
mod manifest;
mod markdown;
mod notes;
mod recipe;
mod report;
mod runner;
mod split;
mod store;
mod template;
#[cfg(test)]
mod tests;

pub use engine_generator::{AdapterChoice, EngineGenerator, Settings, Start};
pub use generator::{Abort, Completion, FinishReason, GenerateError, Generator, Prompt, PromptRequest, Sampling};
pub use notes::{Note, Notes, NotesError};
pub use recipe::{Job, JobFileError, Phase, Recipe};
pub use report::{ReportError, Written};
pub use runner::{JobError, Night, Progress, Report, prepare};
pub use store::{JobStore, State, StepKind, Store, StoreError};
pub use template::TemplateError;
