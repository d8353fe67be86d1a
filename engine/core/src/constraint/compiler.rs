//! From schemas, expressions and grammars to constraints.

use std::fmt;
use std::sync::Arc;

use llguidance::api::{GrammarWithLexer, ParserLimits, TopLevelGrammar};
use llguidance::toktrie::{TokEnv, TokTrie};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};

use super::Constraint;
use super::error::{ConstraintError, reason};
use super::limits::Limits;
use super::vocabulary::vocabulary;
use crate::text::Tokenizer;

/// White space between the parts of a JSON text: one space, or line breaks with an indent. A model that has lost its way
/// otherwise writes empty lines until its tokens are spent.
const WHITE_SPACE: &str = r"\x20|\x0A{1,2}[\x20\x09]{0,40}";

/// What the library may spend. Its own defaults, but for lexer states, which take one or two kB each.
fn budget() -> ParserLimits {
    ParserLimits { max_lexer_states: 20_000, max_grammar_size: 200_000, verbose_errors: false, ..Default::default() }
}

/// Compiles constraints for one model. Making one reads the whole vocabulary; it is for many requests and threads.
#[derive(Clone)]
pub struct ConstraintCompiler {
    pub(super) shared: Arc<Shared>,
}

/// What constraints of one compiler have in common.
pub(super) struct Shared {
    factory: ParserFactory,
    vocab_size: usize,
    eos: Vec<u32>,
}

/// A grammar that was compiled.
pub(super) struct Compiled {
    pub(super) what: &'static str,
    /// At the beginning of the text.
    pub(super) matcher: Matcher,
    /// Named, the first one is where it starts.
    pub(super) grammars: Vec<GrammarWithLexer>,
    /// What stands around the text of a turn is part of it already.
    pub(super) has_marks: bool,
}

impl ConstraintCompiler {
    /// For texts of this tokenizer that end with one of `eos`, as the engine has them.
    ///
    /// # Errors
    /// [`ConstraintError::NoEnd`] without an `eos`, [`ConstraintError::Vocabulary`] if the tokenizer cannot be followed.
    pub fn new(tokenizer: &Tokenizer, eos: &[u32]) -> Result<Self, ConstraintError> {
        let env: TokEnv = vocabulary(tokenizer, eos)?;
        let mut factory =
            ParserFactory::new_simple(&env).map_err(|error| ConstraintError::Vocabulary { reason: reason(&error) })?;
        // It would write to standard error what it finds wrong with a schema.
        factory.quiet();
        *factory.limits_mut() = budget();
        Ok(Self { shared: Arc::new(Shared { factory, vocab_size: tokenizer.vocab_size(), eos: ends(eos) }) })
    }

    /// JSON of a schema.
    ///
    /// # Errors
    /// [`ConstraintError`] if it is larger than `limits`, or has what cannot be kept to, by name.
    pub fn json_schema(&self, schema: &Value, limits: &Limits) -> Result<Constraint, ConstraintError> {
        let what = "the JSON schema";
        limits.check(schema)?;
        self.shared.clone().compile(what, vec![json_grammar(what, "start", schema)?], false)
    }

    /// Any JSON object.
    ///
    /// # Errors
    /// [`ConstraintError`] if the vocabulary cannot write one.
    pub fn json_object(&self) -> Result<Constraint, ConstraintError> {
        self.json_schema(&json!({"type": "object"}), &Limits::default())
    }

    /// What a regular expression matches as a whole, in the syntax of Rust's `regex`.
    ///
    /// # Errors
    /// [`ConstraintError`] if it is none, or too large.
    pub fn regex(&self, expression: &str) -> Result<Constraint, ConstraintError> {
        let what = "the regular expression";
        Limits::default().check_text(what, expression)?;
        let grammar = GrammarWithLexer { name: Some("start".into()), ..GrammarWithLexer::from_regex(expression) };
        self.shared.clone().compile(what, vec![grammar], false)
    }

    /// What a grammar in llguidance's variant of Lark derives from `start`.
    ///
    /// # Errors
    /// [`ConstraintError`] if it is none, or too large.
    pub fn lark(&self, grammar: &str) -> Result<Constraint, ConstraintError> {
        let what = "the grammar";
        Limits::default().check_text(what, grammar)?;
        self.shared.clone().compile(what, vec![lark_grammar("start", grammar.into())], false)
    }
}

impl Shared {
    pub(super) fn is_for(&self, tokenizer: &Tokenizer, eos: &[u32]) -> bool {
        self.vocab_size == tokenizer.vocab_size() && self.eos == ends(eos)
    }

    /// The control token that is spelled like this.
    pub(super) fn control_token(&self, text: &str) -> Option<u32> {
        let marked = [&[TokTrie::SPECIAL_TOKEN_MARKER], text.as_bytes()].concat();
        self.factory.tok_env().tok_trie().token_id_at_bytes(&marked)
    }

    pub(super) fn compile(
        self: Arc<Self>,
        what: &'static str,
        grammars: Vec<GrammarWithLexer>,
        has_marks: bool,
    ) -> Result<Constraint, ConstraintError> {
        let unsupported = |error: &dyn fmt::Display| ConstraintError::Unsupported { what, reason: reason(error) };
        let grammar = TopLevelGrammar { grammars: grammars.clone(), max_tokens: None };
        let parser = self.factory.create_parser(grammar).map_err(|error| unsupported(&error))?;
        let mut matcher = Matcher::new(Ok(parser));
        // A grammar that derives nothing is told now, not after the prompt was computed.
        matcher.deep_clone().compute_mask_or_eos().map_err(|error| unsupported(&error))?;
        if let Some(warning) = matcher.grammar_warnings().first() {
            return Err(unsupported(warning));
        }
        let compiled = Compiled { what, matcher, grammars, has_marks };
        Ok(Constraint { shared: self, compiled: Arc::new(compiled) })
    }
}

fn ends(eos: &[u32]) -> Vec<u32> {
    let mut ends = eos.to_vec();
    ends.sort_unstable();
    ends.dedup();
    ends
}

pub(super) fn lark_grammar(name: &str, lark: String) -> GrammarWithLexer {
    GrammarWithLexer { name: Some(name.into()), lark_grammar: Some(lark), json_schema: None }
}

/// A schema with the library's settings in it. A schema that has settings of its own could switch off what it checks.
pub(super) fn json_grammar(
    what: &'static str,
    name: &str,
    schema: &Value,
) -> Result<GrammarWithLexer, ConstraintError> {
    const SETTINGS: &str = "x-guidance";
    let mut schema = match schema {
        Value::Object(fields) => fields.clone(),
        Value::Bool(true) => serde_json::Map::new(),
        other => {
            let reason = format!("a schema is an object, and this is {other}");
            return Err(ConstraintError::Unsupported { what, reason });
        }
    };
    if schema.contains_key(SETTINGS) {
        return Err(ConstraintError::Unsupported { what, reason: format!("`{SETTINGS}` is not part of JSON schema") });
    }
    schema.insert(SETTINGS.into(), json!({"whitespace_pattern": WHITE_SPACE}));
    Ok(GrammarWithLexer { name: Some(name.into()), json_schema: Some(schema.into()), lark_grammar: None })
}
