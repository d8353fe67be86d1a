//! What a text has to be: JSON of a schema, a regular expression's, a grammar's, or calls of given tools.
//!
//! A constraint is a mask over the vocabulary before every draw, computed by `llguidance` from the tokens so far. So it holds
//! whatever the model says, and a text that has ended is always of its form; one that was cut by `max_tokens` is a beginning
//! of one. Schemas and grammars come from requests and are hostile: they are measured before they are read, compiling and
//! each mask have a budget, and what cannot be kept to is an error by name. There is no way to a text without its constraint.
//!
//! Compiling happens where the request is read, not in the step loop: a [`Constraint`] is what came of it.

mod compiler;
mod error;
mod limits;
mod thoughts;
mod tools;
mod vocabulary;
mod xml;

#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;

use llguidance::toktrie::SimpleVob;

pub use compiler::ConstraintCompiler;
use compiler::{Compiled, Shared};
pub use error::ConstraintError;
pub use limits::Limits;
pub use tools::ToolChoice;

use crate::text::Tokenizer;

/// What a text has to be, compiled for a vocabulary. Cheap to clone.
#[derive(Clone)]
pub struct Constraint {
    shared: Arc<Shared>,
    compiled: Arc<Compiled>,
}

impl Constraint {
    /// At the beginning of a text.
    pub fn begin(&self) -> Matcher {
        Matcher { inner: self.compiled.matcher.deep_clone(), mask: SimpleVob::new() }
    }

    /// Whether it was compiled for these tokens and ends.
    pub fn is_for(&self, tokenizer: &Tokenizer, eos: &[u32]) -> bool {
        self.shared.is_for(tokenizer, eos)
    }
}

impl fmt::Debug for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Constraint").field("of", &self.compiled.what).finish_non_exhaustive()
    }
}

/// A text on its way under a constraint.
pub struct Matcher {
    inner: llguidance::Matcher,
    mask: SimpleVob,
}

impl Matcher {
    /// The tokens that may come next: bit `id % 32` of word `id / 32`. Where the text is complete, those that end it are among
    /// them; where it can only end, there are no others.
    ///
    /// # Errors
    /// [`ConstraintError::Lost`] if that takes more than the budget of a step.
    pub fn mask(&mut self) -> Result<&[u32], ConstraintError> {
        self.mask = self.inner.compute_mask_or_eos().map_err(lost)?;
        Ok(self.mask.as_slice())
    }

    /// Goes on by a token of the mask that does not end the text.
    ///
    /// # Errors
    /// [`ConstraintError::Lost`] if it was not one, or following it takes more than the budget of a step.
    pub fn accept(&mut self, token: u32) -> Result<(), ConstraintError> {
        self.inner.consume_token(token).map_err(lost)
    }

    /// Whether the text so far is complete; it may still go on.
    ///
    /// # Errors
    /// [`ConstraintError::Lost`], as [`accept`](Self::accept).
    pub fn is_complete(&mut self) -> Result<bool, ConstraintError> {
        if self.inner.is_stopped() && !self.inner.is_error() {
            return Ok(true);
        }
        self.inner.is_accepting().map_err(lost)
    }
}

fn lost(error: impl fmt::Display) -> ConstraintError {
    ConstraintError::Lost { reason: error::reason(&error) }
}
