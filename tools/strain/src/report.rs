//! What was found: a figure a line, with its bound and whether it was kept.

use std::fmt::{self, Display};

/// What a bound is about. Tests in CI look at counts only: a neighbour's load makes times of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The same on every machine.
    Count,
    /// Moves with the machine's load.
    Time,
}

/// One figure.
#[derive(Clone, Debug)]
pub struct Row {
    /// What was looked at.
    pub what: String,
    /// What it was.
    pub figure: String,
    /// What it had to be; empty where there is no bound.
    pub bound: String,
    /// Whether it was that.
    pub kept: bool,
    /// What the bound is about.
    pub kind: Kind,
}

/// All figures of a command.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// In the order in which they were found.
    pub rows: Vec<Row>,
    /// What would help to repeat a failure.
    pub remarks: Vec<String>,
}

/// Remarks of a report; more of the same help nobody.
const REMARKS_MAX: usize = 40;

impl Report {
    /// A figure without a bound.
    pub fn tell(&mut self, what: impl Into<String>, figure: impl Display) {
        self.push(what.into(), figure.to_string(), String::new(), true, Kind::Count);
    }

    /// A number that must be `want`.
    pub fn equal(&mut self, what: impl Into<String>, figure: impl Display + PartialEq<usize>, want: usize) {
        let kept = figure == want;
        self.push(what.into(), figure.to_string(), want.to_string(), kept, Kind::Count);
    }

    /// A figure that is right or wrong.
    pub fn holds(&mut self, what: impl Into<String>, figure: impl Display, bound: impl Display, kept: bool) {
        self.push(what.into(), figure.to_string(), bound.to_string(), kept, Kind::Count);
    }

    /// A figure about time that is right or wrong.
    pub fn holds_in_time(&mut self, what: impl Into<String>, figure: impl Display, bound: impl Display, kept: bool) {
        self.push(what.into(), figure.to_string(), bound.to_string(), kept, Kind::Time);
    }

    /// Something that helps to repeat a failure.
    pub fn remark(&mut self, remark: impl Into<String>) {
        if self.remarks.len() < REMARKS_MAX {
            self.remarks.push(remark.into());
        }
    }

    fn push(&mut self, what: String, figure: String, bound: String, kept: bool, kind: Kind) {
        self.rows.push(Row { what, figure, bound, kept, kind });
    }

    /// Bounds that were broken.
    pub fn broken(&self) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(|row| !row.kept)
    }

    /// Bounds that were broken and do not depend on the machine.
    pub fn broken_counts(&self) -> Vec<&Row> {
        self.broken().filter(|row| row.kind == Kind::Count).collect()
    }
}

impl Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, figure, bound, kept, .. } = self;
        match (bound.is_empty(), kept) {
            (true, _) => write!(f, "       {what}: {figure}"),
            (false, true) => write!(f, "kept   {what}: {figure} (to reach: {bound})"),
            (false, false) => write!(f, "BROKEN {what}: {figure} (to reach: {bound})"),
        }
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.remarks.iter().try_for_each(|remark| writeln!(f, "· {remark}"))?;
        self.rows.iter().try_for_each(|row| writeln!(f, "{row}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broken_bounds_are_found_and_those_about_time_apart() {
        let mut report = Report::default();
        report.tell("seed", 7);
        report.equal("deaths", 0_usize, 0);
        report.equal("foreign marks", 2_usize, 0);
        report.holds_in_time("p99", "70 ms", "50 ms", false);
        assert_eq!(report.broken().count(), 2);
        assert_eq!(report.broken_counts().iter().map(|row| row.what.as_str()).collect::<Vec<_>>(), ["foreign marks"]);
        assert!(report.to_string().contains("BROKEN foreign marks: 2 (to reach: 0)"));
    }
}
