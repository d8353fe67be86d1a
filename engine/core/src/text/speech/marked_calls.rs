//! Calls in a text with tags, from their opening mark to their end.

use super::calls::{ToolCall, Verdict};
use super::format::CallFormat;
use super::function_xml::FunctionXml;
use super::json::{End, JsonEnd};
use super::pending::{Start, starts};
use super::tools::Tools;

/// Longer names are no names.
pub(super) const NAME_BYTES_MAX: usize = 256;
/// White space that may stand between a mark and what it marks; more of it is text.
pub(super) const WHITE_SPACE_MAX: usize = 64;

/// How a call begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Opening {
    /// `<tool_call>`; JSON or a function's tag follows.
    ToolCall,
    /// `<function=` without a tag around it, as Qwen3-Coder forgets it at times.
    Function,
    /// `[TOOL_CALLS]`.
    Mistral,
    /// `<|python_tag|>`.
    PythonTag,
    /// `{` at the start of the turn; only a function that is offered makes it a call.
    Bare,
    /// `{` after a call.
    Another,
}

impl CallFormat {
    /// Marks that open a call anywhere.
    pub(super) fn openings(self) -> &'static [(&'static str, Opening)] {
        match self {
            Self::Hermes => &[("<tool_call>", Opening::ToolCall)],
            Self::FunctionXml => &[("<tool_call>", Opening::ToolCall), ("<function=", Opening::Function)],
            Self::Mistral => &[("[TOOL_CALLS]", Opening::Mistral)],
            Self::Llama3 => &[("<|python_tag|>", Opening::PythonTag)],
        }
    }

    /// What may stand after a call and belongs to it.
    pub(super) fn closer(self) -> Option<&'static str> {
        match self {
            Self::Hermes | Self::FunctionXml => Some("</tool_call>"),
            Self::Llama3 => Some(";"),
            Self::Mistral => None,
        }
    }
}

/// Reads one opening and what it opens. Keeps its place, so that no byte is read twice.
#[derive(Debug)]
pub(super) struct CallReader {
    /// Where the part begins that is read now.
    begin: usize,
    part: Part,
}

#[derive(Debug)]
enum Part {
    /// White space, then a body.
    Body(Opening),
    Json {
        end: JsonEnd,
        opening: Opening,
    },
    Xml(FunctionXml),
    /// Mistral's name, then `[ARGS]`.
    Name,
    /// An object after this name.
    Arguments {
        name: String,
        end: JsonEnd,
    },
}

const FUNCTION: &str = "<function=";

impl CallReader {
    /// For text that begins with an opening mark of `mark` bytes.
    pub(super) fn new(opening: Opening, mark: usize) -> Self {
        match opening {
            Opening::Function => Self { begin: mark, part: Part::Xml(FunctionXml::new(mark)) },
            _ => Self { begin: mark, part: Part::Body(opening) },
        }
    }

    /// Goes on in `text`, which is all that came since the opening mark, with it.
    pub(super) fn read(&mut self, text: &str, ended: bool, tools: &Tools) -> Verdict {
        loop {
            match &mut self.part {
                Part::Body(opening) => {
                    let opening = *opening;
                    let space = white_space(&text[self.begin..]);
                    if space > WHITE_SPACE_MAX {
                        return Verdict::NoCall { len: self.begin };
                    }
                    let body = &text[self.begin + space..];
                    let next = match opening {
                        // Where it opens, it is there.
                        Opening::Bare | Opening::Another => Start::Marker(0, '{'),
                        Opening::Mistral => mistral_body(body, ended),
                        _ => starts(body, [("{", '{'), (FUNCTION, '<')].into_iter(), ended),
                    };
                    let Start::Marker(len, next) = next else {
                        let open = next == Start::Open;
                        return if open { Verdict::Open } else { Verdict::NoCall { len: self.begin } };
                    };
                    self.begin += space;
                    self.part = match next {
                        '<' if opening == Opening::ToolCall => Part::Xml(FunctionXml::new(self.begin + len)),
                        '<' => return Verdict::NoCall { len: self.begin },
                        'n' => Part::Name,
                        _ => Part::Json { end: JsonEnd::default(), opening },
                    };
                }
                Part::Json { end, opening } => {
                    let bare = *opening == Opening::Bare;
                    let list = *opening == Opening::Mistral;
                    let json = &text[self.begin..];
                    // Formats without this mark have none that could end a string whose quote was forgotten.
                    return match end.find(json, "</tool_call>") {
                        End::Open if ended => Verdict::NoCall { len: text.len() },
                        End::Open => Verdict::Open,
                        End::Broken(at) => Verdict::NoCall { len: self.begin + at },
                        End::At(len) => {
                            let calls = match list {
                                true => ToolCall::list_from_json(&json[..len]),
                                false => ToolCall::from_json(&json[..len]).map(|call| vec![call]),
                            };
                            let len = self.begin + len;
                            match calls.filter(|calls| !bare || calls.iter().all(|call| tools.offer(&call.name))) {
                                Some(calls) => Verdict::Calls { len, calls },
                                None => Verdict::NoCall { len },
                            }
                        }
                    };
                }
                Part::Xml(xml) => return xml.read(text, ended, tools),
                Part::Name => match mistral_name(&text[self.begin..], ended) {
                    Name::Open => return Verdict::Open,
                    Name::None { len } => return Verdict::NoCall { len: self.begin + len },
                    Name::Is { name, len } => {
                        self.part = Part::Arguments { name: name.into(), end: JsonEnd::default() };
                        self.begin += len;
                    }
                },
                Part::Arguments { name, end } => {
                    let json = &text[self.begin..];
                    return match end.find(json, "[TOOL_CALLS]") {
                        End::Open if ended => Verdict::NoCall { len: text.len() },
                        End::Open => Verdict::Open,
                        End::Broken(at) => Verdict::NoCall { len: self.begin + at },
                        End::At(len) => match ToolCall::new(name, &json[..len]) {
                            Some(call) => Verdict::Calls { len: self.begin + len, calls: vec![call] },
                            None => Verdict::NoCall { len: self.begin + len },
                        },
                    };
                }
            }
        }
    }
}

/// Length of the white space at the start.
pub(super) fn white_space(text: &str) -> usize {
    text.len() - text.trim_ascii_start().len()
}

fn mistral_body(body: &str, ended: bool) -> Start<char> {
    match body.chars().next() {
        None if ended => Start::Other,
        None => Start::Open,
        Some('[') => Start::Marker(0, '['),
        Some(c) if is_of_name(c) => Start::Marker(0, 'n'),
        Some(_) => Start::Other,
    }
}

fn is_of_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.')
}

enum Name<'a> {
    Open,
    /// `len` bytes stand before the arguments' `{`.
    Is {
        name: &'a str,
        len: usize,
    },
    None {
        len: usize,
    },
}

/// `NAME{`, `NAME[ARGS]{` or `NAME[CALL_ID]ID[ARGS]{`; the text begins with a character of a name.
fn mistral_name(text: &str, ended: bool) -> Name<'_> {
    let word = |text: &str| text.find(|c| !is_of_name(c)).unwrap_or(text.len());
    let len = word(text);
    let name = &text[..len];
    let open = if ended { Name::None { len: text.len() } } else { Name::Open };
    if len > NAME_BYTES_MAX {
        return Name::None { len };
    }
    let mut at = len;
    for (mark, follows) in [("[CALL_ID]", true), ("[ARGS]", false)] {
        match starts(&text[at..], [(mark, ())].into_iter(), ended) {
            Start::Open => return open,
            Start::Other => {}
            Start::Marker(mark, ()) => {
                at += mark;
                if follows {
                    let id = word(&text[at..]);
                    if id > NAME_BYTES_MAX {
                        return Name::None { len: at };
                    }
                    at += id;
                }
            }
        }
    }
    let space = white_space(&text[at..]);
    match text[at + space..].chars().next() {
        _ if space > WHITE_SPACE_MAX => Name::None { len: at },
        Some('{') => Name::Is { name, len: at + space },
        None => open,
        _ => Name::None { len: at },
    }
}
