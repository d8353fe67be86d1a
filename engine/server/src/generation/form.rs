//! What a text has to be: `response_format`, `grammar`, forced calls. A bad schema is an error by name, never text without it.

use engine_core::constraint::{Constraint, ConstraintError, Limits, ToolChoice};
use serde_json::Value;

use super::prompt::Prompted;
use crate::error::ApiError;
use crate::input::Input;
use crate::served::Shared;

/// A form, and the field that asked for it.
#[derive(Clone, Debug)]
pub(crate) struct Form {
    kind: Kind,
    field: &'static str,
}

#[derive(Clone, Debug)]
enum Kind {
    JsonObject,
    JsonSchema(Value),
    Regex(String),
    Lark(String),
    /// Calls: of the one that is named, or of any; whether there may be several.
    Calls {
        name: Option<String>,
        tools: Value,
        parallel: bool,
    },
}

impl Form {
    /// The form that the fields of a request ask for, in the names of OpenAI, llama-server and vLLM.
    pub(crate) fn of_fields(input: &Input) -> Result<Option<Self>, ApiError> {
        let mut forms = Vec::new();
        if let Some(format) = input.field("response_format") {
            forms.extend(Self::of_response_format(format, "response_format")?);
        }
        for field in ["json_schema", "guided_json"] {
            let Some(schema) = input.field(field) else { continue };
            if !schema.is_object() {
                return Err(ApiError::field(field, "a JSON schema must be an object"));
            }
            forms.push(Self { kind: Kind::JsonSchema(schema.clone()), field });
        }
        for (field, kind) in [
            ("grammar", Kind::Lark as fn(String) -> Kind),
            ("guided_grammar", Kind::Lark),
            ("guided_regex", Kind::Regex),
        ] {
            let Some(text) = input.field(field) else { continue };
            let text = text.as_str().ok_or_else(|| ApiError::field(field, format!("`{field}` must be a text")))?;
            if !text.is_empty() {
                forms.push(Self { kind: kind(text.to_owned()), field });
            }
        }
        match forms.len() {
            0 | 1 => Ok(forms.pop()),
            _ => Err(ApiError::field(forms[1].field, format!("together with `{}` it has no meaning", forms[0].field))),
        }
    }

    /// What a `response_format` asks for.
    pub(crate) fn of_response_format(format: &Value, field: &'static str) -> Result<Option<Self>, ApiError> {
        Ok(response_format(format)?.map(|kind| Self { kind, field }))
    }

    /// JSON that follows a schema, or any.
    pub(crate) fn json(schema: Option<Value>, field: &'static str) -> Self {
        Self { kind: schema.map_or(Kind::JsonObject, Kind::JsonSchema), field }
    }

    /// Calls of tools.
    pub(crate) fn calls(tools: Value, name: Option<String>, parallel: bool) -> Self {
        Self { kind: Kind::Calls { name, tools, parallel }, field: "tool_choice" }
    }

    /// The constraint on the answer to this prompt.
    pub(crate) fn constraint(&self, shared: &Shared, prompted: &Prompted) -> Result<Constraint, ApiError> {
        let compiler = shared.compiler().map_err(|error| ApiError::unsupported(self.field, error))?;
        let limits = Limits::default();
        let compiled = match &self.kind {
            Kind::JsonObject => compiler.json_object(),
            Kind::JsonSchema(schema) => compiler.json_schema(schema, &limits),
            Kind::Regex(expression) => compiler.regex(expression),
            Kind::Lark(grammar) => compiler.lark(grammar),
            Kind::Calls { name, tools, parallel } => {
                let choice = name.as_deref().map_or(ToolChoice::Required, ToolChoice::Named);
                compiler.tool_calls(prompted.format, tools, choice, *parallel, &limits)
            }
        };
        let constraint = compiled.and_then(|constraint| constraint.after_thinking(prompted.format, &prompted.end));
        constraint.map_err(|error: ConstraintError| ApiError::field(self.field, error.to_string()))
    }
}

fn response_format(format: &Value) -> Result<Option<Kind>, ApiError> {
    let field = "response_format";
    match format.get("type").and_then(Value::as_str) {
        Some("text") => Ok(None),
        Some("json_object") => match format.get("schema").filter(|schema| !schema.is_null()) {
            None => Ok(Some(Kind::JsonObject)),
            Some(schema) => Ok(Some(Kind::JsonSchema(schema.clone()))),
        },
        Some("json_schema") => {
            let schema = format.get("json_schema").and_then(|named| named.get("schema"));
            match schema {
                Some(schema) if schema.is_object() => Ok(Some(Kind::JsonSchema(schema.clone()))),
                _ => {
                    Err(ApiError::field("response_format.json_schema.schema", "there must be a JSON schema, an object"))
                }
            }
        }
        _ => Err(ApiError::unsupported(field, "its `type` must be text, json_object or json_schema")),
    }
}
