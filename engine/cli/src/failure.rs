//! How a command fails, and the exit code that scripts see.

use std::error::Error;
use std::fmt;
use std::process::ExitCode;

use engine_core::config::DialError;
use engine_core::plan::DoesNotFit;

/// Why a command did not do what it was asked.
#[derive(Debug)]
pub(crate) enum Failure {
    /// It went wrong: exit code 1.
    Failed(Box<dyn Error>),
    /// It was asked wrongly: exit code 2.
    Usage(String),
    /// It does not fit this machine: exit code 3.
    Refused(Box<DoesNotFit>),
}

impl Failure {
    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Failed(_) => 1,
            Self::Usage(_) => 2,
            Self::Refused(_) => 3,
        })
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Failed(error) => write!(f, "{error}"),
            Self::Refused(refusal) => write!(f, "{refusal}"),
            Self::Usage(why) => write!(f, "{why} (`nightmonk help` lists commands and flags)"),
        }
    }
}

/// A dial that the model cannot honour was turned by a flag.
pub(crate) fn wrong_dial(error: &DialError) -> Failure {
    Failure::Usage(error.to_string())
}

impl<E: Error + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Failed(Box::new(error))
    }
}
