//! `night run`: jobs over notes, until they are done.

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;

use engine_core::session::Engine;
use engine_core::text::{ChatTemplate, RenderOptions};
use engine_monk::{AdapterChoice, EngineGenerator, Job, Night, Settings, StepKind};

use crate::args::{self, NightCommand, NightRun};
use crate::clock::now;
use crate::failure::Failure;
use crate::figures;
use crate::load_choice::Work;
use crate::model::{self, LogitRows, ModelText, OpenAdapter, Opened};
use crate::output::{print, printable};
use crate::progress::{Progress, Unit};

/// A job of which everything was checked that can be without its weights.
struct Ready {
    night: Night,
    text: ModelText,
    template: ChatTemplate,
    opened: Opened,
}

pub(crate) fn run(arguments: &args::Night) -> Result<(), Failure> {
    let NightCommand::Run(arguments) = &arguments.command;
    // What is wrong with any job is found now and not at three in the morning.
    let ready: Vec<Ready> = arguments.jobs.iter().map(|path| prepare(path, arguments)).collect::<Result<_, _>>()?;
    let mut first_failure = None;
    for (path, job) in arguments.jobs.iter().zip(ready) {
        if let Err(failure) = work(job) {
            // The night goes on with the next job.
            if arguments.jobs.len() > 1 {
                eprintln!("nightmonk: {}: {}", path.display(), printable(&failure.to_string()));
            }
            first_failure.get_or_insert(failure);
        }
    }
    first_failure.map_or(Ok(()), Err)
}

fn prepare(path: &Path, arguments: &NightRun) -> Result<Ready, Failure> {
    let mut job = Job::load(path).map_err(|error| Failure::Usage(error.to_string()))?;
    if let Some(model) = &arguments.model {
        job.model = model.clone();
    }
    let folder = job.model.clone();
    let night = engine_monk::prepare(job, arguments.store.as_deref())?;
    model::check_folder(&folder)?;
    let text = ModelText::from_dir(&folder)?;
    let template = ChatTemplate::from_dir(&folder)?;
    let options = night.job().render_options();
    template.check_options(&options).map_err(|error| Failure::Usage(format!("{}: {error}", path.display())))?;
    let opened = Opened::new(&folder, &arguments.run, arguments.width.get(), LogitRows::Last, Work::Long)?;
    Ok(Ready { night, text, template, opened })
}

fn choice(adapter: &OpenAdapter) -> AdapterChoice {
    let OpenAdapter { name, scale, folder } = adapter;
    AdapterChoice { name: name.clone(), scale: *scale, digest: folder.digest() }
}

fn work(job: Ready) -> Result<(), Failure> {
    let Ready { mut night, text, template, opened } = job;
    let settings = Settings {
        tokenizer: &text.tokenizer,
        template,
        rendering: RenderOptions { now: Some(night.date(now())?), ..night.job().render_options() },
        digest: opened.checkpoint.digest(opened.request.threads)?,
        options: opened.options,
        dials: opened.dials.clone(),
        kv_dtype: opened.request.kv_dtype,
        ctx_size: opened.request.ctx_size,
        adapters: opened.adapters.iter().map(choice).collect(),
    };
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
    // Held until the job is done; the next one may start threads anywhere.
    let pin = RefCell::new(None);
    let start = Box::new(|| {
        let (engine, of_caller) = opened.engine(&text)?;
        *pin.borrow_mut() = of_caller;
        Ok(engine)
    });
    let mut generator = EngineGenerator::new(settings, start, Box::new(watch));

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

    if let Some(engine) = generator.engine() {
        let totals = *engine.totals();
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
