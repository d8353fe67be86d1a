//! Decoding speed as a picture: tokens a second and the fraction of the read bandwidth, over context depth and width.
//!
//! A record is a table of many numbers, and what it has to tell is how a curve falls. The same rows give the same bytes,
//! so a picture in the repository changes only with its record.

mod axis;
mod chart;

use std::fs;
use std::path::{Path, PathBuf};

use crate::figures::Figures;
use crate::record::{self, Row};
use chart::Chart;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Record of benches/record (CSV), or an array that `nightmonk bench -o json` printed (JSON)
    #[arg(value_name = "RECORD")]
    record: PathBuf,
    /// File to write
    #[arg(short, long, value_name = "FILE.svg")]
    output: PathBuf,
    /// Only rows whose shape contains this text
    #[arg(long, value_name = "TEXT")]
    shape: Option<String>,
    /// Title; without it, what the record's path says
    #[arg(long, value_name = "TEXT")]
    title: Option<String>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), String> {
    let path = &arguments.record;
    let named = |path: &Path, error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let text = fs::read_to_string(path).map_err(|error| named(path, &error))?;
    let mut rows = match path.extension().is_some_and(|extension| extension == "json") {
        true => from_json(&text).map_err(|error| named(path, &error))?,
        false => record::parse(&text).map_err(|error| named(path, &error))?,
    };
    if let Some(shape) = &arguments.shape {
        rows.retain(|row| row.shape.contains(shape));
    }
    let title = arguments.title.clone().unwrap_or_else(|| title_of(path));
    let svg = draw(&title, &rows).map_err(|error| named(path, &error))?;
    fs::write(&arguments.output, svg).map_err(|error| named(&arguments.output, &error))
}

fn from_json(text: &str) -> Result<Vec<Row>, String> {
    let figures: Vec<Figures> = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let row = |figures| Row { shape: String::new(), figures, commit: String::new(), command: String::new() };
    Ok(figures.into_iter().map(row).collect())
}

/// `machine, date` of a record, or the file's name.
fn title_of(path: &Path) -> String {
    let name = |path: &Path| path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    match path.parent().map(name).filter(|_| path.extension().is_some_and(|extension| extension == "csv")) {
        Some(machine) if !machine.is_empty() => format!("{machine}, {}", name(path)),
        _ => name(path),
    }
}

/// One curve: rows that differ in depth and width only.
struct Series {
    label: String,
    /// The latest row of each depth and width, ascending.
    rows: Vec<Figures>,
}

fn draw(title: &str, rows: &[Row]) -> Result<String, String> {
    let decode: Vec<&Row> = rows.iter().filter(|row| row.figures.n_gen > 0).collect();
    if decode.is_empty() {
        return Err("no row measures decoding (tg…)".into());
    }
    Ok(Chart::new(title, &series(&decode)).svg())
}

fn series(rows: &[&Row]) -> Vec<Series> {
    let traits = |row: &Row| {
        let figures = &row.figures;
        [
            row.shape.clone(),
            format!("activations {}", figures.activations),
            format!("{} weights", figures.load),
            format!("keys and values {}", figures.kv_type),
            figures.isa.clone(),
            format!("{} threads", figures.threads),
        ]
    };
    let mut keys = Vec::new();
    for row in rows {
        if !keys.contains(&traits(row)) {
            keys.push(traits(row));
        }
    }
    let differs = |index: usize| keys.iter().any(|key| key[index] != keys[0][index]);
    let label = |key: &[String; 6]| {
        let parts = key.iter().enumerate().filter(|(index, part)| !part.is_empty() && (*index == 0 || differs(*index)));
        let label = parts.map(|(_, part)| part.as_str()).collect::<Vec<_>>().join(", ");
        if label.is_empty() { "nightmonk".into() } else { label }
    };
    keys.iter()
        .map(|key| {
            let mut latest: Vec<Figures> = Vec::new();
            for row in rows.iter().filter(|row| traits(row) == *key) {
                let place = |figures: &Figures| (figures.n_depth, figures.width);
                latest.retain(|figures| place(figures) != place(&row.figures));
                latest.push(row.figures.clone());
            }
            latest.sort_by_key(|figures| (figures.n_depth, figures.width));
            Series { label: label(key), rows: latest }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figures::tests::decode;

    fn row(shape: &str, depth: usize, width: usize, speed: f64) -> Row {
        Row { shape: shape.into(), figures: decode(depth, width, speed), commit: "c".into(), command: "d".into() }
    }

    #[test]
    fn rows_of_one_shape_and_setting_are_a_curve_and_the_latest_counts() {
        let mut mapped = row("moe", 0, 1, 13.0);
        mapped.figures.load = "mapped".into();
        let rows = [row("moe", 4096, 1, 18.0), row("moe", 0, 1, 19.0), mapped, row("moe", 0, 1, 20.0)];
        let series = series(&rows.iter().collect::<Vec<_>>());
        assert_eq!(
            series.iter().map(|series| series.label.as_str()).collect::<Vec<_>>(),
            ["moe, resident weights", "moe, mapped weights"]
        );
        let speeds: Vec<f64> = series[0].rows.iter().map(|row| row.tokens_per_second).collect();
        assert_eq!(speeds, [20.0, 18.0]);
    }

    #[test]
    fn the_same_rows_give_the_same_bytes_and_names_are_escaped() {
        let rows = [row("a<b & \"c\"", 0, 1, 20.0), row("a<b & \"c\"", 4096, 1, 18.0), row("dense", 0, 8, 60.0)];
        let svg = draw("<title>", &rows).unwrap();
        assert_eq!(svg, draw("<title>", &rows).unwrap());
        assert!(svg.contains("a&lt;b &amp; &quot;c&quot;") && svg.contains("&lt;title&gt;"));
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
        let panels = |svg: &str| svg.matches("class=\"frame\"").count();
        assert_eq!(panels(&svg), 4);
        assert_eq!(panels(&draw("", &rows[..2]).unwrap()), 2, "nothing has several widths");
    }

    #[test]
    fn a_record_without_decoding_is_refused() {
        let mut prompt = row("moe", 0, 1, 100.0);
        (prompt.figures.n_gen, prompt.figures.n_prompt) = (0, 512);
        assert!(draw("", &[prompt]).unwrap_err().contains("decoding"));
    }

    #[test]
    fn the_title_is_machine_and_day() {
        assert_eq!(title_of(Path::new("benches/record/xeon-2cpu/2026-11-22.csv")), "xeon-2cpu, 2026-11-22");
        assert_eq!(title_of(Path::new("today.json")), "today");
    }
}
