//! The record of what was measured: a folder a machine, a file a day, a row a test.
//!
//! `lscpu.txt` beside the files says what the machine is. It is written once; rows of another processor are refused,
//! because a record that mixes machines says nothing about either.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::figures::Figures;
use crate::nightmonk::Nightmonk;
use crate::{csv, shell};

/// Where records lie, from the root of the checkout.
const RECORD: &str = "benches/record";

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Model folder
    #[arg(short, long, value_name = "DIR")]
    model: PathBuf,
    /// Name of this machine, as its folder in benches/record has it
    #[arg(long, value_name = "NAME", value_parser = machine_name)]
    machine: String,
    /// Name of the model's shape; without it, the published one that config.json has, or the folder's name
    #[arg(long, value_name = "TEXT")]
    shape: Option<String>,
    /// Flags of `nightmonk bench`, as in `-- -p 512 -n 64 -d 0,4096`
    #[arg(last = true, value_name = "FLAGS")]
    bench: Vec<String>,
}

/// One row: what bench said, and of what.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Row {
    pub(crate) shape: String,
    pub(crate) figures: Figures,
    pub(crate) commit: String,
    pub(crate) command: String,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), String> {
    if let Some(flag) = arguments.bench.iter().find(|flag| ["-o", "--output", "-m", "--model"].contains(&flag.as_str()))
    {
        return Err(format!("`{flag}` after `--` is decided by this command; leave it out"));
    }
    let folder = folder_of(&arguments.machine)?;
    let shape = match &arguments.shape {
        Some(shape) => shape.clone(),
        None => shape_of(&arguments.model)?,
    };
    let nightmonk = Nightmonk::build()?;
    let commit = shell::commit()?;
    let name = folder_name(&arguments.model)?;
    let command = ["nightmonk bench -m", &name].into_iter().chain(arguments.bench.iter().map(String::as_str));
    let command = command.collect::<Vec<_>>().join(" ");
    let figures = nightmonk.bench(&arguments.model, &arguments.bench)?;

    let path = folder.join(format!("{}.csv", today()?));
    let rows = figures.into_iter().map(|figures| Row {
        shape: shape.clone(),
        figures,
        commit: commit.clone(),
        command: command.clone(),
    });
    append(&path, COLUMNS, rows.map(|row| row.fields()))?;
    println!("{}", path.display());
    Ok(())
}

/// The folder of a machine's records, which has to be this machine.
pub(crate) fn folder_of(machine: &str) -> Result<PathBuf, String> {
    let folder = shell::checkout()?.join(RECORD).join(machine);
    fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    describe_machine(&folder.join("lscpu.txt"))?;
    Ok(folder)
}

/// A model folder's name, since its path is one machine's.
pub(crate) fn folder_name(model: &Path) -> Result<String, String> {
    let path = model.canonicalize().map_err(|error| format!("{}: {error}", model.display()))?;
    Ok(path.file_name().unwrap_or_default().to_string_lossy().into_owned())
}

/// The date (UTC) that a record's file is named by.
pub(crate) fn today() -> Result<String, String> {
    shell::output(Command::new("date").args(["-u", "+%F"])).map(|date| date.trim_end().to_owned())
}

/// A name that can be a folder's everywhere.
pub(crate) fn machine_name(name: &str) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    match !name.is_empty() && name.chars().all(fits) {
        true => Ok(name.into()),
        false => Err("a name of lower-case letters, digits and `-`".into()),
    }
}

/// Writes what the machine is, or checks that it still is what was written.
fn describe_machine(path: &Path) -> Result<(), String> {
    let named = |error: std::io::Error| format!("{}: {error}", path.display());
    let now = shell::output(&mut Command::new("lscpu"))?;
    if !path.exists() {
        return fs::write(path, now).map_err(named);
    }
    let recorded = fs::read_to_string(path).map_err(named)?;
    match identity(&recorded) == identity(&now) {
        true => Ok(()),
        false => Err(format!(
            "{} is of another machine ({:?}) than this one ({:?}); give it another `--machine`",
            path.display(),
            identity(&recorded),
            identity(&now)
        )),
    }
}

/// The lines of lscpu that do not move: processor and number of CPUs.
fn identity(lscpu: &str) -> Vec<&str> {
    let wanted = ["Model name:", "CPU(s):", "Model:", "Stepping:"];
    let lines = lscpu.lines().map(str::trim);
    let lines = lines.filter_map(|line| wanted.iter().find_map(|name| line.strip_prefix(name)));
    lines.map(str::trim).collect()
}

/// The published shape that config.json has, save for the number of layers; or else the folder's name.
pub(crate) fn shape_of(model: &Path) -> Result<String, String> {
    let path = model.join("config.json");
    let named = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let text = fs::read(&path).map_err(|error| named(&error))?;
    let config: Value = serde_json::from_slice(&text).map_err(|error| named(&error))?;
    let layers = config["num_hidden_layers"].as_u64().unwrap_or_default() as usize;
    for shape in synth::shapes::SHAPES {
        if synth::shapes::config(shape, Some(layers))? == config {
            let whole = synth::shapes::config(shape, None)? == config;
            return Ok(if whole { shape.to_owned() } else { format!("{shape}, {layers} layers") });
        }
    }
    Ok(format!("{}, {layers} layers", folder_name(model)?))
}

/// Columns of a record. Files keep this order, so a new column goes to the end.
const COLUMNS: [&str; 21] = [
    "shape",
    "test",
    "n_depth",
    "width",
    "threads",
    "isa",
    "activations",
    "load",
    "kv_type",
    "tokens_per_second",
    "bytes_per_token",
    "read_bandwidth",
    "fraction_of_bandwidth",
    "flops_per_token",
    "peak_flops",
    "fraction_of_peak",
    "peak_rss_bytes",
    "load_seconds",
    "samples",
    "commit",
    "command",
];

impl Row {
    fn fields(&self) -> [String; COLUMNS.len()] {
        let figures = &self.figures;
        [
            self.shape.clone(),
            figures.test.clone(),
            figures.n_depth.to_string(),
            figures.width.to_string(),
            figures.threads.to_string(),
            figures.isa.clone(),
            figures.activations.clone(),
            figures.load.clone(),
            figures.kv_type.clone(),
            digits(figures.tokens_per_second),
            digits(figures.bytes_per_token),
            digits(figures.read_bandwidth),
            digits(figures.fraction_of_bandwidth),
            digits(figures.flops_per_token),
            digits(figures.peak_flops),
            digits(figures.fraction_of_peak),
            figures.peak_rss_bytes.to_string(),
            digits(figures.load_seconds),
            figures.samples.iter().map(|sample| format!("{sample:.2}")).collect::<Vec<_>>().join(" "),
            self.commit.clone(),
            self.command.clone(),
        ]
    }
}

/// Six digits, as many as a measurement can mean.
pub(crate) fn digits(number: f64) -> String {
    match number.abs() {
        0.0 => "0".into(),
        size if size >= 1e6 => format!("{number:.5e}"),
        size => format!("{number:.*}", (5 - size.log10().floor() as i32).clamp(0, 9) as usize),
    }
}

/// Appends lines to a file of these columns, or begins it.
pub(crate) fn append<const N: usize>(
    path: &Path,
    columns: [&str; N],
    lines: impl IntoIterator<Item = [String; N]>,
) -> Result<(), String> {
    let named = |error: std::io::Error| format!("{}: {error}", path.display());
    let header = csv::line(columns);
    let mut text = String::new();
    match fs::read_to_string(path) {
        Ok(there) if there.starts_with(&header) && there.ends_with('\n') => {}
        Ok(_) => return Err(format!("{} has other columns than records have now; move it away", path.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => text += &header,
        Err(error) => return Err(named(error)),
    }
    for fields in lines {
        text += &csv::line(fields.iter().map(String::as_str));
    }
    let file = fs::OpenOptions::new().create(true).append(true).open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes())).map_err(named)
}

/// The rows of a record.
///
/// # Errors
/// Says which line is wrong, and in what.
pub(crate) fn parse(text: &str) -> Result<Vec<Row>, String> {
    let mut lines = csv::parse(text)?.into_iter();
    if lines.next().is_none_or(|header| header != COLUMNS) {
        return Err(format!("the first line has to be {}", COLUMNS.join(",")));
    }
    let row =
        |(index, fields): (usize, Vec<String>)| parse_row(&fields).map_err(|why| format!("row {}: {why}", index + 1));
    lines.enumerate().map(row).collect()
}

fn parse_row(fields: &[String]) -> Result<Row, String> {
    if fields.len() != COLUMNS.len() {
        return Err(format!("{} fields instead of {}", fields.len(), COLUMNS.len()));
    }
    let text = |name: &str| {
        let column = COLUMNS.iter().position(|column| *column == name).expect("a name of COLUMNS");
        fields[column].as_str()
    };
    let whole = |name: &str| text(name).parse().map_err(|_| format!("{name} is `{}`, no whole number", text(name)));
    let float = |name: &str| match text(name).parse() {
        Ok(float) if f64::is_finite(float) => Ok(float),
        _ => Err(format!("{name} is `{}`, no number", text(name))),
    };
    let test = text("test");
    let length = |kind: &str| test.strip_prefix(kind).and_then(|length| length.parse().ok()).unwrap_or(0);
    let (n_prompt, n_gen) = (length("pp"), length("tg"));
    if (n_prompt == 0) == (n_gen == 0) {
        return Err(format!("test is `{test}`, neither pp nor tg with a length"));
    }
    let samples = text("samples").split_whitespace();
    let samples = samples.map(|sample| sample.parse().map_err(|_| format!("sample `{sample}` is no number")));
    Ok(Row {
        shape: text("shape").into(),
        figures: Figures {
            test: test.into(),
            n_prompt,
            n_gen,
            n_depth: whole("n_depth")?,
            width: whole("width")?,
            threads: whole("threads")?,
            isa: text("isa").into(),
            activations: text("activations").into(),
            load: text("load").into(),
            kv_type: text("kv_type").into(),
            tokens_per_second: float("tokens_per_second")?,
            samples: samples.collect::<Result<_, _>>()?,
            bytes_per_token: float("bytes_per_token")?,
            read_bandwidth: float("read_bandwidth")?,
            fraction_of_bandwidth: float("fraction_of_bandwidth")?,
            flops_per_token: float("flops_per_token")?,
            peak_flops: float("peak_flops")?,
            fraction_of_peak: float("fraction_of_peak")?,
            peak_rss_bytes: whole("peak_rss_bytes")? as u64,
            load_seconds: float("load_seconds")?,
        },
        commit: text("commit").into(),
        command: text("command").into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figures::tests::decode;

    #[test]
    fn what_is_appended_twice_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("2026-11-22.csv");
        let row = |depth| Row {
            shape: "qwen3-30b-a3b, 6 layers".into(),
            figures: decode(depth, 1, 19.5),
            commit: "0123456789ab".into(),
            command: "nightmonk bench -m slice -d 0,4096".into(),
        };
        append(&path, COLUMNS, [row(0).fields()]).unwrap();
        append(&path, COLUMNS, [row(4096).fields(), row(8192).fields()]).unwrap();
        assert_eq!(parse(&fs::read_to_string(&path).unwrap()).unwrap(), [row(0), row(4096), row(8192)]);
        fs::write(&path, "shape,test\n").unwrap();
        assert!(append(&path, COLUMNS, [row(0).fields()]).unwrap_err().contains("other columns"));
    }

    #[test]
    fn the_records_of_the_repository_are_of_this_form() {
        let records = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(RECORD);
        let mut rows = 0;
        for machine in fs::read_dir(records).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()) {
            assert!(machine.join("lscpu.txt").is_file(), "{}", machine.display());
            for file in fs::read_dir(machine).unwrap().map(|entry| entry.unwrap().path()) {
                let is_versus = file.to_string_lossy().ends_with(crate::versus::RECORD);
                if file.extension().is_some_and(|extension| extension == "csv") && !is_versus {
                    let parsed = parse(&fs::read_to_string(&file).unwrap());
                    rows += parsed.unwrap_or_else(|why| panic!("{}: {why}", file.display())).len();
                }
            }
        }
        assert!(rows > 0);
    }

    #[test]
    fn a_wrong_row_is_refused_with_its_place() {
        let good = csv::line(COLUMNS);
        let row = Row { shape: "x".into(), figures: decode(0, 1, 1.0), commit: "c".into(), command: "d".into() };
        for (column, value) in [(1, "tg"), (2, "-1"), (9, "NaN"), (18, "x")] {
            let mut fields = row.fields();
            fields[column] = value.into();
            let why = parse(&(good.clone() + &csv::line(fields.iter().map(String::as_str)))).unwrap_err();
            assert!(why.starts_with("row 1: ") && why.contains(value), "{why}");
        }
        assert!(parse("a,b\n").unwrap_err().contains("first line"));
        assert!(parse(&(good + "1,2\n")).unwrap_err().contains("2 fields"));
    }

    #[test]
    fn a_shape_is_named_by_its_config() {
        let folder = tempfile::tempdir().unwrap();
        let write = |config: &Value| fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        write(&synth::shapes::config("qwen3-0.6b", None).unwrap());
        assert_eq!(shape_of(folder.path()).unwrap(), "qwen3-0.6b");
        let mut config = synth::shapes::config("qwen3-30b-a3b", Some(6)).unwrap();
        write(&config);
        assert_eq!(shape_of(folder.path()).unwrap(), "qwen3-30b-a3b, 6 layers");
        config["vocab_size"] = 7.into();
        write(&config);
        assert!(shape_of(folder.path()).unwrap().ends_with(", 6 layers"));
    }

    #[test]
    fn numbers_keep_six_digits() {
        assert_eq!(
            [19.59294, 0.0491447, 1.30535e9, 134.385, 0.0].map(digits),
            ["19.5929", "0.0491447", "1.30535e9", "134.385", "0"]
        );
    }
}
