//! Rounds put together: medians, llama.cpp's best setting, and the ratios of each test.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

use super::build::Build;
use super::llama_cpp::Sample;
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
    pub(super) fn of(figures: &Figures) -> Self {
        Self { n_prompt: figures.n_prompt, n_gen: figures.n_gen, n_depth: figures.n_depth, width: figures.width }
    }

    fn name(self) -> String {
        if self.n_prompt > 0 { format!("pp{}", self.n_prompt) } else { format!("tg{}", self.n_gen) }
    }
}

/// All rounds.
pub(super) struct Report {
    pub(super) shape: String,
    pub(super) commit: String,
    pub(super) llama_cpp: Build,
    pub(super) llama_cpp_flags: Vec<String>,
    pub(super) contenders: Vec<Named>,
    pub(super) rounds: usize,
    pub(super) tests: Vec<Measured>,
}

/// What of Nightmonk is measured.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Named {
    pub(super) name: String,
    /// Name of the model folder.
    pub(super) model: String,
    pub(super) flags: Vec<String>,
}

/// All figures of one test.
pub(super) struct Measured {
    test: Test,
    /// A list a contender, an entry a round.
    nightmonk: Vec<Vec<Figures>>,
    /// By setting: an entry a round, all samples of it.
    llama_cpp: BTreeMap<String, Vec<Vec<f64>>>,
}

/// The JSON document.
#[derive(Serialize)]
pub(super) struct Summary<'r> {
    shape: &'r str,
    commit: &'r str,
    llama_cpp: &'r Build,
    llama_cpp_flags: &'r [String],
    contenders: &'r [Named],
    rounds: usize,
    pub(super) tests: Vec<Line>,
}

/// One test.
#[derive(Serialize)]
pub(super) struct Line {
    pub(super) name: String,
    #[serde(flatten)]
    pub(super) test: Test,
    pub(super) threads: usize,
    pub(super) nightmonk: Vec<Ours>,
    /// By setting.
    pub(super) llama_cpp: BTreeMap<String, Speed>,
    pub(super) best_setting: String,
}

/// One contender in one test.
#[derive(Serialize)]
pub(super) struct Ours {
    pub(super) name: String,
    #[serde(flatten)]
    pub(super) speed: Speed,
    pub(super) isa: String,
    pub(super) activations: String,
    pub(super) load: String,
    pub(super) kv_type: String,
    pub(super) read_bandwidth: f64,
    pub(super) fraction_of_bandwidth: f64,
    pub(super) fraction_of_peak: f64,
    pub(super) peak_rss_bytes: u64,
    /// By llama.cpp's best setting.
    pub(super) to_llama_cpp: Ratio,
    /// By the first contender; none for that itself.
    pub(super) to_first: Option<Ratio>,
}

/// A speed: the median of the rounds' medians, these, and all samples of each round.
#[derive(Serialize)]
pub(super) struct Speed {
    pub(super) tokens_per_second: f64,
    pub(super) rounds: Vec<f64>,
    pub(super) samples: Vec<Vec<f64>>,
}

/// One speed by another: the median of the rounds' ratios, and these.
#[derive(Serialize)]
pub(super) struct Ratio {
    pub(super) ratio: f64,
    pub(super) rounds: Vec<f64>,
}

impl Speed {
    fn of(samples: Vec<Vec<f64>>) -> Option<Self> {
        let rounds = samples.iter().map(|round| median(round)).collect::<Option<Vec<_>>>()?;
        Some(Self { tokens_per_second: median(&rounds)?, rounds, samples })
    }
}

impl Ratio {
    fn of(speed: &Speed, by: &Speed) -> Option<Self> {
        let rounds: Vec<f64> = speed.rounds.iter().zip(&by.rounds).map(|(speed, by)| speed / by).collect();
        Some(Self { ratio: median(&rounds)?, rounds })
    }

    fn text(&self) -> String {
        let low = self.rounds.iter().copied().fold(f64::INFINITY, f64::min);
        let high = self.rounds.iter().copied().fold(0.0, f64::max);
        format!("{:.2} ({low:.2}-{high:.2})", self.ratio)
    }
}

impl Report {
    /// Adds a round: every contender's figures and llama.cpp's, which have to be of the same tests.
    pub(super) fn add(&mut self, nightmonk: Vec<Vec<Figures>>, llama_cpp: &[Sample]) -> Result<(), String> {
        let tests: Vec<Test> = nightmonk.iter().flatten().map(Test::of).collect();
        for (contender, figures) in nightmonk.into_iter().enumerate() {
            if let Some(test) = tests.iter().find(|test| figures.iter().all(|figures| Test::of(figures) != **test)) {
                return Err(format!("{} did not measure {test:?}", self.contenders[contender].name));
            }
            for figures in figures {
                self.measured(Test::of(&figures)).nightmonk[contender].push(figures);
            }
        }
        for sample in llama_cpp {
            if median(&sample.speeds).is_none() {
                return Err(format!("llama.cpp has no sample of {:?}", sample.test));
            }
            if tests.contains(&sample.test) {
                let rounds = &mut self.measured(sample.test).llama_cpp;
                rounds.entry(sample.setting.clone()).or_default().push(sample.speeds.clone());
            }
        }
        if let Some(test) = tests.iter().find(|test| llama_cpp.iter().all(|sample| sample.test != **test)) {
            return Err(format!("llama.cpp did not measure {test:?}"));
        }
        // Ratios are of figures with the same number, which has to be that of the round.
        for Measured { test, nightmonk, llama_cpp } in &self.tests {
            let rounds = nightmonk.first().map_or(0, Vec::len);
            let others = nightmonk.iter().map(Vec::len).chain(llama_cpp.values().map(Vec::len));
            if others.into_iter().any(|other| other != rounds) {
                return Err(format!("{test:?} was not measured once by all in each round"));
            }
        }
        Ok(())
    }

    fn measured(&mut self, test: Test) -> &mut Measured {
        let index = self.tests.iter().position(|measured| measured.test == test).unwrap_or_else(|| {
            let nightmonk = vec![Vec::new(); self.contenders.len()];
            self.tests.push(Measured { test, nightmonk, llama_cpp: BTreeMap::new() });
            self.tests.len() - 1
        });
        &mut self.tests[index]
    }

    pub(super) fn summary(&self) -> Summary<'_> {
        Summary {
            shape: &self.shape,
            commit: &self.commit,
            llama_cpp: &self.llama_cpp,
            llama_cpp_flags: &self.llama_cpp_flags,
            contenders: &self.contenders,
            rounds: self.rounds,
            tests: self.tests.iter().filter_map(|measured| measured.line(&self.contenders)).collect(),
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
            "{}; Nightmonk {}, llama.cpp of llama-cpp-python {} ({bf16}), {} threads, medians of {} rounds\n",
            self.shape,
            self.commit,
            self.llama_cpp.llama_cpp_python,
            lines.first().map_or(0, |line| line.threads),
            self.rounds
        );
        for line in &lines {
            line.append_to(&mut text);
        }
        text
    }
}

impl Measured {
    /// Nothing where a contender or llama.cpp has measured nothing, which `add` lets happen in no round.
    fn line(&self, contenders: &[Named]) -> Option<Line> {
        let speeds = self.llama_cpp.iter().map(|(setting, rounds)| Some((setting.clone(), Speed::of(rounds.clone())?)));
        let llama_cpp: BTreeMap<String, Speed> = speeds.collect::<Option<_>>()?;
        let best = llama_cpp.iter().max_by(|(_, a), (_, b)| a.tokens_per_second.total_cmp(&b.tokens_per_second));
        let (best_setting, best) = best?;
        let mut nightmonk: Vec<Ours> = Vec::new();
        for (contender, rounds) in contenders.iter().zip(&self.nightmonk) {
            let ours = Ours::of(contender, rounds, best, nightmonk.first())?;
            nightmonk.push(ours);
        }
        let (test, best_setting) = (self.test, best_setting.clone());
        let threads = self.nightmonk.first()?.first()?.threads;
        Some(Line { name: test.name(), test, threads, nightmonk, llama_cpp, best_setting })
    }
}

impl Ours {
    fn of(contender: &Named, rounds: &[Figures], best: &Speed, first: Option<&Self>) -> Option<Self> {
        let middle = |of: fn(&Figures) -> f64| median(&rounds.iter().map(of).collect::<Vec<_>>());
        let speed = Speed::of(rounds.iter().map(|figures| figures.samples.clone()).collect())?;
        let one = rounds.first()?;
        Some(Self {
            name: contender.name.clone(),
            isa: one.isa.clone(),
            activations: one.activations.clone(),
            load: one.load.clone(),
            kv_type: one.kv_type.clone(),
            read_bandwidth: middle(|figures| figures.read_bandwidth)?,
            fraction_of_bandwidth: middle(|figures| figures.fraction_of_bandwidth)?,
            fraction_of_peak: middle(|figures| figures.fraction_of_peak)?,
            peak_rss_bytes: rounds.iter().map(|figures| figures.peak_rss_bytes).max()?,
            to_llama_cpp: Ratio::of(&speed, best)?,
            to_first: first.and_then(|first| Ratio::of(&speed, &first.speed)),
            speed,
        })
    }
}

impl Line {
    fn append_to(&self, text: &mut String) {
        let _ = writeln!(text, "{} depth {} width {}", self.name, self.test.n_depth, self.test.width);
        for ours in &self.nightmonk {
            let _ = write!(
                text,
                "{:>10.2} tok/s  {:.2} x llama.cpp's best, {:.2} of bandwidth, {:.2} of peak",
                ours.speed.tokens_per_second,
                ours.to_llama_cpp.ratio,
                ours.fraction_of_bandwidth,
                ours.fraction_of_peak,
            );
            let _ = write!(text, "  {} ({}, {}, {})", ours.name, ours.load, ours.activations, ours.kv_type);
            let _ = write!(text, "; rounds {}", ours.to_llama_cpp.text());
            if let (Some(ratio), Some(first)) = (&ours.to_first, self.nightmonk.first()) {
                let _ = write!(text, "; by {} {}", first.name, ratio.text());
            }
            text.push('\n');
        }
        for (setting, speed) in &self.llama_cpp {
            let best = if *setting == self.best_setting { ", the best" } else { "" };
            let _ = writeln!(text, "{:>10.2} tok/s  llama.cpp {setting}{best}", speed.tokens_per_second);
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::figures::tests::decode;

    pub(in super::super) fn report(contenders: &[&str]) -> Report {
        let llama_cpp = Build {
            llama_cpp_python: "1.2.3",
            version: "x".into(),
            multiplies_bf16: Some(true),
            folder: Default::default(),
        };
        let contenders =
            contenders.iter().map(|name| Named { name: (*name).into(), model: "tiny".into(), flags: vec![] }).collect();
        let (shape, commit) = ("tiny".into(), "abc".into());
        Report { shape, commit, llama_cpp, llama_cpp_flags: vec![], contenders, rounds: 3, tests: vec![] }
    }

    pub(in super::super) fn sample(setting: &str, speed: f64) -> Sample {
        let test = Test { n_prompt: 0, n_gen: 16, n_depth: 4096, width: 1 };
        Sample { test, setting: setting.into(), speeds: vec![speed] }
    }

    /// Figures whose only sample is the speed.
    pub(in super::super) fn ours(speed: f64) -> Vec<Figures> {
        vec![Figures { samples: vec![speed], ..decode(4096, 1, speed) }]
    }

    #[test]
    fn the_best_setting_counts_and_ratios_are_of_the_same_round() {
        let mut report = report(&["Nightmonk"]);
        for (speed, off, on) in [(20.0, 10.0, 8.0), (30.0, 20.0, 9.0), (44.0, 11.0, 21.0)] {
            report.add(vec![ours(speed)], &[sample("-fa on", on), sample("-fa off", off)]).unwrap();
        }
        let summary = serde_json::to_value(report.summary()).unwrap();
        let test = &summary["tests"][0];
        assert_eq!(test["best_setting"], "-fa off"); // medians 11 and 9
        assert_eq!(test["llama_cpp"]["-fa on"]["samples"], serde_json::json!([[8.0], [9.0], [21.0]]));
        let nightmonk = &test["nightmonk"][0];
        assert_eq!(nightmonk["to_llama_cpp"], serde_json::json!({"ratio": 2.0, "rounds": [2.0, 1.5, 4.0]}));
        assert_eq!((&nightmonk["tokens_per_second"], &nightmonk["to_first"]), (&30.0.into(), &().into()));
        assert_eq!((&test["name"], &test["n_depth"]), (&"tg16".into(), &4096.into()));
        let text = report.text();
        assert!(text.contains("2.00 (1.50-4.00)") && text.contains("with VDPBF16PS"), "{text}");
    }

    #[test]
    fn every_contender_is_compared_with_the_first_too() {
        let mut report = report(&["Nightmonk", "packed"]);
        for (plain, packed) in [(20.0, 25.0), (30.0, 33.0), (10.0, 14.0)] {
            report.add(vec![ours(plain), ours(packed)], &[sample("-fa on", 10.0)]).unwrap();
        }
        let summary = serde_json::to_value(report.summary()).unwrap();
        let packed = &summary["tests"][0]["nightmonk"][1];
        assert_eq!((&packed["name"], &packed["to_first"]["ratio"]), (&"packed".into(), &1.25.into()));
        assert_eq!(packed["to_llama_cpp"]["ratio"], 2.5);
        assert!(report.text().contains("by Nightmonk 1.25 (1.10-1.40)"), "{}", report.text());
    }

    #[test]
    fn a_test_that_only_one_measured_is_an_error() {
        let why = report(&["Nightmonk"]).add(vec![vec![decode(0, 1, 20.0)]], &[sample("-fa on", 1.0)]).unwrap_err();
        assert!(why.contains("llama.cpp") && why.contains("n_depth: 0"), "{why}");
        let mut both = report(&["Nightmonk", "packed"]);
        let why = both.add(vec![ours(1.0), vec![]], &[sample("-fa on", 1.0)]).unwrap_err();
        assert!(why.contains("packed") && why.contains("4096"), "{why}");
        let mut settings = report(&["Nightmonk"]);
        settings.add(vec![ours(1.0)], &[sample("-fa on", 1.0), sample("-fa off", 1.0)]).unwrap();
        let why = settings.add(vec![ours(1.0)], &[sample("-fa on", 1.0)]).unwrap_err();
        assert!(why.contains("in each round"), "{why}");
    }
}
