//! Flags of a chat: what its template is told beside the prompt.
//!
//! A template that reads none of it would drop it without a word, so what the model's own template does not know is
//! refused by name, before anything is loaded.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use clap::Args;
use engine_core::text::{ChatTemplate, ReasoningEffort, RenderOptions};
use serde_json::{Map, Value};

use crate::clock::now;
use crate::failure::Failure;

/// Definitions longer than this would fill any context.
const TOOLS_BYTES_MAX: u64 = 4 << 20;

#[derive(Args)]
pub(crate) struct ChatFlags {
    /// Put the prompt into the model's chat template
    #[arg(long)]
    pub(crate) chat: bool,
    /// System message, with --chat
    #[arg(long, value_name = "TEXT", requires = "chat", allow_hyphen_values = true)]
    pub(crate) system: Option<String>,
    /// Whether the model thinks before it answers (`enable_thinking` of its template), with --chat
    #[arg(long, value_name = "on|off", requires = "chat", value_parser = on_or_off)]
    pub(crate) thinking: Option<bool>,
    /// How much it thinks (`reasoning_effort` of its template): low, medium or high; with --chat
    #[arg(long, value_name = "LEVEL", requires = "chat")]
    pub(crate) reasoning_effort: Option<ReasoningEffort>,
    /// JSON file with a list of tools as the OpenAI API has them, that the model may call; calls are printed after the
    /// answer, one to a line; with --chat
    #[arg(long, value_name = "FILE.json", requires = "chat")]
    pub(crate) tools: Option<PathBuf>,
    /// Further variables of its template, as a JSON object, like '{"model_identity": "…"}'; with --chat
    #[arg(long, value_name = "JSON", requires = "chat", value_parser = variables)]
    pub(crate) chat_template_kwargs: Option<Map<String, Value>>,
}

impl ChatFlags {
    /// What `template` is told; refused where it does not know it.
    pub(crate) fn options(&self, template: &ChatTemplate) -> Result<RenderOptions, Failure> {
        let mut extra = self.chat_template_kwargs.clone().unwrap_or_default();
        if let Some(effort) = self.reasoning_effort {
            let twice = extra.insert(ReasoningEffort::VARIABLE.into(), effort.name().into());
            if twice.is_some() {
                let why = "`reasoning_effort` is given twice, by `--reasoning-effort` and by `--chat-template-kwargs`";
                return Err(Failure::Usage(why.into()));
            }
        }
        let options = RenderOptions {
            add_generation_prompt: true,
            enable_thinking: self.thinking,
            tools: self.tools.as_deref().map(tools).transpose()?,
            now: Some(now()),
            extra,
        };
        template.check_options(&options).map_err(|error| Failure::Usage(error.to_string()))?;
        Ok(options)
    }
}

fn on_or_off(word: &str) -> Result<bool, String> {
    match word {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("known: on, off".into()),
    }
}

fn variables(text: &str) -> Result<Map<String, Value>, String> {
    serde_json::from_str(text).map_err(|error| format!("a JSON object is wanted ({error})"))
}

/// The definitions in a file, each with the name of a function.
fn tools(path: &Path) -> Result<Value, Failure> {
    let wrong = |why: String| Failure::Usage(format!("`--tools {}`: {why}", path.display()));
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(TOOLS_BYTES_MAX + 1).read_to_string(&mut text));
    read.map_err(|error| wrong(format!("cannot be read: {error}")))?;
    if text.len() as u64 > TOOLS_BYTES_MAX {
        return Err(wrong(format!("has more than {TOOLS_BYTES_MAX} bytes")));
    }
    let tools: Vec<Value> =
        serde_json::from_str(&text).map_err(|error| wrong(format!("a JSON list is wanted ({error})")))?;
    if tools.is_empty() {
        return Err(wrong("the list is empty; leave the flag out".into()));
    }
    for (index, tool) in tools.iter().enumerate() {
        let name = tool.pointer("/function/name").and_then(Value::as_str).unwrap_or_default();
        if tool.get("type").and_then(Value::as_str) != Some("function") || name.is_empty() {
            let form = r#"{"type": "function", "function": {"name": …, "description": …, "parameters": {…}}}"#;
            return Err(wrong(format!("tool {index} (from 0) is not of the form {form}")));
        }
    }
    Ok(Value::Array(tools))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(text: &str) -> String {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), text).expect("it is written");
        tools(file.path()).expect_err(text).to_string()
    }

    #[test]
    fn files_that_define_no_tools_are_refused_with_the_place() {
        for (text, part) in [
            ("", "a JSON list"),
            ("{}", "a JSON list"),
            ("[]", "empty"),
            ("[{\"type\": \"function\", \"function\": {\"name\": \"f\"}}, {\"name\": \"g\"}]", "tool 1"),
            ("[{\"type\": \"function\", \"function\": {\"name\": \"\"}}]", "tool 0"),
            ("[{\"type\": \"web_search\", \"function\": {\"name\": \"f\"}}]", "tool 0"),
        ] {
            let said = refusal(text);
            assert!(said.contains(part) && said.contains("--tools"), "{text}: {said}");
        }
        assert!(tools(Path::new("/nowhere/tools.json")).is_err_and(|error| error.to_string().contains("/nowhere")));
    }

    #[test]
    fn variables_are_an_object() {
        assert_eq!(variables("{\"a\": [1]}").map(|variables| variables.len()), Ok(1));
        for text in ["", "[1]", "a=1", "{\"a\": }"] {
            assert!(variables(text).is_err_and(|why| why.contains("a JSON object")), "{text}");
        }
    }
}
