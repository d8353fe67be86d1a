//! What a model says, taken apart: its thoughts, its answer, its calls of tools.
//!
//! A model writes all three into one text and marks them as it was trained to. Which marks those are, its chat template
//! tells ([`SpeechFormat`]), since that has to write the same marks into the history. The text comes in pieces that end
//! anywhere; the events do not depend on where, except that a text may be told in more or fewer parts.
//!
//! Whatever a model writes is speech, so nothing here can fail. What looks like a call and is none is answer, to the
//! letter. That is known only at a call's end, so a call is held back until then and told whole: memory is linear in the
//! call that is open, everything else is a marker's length behind. Each byte is looked at a bounded number of times.
//!
//! Dropped are only the marks, and line breaks beside them that templates write as framing.

mod calls;
mod format;
mod function_xml;
mod harmony;
mod json;
mod marked_calls;
mod pending;
mod tagged;
mod tools;

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;

/// Marks that a grammar for a turn writes.
pub(crate) mod marks {
    pub(crate) use super::harmony::{CHANNEL, CONSTRAIN, END, MESSAGE, START};
    pub(crate) use super::tagged::{THINK, THINK_END};
}

use harmony::Harmony;
use pending::Pending;
use tagged::Tagged;

use super::{Content, Message};
pub use calls::ToolCall;
pub use format::{CallFormat, SpeechFormat};
pub use tools::Tools;

/// What a piece of text brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SpeechEvent {
    /// More of what the model thinks before it answers. Never empty.
    Reasoning(String),
    /// More of the answer. Never empty.
    Content(String),
    /// A call of a tool, complete.
    ToolCall(ToolCall),
}

/// Takes one turn of a model apart while it is written.
#[derive(Debug)]
pub struct SpeechParser {
    grammar: Grammar,
    pending: Pending,
}

#[derive(Debug)]
enum Grammar {
    Tagged(Tagged),
    Harmony(Harmony),
}

/// Whether a step got on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    /// It did, and there may be more to do.
    Step,
    /// What is there does not decide what it is.
    NeedsText,
}

impl SpeechParser {
    /// For a turn that follows `prompt`, of which the last hundred characters are enough: some templates have already
    /// opened the thoughts. `tools` are those that the prompt offers.
    pub fn new(format: SpeechFormat, tools: Tools, prompt: &str) -> Self {
        let grammar = match format {
            SpeechFormat::Harmony => Grammar::Harmony(Harmony::default()),
            SpeechFormat::Tagged { thinks, calls } => Grammar::Tagged(Tagged::new(thinks, calls, tools, prompt)),
        };
        Self { grammar, pending: Pending::default() }
    }

    /// What can be told now that `text` has come.
    pub fn push(&mut self, text: &str) -> Vec<SpeechEvent> {
        self.pending.push(text);
        self.run()
    }

    /// What was held back, now that no more will come.
    pub fn finish(mut self) -> Vec<SpeechEvent> {
        self.pending.end();
        let events = self.run();
        debug_assert_eq!(self.pending.rest(), "", "text was lost");
        events
    }

    fn run(&mut self) -> Vec<SpeechEvent> {
        let mut events = Events::default();
        let Self { grammar, pending } = self;
        while match grammar {
            Grammar::Tagged(tagged) => tagged.step(pending, &mut events),
            Grammar::Harmony(harmony) => harmony.step(pending, &mut events),
        } == Progress::Step
        {}
        pending.compact();
        events.0
    }
}

/// Events of one push, neighbours of a kind joined.
#[derive(Debug, Default)]
struct Events(Vec<SpeechEvent>);

impl Events {
    fn reasoning(&mut self, text: &str) {
        match self.0.last_mut() {
            _ if text.is_empty() => {}
            Some(SpeechEvent::Reasoning(last)) => last.push_str(text),
            _ => self.0.push(SpeechEvent::Reasoning(text.into())),
        }
    }

    fn content(&mut self, text: &str) {
        match self.0.last_mut() {
            _ if text.is_empty() => {}
            Some(SpeechEvent::Content(last)) => last.push_str(text),
            _ => self.0.push(SpeechEvent::Content(text.into())),
        }
    }

    fn calls(&mut self, calls: Vec<ToolCall>) {
        self.0.extend(calls.into_iter().map(SpeechEvent::ToolCall));
    }
}

/// A whole turn.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Speech {
    /// The answer.
    pub content: String,
    /// What was thought before it.
    pub reasoning_content: String,
    /// Calls of tools, in the model's order.
    pub tool_calls: Vec<ToolCall>,
}

impl Speech {
    /// Takes a turn apart that is there as a whole; the arguments are those of [`SpeechParser::new`].
    pub fn parse(format: SpeechFormat, tools: Tools, prompt: &str, text: &str) -> Self {
        let mut parser = SpeechParser::new(format, tools, prompt);
        let mut speech = Self::default();
        speech.extend(parser.push(text));
        speech.extend(parser.finish());
        speech
    }

    /// The turn as a message, for the next prompt. Calls are numbered `call_0`, `call_1`, … after `calls_before`.
    pub fn into_message(self, calls_before: usize) -> Message {
        let call = |(index, call): (usize, ToolCall)| call.to_openai(&format!("call_{}", calls_before + index));
        let tool_calls: Vec<_> = self.tool_calls.into_iter().enumerate().map(call).collect();
        let content =
            if self.content.is_empty() && !tool_calls.is_empty() { Content::Null } else { Content::Text(self.content) };
        Message {
            content: Some(content),
            reasoning_content: (!self.reasoning_content.is_empty()).then_some(self.reasoning_content),
            tool_calls: (!tool_calls.is_empty()).then_some(tool_calls),
            ..Message::new("assistant", "")
        }
    }
}

impl Extend<SpeechEvent> for Speech {
    fn extend<I: IntoIterator<Item = SpeechEvent>>(&mut self, events: I) {
        for event in events {
            match event {
                SpeechEvent::Reasoning(text) => self.reasoning_content += &text,
                SpeechEvent::Content(text) => self.content += &text,
                SpeechEvent::ToolCall(call) => self.tool_calls.push(call),
            }
        }
    }
}
