//! How hard a model is asked to think, where it was trained to be asked.
//!
//! Templates read it as the variable `reasoning_effort`; the words are gpt-oss's, and the OpenAI API's.

use std::fmt;
use std::str::FromStr;

/// A level of `reasoning_effort`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReasoningEffort {
    /// Few thoughts.
    Low,
    /// What gpt-oss does by itself.
    Medium,
    /// Many.
    High,
}

impl ReasoningEffort {
    /// The variable that templates read.
    pub const VARIABLE: &str = "reasoning_effort";

    /// Its word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
        }
    }
}

impl fmt::Display for ReasoningEffort {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for ReasoningEffort {
    type Err = &'static str;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let known = [Self::Low, Self::Medium, Self::High];
        known.into_iter().find(|effort| effort.name() == name).ok_or("known: low, medium, high")
    }
}
