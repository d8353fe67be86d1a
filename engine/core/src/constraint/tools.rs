//! Calls of tools, forced: `tool_choice` `required`, or a tool by name.
//!
//! A model calls in the format that it was trained to, so that is what is forced: its marks and the name as text, the
//! arguments by the tool's own schema. What is between is what templates write.

use llguidance::api::GrammarWithLexer;
use serde_json::{Map, Value, json};

use super::compiler::{ConstraintCompiler, Shared, json_grammar, lark_grammar};
use super::error::ConstraintError;
use super::limits::Limits;
use super::thoughts::literal;
use super::{Constraint, xml};
use crate::text::marks::{CHANNEL, CONSTRAIN, MESSAGE};
use crate::text::{CallFormat, SpeechFormat};

/// Which tools must be called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToolChoice<'a> {
    /// Any of them.
    Required,
    /// This one.
    Named(&'a str),
}

const WHAT: &str = "the tools";
const NAME_BYTES_MAX: usize = 128;

/// A function that may be called.
pub(super) struct Tool<'a> {
    pub(super) name: &'a str,
    /// Schema of its arguments, an object's.
    pub(super) parameters: Map<String, Value>,
}

/// The rule `call` of a format, with all that it needs.
pub(super) struct Calls {
    pub(super) rules: String,
    pub(super) grammars: Vec<GrammarWithLexer>,
}

impl ConstraintCompiler {
    /// At least one call, in the format of the model; several only if `parallel` and the format has them. `tools` is a list
    /// as in the OpenAI API. With harmony the call's header is part of it, so the turn of a model that thinks goes through
    /// [`Constraint::after_thinking`].
    ///
    /// # Errors
    /// [`ConstraintError::Calls`] if there is no such tool or the format of this model cannot be forced, others for a
    /// schema that cannot be kept to.
    pub fn tool_calls(
        &self,
        format: SpeechFormat,
        tools: &Value,
        choice: ToolChoice,
        parallel: bool,
        limits: &Limits,
    ) -> Result<Constraint, ConstraintError> {
        limits.check(tools)?;
        let name = format_name(format);
        let refused = |reason: String| ConstraintError::Calls { format: name, reason };
        let mut chosen = read(tools).map_err(refused)?;
        if let ToolChoice::Named(name) = choice {
            chosen.retain(|tool| tool.name == name);
        }
        if chosen.is_empty() {
            return Err(refused(match choice {
                ToolChoice::Named(name) => format!("there is no tool `{name}`"),
                ToolChoice::Required => "there are no tools".into(),
            }));
        }
        let shared = &self.shared;
        let Calls { rules, grammars: of_tools } = match format {
            SpeechFormat::Harmony => {
                let [channel, constrain, message] = [CHANNEL, CONSTRAIN, MESSAGE].map(|mark| shared.mark(mark));
                let arguments = |tool: &Tool, grammar: &str| {
                    let to = literal(&format!("commentary to=functions.{} ", tool.name));
                    format!(r#"{channel} {to} {constrain} "json" {message} @{grammar}"#)
                };
                // The mark that ends a call ends the text.
                of_json(&chosen, "start: call", arguments)?
            }
            SpeechFormat::Tagged { calls, .. } => match calls {
                Some(CallFormat::Hermes) => {
                    let start = if parallel { r#"start: one ("\n" one)*"# } else { "start: one" };
                    let [open, close] = ["<tool_call>", "</tool_call>"].map(|mark| shared.mark(mark));
                    let start = format!("{start}\none: {open} \"\\n\" call \"\\n\" {close}");
                    of_json(&chosen, &start, |tool, grammar| object(tool, "arguments", grammar))?
                }
                Some(CallFormat::FunctionXml) => xml::calls(shared, &chosen, parallel).map_err(refused)?,
                Some(CallFormat::Mistral) => mistral(shared, &chosen, parallel)?,
                Some(CallFormat::Llama3) => {
                    of_json(&chosen, "start: call", |tool, grammar| object(tool, "parameters", grammar))?
                }
                None => return Err(refused("its chat template writes no calls that are known here".into())),
            },
        };
        let mut grammars = vec![lark_grammar("start", rules)];
        grammars.extend(of_tools);
        shared.clone().compile(WHAT, grammars, true)
    }
}

fn format_name(format: SpeechFormat) -> &'static str {
    match format {
        SpeechFormat::Harmony => "harmony",
        SpeechFormat::Tagged { calls, .. } => match calls {
            Some(CallFormat::Hermes) => "Hermes",
            Some(CallFormat::FunctionXml) => "function XML",
            Some(CallFormat::Mistral) => "Mistral",
            Some(CallFormat::Llama3) => "Llama 3",
            None => "none",
        },
    }
}

/// The functions of a list, or what is wrong with it. Names go into marks of every format.
fn read(tools: &Value) -> Result<Vec<Tool<'_>>, String> {
    let fits = |byte: u8| byte.is_ascii_graphic() && !b"\"<>\\".contains(&byte);
    let list = tools.as_array().ok_or("`tools` is no list")?;
    let tool = |tool| {
        let function = Value::get(tool, "function").unwrap_or(tool);
        let name = function.get("name").and_then(Value::as_str).ok_or("a tool has no function with a name")?;
        if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(fits) {
            return Err(format!("the name {} does not fit into it", Value::from(name)));
        }
        let parameters = match function.get("parameters") {
            None | Some(Value::Null) => return Ok(Tool { name, parameters: no_parameters() }),
            Some(Value::Object(parameters)) => parameters,
            Some(_) => return Err(format!("`parameters` of `{name}` are no schema")),
        };
        match parameters.get("type") {
            Some(Value::String(object)) if object == "object" => Ok(Tool { name, parameters: parameters.clone() }),
            None if parameters.is_empty() => Ok(Tool { name, parameters: no_parameters() }),
            None => {
                let mut parameters = parameters.clone();
                parameters.insert("type".into(), "object".into());
                Ok(Tool { name, parameters })
            }
            Some(_) => Err(format!("`parameters` of `{name}` are not of type object")),
        }
    };
    list.iter().map(tool).collect()
}

fn no_parameters() -> Map<String, Value> {
    Map::from_iter([("type".into(), json!("object")), ("additionalProperties".into(), json!(false))])
}

/// `start`, and `call` as one of the tools, each of which has a grammar of its own, so that its references stay its own.
fn of_json(tools: &[Tool], start: &str, call: impl Fn(&Tool, &str) -> String) -> Result<Calls, ConstraintError> {
    let mut rules = format!("{start}\ncall: {}\n", alternatives("call", tools.len()));
    let mut grammars = Vec::new();
    for (index, tool) in tools.iter().enumerate() {
        let grammar = format!("tool_{index}");
        rules += &format!("call_{index}: {}\n", call(tool, &grammar));
        grammars.push(json_grammar(WHAT, &grammar, &Value::Object(tool.parameters.clone()))?);
    }
    Ok(Calls { rules, grammars })
}

/// `name_0 | name_1 | …`
pub(super) fn alternatives(name: &str, count: usize) -> String {
    (0..count).map(|index| format!("{name}_{index}")).collect::<Vec<_>>().join(" | ")
}

/// `{"name": …, "arguments": …}`
fn object(tool: &Tool, arguments: &str, grammar: &str) -> String {
    let head = literal(&format!("{{\"name\": {}, \"{arguments}\": ", Value::from(tool.name)));
    format!("{head} @{grammar} \"}}\"")
}

/// With the mark `[ARGS]` in the vocabulary, name and arguments stand apart; the older form is a list of objects.
fn mistral(shared: &Shared, tools: &[Tool], parallel: bool) -> Result<Calls, ConstraintError> {
    let open = shared.mark("[TOOL_CALLS]");
    match shared.control_token("[ARGS]") {
        Some(_) => {
            let arguments = shared.mark("[ARGS]");
            let start = format!("start: one{}\none: {open} call", if parallel { "+" } else { "" });
            of_json(tools, &start, |tool, grammar| format!("{} {arguments} @{grammar}", literal(tool.name)))
        }
        None => {
            let more = if parallel { r#" (", " call)*"# } else { "" };
            let start = format!(r#"start: {open} "[" call{more} "]""#);
            of_json(tools, &start, |tool, grammar| object(tool, "arguments", grammar))
        }
    }
}
