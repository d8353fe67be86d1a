//! `experts`: which experts a model's tokens go through, counted, added up and shown.

mod heat_map;
mod record;

use std::path::Path;

use engine_core::expert_counts::{ExpertCounts, LayerCounts};
use engine_core::whole_file;
use serde_json::{Value, json};

use crate::args::{Experts, ExpertsCommand, ExpertsMerge, ExpertsShow, Format};
use crate::failure::Failure;
use crate::output::print;

/// Parts of the experts, in percent, whose share of the choices is told.
const PERCENTS: [usize; 3] = [10, 25, 50];

pub(crate) fn run(arguments: &Experts) -> Result<(), Failure> {
    match &arguments.command {
        ExpertsCommand::Record(arguments) => record::run(arguments),
        ExpertsCommand::Merge(arguments) => merge(arguments),
        ExpertsCommand::Show(arguments) => show(arguments),
    }
}

fn merge(arguments: &ExpertsMerge) -> Result<(), Failure> {
    let [first, others @ ..] = &arguments.files[..] else {
        return Err(Failure::Usage("there is nothing to merge".into()));
    };
    let mut sum = ExpertCounts::read(first)?;
    for file in others {
        sum.merge(&ExpertCounts::read(file)?).map_err(|error| {
            Failure::Usage(format!("{} cannot be added to {}: {error}", file.display(), first.display()))
        })?;
    }
    sum.write(&arguments.output)?;
    print(format_args!("{}\n", summary(&sum)))
}

fn show(arguments: &ExpertsShow) -> Result<(), Failure> {
    let counts = ExpertCounts::read(&arguments.file)?;
    if let Some(path) = &arguments.svg {
        write(path, &heat_map::svg(&counts, &summary(&counts)))?;
    }
    match arguments.output.output {
        Format::Json => print(format_args!("{}\n", document(&counts))),
        Format::Text => {
            let map = heat_map::text(&counts, arguments.columns.get());
            print(format_args!("{}\n\n{}\n{map}", summary(&counts), table(&counts)))
        }
    }
}

fn write(path: &Path, text: &str) -> Result<(), Failure> {
    let named =
        |error: std::io::Error| std::io::Error::new(error.kind(), format!("cannot write {}: {error}", path.display()));
    Ok(whole_file::write(path, text.as_bytes()).map_err(named)?)
}

/// One line about the whole.
fn summary(counts: &ExpertCounts) -> String {
    let workloads = counts.workloads.iter().map(|(name, tokens)| format!("{name} {tokens}"));
    let workloads = workloads.collect::<Vec<_>>().join(", ");
    let settings = match counts.settings.as_str() {
        "" => String::new(),
        settings => format!(", {settings}"),
    };
    format!("model {:.12}{settings}, {} tokens: {workloads}", counts.model, counts.tokens())
}

fn table(counts: &ExpertCounts) -> String {
    let mut table =
        format!("{:>5}{:>9}{:>10}{:>14}{:>9}{:>8}", "layer", "experts", "a token", "entropy", "of most", "unused");
    table.extend(PERCENTS.map(|percent| format!("{:>10}", format!("most {percent}%"))));
    table.push('\n');
    for layer in &counts.layers {
        let LayerCounts { layer: index, experts_per_token, counts } = layer;
        table += &format!(
            "{index:>5}{:>9}{experts_per_token:>10}{:>9.3} bits{:>8.1}%{:>8}",
            counts.len(),
            layer.entropy_bits(),
            layer.entropy_fraction() * 100.0,
            layer.unused(),
        );
        table.extend(PERCENTS.map(|percent| format!("{:>9.1}%", layer.coverage(percent) * 100.0)));
        table.push('\n');
    }
    table
}

fn document(counts: &ExpertCounts) -> Value {
    let of_layer = |layer: &LayerCounts| {
        let coverage = PERCENTS.map(|percent| (percent.to_string(), layer.coverage(percent).into()));
        json!({
            "layer": layer.layer,
            "experts": layer.counts.len(),
            "experts_per_token": layer.experts_per_token,
            "entropy_bits": layer.entropy_bits(),
            "entropy_fraction": layer.entropy_fraction(),
            "unused": layer.unused(),
            "coverage": serde_json::Map::from_iter(coverage),
        })
    };
    json!({
        "model": counts.model,
        "settings": counts.settings,
        "tokens": counts.tokens(),
        "workloads": counts.workloads,
        "layers": counts.layers.iter().map(of_layer).collect::<Vec<_>>(),
    })
}
