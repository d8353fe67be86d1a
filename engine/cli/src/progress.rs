//! Progress on standard error: bars where it is a terminal, plain lines otherwise.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Something that takes a while and knows how much there is of it.
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    what: String,
    unit: Unit,
    total: u64,
    shown: Instant,
}

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Unit {
    Bytes,
    Tokens,
    Steps,
}

/// Plain lines come no more often: a log of a whole night stays readable.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

impl Progress {
    pub(crate) fn new(what: impl Into<String>, unit: Unit, total: u64) -> Self {
        let what = what.into();
        let bar = std::io::stderr().is_terminal().then(|| {
            let counts = match unit {
                Unit::Bytes => "{bytes}/{total_bytes}  {bytes_per_sec}",
                Unit::Tokens => "{pos}/{len} tokens  {per_sec}",
                Unit::Steps => "{pos}/{len} steps",
            };
            let template = format!("{{prefix}} {{wide_bar}} {counts}  {{msg}} {{eta}}");
            let style = ProgressStyle::with_template(&template).expect("the template is ours");
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
            bar.with_style(style).with_prefix(what.clone())
        });
        Self { bar, what, unit, total, shown: Instant::now() }
    }

    pub(crate) fn set(&mut self, done: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(done);
        } else if self.unit != Unit::Steps && self.shown.elapsed() >= LINE_INTERVAL {
            // Steps have lines of their own.
            self.shown = Instant::now();
            eprintln!("{}: {} of {}", self.what, self.amount(done), self.amount(self.total));
        }
    }

    /// Something to say beside the bar, like a speed.
    pub(crate) fn note(&mut self, message: String) {
        if let Some(bar) = &self.bar {
            bar.set_message(message);
        }
    }

    /// A line that stays, above the bar.
    pub(crate) fn line(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{line}")),
            None => eprintln!("{line}"),
        }
    }

    fn amount(&self, n: u64) -> String {
        match self.unit {
            Unit::Bytes => engine_core::plan::bytes(n),
            Unit::Tokens => format!("{n} tokens"),
            Unit::Steps => format!("{n} steps"),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
