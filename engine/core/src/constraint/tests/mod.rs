//! Random logits under a mask: whatever a model says, what comes out is of the form that was asked for.

mod hostile;
mod schemas;
mod turns;

use serde_json::{Value, json};

use super::*;
use crate::sampler::{Sampler, SamplingParams};
use crate::text::fixtures::{self, byte_level, byte_level_json};

const END: u32 = 302;
const TAG: &[u8] = b"</parameter>";

/// The small tokenizer, with control tokens of these spellings.
pub(super) fn tokenizer_with(control_tokens: &[&str]) -> Tokenizer {
    let mut json = byte_level_json();
    for (id, content) in (400..).zip(control_tokens) {
        let mut added = json["added_tokens"].as_array_mut().expect("a list").iter_mut();
        if let Some(known) = added.find(|token| token["content"] == *content) {
            known["special"] = true.into();
            continue;
        }
        json["model"]["vocab"][*content] = id.into();
        json["added_tokens"].as_array_mut().expect("a list").push(json!({
            "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true,
        }));
    }
    fixtures::tokenizer(&json, &json!({}))
}

pub(super) fn compiler_for(tokenizer: &Tokenizer) -> ConstraintCompiler {
    ConstraintCompiler::new(tokenizer, &[END]).expect("this tokenizer can be followed")
}

pub(super) fn compiler() -> ConstraintCompiler {
    compiler_for(&byte_level())
}

/// A noise that is the same in every run.
pub(super) struct Noise(pub(super) u64);

impl Noise {
    pub(super) fn next(&mut self) -> u64 {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }
}

/// What a model of pure noise writes under a constraint, control tokens shown. The longer it writes the more it wants to
/// close what is open: noise alone would open lists for ever.
pub(super) fn babble(constraint: &Constraint, tokenizer: &Tokenizer, seed: u64, tokens_max: usize) -> Option<String> {
    let mut noise = Noise(seed);
    let mut matcher = constraint.begin();
    let params = SamplingParams { seed, ..SamplingParams::default() };
    let mut sampler = Sampler::new(params, tokenizer.vocab_size()).expect("valid").reserving(true, 0);
    let mut logits = vec![0.0; tokenizer.vocab_size()];
    let mut ids = Vec::new();
    while ids.len() < tokens_max {
        for logit in &mut logits {
            *logit = (noise.next() % 4096) as f32 / 512.0;
        }
        let haste = ids.len() as f32 / 8.0;
        for closing in [b'"', b'}', b']', b'>'] {
            logits[usize::from(closing)] += haste;
        }
        logits[END as usize] += 2.0 * haste;
        let mask = matcher.mask().expect("the constraint is followed");
        // A free text, where a line may end, ends with its tag, which noise would never spell.
        if mask[0] >> b'\n' & 1 == 1 {
            let text: Vec<u8> = ids.iter().filter_map(|id| tokenizer.token_bytes(*id)).flatten().copied().collect();
            let spelt = (0..TAG.len()).rev().find(|len| text.ends_with(&TAG[..*len])).unwrap_or(0);
            logits[usize::from(TAG[spelt])] += 3.0 * haste;
        }
        let token = sampler.sample_masked(&logits, ids.len() as u64, Some(mask)).expect("a token is left").token;
        if token == END {
            assert!(matcher.is_complete().expect("the constraint is followed"), "it ends where it may");
            return Some(tokenizer.decode(&ids, false).expect("known ids"));
        }
        matcher.accept(token).expect("a token of the mask is accepted");
        ids.push(token);
    }
    None
}

/// Whether a text is of the form, from its first token to its end.
pub(super) fn admits(constraint: &Constraint, tokenizer: &Tokenizer, text: &str) -> bool {
    let mut matcher = constraint.begin();
    for id in tokenizer.encode(text, false).expect("encodes") {
        let mask = matcher.mask().expect("the constraint is followed");
        if mask[id as usize / 32] >> (id % 32) & 1 == 0 {
            return false;
        }
        matcher.accept(id).expect("a token of the mask is accepted");
    }
    matcher.is_complete().expect("the constraint is followed")
}

#[test]
fn an_expression_a_grammar_and_any_object_are_followed() {
    let (tokenizer, compiler) = (byte_level(), compiler());
    let date = compiler.regex(r"\d{4}-\d{2}-\d{2}").expect("compiles");
    assert!(admits(&date, &tokenizer, "2026-11-23"));
    assert!(!admits(&date, &tokenizer, "2026-11-23 "));
    assert!(!admits(&date, &tokenizer, "2026-11-2"));
    let grammar = compiler.lark("start: greeting \", \" NAME\ngreeting: \"hello\" | \"привет\"\nNAME: /[a-z]+/");
    let grammar = grammar.expect("compiles");
    assert!(admits(&grammar, &tokenizer, "привет, anna"));
    assert!(!admits(&grammar, &tokenizer, "hallo, anna"));
    let object = compiler.json_object().expect("compiles");
    assert!(admits(&object, &tokenizer, r#"{"a": [1, {"b": null}], "б": "🐝"}"#));
    assert!(!admits(&object, &tokenizer, "[1]"));
    for seed in 0..20 {
        let text = babble(&object, &tokenizer, seed, 3000).expect("it comes to its end");
        let value: Value = serde_json::from_str(&text).expect("JSON");
        assert!(value.is_object(), "{text}");
    }
}

#[test]
fn where_a_text_can_only_end_nothing_else_is_left() {
    let (tokenizer, compiler) = (byte_level(), compiler());
    let mut matcher = compiler.regex("ab").expect("compiles").begin();
    for byte in *b"ab" {
        let mask = matcher.mask().expect("the constraint is followed");
        assert_eq!(mask.iter().map(|word| word.count_ones()).sum::<u32>(), 1);
        assert!(!matcher.is_complete().expect("the constraint is followed"));
        matcher.accept(u32::from(byte)).expect("a token of the mask is accepted");
    }
    let mask = matcher.mask().expect("the constraint is followed").to_vec();
    assert_eq!(mask.iter().map(|word| word.count_ones()).sum::<u32>(), 1);
    assert_eq!(mask[END as usize / 32] >> (END % 32) & 1, 1);
    assert!(matcher.accept(u32::from(b'c')).is_err(), "what is not in the mask is not accepted");
    let mut sampler =
        Sampler::new(SamplingParams::default(), tokenizer.vocab_size()).expect("valid").reserving(true, 0);
    let logits = vec![0.0; tokenizer.vocab_size()];
    assert_eq!(sampler.sample_masked(&logits, 0, Some(&mask)).expect("one is left").token, END);
}

#[test]
fn every_sequence_of_a_constraint_goes_its_own_way() {
    let tokenizer = byte_level();
    let constraint = compiler().json_object().expect("compiles");
    let alone: Vec<_> = (0..6).map(|seed| babble(&constraint, &tokenizer, seed, 3000)).collect();
    let again: Vec<_> = (0..6).rev().map(|seed| babble(&constraint.clone(), &tokenizer, seed, 3000)).collect();
    assert_eq!(alone, again.into_iter().rev().collect::<Vec<_>>());
}

#[test]
fn a_constraint_knows_the_tokens_that_it_is_for() {
    let tokenizer = byte_level();
    let constraint = compiler().json_object().expect("compiles");
    assert!(constraint.is_for(&tokenizer, &[END]));
    assert!(constraint.is_for(&tokenizer, &[END, END]));
    assert!(!constraint.is_for(&tokenizer, &[END, 300]));
    assert!(!constraint.is_for(&tokenizer_with(&["<|x|>"]), &[END]));
    assert!(matches!(ConstraintCompiler::new(&tokenizer, &[]), Err(ConstraintError::NoEnd)));
    assert!(matches!(ConstraintCompiler::new(&tokenizer, &[70_000]), Err(ConstraintError::NoEnd)));
}
