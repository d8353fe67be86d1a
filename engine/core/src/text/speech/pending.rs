//! Text that has come and has not been told yet.

/// A text that grows at its end and is used up from its start.
#[derive(Debug, Default)]
pub(super) struct Pending {
    text: String,
    start: usize,
    ended: bool,
}

/// What stands at the start of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start<T> {
    /// This marker, of this length.
    Marker(usize, T),
    /// The beginning of one, perhaps; more text will tell.
    Open,
    /// None of them.
    Other,
}

impl Pending {
    pub(super) fn push(&mut self, text: &str) {
        self.text.push_str(text);
    }

    /// No more will come, so what is incomplete stays so.
    pub(super) fn end(&mut self) {
        self.ended = true;
    }

    pub(super) fn ended(&self) -> bool {
        self.ended
    }

    pub(super) fn rest(&self) -> &str {
        &self.text[self.start..]
    }

    /// The next `len` bytes, which are used up by this.
    pub(super) fn take(&mut self, len: usize) -> &str {
        let start = self.start;
        self.start += len;
        &self.text[start..self.start]
    }

    /// Gives back the memory of what was used up. Once a push, so that a push costs what it brings and what is held.
    pub(super) fn compact(&mut self) {
        self.text.drain(..self.start);
        self.start = 0;
        // A long call must not keep its memory for the rest of a night.
        if self.text.capacity() > 1 << 16 && self.text.len() < self.text.capacity() / 4 {
            self.text.shrink_to_fit();
        }
    }
}

/// The first of `markers` in `text` from `from` on, else how far no marker can begin.
///
/// Every marker's first character occurs in it nowhere else, so markers do not overlap and the first complete one is the
/// first.
pub(super) fn find(text: &str, from: usize, markers: &[&'static str], ended: bool) -> Found {
    let mut begin = from;
    while let Some(at) = text[begin..].find(['<', '[']).map(|at| begin + at) {
        match starts(&text[at..], markers.iter().map(|marker| (*marker, *marker)), ended) {
            Start::Marker(_, marker) => return Found::Marker { at, marker },
            Start::Open => return Found::None { clear: at },
            Start::Other => begin = at + 1,
        }
    }
    Found::None { clear: text.len() }
}

/// Answer of [`find`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    Marker { at: usize, marker: &'static str },
    None { clear: usize },
}

/// Which of `markers` stands at the start of `text`.
pub(super) fn starts<T>(text: &str, markers: impl Iterator<Item = (&'static str, T)>, ended: bool) -> Start<T> {
    let mut open = false;
    for (marker, kind) in markers {
        if text.starts_with(marker) {
            return Start::Marker(marker.len(), kind);
        }
        open |= marker.starts_with(text);
    }
    if open && !ended { Start::Open } else { Start::Other }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marker_is_found_or_waited_for() {
        let markers = ["<a>", "[B]"];
        assert_eq!(find("x<y[B]<a>", 0, &markers, false), Found::Marker { at: 3, marker: "[B]" });
        assert_eq!(find("x<a", 0, &markers, false), Found::None { clear: 1 });
        assert_eq!(find("x<a", 0, &markers, true), Found::None { clear: 3 });
        assert_eq!(find("é<<a>", 0, &markers, false), Found::Marker { at: 3, marker: "<a>" });
        assert_eq!(find("<a><", 3, &markers, false), Found::None { clear: 3 });
    }
}
