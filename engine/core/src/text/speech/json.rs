//! Where a JSON value that is still being written ends.

use std::fmt::Write as _;

/// Follows brackets and strings to the end of an object or a list. Whether it is valid, a parser says afterwards.
#[derive(Debug, Default)]
pub(super) struct JsonEnd {
    /// Bytes that were looked at.
    at: usize,
    depth: usize,
    string: Option<InString>,
}

#[derive(Debug)]
struct InString {
    escaped: bool,
    /// JSON forbids it, so perhaps its closing quote was forgotten.
    has_line_break: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Not there yet.
    Open,
    /// The value has this many bytes.
    At(usize),
    /// This byte cannot belong to a value that began properly.
    Broken(usize),
}

impl JsonEnd {
    /// Goes on in `text`, which starts with `{` or `[`. A value ends, broken, before `closer`, unless that stands in a
    /// proper string.
    pub(super) fn find(&mut self, text: &str, closer: &str) -> End {
        while let Some(&byte) = text.as_bytes().get(self.at) {
            match &mut self.string {
                Some(string) => {
                    if byte == b'<' && string.has_line_break {
                        let rest = &text[self.at..];
                        if rest.starts_with(closer) {
                            return End::Broken(self.at);
                        }
                        if closer.starts_with(rest) {
                            return End::Open;
                        }
                    }
                    match byte {
                        _ if string.escaped => string.escaped = false,
                        b'\\' => string.escaped = true,
                        b'"' => self.string = None,
                        b'\n' => string.has_line_break = true,
                        _ => {}
                    }
                }
                None => match byte {
                    b'"' => self.string = Some(InString { escaped: false, has_line_break: false }),
                    b'{' | b'[' => self.depth += 1,
                    b'}' | b']' => {
                        self.depth = self.depth.saturating_sub(1);
                        if self.depth == 0 {
                            return End::At(self.at + 1);
                        }
                    }
                    b'<' => return End::Broken(self.at),
                    _ => {}
                },
            }
            self.at += 1;
        }
        End::Open
    }
}

/// The text with `\n` for a line break in a string, and so on. `None` if there is nothing to do.
pub(super) fn with_control_characters_escaped(text: &str) -> Option<String> {
    let mut out = String::with_capacity(text.len() + 16);
    let (mut in_string, mut escaped, mut changed) = (false, false, false);
    for c in text.chars() {
        match c {
            _ if in_string && c < ' ' && !escaped => {
                // Writing into a text does not fail.
                let _ = write!(out, "\\u{:04x}", u32::from(c));
                changed = true;
                continue;
            }
            _ if escaped => escaped = false,
            '\\' if in_string => escaped = true,
            '"' => in_string = !in_string,
            _ => {}
        }
        out.push(c);
    }
    changed.then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(text: &str) -> End {
        JsonEnd::default().find(text, "</x>")
    }

    #[test]
    fn a_value_ends_with_its_last_bracket() {
        assert_eq!(end(r#"{"a": [1, "}]\"{"]} {"#), End::At(19));
        assert_eq!(end("[]]"), End::At(2));
        assert_eq!(end(r#"{"a": ""#), End::Open);
    }

    #[test]
    fn a_closing_tag_ends_a_broken_value_but_not_a_string() {
        assert_eq!(end(r#"{"a": "</x>"}"#), End::At(13));
        assert_eq!(end(r#"{"a": 1 </x>"#), End::Broken(8));
        assert_eq!(end("{\"a\": \"1}\n</x>"), End::Broken(10));
        assert_eq!(end("{\"a\": \"1}\n</"), End::Open);
        assert_eq!(end("{\"a\": \"1\n<b\"}"), End::At(13));
    }

    #[test]
    fn control_characters_are_escaped_in_strings_only() {
        assert_eq!(with_control_characters_escaped("{\n\"a\\\"\n\": 1}").as_deref(), Some("{\n\"a\\\"\\u000a\": 1}"));
        assert_eq!(with_control_characters_escaped("{\n}"), None);
    }
}
