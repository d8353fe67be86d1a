//! Scores over depth and length, in a terminal and as SVG.

use std::fmt::Write as _;

use crate::svg::{self, VIRIDIS};

/// Shades of a score: of none, up to a third, up to two thirds, less than all, of all.
const SHADES: [char; 5] = [' ', '░', '▒', '▓', '█'];

/// Questions of one depth and length, and how many were answered rightly.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Cell {
    pub(super) asked: usize,
    pub(super) found: usize,
}

impl Cell {
    pub(super) fn score(self) -> Option<f64> {
        (self.asked > 0).then(|| self.found as f64 / self.asked as f64)
    }

    fn plus(self, other: Self) -> Self {
        Self { asked: self.asked + other.asked, found: self.found + other.found }
    }

    fn shade(self) -> char {
        match self.score() {
            None | Some(0.0) => SHADES[0],
            Some(1.0) => SHADES[4],
            Some(score) => SHADES[1 + ((score * 3.0) as usize).min(2)],
        }
    }

    fn percent(self) -> String {
        self.score().map_or("-".into(), |score| format!("{:.0}%", score * 100.0))
    }
}

/// All cells, a row a depth.
pub(super) struct Scores {
    pub(super) lengths: Vec<usize>,
    /// In percent.
    pub(super) depths: Vec<f64>,
    cells: Vec<Cell>, // [depths, lengths]
}

impl Scores {
    pub(super) fn new(lengths: Vec<usize>, depths: Vec<f64>) -> Self {
        let cells = vec![Cell::default(); lengths.len() * depths.len()];
        Self { lengths, depths, cells }
    }

    pub(super) fn add(&mut self, depth: usize, length: usize, found: bool) {
        let cell = &mut self.cells[depth * self.lengths.len() + length];
        *cell = cell.plus(Cell { asked: 1, found: usize::from(found) });
    }

    pub(super) fn cell(&self, depth: usize, length: usize) -> Cell {
        self.cells[depth * self.lengths.len() + length]
    }

    pub(super) fn of_length(&self, length: usize) -> Cell {
        (0..self.depths.len()).map(|depth| self.cell(depth, length)).fold(Cell::default(), Cell::plus)
    }

    pub(super) fn whole(&self) -> Cell {
        self.cells.iter().copied().fold(Cell::default(), Cell::plus)
    }

    /// A row a depth, a column a length, and all depths together below.
    pub(super) fn text(&self) -> String {
        let mut text = format!("{:>6}", "depth");
        let column = |text: &mut String, cell: Cell| {
            let _ = write!(text, "  {0}{0}{0}{1:>5}", cell.shade(), cell.percent());
        };
        self.lengths.iter().for_each(|length| {
            let _ = write!(text, "{length:>10}");
        });
        for (depth, percent) in self.depths.iter().enumerate() {
            let _ = write!(text, "\n{:>6}", format!("{percent:.0}%"));
            (0..self.lengths.len()).for_each(|length| column(&mut text, self.cell(depth, length)));
        }
        let _ = write!(text, "\n{:>6}", "all");
        (0..self.lengths.len()).for_each(|length| column(&mut text, self.of_length(length)));
        text + "\n"
    }

    /// The same as a picture with this title.
    pub(super) fn svg(&self, title: &str) -> String {
        let (cell_width, cell_height) = (64, 28);
        let (left, top) = (60, 60);
        let (map_width, map_height) = (self.lengths.len() * cell_width, self.depths.len() * cell_height);
        let size = [(left + map_width + 20).max(660), top + map_height + 60];
        let mut svg = svg::begin(size, left, title);
        let _ = writeln!(svg, "<text x=\"{left}\" y=\"{}\">tokens</text>", top - 22);
        let _ = writeln!(svg, "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">depth</text>", left - 6, top - 6);
        for (column, length) in self.lengths.iter().enumerate() {
            let x = left + column * cell_width + cell_width / 2;
            let _ = writeln!(svg, "<text x=\"{x}\" y=\"{}\" text-anchor=\"middle\">{length}</text>", top - 6);
        }
        for (row, percent) in self.depths.iter().enumerate() {
            let y = top + row * cell_height;
            let _ = writeln!(
                svg,
                "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{percent:.0}%</text>",
                left - 6,
                y + cell_height / 2 + 4
            );
            for column in 0..self.lengths.len() {
                let (x, cell) = (left + column * cell_width, self.cell(row, column));
                let level = cell.score().map(|score| (score * (VIRIDIS.len() - 1) as f64).round() as usize);
                let (colour, ink) = match level {
                    None => ("#ffffff", "#000000"),
                    Some(level) => (VIRIDIS[level], if level > VIRIDIS.len() / 2 { "#000000" } else { "#ffffff" }),
                };
                let _ = writeln!(
                    svg,
                    "<rect x=\"{x}\" y=\"{y}\" width=\"{cell_width}\" height=\"{cell_height}\" fill=\"{colour}\" \
                     stroke=\"#ffffff\"/>"
                );
                let _ = writeln!(
                    svg,
                    "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\" fill=\"{ink}\">{}</text>",
                    x + cell_width / 2,
                    y + cell_height / 2 + 4,
                    cell.percent()
                );
            }
        }
        let y = top + map_height + 28;
        let _ = writeln!(svg, "<text x=\"{left}\" y=\"{y}\">questions answered with the planted code</text>");
        svg + "</svg>\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_has_a_row_a_depth_and_shades_are_full_only_where_all_was_found() {
        let mut scores = Scores::new(vec![1024, 131_072], vec![0.0, 50.0]);
        for (depth, length, found) in [(0, 0, true), (0, 1, true), (0, 1, false), (1, 0, false)] {
            scores.add(depth, length, found);
        }
        assert_eq!(
            scores.text(),
            " depth      1024    131072\n    0%  ███ 100%  ▒▒▒  50%\n   50%        0%         -\n   all  ▒▒▒  50%  ▒▒▒  50%\n"
        );
        assert_eq!(scores.whole(), Cell { asked: 4, found: 2 });
        for found in 1..100 {
            assert!(!['█', ' '].contains(&Cell { asked: 100, found }.shade()));
        }
        let svg = scores.svg("<title>");
        assert_eq!(svg.matches("stroke=").count(), 4);
        assert!(svg.contains(">131072</text>") && svg.contains("&lt;title&gt;"));
    }
}
