//! Standard output and standard error, which may be closed or on a full disk.

use std::fmt::Display;
use std::io::{self, Write};

use crate::failure::Failure;

/// Writes to standard output at once. `println!` would panic where it cannot.
pub(crate) fn print(text: impl Display) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    let written = write!(out, "{text}").and_then(|()| out.flush());
    let named = |error: io::Error| io::Error::new(error.kind(), format!("cannot write to standard output: {error}"));
    Ok(written.map_err(named)?)
}

/// Most characters of a message. Messages quote their inputs, and an input may be of any length.
const MESSAGE_CHARS_MAX: usize = 4000;

/// A message as a terminal may see it: control characters of a hostile input are spelled out.
pub(crate) fn printable(message: &str) -> String {
    let mut shown = String::new();
    for c in message.chars().take(MESSAGE_CHARS_MAX) {
        match c {
            '\n' | '\t' => shown.push(c),
            c if c.is_control() => shown.extend(c.escape_default()),
            c => shown.push(c),
        }
    }
    if message.chars().nth(MESSAGE_CHARS_MAX).is_some() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_spelled_out_and_lines_stay() {
        assert_eq!(printable("a\u{1b}[2Jb\r\nв\u{9b}"), "a\\u{1b}[2Jb\\r\nв\\u{9b}");
        assert_eq!(printable(&"x".repeat(5000)).chars().count(), MESSAGE_CHARS_MAX + 1);
        assert_eq!(printable(&"x".repeat(4000)).chars().count(), MESSAGE_CHARS_MAX);
    }
}
