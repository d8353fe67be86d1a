//! What of a model's text is printed: of a chat the answer, of a text that goes on from a prompt all.

use engine_core::text::{Speech, SpeechEvent, SpeechFormat, SpeechParser, Tools};
use serde_json::Value;

/// What the model writes, while it does.
pub(crate) struct Turn {
    parser: Option<SpeechParser>,
    speech: Speech,
    is_chat: bool,
}

impl Turn {
    /// A turn of a chat.
    pub(crate) fn of_chat(parser: SpeechParser) -> Self {
        Self { parser: Some(parser), speech: Speech::default(), is_chat: true }
    }

    /// A text without marks.
    pub(crate) fn of_text() -> Self {
        let parser = SpeechParser::new(SpeechFormat::PLAIN, Tools::default(), "");
        Self { parser: Some(parser), speech: Speech::default(), is_chat: false }
    }

    /// What of this text is to be printed.
    pub(crate) fn push(&mut self, text: &str) -> String {
        let events = self.parser.as_mut().map(|parser| parser.push(text));
        self.answer(events.unwrap_or_default())
    }

    /// What is still to be printed.
    pub(crate) fn finish(&mut self) -> String {
        let events = self.parser.take().map(SpeechParser::finish);
        self.answer(events.unwrap_or_default())
    }

    /// Keeps events and returns what of them is answer.
    fn answer(&mut self, events: Vec<SpeechEvent>) -> String {
        let before = self.speech.content.len();
        self.speech.extend(events);
        self.speech.content[before..].to_owned()
    }

    /// Adds what a chat's turn was taken apart into.
    pub(crate) fn describe(&self, document: &mut Value) {
        if !self.is_chat {
            return;
        }
        let calls = self.speech.tool_calls.iter().enumerate();
        document["content"] = self.speech.content.as_str().into();
        document["reasoning_content"] = self.speech.reasoning_content.as_str().into();
        document["tool_calls"] = calls.map(|(index, call)| call.to_openai(&format!("call_{index}"))).collect();
    }

    /// Nobody should take an answer for all that was written.
    pub(crate) fn tell_what_is_not_printed(&self) {
        let (thoughts, calls) = (self.speech.reasoning_content.chars().count(), self.speech.tool_calls.len());
        if thoughts > 0 {
            eprintln!("note: {thoughts} characters of thoughts are not printed; `-o json` has them");
        }
        if calls > 0 {
            eprintln!("note: {calls} calls of tools are not printed; `-o json` has them");
        }
    }
}
