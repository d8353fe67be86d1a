//! Long notes in parts.
//!
//! A note that does not fit the context is read in parts, cut where a reader would pause: before a heading, else
//! between paragraphs, lines, words, and only at last between characters. The parts joined are the note: nothing is
//! left out.

use crate::markdown;

/// The places where a text may be cut, the best first.
const CUTS: [fn(&str) -> Vec<usize>; 5] = [headings, paragraphs, lines, words, characters];

/// Cuts `text` into parts for which `fits` holds, as few as reading in order allows, or returns `None` if not even
/// one character fits. `fits` is asked about pieces of the text only, not much longer than a part.
pub(crate) fn split<'a, E>(
    text: &'a str,
    fits: &mut dyn FnMut(&str) -> Result<bool, E>,
) -> Result<Option<Vec<&'a str>>, E> {
    let mut parts = Vec::new();
    let whole = split_at(text, &CUTS, fits, &mut parts)?;
    Ok(whole.then_some(parts))
}

fn split_at<'a, E>(
    text: &'a str,
    cuts: &[fn(&str) -> Vec<usize>],
    fits: &mut dyn FnMut(&str) -> Result<bool, E>,
    parts: &mut Vec<&'a str>,
) -> Result<bool, E> {
    let Some((cut, finer)) = cuts.split_first() else { return Ok(false) };
    let mut ends = cut(text);
    ends.retain(|end| *end != 0 && *end != text.len());
    ends.push(text.len());
    let (mut start, mut first) = (0, 0);
    while first < ends.len() {
        let pieces = largest_prefix(ends.len() - first, &mut |n| fits(&text[start..ends[first + n - 1]]))?;
        let last = first + pieces.max(1) - 1;
        let piece = &text[start..ends[last]];
        if pieces == 0 {
            if !split_at(piece, finer, fits, parts)? {
                return Ok(false);
            }
        } else {
            parts.push(piece);
        }
        (start, first) = (ends[last], last + 1);
    }
    Ok(true)
}

/// The largest n up to `max` for which `fits(n)` holds, given that it holds for all below it; 0 if for none. Asks about
/// at most twice the n that it returns, so that a question costs no more than its answer is worth.
pub(crate) fn largest_prefix<E>(max: usize, fits: &mut dyn FnMut(usize) -> Result<bool, E>) -> Result<usize, E> {
    let (mut good, mut bad) = (0, max + 1);
    let mut next = 1;
    while good + 1 < bad {
        if fits(next)? {
            good = next;
        } else {
            bad = next;
        }
        next = if bad == max + 1 { next.saturating_mul(2).min(max) } else { good + (bad - good) / 2 };
    }
    Ok(good)
}

fn headings(text: &str) -> Vec<usize> {
    let mut fence = None;
    let mut at = 0;
    let mut cuts = Vec::new();
    for line in text.split_inclusive('\n') {
        if markdown::step_fence(&mut fence, line) == markdown::InFence::No && markdown::heading(line).is_some() {
            cuts.push(at);
        }
        at += line.len();
    }
    cuts
}

fn paragraphs(text: &str) -> Vec<usize> {
    let mut at = 0;
    let mut after_blank = false;
    let mut cuts = Vec::new();
    for line in text.split_inclusive('\n') {
        let is_blank = line.trim().is_empty();
        if after_blank && !is_blank {
            cuts.push(at);
        }
        after_blank = is_blank;
        at += line.len();
    }
    cuts
}

fn lines(text: &str) -> Vec<usize> {
    text.match_indices('\n').map(|(at, _)| at + 1).collect()
}

fn words(text: &str) -> Vec<usize> {
    text.char_indices().filter(|(_, c)| c.is_whitespace()).map(|(at, c)| at + c.len_utf8()).collect()
}

fn characters(text: &str) -> Vec<usize> {
    text.char_indices().map(|(at, _)| at).collect()
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use proptest::prelude::*;

    use super::*;

    fn parts(text: &str, max: usize) -> Option<Vec<&str>> {
        split(text, &mut |piece| Ok::<_, Infallible>(piece.chars().count() <= max)).unwrap()
    }

    #[test]
    fn cuts_come_where_a_reader_would_pause() {
        let text = "# A\none\n\n# B\ntwo\n```\n# no\n```\n# C\nthree four";
        assert_eq!(parts(text, 100).unwrap(), [text]);
        assert_eq!(parts(text, 26).unwrap(), ["# A\none\n\n", "# B\ntwo\n```\n# no\n```\n", "# C\nthree four"]);
        assert_eq!(parts("# A\naaaa\n\nbbbb\n\ncccc\n", 11).unwrap(), ["# A\naaaa\n\n", "bbbb\n\ncccc\n"]);
        assert_eq!(parts("слово слово сло", 6).unwrap(), ["слово ", "слово ", "сло"]);
        assert_eq!(parts("неразрывно", 4).unwrap(), ["нера", "зрыв", "но"]);
        assert_eq!(parts("x", 0), None);
    }

    proptest! {
        #[test]
        fn the_parts_joined_are_the_note(text in "[#a-zя \n`]{0,200}", max in 1_usize..40) {
            let parts = parts(&text, max).unwrap();
            prop_assert_eq!(parts.concat(), &*text);
            prop_assert!(parts.iter().all(|part| part.chars().count() <= max));
        }

        #[test]
        fn the_largest_prefix_is_found_without_asking_far_beyond_it(max in 1_usize..500, limit in 0_usize..600) {
            let mut asked = 0;
            let got = largest_prefix(max, &mut |n| {
                asked = asked.max(n);
                Ok::<_, Infallible>(n <= limit)
            });
            prop_assert_eq!(got.unwrap(), limit.min(max));
            prop_assert!(asked <= (2 * limit).max(1));
        }
    }
}
