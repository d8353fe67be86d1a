//! A text without meaning of a wanted length, with facts at wanted depths.
//!
//! All of it is a function of language and seed: another machine reads the same text and gets the same questions. A
//! length is one of tokens, and only the model's tokenizer knows it, so sentences are added until the next is too long.

use std::collections::BTreeSet;

use super::language::Language;

/// Sentences of a paragraph.
const PARAGRAPH: usize = 8;
/// Codes have five digits.
const CODES: std::ops::Range<u64> = 10_000..100_000;

/// SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014).
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number below `limit`.
    pub(super) fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % limit
    }

    pub(super) fn choose<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len() as u64) as usize]
    }
}

/// Something that is said once, to be asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fact {
    pub(super) subject: String,
    pub(super) code: String,
}

/// Facts of one round, all with subjects and codes of their own.
pub(super) fn facts(language: Language, seed: u64, count: usize) -> Vec<Fact> {
    let mut random = Random::new(!seed);
    let (mut subjects, mut codes) = (BTreeSet::new(), BTreeSet::new());
    let mut fresh = |taken: &mut BTreeSet<u64>, limit| {
        std::iter::repeat_with(|| random.below(limit)).find(|number| taken.insert(*number)).unwrap_or_default()
    };
    let fact = |_| {
        let subject = language.subject(fresh(&mut subjects, language.subjects() as u64) as usize);
        let code = CODES.start + fresh(&mut codes, CODES.end - CODES.start);
        Fact { subject, code: code.to_string() }
    };
    (0..count).map(fact).collect()
}

/// A fact and how deep it is to stand, from 0 at the beginning to 1 at the end.
pub(super) struct Planting<'a> {
    pub(super) fact: &'a Fact,
    pub(super) depth: f64,
}

/// Filler of one seed, as long as it was ever needed.
pub(super) struct Corpus {
    language: Language,
    random: Random,
    sentences: Vec<String>,
    /// Tokens of the sentences before each, every sentence by itself.
    tokens_before: Vec<usize>,
}

/// A text, and where in its bytes each planted fact begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Text {
    pub(super) text: String,
    pub(super) offsets: Vec<usize>,
}

impl Corpus {
    pub(super) fn new(language: Language, seed: u64) -> Self {
        Self { language, random: Random::new(seed), sentences: Vec::new(), tokens_before: vec![0] }
    }

    /// The longest text with these facts in which `tokens_of` finds at most `room` tokens, and nothing where not even the
    /// facts alone have room. `tokens_of_sentence` counts a sentence by itself, which only decides where facts stand and
    /// where the search begins.
    pub(super) fn fit<E>(
        &mut self,
        plantings: &[Planting],
        room: usize,
        tokens_of_sentence: impl Fn(&str) -> Result<usize, E>,
        mut tokens_of: impl FnMut(&str) -> Result<usize, E>,
    ) -> Result<Option<Text>, E> {
        let mut fits = |corpus: &Self, sentences| Ok(tokens_of(&corpus.plant(plantings, sentences).text)? <= room);
        if !fits(self, 0)? {
            return Ok(None);
        }
        // Twice as many while they fit, then the border by halves.
        let (mut fitting, mut too_many) = (0, 1);
        loop {
            self.extend(too_many, &tokens_of_sentence)?;
            // Sentences by themselves have about as many tokens as together: no text far beyond the room is put together.
            if self.tokens_before[too_many] > room.saturating_mul(2) || !fits(self, too_many)? {
                break;
            }
            (fitting, too_many) = (too_many, too_many * 2);
        }
        while fitting + 1 < too_many {
            let middle = fitting.midpoint(too_many);
            match fits(self, middle)? {
                true => fitting = middle,
                false => too_many = middle,
            }
        }
        Ok(Some(self.plant(plantings, fitting)))
    }

    /// Writes filler until there are so many sentences.
    fn extend<E>(&mut self, sentences: usize, tokens_of: impl Fn(&str) -> Result<usize, E>) -> Result<(), E> {
        while self.sentences.len() < sentences {
            let sentence = self.language.filler(&mut self.random);
            let before = self.tokens_before.last().copied().unwrap_or(0);
            self.tokens_before.push(before + tokens_of(&format!(" {sentence}"))?);
            self.sentences.push(sentence);
        }
        Ok(())
    }

    /// The first `sentences` with the facts between them, each before the sentence whose beginning is nearest to its depth.
    fn plant(&self, plantings: &[Planting], sentences: usize) -> Text {
        let tokens_before = &self.tokens_before[..=sentences];
        let all = tokens_before[sentences] as f64;
        let places: Vec<usize> = plantings
            .iter()
            .map(|planting| {
                let wanted = planting.depth * all;
                let after = tokens_before.partition_point(|tokens| (*tokens as f64) < wanted).min(sentences);
                let before = after.saturating_sub(1);
                let distance = |place: usize| (tokens_before[place] as f64 - wanted).abs();
                if distance(before) < distance(after) { before } else { after }
            })
            .collect();
        let mut text = Text { text: String::new(), offsets: vec![0; plantings.len()] };
        let mut written = 0;
        for place in 0..=sentences {
            for (index, planting) in plantings.iter().enumerate().filter(|(index, _)| places[*index] == place) {
                let Fact { subject, code } = planting.fact;
                text.offsets[index] = append(&mut text.text, &mut written, &self.language.fact(subject, code));
            }
            if let Some(sentence) = self.sentences[..sentences].get(place) {
                append(&mut text.text, &mut written, sentence);
            }
        }
        text
    }
}

/// Appends a sentence to paragraphs and returns where it begins.
fn append(text: &mut String, written: &mut usize, sentence: &str) -> usize {
    *text += match *written {
        0 => "",
        written if written.is_multiple_of(PARAGRAPH) => "\n\n",
        _ => " ",
    };
    *written += 1;
    let offset = text.len();
    *text += sentence;
    offset
}

/// Whether the first code of `codes` that an answer names is `wanted`: an answer that lists them all has found at most
/// one. Digits and letters right beside it make another code of it.
pub(super) fn names_first(answer: &str, wanted: &str, codes: &[&str]) -> bool {
    let place = |code: &&str| {
        answer.match_indices(*code).map(|(at, _)| at).find(|at| {
            let (before, after) = (answer[..*at].chars().next_back(), answer[*at + code.len()..].chars().next());
            ![before, after].into_iter().flatten().any(char::is_alphanumeric)
        })
    };
    let first = codes.iter().filter_map(|code| Some((place(code)?, *code))).min();
    first.is_some_and(|(_, code)| code == wanted)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    /// A tokenizer that joins nothing: pieces between spaces, in parts of four bytes.
    fn tokens(text: &str) -> usize {
        text.split(' ').map(|piece| piece.len().div_ceil(4) + 1).sum()
    }

    fn count(text: &str) -> Result<usize, Infallible> {
        Ok(tokens(text))
    }

    fn even(facts: &[Fact]) -> Vec<Planting<'_>> {
        let last = (facts.len() - 1).max(1) as f64;
        facts.iter().enumerate().map(|(index, fact)| Planting { fact, depth: index as f64 / last }).collect()
    }

    fn fitted(language: Language, seed: u64, facts: &[Fact], room: usize) -> Option<Text> {
        Corpus::new(language, seed).fit(&even(facts), room, count, count).unwrap()
    }

    #[test]
    fn a_text_fills_its_room_up_to_a_sentence_and_is_a_function_of_its_seed() {
        for language in [Language::En, Language::Ru] {
            let facts = facts(language, 7, 5);
            for room in [400, 1000, 5000, 20_000] {
                let text = fitted(language, 7, &facts, room).unwrap();
                let length = tokens(&text.text);
                let longest = text.text.split_inclusive('.').map(tokens).max().unwrap();
                assert!(length <= room && length + longest + 2 > room, "{length} of {room}, a sentence {longest}");
                assert_eq!(fitted(language, 7, &facts, room).unwrap(), text);
                assert_ne!(fitted(language, 8, &facts, room).unwrap().text, text.text);
            }
            assert_eq!(fitted(language, 7, &facts, 20), None);
        }
    }

    #[test]
    fn facts_stand_once_and_at_their_depths_within_a_sentence() {
        for language in [Language::En, Language::Ru] {
            let facts = facts(language, 1, 6);
            let text = fitted(language, 1, &facts, 4000).unwrap();
            let longest = text.text.split_inclusive('.').map(tokens).max().unwrap();
            let planted: usize = facts.iter().map(|fact| tokens(&language.fact(&fact.subject, &fact.code))).sum();
            for (index, fact) in facts.iter().enumerate() {
                let sentence = language.fact(&fact.subject, &fact.code);
                assert!(text.text[text.offsets[index]..].starts_with(&sentence));
                assert_eq!(text.text.matches(&fact.code).count(), 1);
                assert_eq!(text.text.matches(&sentence).count(), 1);
                let (before, all) = (tokens(&text.text[..text.offsets[index]]), tokens(&text.text));
                let off = (before as f64 - all as f64 * index as f64 / 5.0).abs();
                assert!(off <= (longest + planted) as f64, "fact {index} is {off} tokens off");
            }
        }
    }

    #[test]
    fn filler_has_no_digits_varies_and_facts_differ() {
        for language in [Language::En, Language::Ru] {
            let mut random = Random::new(3);
            let sentences: Vec<String> = (0..1000).map(|_| language.filler(&mut random)).collect();
            assert!(sentences.iter().all(|sentence| !sentence.chars().any(char::is_numeric)));
            assert!(
                sentences.iter().all(|sentence| sentence.starts_with(char::is_uppercase) && sentence.ends_with('.'))
            );
            assert!(sentences.iter().collect::<BTreeSet<_>>().len() > 990);
            let all = facts(language, 3, language.subjects());
            assert_eq!(all.iter().map(|fact| &fact.subject).collect::<BTreeSet<_>>().len(), all.len());
            assert_eq!(all.iter().map(|fact| &fact.code).collect::<BTreeSet<_>>().len(), all.len());
        }
    }

    #[test]
    fn an_answer_counts_if_the_first_planted_code_in_it_is_the_one_that_was_asked_for() {
        let codes = ["12345", "54321"];
        for answer in ["12345", "The code is 12345.", "код 12345, а не 54321", "99999? No: 12345", "112345 or 12345"]
        {
            assert!(names_first(answer, "12345", &codes), "{answer}");
        }
        for answer in ["", "1234", "123456", "a12345", "12,345", "54321, 12345", "54321", "twelve"] {
            assert!(!names_first(answer, "12345", &codes), "{answer}");
        }
    }
}
