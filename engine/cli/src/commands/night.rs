//! `night run`: jobs over notes, until they are done.

use std::cell::RefCell;
use std::rc::Rc;

use engine_core::session::Engine;
use engine_core::text::ChatTemplate;
use engine_monk::{EngineGenerator, Job, Night, StepKind};

use crate::args::{self, NightCommand, NightRun};
use crate::failure::Failure;
use crate::figures;
use crate::model::{self, ModelText};
use crate::output::print;
use crate::progress::{Progress, Unit};

pub(crate) fn run(arguments: &args::Night) -> Result<(), Failure> {
    let NightCommand::Run(arguments) = &arguments.command;
    // Everything that can be wrong with any job is found before the first one begins to work.
    let mut nights = Vec::with_capacity(arguments.jobs.len());
    for path in &arguments.jobs {
        let mut job = Job::load(path).map_err(|error| Failure::Usage(error.to_string()))?;
        if let Some(model) = &arguments.model {
            job.model = model.clone();
        }
        nights.push(engine_monk::prepare(job, arguments.store.as_deref())?);
    }
    for night in &mut nights {
        work(night, arguments)?;
    }
    Ok(())
}

fn work(night: &mut Night, arguments: &NightRun) -> Result<(), Failure> {
    let folder = night.job().model.clone();
    let text = ModelText::from_dir(&folder)?;
    let template = ChatTemplate::from_dir(&folder)?;
    let engine = model::engine(&folder, &arguments.run, arguments.width.get(), &text)?;
    let digest = engine.model().checkpoint().digest()?;
    // The bar belongs to the job's steps; the engine adds its speed to it.
    let bar: Rc<RefCell<Option<Progress>>> = Rc::default();
    let watch = {
        let bar = Rc::clone(&bar);
        move |engine: &Engine| {
            if let Some(bar) = bar.borrow_mut().as_mut() {
                bar.note(format!("{:.0} tok/s", engine.totals().rate()));
            }
        }
    };
    let mut generator = EngineGenerator::new(engine, template, &digest, Box::new(watch));

    let report = night.run(&mut generator, &mut |progress| match progress {
        engine_monk::Progress::Began { notes, text_bytes, changed } => {
            eprintln!("{notes} notes, {}", engine_core::plan::bytes(text_bytes));
            if changed {
                eprintln!(
                    "notes, recipe, settings or model changed since the last run; what is still the same is reused"
                );
            }
        }
        engine_monk::Progress::Round { kind, round, steps, recorded } => {
            let what = match kind {
                StepKind::Map => "notes".into(),
                StepKind::Reduce => format!("merging, round {round}"),
            };
            eprintln!("{what}: {steps} steps, {recorded} of them done already");
            let mut progress = Progress::new(what, Unit::Steps, steps as u64);
            progress.set(recorded as u64);
            *bar.borrow_mut() = Some(progress);
        }
        engine_monk::Progress::Step { done, steps, prompt_tokens, completion_tokens, .. } => {
            if let Some(bar) = bar.borrow_mut().as_mut() {
                bar.set(done as u64);
                bar.line(&format!("step {done} of {steps}: {prompt_tokens} tokens read, {completion_tokens} written"));
            }
        }
    })?;
    bar.borrow_mut().take();

    let engine = generator.engine();
    let totals = *engine.totals();
    if totals.generated_tokens > 0 {
        let bandwidth = figures::read_bandwidth(engine);
        eprintln!(
            "read {} tokens, wrote {} tokens, {:.1} tok/s, {}",
            totals.prefill_tokens,
            totals.generated_tokens,
            totals.rate(),
            figures::of_bandwidth(totals.bandwidth(), bandwidth)
        );
    }
    eprintln!(
        "{} steps, {} of them done before this run; {} answers were cut at their limit",
        report.steps, report.reused, report.cut
    );
    print(format_args!("{}\n", report.path.display()))
}
