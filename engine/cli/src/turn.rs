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
        document["content"] = self.speech.content.as_str().into();
        document["reasoning_content"] = self.speech.reasoning_content.as_str().into();
        document["tool_calls"] = self.openai_calls().collect();
    }

    /// Calls of tools, a line of JSON each.
    pub(crate) fn calls(&self) -> String {
        self.openai_calls().map(|call| format!("{call}\n")).collect()
    }

    fn openai_calls(&self) -> impl Iterator<Item = Value> {
        let calls = self.speech.tool_calls.iter().enumerate();
        calls.map(|(index, call)| call.to_openai(&format!("call_{index}")))
    }

    /// Nobody should take an answer for all that was written.
    pub(crate) fn tell_what_is_not_printed(&self) {
        let thoughts = self.speech.reasoning_content.chars().count();
        if thoughts > 0 {
            eprintln!("note: {thoughts} characters of thoughts are not printed; `-o json` has them");
        }
    }
}

#[cfg(test)]
mod tests {
    use engine_core::text::CallFormat;
    use serde_json::json;

    use super::*;

    #[test]
    fn calls_of_tools_are_lines_of_their_own_and_no_part_of_the_answer() {
        let format = SpeechFormat::Tagged { thinks: false, calls: Some(CallFormat::Hermes) };
        let tools = json!([{"type": "function", "function": {"name": "look", "parameters": {}}}]);
        let mut turn = Turn::of_chat(SpeechParser::new(format, Tools::from_openai(&tools), ""));
        let mut answer = turn.push("I look.\n<tool_call>\n{\"name\": \"look\", \"argu");
        answer += &turn.push("ments\": {\"at\": 1.50}}\n</tool_call><tool_call>{\"name\": \"look\"}</tool_call>");
        answer += &turn.finish();
        assert_eq!(answer.trim_end(), "I look.");
        let calls = turn.calls();
        let lines: Vec<Value> = calls.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect();
        let call = |id: &str, arguments: &str| json!({"id": id, "type": "function", "function": {"name": "look", "arguments": arguments}});
        assert_eq!(lines, [call("call_0", "{\"at\": 1.50}"), call("call_1", "{}")]);
        let mut document = json!({});
        turn.describe(&mut document);
        assert_eq!(document["tool_calls"], Value::from(lines));
        assert_eq!(Turn::of_text().calls(), "");
    }
}
