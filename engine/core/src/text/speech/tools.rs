//! The tools that a prompt offers, as far as a parser of calls asks.

use std::collections::HashMap;

use serde_json::{Map, Value};

/// Functions by name, with the schemas of their parameters.
#[derive(Clone, Debug, Default)]
pub struct Tools(HashMap<String, Map<String, Value>>);

impl Tools {
    /// Of a list as in the OpenAI API: `{"type": "function", "function": {"name": …, "parameters": …}}`, or the functions
    /// themselves. What is no function is passed over: the template has the last word on tools.
    pub fn from_openai(tools: &Value) -> Self {
        let functions = tools.as_array().into_iter().flatten().filter_map(|tool| {
            let function = tool.get("function").unwrap_or(tool);
            let properties = function.get("parameters").and_then(|parameters| parameters.get("properties"));
            let properties = properties.and_then(Value::as_object).cloned().unwrap_or_default();
            Some((function.get("name")?.as_str()?.to_owned(), properties))
        });
        Self(functions.collect())
    }

    pub(super) fn offer(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn schema_of(&self, function: &str, parameter: &str) -> Option<&Value> {
        self.0.get(function)?.get(parameter)
    }
}
