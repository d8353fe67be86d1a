//! The picture: panels beside and below each other, and a legend.
//!
//! Colours are Okabe and Ito's, which colour-blind readers tell apart, a little lighter on a dark page; markers differ
//! too. A thin bar spans the samples of a point.

use std::fmt::Write as _;

use super::Series;
use super::axis::{Axis, Scale};
use crate::figures::Figures;

const PANEL_WIDTH: f64 = 420.0;
const PANEL_HEIGHT: f64 = 210.0;
const LEFT: f64 = 58.0;
const TOP: f64 = 72.0;
const GAP_X: f64 = 76.0;
const GAP_Y: f64 = 86.0;
const RIGHT: f64 = 20.0;
const LEGEND_LINE: f64 = 20.0;
/// Labels of neighbouring ticks that are nearer than this would touch.
const TICK_DISTANCE_MIN: f64 = 40.0;

const COLOURS: [(&str, &str); 7] = [
    ("#0072b2", "#56b4e9"),
    ("#d55e00", "#f08a3c"),
    ("#009e73", "#2fc79a"),
    ("#a8568a", "#dc96c1"),
    ("#8a6d00", "#e6c229"),
    ("#4b4b4b", "#c8c8c8"),
    ("#6a51a3", "#b19cd9"),
];

pub(super) struct Chart<'s> {
    title: &'s str,
    series: &'s [Series],
    columns: Vec<Column>,
}

/// Panels of one x axis.
#[derive(Clone, Copy)]
enum Column {
    Depth,
    Width,
}

/// Panels of one y axis.
#[derive(Clone, Copy)]
enum Quantity {
    Speed,
    Bandwidth,
}

impl Column {
    fn scale(self) -> Scale {
        match self {
            Self::Depth => Scale::Depth,
            Self::Width => Scale::Log2,
        }
    }

    fn place(self, figures: &Figures) -> usize {
        match self {
            Self::Depth => figures.n_depth,
            Self::Width => figures.width,
        }
    }

    /// Each column varies one thing and leaves the other at its least.
    fn has(self, figures: &Figures) -> bool {
        match self {
            Self::Depth => figures.width == 1,
            Self::Width => figures.n_depth == 0,
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::Depth => "positions before the token (one sequence)",
            Self::Width => "sequences side by side (from position 0)",
        }
    }
}

impl Quantity {
    fn of(self, figures: &Figures) -> f64 {
        match self {
            Self::Speed => figures.tokens_per_second,
            Self::Bandwidth => figures.fraction_of_bandwidth,
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::Speed => "decoding, tokens a second",
            Self::Bandwidth => "fraction of the measured read bandwidth",
        }
    }
}

impl<'s> Chart<'s> {
    pub(super) fn new(title: &'s str, series: &'s [Series]) -> Self {
        let places = |column| places(series, column).len();
        let columns = match (places(Column::Depth), places(Column::Width)) {
            (0, _) => vec![Column::Width],
            (_, 2..) => vec![Column::Depth, Column::Width],
            _ => vec![Column::Depth],
        };
        Self { title, series, columns }
    }

    pub(super) fn svg(&self) -> String {
        let columns = self.columns.len() as f64;
        let width = LEFT + columns * PANEL_WIDTH + (columns - 1.0) * GAP_X + RIGHT;
        let legend_top = TOP + 2.0 * PANEL_HEIGHT + GAP_Y + 66.0;
        let height = legend_top + LEGEND_LINE * self.series.len() as f64;
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" height=\"{height:.0}\" role=\"img\">\n<title>{0}</title>\n{1}<rect class=\"page\" width=\"100%\" height=\"100%\"/>\n<text class=\"title\" x=\"{LEFT}\" y=\"28\">{0}</text>\n",
            escaped(self.title),
            style(self.series.len()),
        );
        for (index, column) in self.columns.iter().enumerate() {
            let x = LEFT + index as f64 * (PANEL_WIDTH + GAP_X);
            self.panel(&mut svg, *column, Quantity::Speed, [x, TOP]);
            self.panel(&mut svg, *column, Quantity::Bandwidth, [x, TOP + PANEL_HEIGHT + GAP_Y]);
        }
        for (index, series) in self.series.iter().enumerate() {
            let y = legend_top + LEGEND_LINE * index as f64;
            let _ = writeln!(
                svg,
                "<g class=\"s{index}\"><path class=\"line\" d=\"M{LEFT} {y:.1}h28\"/>{}</g><text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                marker(index, LEFT + 14.0, y),
                LEFT + 38.0,
                y + 4.0,
                escaped(&series.label)
            );
        }
        svg + "</svg>\n"
    }

    fn panel(&self, svg: &mut String, column: Column, quantity: Quantity, [left, top]: [f64; 2]) {
        let shown = |series: &Series| series.rows.iter().filter(|row| column.has(row)).cloned().collect::<Vec<_>>();
        let all: Vec<Figures> = self.series.iter().flat_map(shown).collect();
        let x_axis = Axis::of_places(column.scale(), &places(self.series, column));
        let highest = all.iter().map(|figures| quantity.of(figures)).fold(0.0, f64::max);
        let y_axis = Axis::from_zero(match quantity {
            Quantity::Speed => highest,
            Quantity::Bandwidth => highest.max(1.0),
        });
        let x = |value: f64| left + x_axis.place(value) * PANEL_WIDTH;
        let y = |value: f64| top + (1.0 - y_axis.place(value).clamp(0.0, 1.0)) * PANEL_HEIGHT;

        let _ = writeln!(
            svg,
            "<text class=\"quantity\" x=\"{left:.1}\" y=\"{:.1}\">{}</text>",
            top - 12.0,
            quantity.title()
        );
        let _ = writeln!(
            svg,
            "<rect class=\"frame\" x=\"{left:.1}\" y=\"{top:.1}\" width=\"{PANEL_WIDTH}\" height=\"{PANEL_HEIGHT}\"/>"
        );
        for (value, label) in &y_axis.ticks {
            let is_limit = matches!(quantity, Quantity::Bandwidth) && *value == 1.0;
            let class = if is_limit { "limit" } else { "grid" };
            let y = y(*value);
            let _ = writeln!(svg, "<path class=\"{class}\" d=\"M{left:.1} {y:.1}h{PANEL_WIDTH}\"/>");
            let _ = writeln!(svg, "<text class=\"y\" x=\"{:.1}\" y=\"{:.1}\">{label}</text>", left - 8.0, y + 4.0);
        }
        let bottom = top + PANEL_HEIGHT;
        let mut labelled = f64::NEG_INFINITY;
        for (value, label) in &x_axis.ticks {
            let x = x(*value);
            let _ = writeln!(svg, "<path class=\"tick\" d=\"M{x:.1} {bottom:.1}v5\"/>");
            if x - labelled >= TICK_DISTANCE_MIN {
                labelled = x;
                let _ = writeln!(svg, "<text class=\"x\" x=\"{x:.1}\" y=\"{:.1}\">{label}</text>", bottom + 18.0);
            }
        }
        let _ = writeln!(
            svg,
            "<text class=\"x axis\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            left + PANEL_WIDTH / 2.0,
            bottom + 36.0,
            column.title()
        );
        for (index, series) in self.series.iter().enumerate() {
            let points: Vec<Figures> = shown(series);
            let place = |figures: &Figures| [x(column.place(figures) as f64), y(quantity.of(figures))];
            let _ = write!(svg, "<g class=\"s{index}\">");
            if points.len() > 1 {
                let path = points.iter().map(place).map(|[x, y]| format!("{x:.1} {y:.1}")).collect::<Vec<_>>();
                let _ = write!(svg, "<path class=\"line\" d=\"M{}\"/>", path.join("L"));
            }
            for figures in &points {
                let [at_x, at_y] = place(figures);
                let ends = figures.samples.iter().copied().fold(None, |ends: Option<(f64, f64)>, sample| {
                    let (low, high) = ends.unwrap_or((sample, sample));
                    Some((low.min(sample), high.max(sample)))
                });
                if let (Quantity::Speed, Some((low, high))) = (quantity, ends) {
                    let _ = write!(svg, "<path class=\"span\" d=\"M{at_x:.1} {:.1}V{:.1}\"/>", y(low), y(high));
                }
                svg.push_str(&marker(index, at_x, at_y));
            }
            svg.push_str("</g>\n");
        }
    }
}

/// The places of a column that have a row, ascending.
fn places(series: &[Series], column: Column) -> Vec<usize> {
    let rows = series.iter().flat_map(|series| &series.rows).filter(|row| column.has(row));
    let mut places: Vec<usize> = rows.map(|row| column.place(row)).collect();
    places.sort_unstable();
    places.dedup();
    places
}

/// A circle, a square, a diamond or a triangle.
fn marker(index: usize, x: f64, y: f64) -> String {
    match index % 4 {
        0 => format!("<circle class=\"mark\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\"/>"),
        1 => format!("<path class=\"mark\" d=\"M{:.1} {:.1}h7v7h-7z\"/>", x - 3.5, y - 3.5),
        2 => format!("<path class=\"mark\" d=\"M{x:.1} {:.1}l5 5l-5 5l-5 -5z\"/>", y - 5.0),
        _ => format!("<path class=\"mark\" d=\"M{x:.1} {:.1}l5 8.5h-10z\"/>", y - 5.5),
    }
}

/// Colours of everything that is no curve: light, then dark.
const PAGES: [[(&str, &str); 6]; 2] = [
    [
        (".page", "#ffffff"),
        ("text", "#24292f"),
        (".x,.y", "#57606a"),
        (".grid", "#e4e8ec"),
        (".frame,.tick", "#afb8c1"),
        (".limit", "#57606a"),
    ],
    [
        (".page", "#0d1117"),
        ("text", "#e6edf3"),
        (".x,.y", "#9198a1"),
        (".grid", "#22282f"),
        (".frame,.tick", "#4a525b"),
        (".limit", "#9198a1"),
    ],
];

/// A picture that is shown by itself follows the reader's own light or dark. No custom properties: few programs that turn
/// SVG into pixels know them.
fn style(series: usize) -> String {
    let colours = |dark: bool| {
        let mut rules = String::new();
        for (selector, colour) in PAGES[usize::from(dark)] {
            let property = match selector {
                ".page" | "text" | ".x,.y" => "fill",
                _ => "stroke",
            };
            let _ = write!(rules, "{selector}{{{property}:{colour}}}");
        }
        let _ = write!(rules, ".mark{{stroke:{}}}", PAGES[usize::from(dark)][0].1);
        for index in 0..series {
            let (light, on_dark) = COLOURS[index % COLOURS.len()];
            let colour = if dark { on_dark } else { light };
            let _ = write!(rules, ".s{index} .line,.s{index} .span{{stroke:{colour}}}.s{index} .mark{{fill:{colour}}}");
        }
        rules
    };
    format!(
        "<style>\n\
         svg{{font:13px system-ui,-apple-system,'Segoe UI','DejaVu Sans',sans-serif}}\n\
         .title{{font-size:16px;font-weight:600}} .quantity{{font-weight:600}} .x{{text-anchor:middle}} .y{{text-anchor:end}}\n\
         .frame,.line{{fill:none}} .limit{{stroke-dasharray:5 4}} .line{{stroke-width:2;stroke-linejoin:round}} .span{{stroke-width:1.5;opacity:.55}}\n\
         {}\n\
         @media (prefers-color-scheme:dark){{{}}}\n\
         </style>\n",
        colours(false),
        colours(true),
    )
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
