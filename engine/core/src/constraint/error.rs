//! Why a text cannot be constrained so.

/// A constraint that cannot be had, or followed. Nothing is ever generated without it instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConstraintError {
    /// The tokenizer cannot be followed token by token.
    #[error("this tokenizer cannot be constrained: {reason}")]
    Vocabulary {
        /// What is wrong with it.
        reason: String,
    },
    /// No token ends a text, so a constrained one could not end.
    #[error("no token of this model ends a text, so a constrained text could not end")]
    NoEnd,
    /// A schema, grammar or expression that is larger than its limit.
    #[error("{what} has {size} {unit}, but up to {most} are taken")]
    TooLarge {
        /// What is too large: `the JSON schema`, …
        what: &'static str,
        /// How large it is, at least.
        size: usize,
        /// In what.
        unit: &'static str,
        /// How large it may be.
        most: usize,
    },
    /// A schema, grammar or expression that means nothing, or something that cannot be kept to.
    #[error("{what} cannot be kept to: {reason}")]
    Unsupported {
        /// What was asked for: `the JSON schema`, …
        what: &'static str,
        /// Why not.
        reason: String,
    },
    /// Calls of tools that cannot be forced in the format of this model.
    #[error("calls of tools cannot be forced in the format of this model ({format}): {reason}")]
    Calls {
        /// The format.
        format: &'static str,
        /// Why not.
        reason: String,
    },
    /// What may follow is too much to compute, or the constraint lost its way.
    #[error("what may follow under the constraint cannot be computed: {reason}")]
    Lost {
        /// What went wrong.
        reason: String,
    },
}

/// The first line of what the library says, and no more of it than a person reads: it may quote all of a schema.
pub(super) fn reason(error: &dyn std::fmt::Display) -> String {
    const CHARACTERS_MAX: usize = 300;
    let text = error.to_string();
    let line = text.trim_start().lines().next().unwrap_or_default();
    let mut reason: String = line.chars().take(CHARACTERS_MAX).collect();
    if reason.len() < line.len() {
        reason.push('…');
    }
    reason
}
