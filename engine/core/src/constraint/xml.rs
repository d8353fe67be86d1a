//! Calls as Qwen3-Coder writes them: values of parameters have no quotes.
//!
//! A text is free up to the tag that ends it; numbers, lists and the like are JSON of their schema. What a value's type is
//! must be plain from its schema, because it is by that that the value is read again; where it is not, this says so. Optional
//! parameters may be left out, and all stand in the order of the schema.

use serde_json::{Map, Value};

use super::compiler::{Shared, json_grammar};
use super::thoughts::literal;
use super::tools::{Calls, Tool, alternatives};

const PARAMETER_END: &str = "</parameter>";

/// What a value may be.
enum Kind {
    /// Any text.
    Text,
    /// One of these texts.
    Words(Vec<String>),
    /// JSON of the schema.
    Json,
}

pub(super) fn calls(shared: &Shared, tools: &[Tool], parallel: bool) -> Result<Calls, String> {
    let [open, close] = ["<tool_call>", "</tool_call>"].map(|mark| shared.mark(mark));
    let start = if parallel { r#"start: one ("\n" one)*"# } else { "start: one" };
    let mut rules = format!(
        "{start}\none: {open} \"\\n\" call \"</function>\\n\" {close}\ncall: {}\n{}\n",
        alternatives("call", tools.len()),
        shared.text_until("text", PARAMETER_END),
    );
    let mut grammars = Vec::new();
    for (index, tool) in tools.iter().enumerate() {
        let refused = |what: &str| format!("`{}`: {what}", tool.name);
        let known = ["type", "properties", "required", "additionalProperties", "title", "description", "strict"];
        let known = |key: &str| known.contains(&key) || key.starts_with('$') || key == "definitions";
        if let Some(key) = tool.parameters.keys().find(|key| !known(key)) {
            return Err(refused(&format!("`{key}` of its parameters cannot be kept to")));
        }
        let none = Map::new();
        let properties = match tool.parameters.get("properties") {
            None => &none,
            Some(properties) => properties.as_object().ok_or_else(|| refused("`properties` is no object"))?,
        };
        let required: Vec<&str> = match tool.parameters.get("required") {
            None => Vec::new(),
            Some(names) => names.as_array().into_iter().flatten().filter_map(Value::as_str).collect(),
        };
        if let Some(name) = required.iter().find(|name| !properties.contains_key(**name)) {
            return Err(refused(&format!("`{name}` is required but has no schema")));
        }
        let mut call = literal(&format!("<function={}>\n", tool.name));
        for (at, (name, schema)) in properties.iter().enumerate() {
            if name.is_empty() || name.contains(['<', '>', '\n']) || name.trim() != name {
                return Err(refused(&format!("the parameter {} cannot be written", Value::from(name.as_str()))));
            }
            let kind = kind(schema).map_err(|reason| refused(&format!("parameter `{name}`: {reason}")))?;
            let head = literal(&format!("<parameter={name}>\n"));
            let value = match kind {
                Kind::Text => "text".into(),
                Kind::Words(words) => {
                    let words: Vec<String> = words.iter().map(|word| literal(word)).collect();
                    format!("({}) \"\\n{PARAMETER_END}\"", words.join(" | "))
                }
                Kind::Json => {
                    let grammar = format!("tool_{index}_{at}");
                    let json = json_grammar("the tools", &grammar, schema).map_err(|error| error.to_string())?;
                    grammars.push(json);
                    format!("@{grammar} \"\\n{PARAMETER_END}\"")
                }
            };
            rules += &format!("value_{index}_{at}: {head} {value} \"\\n\"\n");
            let optional = if required.contains(&name.as_str()) { "" } else { "?" };
            call += &format!(" value_{index}_{at}{optional}");
        }
        rules += &format!("call_{index}: {call}\n");
    }
    Ok(Calls { rules, grammars })
}

fn kind(schema: &Value) -> Result<Kind, String> {
    let Value::Object(fields) = schema else {
        return if *schema == Value::Bool(true) { Ok(Kind::Text) } else { Err("its schema is no object".into()) };
    };
    if let Some(key) = ["$ref", "allOf", "not", "if"].into_iter().find(|key| fields.contains_key(*key)) {
        return Err(format!("what its type is does not follow from `{key}`"));
    }
    let words = |list: &Value| -> Option<Vec<String>> {
        list.as_array()?.iter().map(|word| word.as_str().map(str::to_owned)).collect()
    };
    if let Some(list) = fields.get("enum").or(fields.get("const")) {
        let list = if fields.contains_key("enum") { words(list) } else { list.as_str().map(|word| vec![word.into()]) };
        return match list {
            Some(words) if words.iter().all(|word| !word.is_empty() && !word.contains(PARAMETER_END)) => {
                Ok(Kind::Words(words))
            }
            Some(_) => Err("one of its values cannot be written".into()),
            None if types(fields).contains(&"string") || types(fields).is_empty() => {
                Err("its values are not all texts, and have no other type".into())
            }
            None => Ok(Kind::Json),
        };
    }
    let types = types(fields);
    if !types.is_empty() && !types.contains(&"string") {
        return Ok(Kind::Json);
    }
    let variants = ["anyOf", "oneOf"].iter().filter_map(|name| fields.get(*name)?.as_array()).flatten();
    let limits = ["pattern", "format", "minLength", "maxLength", "enum", "const", "$ref", "allOf"];
    let limited = |fields: &Map<String, Value>| limits.into_iter().find(|key| fields.contains_key(*key));
    match variants.filter_map(Value::as_object).chain([fields]).find_map(limited) {
        Some(key) => Err(format!("`{key}` of a text cannot be kept to")),
        None => Ok(Kind::Text),
    }
}

/// Types that a schema allows, as far as it says so plainly: just as the reader of calls sees them.
fn types(fields: &Map<String, Value>) -> Vec<&str> {
    let mut types = match fields.get("type") {
        Some(Value::String(name)) => vec![name.as_str()],
        Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    for variants in ["anyOf", "oneOf"].iter().filter_map(|name| fields.get(*name)?.as_array()) {
        types.extend(variants.iter().filter_map(|variant| variant.get("type")?.as_str()));
    }
    types
}
