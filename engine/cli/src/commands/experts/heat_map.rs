//! Layers by experts, darker or brighter the more they are used, in a terminal and as SVG.
//!
//! What is shown is use relative to even use, in doublings: half as often as evenly is as far from it as twice as often,
//! and pictures of models with other numbers of experts can be laid side by side.

use std::fmt::Write as _;

use engine_core::expert_counts::ExpertCounts;

use crate::svg::{self, VIRIDIS};

/// Steps of the scale: up to 1/16 of even use, 1/8, …, 1, …, 8, from 16 on.
const LEVELS: usize = 9;
const EVEN: usize = LEVELS / 2;
const NAMES: [&str; LEVELS] = ["≤ 1/16", "1/8", "1/4", "1/2", "even", "2", "4", "8", "≥ 16"];
/// Shades of the levels.
const SHADES: [char; LEVELS] = [' ', ' ', '░', '░', '▒', '▓', '█', '█', '█'];

/// A row in a terminal begins with the layer.
const LABEL_COLUMNS: usize = 7;
/// Columns of the picture at most; neighbours share one beyond.
const SVG_COLUMNS_MAX: usize = 1024;

/// The step of a use relative to even use.
fn level(relative: f64) -> usize {
    if relative <= 0.0 {
        return 0;
    }
    let doublings = relative.log2().round().clamp(-(EVEN as f64), EVEN as f64);
    (doublings + EVEN as f64) as usize
}

/// The map in at most `columns` columns, with a line about its shades.
pub(super) fn text(counts: &ExpertCounts, columns: usize) -> String {
    let bins = columns.saturating_sub(LABEL_COLUMNS).max(1);
    let mut map = String::new();
    for layer in &counts.layers {
        let shades = layer.relative_use(bins).into_iter().map(|relative| SHADES[level(relative)]);
        let _ = writeln!(map, "{:>5} {}", layer.layer, shades.chain(['|']).collect::<String>());
    }
    map + "shades: how often beside evenly, in means of neighbours where they share a column: ░ from 1/6, ▒ from 0.7, ▓ from 1.4, █ from 2.8\n"
}

/// The map as a picture with this title.
pub(super) fn svg(counts: &ExpertCounts, title: &str) -> String {
    let columns = counts.layers.iter().map(|layer| layer.counts.len()).max().unwrap_or(1).clamp(1, SVG_COLUMNS_MAX);
    let cell_width = (1024 / columns).clamp(1, 16);
    let cell_height = 10;
    let (left, top) = (60, 50);
    let map_height = counts.layers.len() * cell_height;
    let (width, height) = ((left + columns * cell_width + 20).max(660), top + map_height + 70);

    let mut svg = svg::begin([width, height], left, title);
    let _ = writeln!(svg, "<text x=\"{left}\" y=\"{}\">experts</text>", top - 8);
    // One path a colour, of runs of neighbours: a large model's map stays a small file.
    let mut paths = [const { String::new() }; LEVELS];
    for (row, layer) in counts.layers.iter().enumerate() {
        let levels: Vec<usize> = layer.relative_use(SVG_COLUMNS_MAX).into_iter().map(level).collect();
        let mut column = 0;
        for run in levels.chunk_by(|a, b| a == b) {
            let _ = write!(paths[run[0]], "M{column} {row}h{}v1h-{}z", run.len(), run.len());
            column += run.len();
        }
        if row % 4 == 0 {
            let y = top + row * cell_height + cell_height - 1;
            let _ = writeln!(svg, "<text x=\"{}\" y=\"{y}\" text-anchor=\"end\">{}</text>", left - 6, layer.layer);
        }
    }
    let place = format!("translate({left} {top}) scale({cell_width} {cell_height})");
    let _ = writeln!(svg, "<g transform=\"{place}\" shape-rendering=\"crispEdges\">");
    for (path, colour) in paths.iter().zip(VIRIDIS).filter(|(path, _)| !path.is_empty()) {
        let _ = writeln!(svg, "<path fill=\"{colour}\" d=\"{path}\"/>");
    }
    svg += "</g>\n";
    let y = top + map_height + 20;
    let _ = writeln!(svg, "<text x=\"{left}\" y=\"{}\">use beside even use</text>", y + 34);
    for (level, (colour, name)) in VIRIDIS.into_iter().zip(NAMES).enumerate() {
        let x = left + level * 64;
        let _ = writeln!(svg, "<rect x=\"{x}\" y=\"{y}\" width=\"14\" height=\"14\" fill=\"{colour}\"/>");
        let _ = writeln!(svg, "<text x=\"{}\" y=\"{}\">{name}</text>", x + 18, y + 11);
    }
    svg + "</svg>\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_doublings_around_even_use() {
        for (relative, level_of_it) in
            [(0.0, 0), (0.01, 0), (0.125, 1), (0.25, 2), (0.5, 3), (1.0, 4), (1.3, 4), (1.5, 5), (4.0, 6), (99.0, 8)]
        {
            assert_eq!(level(relative), level_of_it, "{relative}");
        }
    }
}
