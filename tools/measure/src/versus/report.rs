//! Rounds put together: medians, llama.cpp's best setting, and the ratio of each test.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

use super::build::Build;
use super::llama_cpp::Sample;
use super::test_of;
use crate::figures::{Figures, median};

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(super) struct Test {
    pub(super) n_prompt: usize,
    pub(super) n_gen: usize,
    pub(super) n_depth: usize,
    pub(super) width: usize,
}

impl Test {
    fn name(self) -> String {
        if self.n_prompt > 0 { format!("pp{}", self.n_prompt) } else { format!("tg{}", self.n_gen) }
    }
}

/// All rounds.
pub(super) struct Report {
    pub(super) shape: String,
    pub(super) commit: String,
    pub(super) llama_cpp: Build,
    pub(super) nightmonk_flags: Vec<String>,
    pub(super) llama_cpp_flags: Vec<String>,
    pub(super) rounds: usize,
    pub(super) tests: Vec<Measured>,
}

/// Both engines' figures of one test, an entry a round.
pub(super) struct Measured {
    test: Test,
    nightmonk: Vec<Figures>,
    llama_cpp: BTreeMap<String, Vec<f64>>,
}

/// The JSON document.
#[derive(Serialize)]
pub(super) struct Summary<'r> {
    shape: &'r str,
    commit: &'r str,
    llama_cpp: &'r Build,
    nightmonk_flags: &'r [String],
    llama_cpp_flags: &'r [String],
    rounds: usize,
    tests: Vec<Line>,
}

#[derive(Serialize)]
struct Line {
    name: String,
    #[serde(flatten)]
    test: Test,
    threads: usize,
    /// Medians over the rounds, and the rounds.
    nightmonk: Speed,
    activations: String,
    load: String,
    kv_type: String,
    read_bandwidth: f64,
    fraction_of_bandwidth: f64,
    fraction_of_peak: f64,
    /// By setting.
    llama_cpp: BTreeMap<String, Speed>,
    best_setting: String,
    /// Nightmonk's speed by llama.cpp's best: the median of the rounds' ratios.
    ratio: f64,
    ratios: Vec<f64>,
}

#[derive(Serialize)]
struct Speed {
    tokens_per_second: f64,
    rounds: Vec<f64>,
}

impl Speed {
    fn of(rounds: &[f64]) -> Self {
        Self { tokens_per_second: median(rounds).unwrap_or(f64::NAN), rounds: rounds.to_vec() }
    }
}

impl Report {
    /// Adds a round, in which both engines have to have measured the same tests.
    pub(super) fn add(&mut self, nightmonk: Vec<Figures>, llama_cpp: Vec<Sample>) -> Result<(), String> {
        for figures in nightmonk {
            let test = test_of(&figures);
            let theirs = || llama_cpp.iter().filter(|sample| sample.test == test);
            if theirs().next().is_none() {
                return Err(format!("llama.cpp did not measure {test:?}"));
            }
            let index = self.tests.iter().position(|measured| measured.test == test).unwrap_or_else(|| {
                self.tests.push(Measured { test, nightmonk: Vec::new(), llama_cpp: BTreeMap::new() });
                self.tests.len() - 1
            });
            let measured = &mut self.tests[index];
            measured.nightmonk.push(figures);
            for sample in theirs() {
                let speed = median(&sample.speeds).ok_or_else(|| format!("llama.cpp has no sample of {test:?}"))?;
                measured.llama_cpp.entry(sample.setting.clone()).or_default().push(speed);
            }
        }
        Ok(())
    }

    pub(super) fn summary(&self) -> Summary<'_> {
        Summary {
            shape: &self.shape,
            commit: &self.commit,
            llama_cpp: &self.llama_cpp,
            nightmonk_flags: &self.nightmonk_flags,
            llama_cpp_flags: &self.llama_cpp_flags,
            rounds: self.rounds,
            tests: self.tests.iter().filter_map(Measured::line).collect(),
        }
    }

    pub(super) fn text(&self) -> String {
        let bf16 = match self.llama_cpp.multiplies_bf16 {
            Some(true) => "with VDPBF16PS",
            Some(false) => "without VDPBF16PS",
            None => "VDPBF16PS unknown",
        };
        let lines = self.summary().tests;
        let mut text = format!(
            "{}; Nightmonk {}, llama.cpp of llama-cpp-python {} ({bf16}), {} threads, medians of {} rounds, tok/s\n",
            self.shape,
            self.commit,
            self.llama_cpp.llama_cpp_python,
            lines.first().map_or(0, |line| line.threads),
            self.rounds
        );
        for line in &lines {
            let best = line.llama_cpp.get(&line.best_setting).map_or(f64::NAN, |speed| speed.tokens_per_second);
            let (low, high) = line
                .ratios
                .iter()
                .fold((f64::INFINITY, 0.0_f64), |(low, high), ratio| (low.min(*ratio), high.max(*ratio)));
            let _ = writeln!(
                text,
                "{:<8} depth {:<6} width {:<3} Nightmonk {:>8.2} ({:.2} of bandwidth, {:.2} of peak)   llama.cpp {best:>8.2} ({})   ratio {:.2} ({low:.2}-{high:.2})",
                line.name,
                line.test.n_depth,
                line.test.width,
                line.nightmonk.tokens_per_second,
                line.fraction_of_bandwidth,
                line.fraction_of_peak,
                line.best_setting,
                line.ratio,
            );
            for (setting, speed) in line.llama_cpp.iter().filter(|(setting, _)| **setting != line.best_setting) {
                let _ = writeln!(text, "{:>97.2} ({setting})", speed.tokens_per_second);
            }
        }
        text
    }
}

impl Measured {
    fn line(&self) -> Option<Line> {
        let middle = |of: &dyn Fn(&Figures) -> f64| median(&self.nightmonk.iter().map(of).collect::<Vec<_>>());
        let speeds: Vec<f64> = self.nightmonk.iter().map(|figures| figures.tokens_per_second).collect();
        let llama_cpp: BTreeMap<String, Speed> =
            self.llama_cpp.iter().map(|(setting, rounds)| (setting.clone(), Speed::of(rounds))).collect();
        let best = llama_cpp.iter().max_by(|(_, a), (_, b)| a.tokens_per_second.total_cmp(&b.tokens_per_second));
        let (best_setting, best) = best?;
        let ratios: Vec<f64> = speeds.iter().zip(&best.rounds).map(|(ours, theirs)| ours / theirs).collect();
        let first = self.nightmonk.first()?;
        Some(Line {
            name: self.test.name(),
            test: self.test,
            threads: first.threads,
            nightmonk: Speed::of(&speeds),
            activations: first.activations.clone(),
            load: first.load.clone(),
            kv_type: first.kv_type.clone(),
            read_bandwidth: middle(&|figures| figures.read_bandwidth)?,
            fraction_of_bandwidth: middle(&|figures| figures.fraction_of_bandwidth)?,
            fraction_of_peak: middle(&|figures| figures.fraction_of_peak)?,
            best_setting: best_setting.clone(),
            ratio: median(&ratios)?,
            ratios,
            llama_cpp,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figures::tests::decode;

    fn report() -> Report {
        let llama_cpp = Build {
            llama_cpp_python: "1.2.3",
            version: "x".into(),
            multiplies_bf16: Some(true),
            folder: Default::default(),
        };
        let (nightmonk_flags, llama_cpp_flags, tests) = (vec![], vec![], vec![]);
        let (shape, commit) = ("tiny".into(), "abc".into());
        Report { shape, commit, llama_cpp, nightmonk_flags, llama_cpp_flags, rounds: 3, tests }
    }

    fn sample(setting: &str, speed: f64) -> Sample {
        let test = Test { n_prompt: 0, n_gen: 16, n_depth: 4096, width: 1 };
        Sample { test, setting: setting.into(), speeds: vec![speed] }
    }

    #[test]
    fn the_best_setting_counts_and_ratios_are_of_the_same_round() {
        let mut report = report();
        for (ours, off, on) in [(20.0, 10.0, 8.0), (30.0, 20.0, 9.0), (44.0, 11.0, 21.0)] {
            report.add(vec![decode(4096, 1, ours)], vec![sample("-fa on", on), sample("-fa off", off)]).unwrap();
        }
        let summary = serde_json::to_value(report.summary()).unwrap();
        let test = &summary["tests"][0];
        assert_eq!(test["best_setting"], "-fa off"); // medians 11 and 9
        assert_eq!(test["ratios"], serde_json::json!([2.0, 1.5, 4.0]));
        assert_eq!((&test["ratio"], &test["nightmonk"]["tokens_per_second"]), (&2.0.into(), &30.0.into()));
        assert_eq!((&test["name"], &test["n_depth"]), (&"tg16".into(), &4096.into()));
        let text = report.text();
        assert!(text.contains("ratio 2.00 (1.50-4.00)") && text.contains("with VDPBF16PS"), "{text}");
    }

    #[test]
    fn a_test_that_only_one_engine_measured_is_an_error() {
        let why = report().add(vec![decode(0, 1, 20.0)], vec![sample("-fa on", 1.0)]).unwrap_err();
        assert!(why.contains("n_depth: 0"), "{why}");
    }
}
