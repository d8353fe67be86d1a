//! Stop strings in a stream of pieces.
//!
//! A stop string may begin in one piece and end three pieces later, so the end of the text is held back exactly as long
//! as it could be the beginning of one. What comes out does not depend on where the pieces were cut: generation stops at
//! the first character at which the text contains a stop string, and the text ends where that stop string begins (the
//! longest, if several end there).

use super::TextError;

/// What a piece led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StopOutcome {
    /// Text that no later piece can take back; may be empty.
    Continue(String),
    /// A stop string is complete.
    Stopped {
        /// The rest of the text before it.
        text: String,
        /// Its index in the list given to [`StopStrings::new`].
        stop: usize,
    },
}

/// Looks for stop strings in one sequence.
#[derive(Clone, Debug, Default)]
pub struct StopStrings {
    stops: Vec<String>,
    held: String,
    stopped: Option<usize>,
}

/// The largest number of stop strings: four are usual in APIs.
const STOPS_MAX: usize = 16;
/// The longest stop string: each piece costs a comparison per held byte.
const STOP_BYTES_MAX: usize = 256;

impl StopStrings {
    /// None at all is allowed; an empty one is not.
    pub fn new(stops: Vec<String>) -> Result<Self, TextError> {
        let refuse = |reason| Err(TextError::StopStrings { reason });
        if stops.len() > STOPS_MAX {
            return refuse(format!("{} were given, at most {STOPS_MAX} are possible", stops.len()));
        }
        for (index, stop) in stops.iter().enumerate() {
            if stop.is_empty() {
                return refuse(format!("number {index} is empty, which would stop at once; leave it out"));
            }
            if stop.len() > STOP_BYTES_MAX {
                return refuse(format!(
                    "number {index} has {} bytes, at most {STOP_BYTES_MAX} are possible",
                    stop.len()
                ));
            }
        }
        Ok(Self { stops, held: String::new(), stopped: None })
    }

    /// Takes the next piece of the text. After a stop nothing more comes out.
    pub fn push(&mut self, piece: &str) -> StopOutcome {
        if let Some(stop) = self.stopped {
            return StopOutcome::Stopped { text: String::new(), stop };
        }
        self.held.push_str(piece);
        let ends = self.stops.iter().enumerate().filter_map(|(index, stop)| {
            let start = self.held.find(stop.as_str())?;
            Some((start + stop.len(), start, index))
        });
        if let Some((_, start, stop)) = ends.min() {
            self.stopped = Some(stop);
            self.held.truncate(start);
            return StopOutcome::Stopped { text: std::mem::take(&mut self.held), stop };
        }
        let safe = self.safe_bytes();
        let held = self.held.split_off(safe);
        StopOutcome::Continue(std::mem::replace(&mut self.held, held))
    }

    /// The text that was held back: no stop string came of it.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Up to where no stop string can begin any more.
    fn safe_bytes(&self) -> usize {
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let first = self.held.len().saturating_sub(longest.saturating_sub(1));
        (first..self.held.len())
            .filter(|&at| self.held.is_char_boundary(at))
            .find(|&at| self.stops.iter().any(|stop| stop.starts_with(&self.held[at..])))
            .unwrap_or(self.held.len())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stops(list: &[&str]) -> StopStrings {
        StopStrings::new(list.iter().map(|s| s.to_string()).collect()).expect("valid stop strings")
    }

    fn run(mut stops: StopStrings, pieces: &[String]) -> (String, Option<usize>) {
        let mut out = String::new();
        for piece in pieces {
            match stops.push(piece) {
                StopOutcome::Continue(text) => out += &text,
                StopOutcome::Stopped { text, stop } => {
                    out += &text;
                    assert_eq!(stops.push("more"), StopOutcome::Stopped { text: String::new(), stop });
                    assert_eq!(stops.finish(), "");
                    return (out, Some(stop));
                }
            }
        }
        (out + &stops.finish(), None)
    }

    #[test]
    fn exactly_the_possible_beginning_is_held_back() {
        let mut stops = stops(&["\n\nUser:", "END"]);
        assert_eq!(stops.push("fine"), StopOutcome::Continue("fine".into()));
        assert_eq!(stops.push(" E"), StopOutcome::Continue(" ".into()));
        assert_eq!(stops.push("N"), StopOutcome::Continue(String::new()));
        assert_eq!(stops.push("E\n\n"), StopOutcome::Continue("ENE".into()));
        assert_eq!(stops.push("Use"), StopOutcome::Continue(String::new()));
        assert_eq!(stops.push("r:x"), StopOutcome::Stopped { text: String::new(), stop: 0 });
    }

    #[test]
    fn what_was_held_comes_out_at_the_end() {
        let mut stops = stops(&["конец"]);
        assert_eq!(stops.push("это кон"), StopOutcome::Continue("это ".into()));
        assert_eq!(stops.finish(), "кон");
    }

    #[test]
    fn without_stop_strings_nothing_is_held() {
        assert_eq!(stops(&[]).push("text"), StopOutcome::Continue("text".into()));
    }

    #[test]
    fn empty_long_and_many_are_refused() {
        let new = |list: Vec<String>| StopStrings::new(list).map(|_| ());
        assert!(new(vec!["a".into(), String::new()]).is_err_and(|e| e.to_string().contains("number 1 is empty")));
        assert!(new(vec!["a".repeat(257)]).is_err_and(|e| e.to_string().contains("256")));
        assert!(new(vec!["a".into(); 17]).is_err_and(|e| e.to_string().contains("at most 16")));
    }

    /// The definition: the shortest beginning of the text that contains a stop string.
    fn oracle(list: &[String], text: &str) -> (String, Option<usize>) {
        for end in (0..=text.len()).filter(|&end| text.is_char_boundary(end)) {
            let found = list.iter().enumerate().filter(|(_, stop)| text[..end].ends_with(stop.as_str()));
            if let Some((index, stop)) = found.max_by_key(|(index, stop)| (stop.len(), usize::MAX - index)) {
                return (text[..end - stop.len()].to_owned(), Some(index));
            }
        }
        (text.to_owned(), None)
    }

    proptest! {
        #[test]
        fn cuts_do_not_matter(
            list in prop::collection::vec("[abя]{1,4}", 0..4),
            pieces in prop::collection::vec("[abcя]{0,5}", 0..12),
        ) {
            let stops = StopStrings::new(list.clone()).expect("valid stop strings");
            prop_assert_eq!(run(stops, &pieces), oracle(&list, &pieces.concat()));
        }
    }
}
