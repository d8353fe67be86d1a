//! Ratios kept beside the record of what `nightmonk bench` printed: a row a test and contender.

use std::path::Path;

use super::report::{Report, Speed};
use crate::record::{append, digits};

/// Columns of a file. Files keep this order, so a new column goes to the end.
const COLUMNS: [&str; 24] = [
    "shape",
    "test",
    "n_depth",
    "width",
    "threads",
    "contender",
    "isa",
    "activations",
    "load",
    "kv_type",
    "tokens_per_second",
    "fraction_of_bandwidth",
    "fraction_of_peak",
    "llama_cpp_tokens_per_second",
    "llama_cpp_setting",
    "ratio",
    "ratios",
    "ratio_to_first",
    "samples",
    "llama_cpp_samples",
    "peak_rss_bytes",
    "commit",
    "llama_cpp",
    "command",
];

/// Appends the report's rows to the file.
pub(super) fn write(report: &Report, path: &Path) -> Result<(), String> {
    append(path, COLUMNS, rows(report))
}

fn rows(report: &Report) -> Vec<[String; COLUMNS.len()]> {
    let mut rows = Vec::new();
    for line in report.summary().tests {
        let best = &line.llama_cpp[&line.best_setting];
        for (ours, contender) in line.nightmonk.iter().zip(&report.contenders) {
            rows.push([
                report.shape.clone(),
                line.name.clone(),
                line.test.n_depth.to_string(),
                line.test.width.to_string(),
                line.threads.to_string(),
                ours.name.clone(),
                ours.isa.clone(),
                ours.activations.clone(),
                ours.load.clone(),
                ours.kv_type.clone(),
                digits(ours.speed.tokens_per_second),
                digits(ours.fraction_of_bandwidth),
                digits(ours.fraction_of_peak),
                digits(best.tokens_per_second),
                line.best_setting.clone(),
                digits(ours.to_llama_cpp.ratio),
                words(&ours.to_llama_cpp.rounds),
                ours.to_first.as_ref().map_or_else(String::new, |ratio| digits(ratio.ratio)),
                samples(&ours.speed),
                samples(best),
                ours.peak_rss_bytes.to_string(),
                report.commit.clone(),
                format!("llama-cpp-python {}", report.llama_cpp.llama_cpp_python),
                format!("nightmonk bench -m {} {}", contender.model, contender.flags.join(" ")),
            ]);
        }
    }
    rows
}

fn words(numbers: &[f64]) -> String {
    numbers.iter().map(|number| format!("{number:.3}")).collect::<Vec<_>>().join(" ")
}

/// Samples of a round with spaces between, rounds with semicolons.
fn samples(speed: &Speed) -> String {
    speed.samples.iter().map(|round| words(round)).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::{ours, report, sample};
    use super::*;
    use crate::csv;

    #[test]
    fn a_row_has_the_speeds_the_ratio_and_what_they_are_of() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("versus.csv");
        let mut report = report(&["Nightmonk", "packed"]);
        for (plain, packed) in [(20.0, 25.0), (30.0, 33.0)] {
            report.add(vec![ours(plain), ours(packed)], &[sample("-fa on", 10.0)]).unwrap();
        }
        write(&report, &path).unwrap();
        write(&report, &path).unwrap();
        let lines = csv::parse(&std::fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!((lines.len(), &lines[1]), (5, &lines[3]));
        let field = |row: usize, name: &str| &lines[row][COLUMNS.iter().position(|column| *column == name).unwrap()];
        assert_eq!((field(2, "contender").as_str(), field(2, "ratio").as_str()), ("packed", "2.90000"));
        assert_eq!((field(2, "ratios").as_str(), field(2, "ratio_to_first").as_str()), ("2.500 3.300", "1.17500"));
        assert_eq!((field(1, "samples").as_str(), field(1, "ratio_to_first").as_str()), ("20.000; 30.000", ""));
    }
}
