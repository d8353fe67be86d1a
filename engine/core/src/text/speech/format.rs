//! How a model marks thoughts and calls, read from its chat template.
//!
//! The template must write the marks into the history, or the model would not see its own past turns as it wrote them.
//! So its text is searched for marks, and no name of a model is.

use crate::text::Tokenizer;

/// Marks of a model's turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpeechFormat {
    /// Harmony: every message in a turn names its channel. `analysis` is thought, `commentary to=functions.f` a call.
    Harmony,
    /// One text with tags in it.
    Tagged {
        /// `<think>…</think>` at the start, and after calls.
        thinks: bool,
        /// How calls look; `None` if the template knows none that are read here.
        calls: Option<CallFormat>,
    },
}

/// Marks of calls in a text with tags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallFormat {
    /// `<tool_call>{"name": …, "arguments": {…}}</tool_call>` (Hermes, Qwen2.5, Qwen3).
    Hermes,
    /// `<tool_call><function=NAME><parameter=P>…</parameter></function></tool_call>` (Qwen3-Coder).
    FunctionXml,
    /// `[TOOL_CALLS][{"name": …, "arguments": {…}}]`, later `[TOOL_CALLS]NAME[ARGS]{…}` (Mistral).
    Mistral,
    /// `{"name": …, "parameters": {…}}`, perhaps after `<|python_tag|>` (Llama 3).
    Llama3,
}

/// Calls by what a template writes: the first row all of whose marks it has and whose last column it lacks.
const CALLS: [(CallFormat, &[&str], &[&str]); 4] = [
    (CallFormat::FunctionXml, &["<tool_call>", "<function="], &[]),
    // GLM has these tags with another body.
    (CallFormat::Hermes, &["<tool_call>", "\"arguments\""], &["<arg_key>"]),
    (CallFormat::Mistral, &["[TOOL_CALLS]"], &[]),
    (CallFormat::Llama3, &["<|start_header_id|>", "{\"name\": ", "\"parameters\": "], &["<tool_call>"]),
];

impl SpeechFormat {
    /// A text without marks: all of it is the answer.
    pub const PLAIN: Self = Self::Tagged { thinks: false, calls: None };

    /// The format of a model with this chat template.
    pub fn of_template(template: &str) -> Self {
        let has = |marks: &[&str]| marks.iter().all(|mark| template.contains(mark));
        if has(&["<|start|>", "<|channel|>", "<|message|>"]) {
            return Self::Harmony;
        }
        let row = CALLS
            .iter()
            .find(|(_, present, absent)| has(present) && !absent.iter().any(|mark| template.contains(mark)));
        Self::Tagged { thinks: has(&["</think>"]), calls: row.map(|(calls, ..)| *calls) }
    }

    /// The same where no tools are offered: what looks like a call is answer.
    #[must_use]
    pub fn without_calls(self) -> Self {
        match self {
            Self::Harmony => self,
            Self::Tagged { thinks, .. } => Self::Tagged { thinks, calls: None },
        }
    }

    /// Marks that some tokenizers keep as control tokens, which texts for people leave out.
    fn marks(self) -> &'static [&'static str] {
        match self {
            Self::Harmony => &super::harmony::MARKS,
            Self::Tagged { calls, thinks } => match (calls, thinks) {
                (None, false) => &[],
                (None, true) => &["<think>", "</think>"],
                (Some(CallFormat::Hermes | CallFormat::FunctionXml), _) => {
                    &["<think>", "</think>", "<tool_call>", "</tool_call>"]
                }
                (Some(CallFormat::Mistral), _) => &["<think>", "</think>", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"],
                (Some(CallFormat::Llama3), _) => &["<think>", "</think>", "<|python_tag|>"],
            },
        }
    }

    /// Control tokens that a parser of this format has to see: for
    /// [`Detokenizer::showing`](crate::text::Detokenizer::showing).
    pub fn shown_tokens(self, tokenizer: &Tokenizer) -> Vec<u32> {
        let ids = self.marks().iter().filter_map(|mark| tokenizer.token_id(mark));
        ids.filter(|id| tokenizer.is_special(*id)).collect()
    }
}
