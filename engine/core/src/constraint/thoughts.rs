//! A constrained answer in the turn of a model that thinks first.
//!
//! The thoughts are free: any text up to their closing mark, but no end of the text. Then the constraint begins. All of it is
//! one grammar, so a model that may think and does not is held to its answer from the first token.

use serde_json::Value;

use super::Constraint;
use super::compiler::{Shared, lark_grammar};
use super::error::ConstraintError;
use crate::text::SpeechFormat;
use crate::text::marks::{CHANNEL, END, MESSAGE, START, THINK, THINK_END};

/// White space between thoughts and answer, as templates put it there.
const GAP: &str = r"gap: /[ \n]{0,4}/";

impl Constraint {
    /// The same after the thoughts of a turn, for a model that writes `format`; `prompt` is what the turn follows, of which
    /// the last hundred characters are enough, as for [`SpeechParser::new`](crate::text::SpeechParser::new). A template that
    /// has opened the thoughts makes the model think; one that has closed them keeps it from it; otherwise it may. Where a
    /// format has marks around an answer (harmony), they are part of the constraint from here on.
    ///
    /// # Errors
    /// [`ConstraintError`] if both together are too large.
    pub fn after_thinking(&self, format: SpeechFormat, prompt: &str) -> Result<Self, ConstraintError> {
        let shared = &self.shared;
        let turn = match format {
            SpeechFormat::Tagged { thinks: false, .. } => return Ok(self.clone()),
            SpeechFormat::Tagged { thinks: true, .. } => {
                let prompt = prompt.trim_ascii_end();
                if prompt.ends_with(THINK_END) {
                    return Ok(self.clone());
                }
                let open = shared.mark(THINK);
                let start = match prompt.ends_with(THINK) {
                    true => "start: thoughts gap @start".into(),
                    false => format!("start: ({open} thoughts gap)? @start"),
                };
                format!("{start}\n{GAP}\n{}", shared.text_until("thoughts", THINK_END))
            }
            SpeechFormat::Harmony => {
                let [start, channel, message] = [START, CHANNEL, MESSAGE].map(|mark| shared.mark(mark));
                let header = match self.compiled.has_marks {
                    true => String::new(),
                    false => format!(r#"{channel} "final" {message}"#),
                };
                let thought = format!(r#"thought: {channel} "analysis" {message} body {start} "assistant""#);
                format!("start: thought* {header} @start\n{thought}\n{}", shared.text_until("body", END))
            }
        };
        let mut grammars = vec![lark_grammar("turn", turn)];
        grammars.extend_from_slice(&self.compiled.grammars);
        shared.clone().compile(self.compiled.what, grammars, self.compiled.has_marks)
    }
}

impl Shared {
    /// A mark as an atom of a Lark rule: the control token of this text, or where there is none the text.
    pub(super) fn mark(&self, mark: &str) -> String {
        match self.control_token(mark) {
            Some(id) => format!("<[{id}]>"),
            None => literal(mark),
        }
    }

    /// A rule `name` for any text up to the first `mark`, with it.
    pub(super) fn text_until(&self, name: &str, mark: &str) -> String {
        match self.control_token(mark) {
            // No text has control tokens in it.
            Some(id) => format!("{name}: {name}_text <[{id}]>\n{name}_text: /(?s:.*)/"),
            None => format!("{name}[lazy]: /(?s:.*){}/", expression(mark)),
        }
    }
}

/// A text as Lark writes it, which is as JSON does.
pub(super) fn literal(text: &str) -> String {
    Value::from(text).to_string()
}

/// A regular expression for just this text. Marks are printable ASCII.
fn expression(text: &str) -> String {
    text.bytes()
        .map(|byte| if byte.is_ascii_alphanumeric() { char::from(byte).into() } else { format!("\\x{byte:02x}") })
        .collect()
}
