//! Rust source split into code, comments and literals.
//!
//! A rule about code must not see a word in a string or in a comment, and a rule about comments must not see one in
//! code. Bytes of the other kinds become spaces, so that lines and columns stay what they are.

/// What a byte of a source file belongs to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Code,
    Comment,
    /// String, byte string or character, with its quotes.
    Literal,
}

/// The part of `source` that is of one kind.
pub(super) fn only(kind: Kind, source: &str) -> String {
    let kinds = kinds(source.as_bytes());
    let keep = |(byte, of): (u8, Kind)| if of == kind || byte == b'\n' { byte } else { b' ' };
    let bytes = source.bytes().zip(kinds).map(keep).collect();
    // Every delimiter is ASCII, so no character is cut in two.
    String::from_utf8(bytes).expect("whole characters are kept or blanked")
}

/// Lines, counted from one, that hold `word` with no letter, digit or underscore at either side.
pub(super) fn lines_with(word: &str, text: &str) -> Vec<usize> {
    let holds = |line: &str| {
        line.match_indices(word).any(|(at, _)| {
            let (before, after) = (line[..at].chars().next_back(), line[at + word.len()..].chars().next());
            !before.is_some_and(is_identifier) && !after.is_some_and(is_identifier)
        })
    };
    text.lines().enumerate().filter(|(_, line)| holds(line)).map(|(index, _)| index + 1).collect()
}

fn is_identifier(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn kinds(source: &[u8]) -> Vec<Kind> {
    let mut kinds = Vec::with_capacity(source.len());
    while let rest @ [first, ..] = &source[kinds.len()..] {
        let in_word = source[..kinds.len()].last().is_some_and(|&byte| is_identifier(char::from(byte)));
        let (kind, length) = if rest.starts_with(b"//") {
            (Kind::Comment, rest.iter().position(|&byte| byte == b'\n').unwrap_or(rest.len()))
        } else if rest.starts_with(b"/*") {
            (Kind::Comment, block_comment(rest))
        } else if let Some(length) = raw_string(rest).filter(|_| !in_word) {
            (Kind::Literal, length)
        } else if *first == b'"' {
            (Kind::Literal, quoted(rest, b'"'))
        } else if is_character(rest) {
            (Kind::Literal, quoted(rest, b'\''))
        } else {
            (Kind::Code, 1)
        };
        kinds.resize(kinds.len() + length, kind);
    }
    kinds
}

/// Length of the block comment that `source` opens with; they nest.
fn block_comment(source: &[u8]) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < source.len() {
        if source[at..].starts_with(b"/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if source[at..].starts_with(b"*/") {
            (depth, at) = (depth - 1, at + 2);
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    source.len()
}

/// Length of the literal between two `quote`s that `source` opens with; a backslash hides what follows it.
fn quoted(source: &[u8], quote: u8) -> usize {
    let mut at = 1;
    while at < source.len() {
        match source[at] {
            b'\\' => at += 2,
            byte if byte == quote => return at + 1,
            _ => at += 1,
        }
    }
    source.len()
}

/// Length of the raw string that `source` opens with, as in `r"…"`, `br#"…"#`.
fn raw_string(source: &[u8]) -> Option<usize> {
    let prefix = [&b"r"[..], b"br", b"cr"].into_iter().find(|&prefix| source.starts_with(prefix))?.len();
    let hashes = source[prefix..].iter().take_while(|&&byte| byte == b'#').count();
    let body = prefix + hashes + 1;
    if source.get(body - 1) != Some(&b'"') {
        return None; // an identifier, perhaps a raw one
    }
    let end = [&b"\""[..], &b"#".repeat(hashes)].concat();
    let length = source[body..].windows(end.len()).position(|window| window == end);
    Some(length.map_or(source.len(), |length| body + length + end.len()))
}

/// Whether `source` opens with a character rather than with a lifetime.
fn is_character(source: &[u8]) -> bool {
    match source {
        [b'\'', b'\\', ..] => true,
        [b'\'', first, rest @ ..] => {
            let continuation = rest.iter().take_while(|&&byte| *first >= 0x80 && byte & 0xc0 == 0x80).count();
            rest.get(continuation) == Some(&b'\'')
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn code_is(source: &str, want: &str) {
        assert_eq!(only(Kind::Code, source), want);
    }

    #[test]
    fn comments_are_not_code() {
        code_is("a // b\nc", "a     \nc");
        code_is("a /* b /* c */ d */ e", "a                   e");
        code_is("a /* never closed", "a                ");
        code_is("a / b", "a / b");
        assert_eq!(only(Kind::Comment, "a // b\n\"// c\""), "  // b\n      ");
    }

    #[test]
    fn literals_are_not_code() {
        code_is(r#"f("a // b", c)"#, "f(        , c)");
        code_is(r#"f("a \" b", c)"#, "f(        , c)");
        code_is(r###"f(r#"a " b"#, c)"###, "f(          , c)");
        code_is(r#"f(br"\", c)"#, "f(     , c)");
        code_is(r"f('\'', '/', 'é', c)", "f(    ,    ,     , c)");
        code_is("f(\"never closed", "f(             ");
    }

    #[test]
    fn lifetimes_labels_and_raw_identifiers_are_code() {
        for code in ["fn f<'a>(x: &'a str)", "'outer: loop { break 'outer }", "r#type + br + bar#x", "for r in 0..n"] {
            code_is(code, code);
        }
    }

    #[test]
    fn a_literal_may_span_lines_and_they_still_count() {
        let code = only(Kind::Code, "let a = \"x\ny\";\nunsafe {}");
        assert_eq!(lines_with("unsafe", &code), [3]);
    }

    #[test]
    fn a_word_is_not_a_part_of_a_longer_one() {
        assert_eq!(lines_with("unsafe", "unsafe_code\n#[unsafe(x)]\nan unsafe\nésunsafe"), [2, 3]);
    }

    #[test]
    fn no_input_makes_it_panic_or_change_a_length() {
        let alphabet = ["\"", "'", "\\", "/", "*", "r", "#", "b", "é", "\n", "x"];
        // Every source of four pieces: each opener beside each end.
        for number in 0..alphabet.len().pow(4) {
            let pieces = (0..4).map(|place| alphabet[number / alphabet.len().pow(place) % alphabet.len()]);
            let source: String = pieces.collect();
            let kinds = kinds(source.as_bytes());
            assert_eq!(kinds.len(), source.len(), "{source:?}");
            assert_eq!(only(Kind::Code, &source).lines().count(), source.lines().count(), "{source:?}");
        }
    }
}
