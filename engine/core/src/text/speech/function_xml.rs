//! Calls as Qwen3-Coder writes them: a tag for the function, one for each parameter, values as they are.
//!
//! ```text
//! <function=read_notes>
//! <parameter=folder>
//! Пасека
//! </parameter>
//! </function>
//! ```
//!
//! Values have no quotes and no escapes, so what type one has, only the tool's schema tells.

use serde_json::Value;

use super::calls::{ToolCall, Verdict};
use super::marked_calls::{NAME_BYTES_MAX, WHITE_SPACE_MAX, white_space};
use super::pending::{Found, Start, find, starts};
use super::tools::Tools;

/// More parameters than any function has.
const PARAMETERS_MAX: usize = 256;

const PARAMETER_END: &str = "</parameter>";

/// Reads one function, from behind `<function=` on.
#[derive(Debug)]
pub(super) struct FunctionXml {
    /// Where the part begins that is read now.
    begin: usize,
    part: Part,
    name: String,
    parameters: Vec<(String, String)>,
}

#[derive(Debug)]
enum Part {
    /// `NAME>`
    Function,
    /// White space, then a tag.
    Between,
    /// `NAME>`
    Parameter,
    /// Text up to the parameter's end, which is not before `clear`.
    Value { parameter: String, clear: usize },
}

enum Tag {
    Parameter,
    End,
}

impl FunctionXml {
    pub(super) fn new(begin: usize) -> Self {
        Self { begin, part: Part::Function, name: String::new(), parameters: Vec::new() }
    }

    /// Goes on in `text`, which is all that came since the call's opening mark, with it.
    pub(super) fn read(&mut self, text: &str, ended: bool, tools: &Tools) -> Verdict {
        let open = if ended { Verdict::NoCall { len: text.len() } } else { Verdict::Open };
        loop {
            let rest = &text[self.begin..];
            match &mut self.part {
                Part::Function | Part::Parameter => {
                    let is_function = matches!(self.part, Part::Function);
                    let name = match rest.find(['>', '<', '\n']) {
                        None if rest.len() <= NAME_BYTES_MAX => return open,
                        Some(len) if len <= NAME_BYTES_MAX && rest[len..].starts_with('>') => &rest[..len],
                        _ => return Verdict::NoCall { len: self.begin },
                    };
                    self.begin += name.len() + 1;
                    if name.trim().is_empty() || self.parameters.len() == PARAMETERS_MAX {
                        return Verdict::NoCall { len: self.begin };
                    }
                    self.part = match is_function {
                        true => {
                            self.name = name.trim().into();
                            Part::Between
                        }
                        false => Part::Value { parameter: name.trim().into(), clear: self.begin },
                    };
                }
                Part::Between => {
                    let space = white_space(rest);
                    if space > WHITE_SPACE_MAX {
                        return Verdict::NoCall { len: self.begin };
                    }
                    let tags = [("<parameter=", Tag::Parameter), ("</function>", Tag::End), ("</tool_call>", Tag::End)];
                    match starts(&rest[space..], tags.into_iter(), ended) {
                        Start::Open => return open,
                        Start::Other => return Verdict::NoCall { len: self.begin + space },
                        Start::Marker(tag, Tag::Parameter) => {
                            self.begin += space + tag;
                            self.part = Part::Parameter;
                        }
                        Start::Marker(tag, Tag::End) => {
                            // The tag around the function is left to who reads what follows calls.
                            let is_own = rest[space..].starts_with("</function>");
                            let len = self.begin + space + if is_own { tag } else { 0 };
                            let calls = vec![ToolCall { name: self.name.clone(), arguments: self.arguments() }];
                            return Verdict::Calls { len, calls };
                        }
                    }
                }
                Part::Value { parameter, clear } => match find(text, *clear, &[PARAMETER_END], ended) {
                    Found::None { clear: further } => {
                        *clear = further;
                        return open;
                    }
                    Found::Marker { at, marker } => {
                        let value = &text[self.begin..at];
                        let value = value.strip_prefix('\n').unwrap_or(value);
                        let value = value.strip_suffix('\n').unwrap_or(value);
                        let value = typed(value, tools.schema_of(&self.name, parameter));
                        let parameter = std::mem::take(parameter);
                        match self.parameters.iter_mut().find(|(known, _)| *known == parameter) {
                            Some((_, known)) => *known = value,
                            None => self.parameters.push((parameter, value)),
                        }
                        self.begin = at + marker.len();
                        self.part = Part::Between;
                    }
                },
            }
        }
    }

    fn arguments(&self) -> String {
        let fields: Vec<String> =
            self.parameters.iter().map(|(name, json)| format!("{}: {json}", Value::from(name.as_str()))).collect();
        format!("{{{}}}", fields.join(", "))
    }
}

/// The value as JSON. What does not fit its schema is the text it is.
fn typed(value: &str, schema: Option<&Value>) -> String {
    let types = schema.map(types).unwrap_or_default();
    let word = value.trim();
    let is = |name: &str| types.contains(&name);
    let json = match word.as_bytes().first() {
        // Templates write these as Python does.
        Some(b't' | b'T') if is("boolean") && word.eq_ignore_ascii_case("true") => Some("true"),
        Some(b'f' | b'F') if is("boolean") && word.eq_ignore_ascii_case("false") => Some("false"),
        Some(b'n' | b'N') => {
            let nothing = word.eq_ignore_ascii_case("null") || word.eq_ignore_ascii_case("none");
            (nothing && (is("null") || !types.is_empty() && !is("string"))).then_some("null")
        }
        Some(b'{') => (is("object") && is_json(word)).then_some(word),
        Some(b'[') => (is("array") && is_json(word)).then_some(word),
        Some(b'-' | b'0'..=b'9') => ((is("integer") || is("number")) && is_json(word)).then_some(word),
        _ => None,
    };
    json.map_or_else(|| Value::from(value).to_string(), str::to_owned)
}

fn is_json(text: &str) -> bool {
    serde_json::from_str::<Value>(text).is_ok()
}

/// Types that a schema allows, as far as it says so plainly.
fn types(schema: &Value) -> Vec<&str> {
    let mut types = match schema.get("type") {
        Some(Value::String(name)) => vec![name.as_str()],
        Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    for variants in ["anyOf", "oneOf"].iter().filter_map(|name| schema.get(name)?.as_array()) {
        types.extend(variants.iter().filter_map(|variant| variant.get("type")?.as_str()));
    }
    types
}
