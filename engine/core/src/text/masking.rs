//! Text of a note must not become a control token.
//!
//! A tokenizer turns the characters `<|im_end|>` into the token that closes a turn, whoever wrote them. A note that
//! quotes them would close the user's turn and speak as the assistant. Ways that do not work: encode the note apart from
//! the prompt (templates trim, split and test the text), put a placeholder in its place (the same), change the quote (the
//! report would cite words that are not in the note), refuse the note (one file stops a night).
//!
//! So the text is *masked*: one character of each quoted control token is replaced by a pair of code points that no text
//! uses, U+FDD0 (a noncharacter, reserved by Unicode for such internal use) and a private-use code. The template sees
//! everything else as it is. The tokenizer looks for control tokens first and finds none in masked text; then its
//! normaliser undoes the mask ([`Unmasking`]), and the very characters of the note are encoded as ordinary text.
//! A text without control tokens is not touched, so its tokens are those of `transformers`.
//!
//! A template joins strings, and two harmless halves could make a token. So a text is masked too where its end begins a
//! control token and where its start ends one.

use std::borrow::Cow;
use std::sync::Arc;

use tokenizers::{NormalizedString, Normalizer, NormalizerWrapper};

/// Introduces a masked character.
pub(super) const MARK: char = '\u{FDD0}';
const FIRST_CODE: u32 = 0xE000;
/// The private-use area of the basic plane.
const CODES: usize = 6400;

/// The special tokens of a tokenizer, and which characters may need a mask.
#[derive(Debug, Default)]
pub(super) struct Masking {
    specials: Vec<String>,
    /// `MARK` followed by `FIRST_CODE + i` stands for `masked[i]`. The first is `MARK` itself, the rest is sorted.
    masked: Vec<char>,
}

impl Masking {
    /// `None` if the tokens begin and end with more characters than there are codes.
    pub(super) fn new(specials: Vec<String>) -> Option<Self> {
        let mut ends: Vec<char> =
            specials.iter().flat_map(|s| s.chars().next().into_iter().chain(s.chars().next_back())).collect();
        ends.sort_unstable();
        ends.dedup();
        ends.retain(|&c| c != MARK);
        let masked: Vec<char> = std::iter::once(MARK).chain(ends).collect();
        (masked.len() <= CODES).then_some(Self { specials, masked })
    }

    /// All special tokens.
    pub(super) fn specials(&self) -> &[String] {
        &self.specials
    }

    /// `MARK` written so that [`unmask`](Self::unmask) gives it back; control tokens stay what they are.
    pub(super) fn escape<'a>(&self, text: &'a str) -> Cow<'a, str> {
        if !text.contains(MARK) {
            return Cow::Borrowed(text);
        }
        let mut out = String::with_capacity(text.len() + 16);
        text.chars().for_each(|c| if c == MARK { self.push_masked(&mut out, c) } else { out.push(c) });
        Cow::Owned(out)
    }

    /// The text, with a mask on every control token in it and on halves of one at its edges.
    pub(super) fn mask<'a>(&self, text: &'a str) -> Cow<'a, str> {
        let mut opening: Vec<usize> = self.closed_at_the_start(text);
        for (at, c) in text.char_indices() {
            let rest = &text[at..];
            // `s.starts_with(rest)`: the text ends inside the token.
            let begins = |s: &String| s.starts_with(c) && (rest.starts_with(s.as_str()) || s.starts_with(rest));
            if c == MARK || (self.at_an_end(c) && self.specials.iter().any(begins)) {
                opening.push(at);
            }
        }
        if opening.is_empty() {
            return Cow::Borrowed(text);
        }
        opening.sort_unstable();
        let mut out = String::with_capacity(text.len() + 8 * opening.len());
        let mut next = opening.into_iter().peekable();
        for (at, c) in text.char_indices() {
            if next.peek() == Some(&at) {
                while next.next_if_eq(&at).is_some() {}
                self.push_masked(&mut out, c);
            } else {
                out.push(c);
            }
        }
        Cow::Owned(out)
    }

    /// Cheap first test: does some control token begin or end with this character?
    fn at_an_end(&self, c: char) -> bool {
        self.masked.get(1..).is_some_and(|sorted| sorted.binary_search(&c).is_ok())
    }

    /// Where the last character stands of each proper end of a control token that the text starts with.
    fn closed_at_the_start(&self, text: &str) -> Vec<usize> {
        let ends = self.specials.iter().flat_map(|s| s.char_indices().skip(1).map(move |(at, _)| &s[at..]));
        ends.filter(|end| text.starts_with(*end))
            .filter_map(|end| end.char_indices().next_back())
            .map(|(at, _)| at)
            .collect()
    }

    fn push_masked(&self, out: &mut String, c: char) {
        let index = self.masked.iter().position(|&m| m == c).expect("only characters in the table are masked");
        out.push(MARK);
        out.push(char::from_u32(FIRST_CODE + index as u32).expect("a private-use code"));
    }

    /// Undoes [`mask`](Self::mask) and [`escape`](Self::escape).
    pub(super) fn unmask<'a>(&self, text: &'a str) -> Cow<'a, str> {
        if !text.contains(MARK) {
            return Cow::Borrowed(text);
        }
        let mut out = String::with_capacity(text.len());
        let mut chars = text.chars().peekable();
        while let Some(c) = chars.next() {
            let original = |code: &char| {
                u32::from(*code).checked_sub(FIRST_CODE).and_then(|index| self.masked.get(index as usize)).copied()
            };
            match chars.peek().and_then(original).filter(|_| c == MARK) {
                Some(original) => {
                    chars.next();
                    out.push(original);
                }
                None => out.push(c),
            }
        }
        Cow::Owned(out)
    }
}

/// The tokenizer's own normaliser, after the mask is off. It runs when control tokens have been found already.
#[derive(Clone, Debug, serde::Deserialize)]
#[serde(from = "NormalizerWrapper")]
pub(super) struct Unmasking {
    pub(super) masking: Arc<Masking>,
    pub(super) then: Option<NormalizerWrapper>,
}

impl From<NormalizerWrapper> for Unmasking {
    fn from(then: NormalizerWrapper) -> Self {
        Self { masking: Arc::default(), then: Some(then) }
    }
}

impl Normalizer for Unmasking {
    fn normalize(&self, text: &mut NormalizedString) -> tokenizers::Result<()> {
        if let Cow::Owned(unmasked) = self.masking.unmask(text.get()) {
            // Offsets into the masked text are lost; nobody asks for them.
            *text = NormalizedString::from(unmasked);
        }
        self.then.as_ref().map_or(Ok(()), |then| then.normalize(text))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn masking() -> Masking {
        let specials = ["<|im_start|>", "<|im_end|>", "<s>", "]~b]", "§"];
        Masking::new(specials.map(String::from).to_vec()).expect("few characters")
    }

    #[test]
    fn ordinary_text_is_not_touched() {
        for text in ["", "a < b > c", "fn f() -> Vec<u8> {}", "| a | b |", "see [1]~ b", "<|im_end", "конец. 👍🏽"]
        {
            let masking = masking();
            // An end that begins a control token is not ordinary.
            let want_touched = masking.specials().iter().any(|s| s.starts_with(text)) && !text.is_empty();
            assert_eq!(matches!(masking.mask(text), Cow::Owned(_)), want_touched, "{text:?}");
        }
    }

    proptest! {
        /// Pieces of control tokens, in any order, cut anywhere, joined again: no control token is left.
        #[test]
        fn no_join_of_masked_texts_holds_a_control_token(
            texts in prop::collection::vec(
                prop::collection::vec(
                    prop::sample::select(vec!["<", "|", "im_", "end", "start", "|>", ">", "s", "]", "~b", "§", " ", "ж", "\u{FDD0}", "\u{E000}", "\u{E001}"]),
                    0..8,
                ).prop_map(|parts| parts.concat()),
                1..4,
            ),
        ) {
            let masking = masking();
            let joined: String = texts.iter().map(|text| masking.mask(text)).collect();
            for special in masking.specials() {
                prop_assert!(!joined.contains(special.as_str()), "{special} in {joined:?}");
            }
            prop_assert_eq!(masking.unmask(&joined), texts.concat());
        }

        #[test]
        fn escape_is_undone_by_unmask_and_leaves_control_tokens(text in "(<s>|[a-b<>]|\u{FDD0}|\u{E000}|\u{E001}){0,12}") {
            let masking = masking();
            let escaped = masking.escape(&text);
            prop_assert_eq!(masking.unmask(&escaped), text.clone());
            prop_assert_eq!(escaped.matches("<s>").count(), text.matches("<s>").count());
        }
    }
}
