//! Typed access to config.json's fields, so that every refusal names the field and what it may be.

use std::ops::RangeInclusive;
use std::path::Path;

use serde_json::{Map, Value};

use super::ConfigError;

/// The fields of one JSON object of config.json.
pub(super) struct Fields<'a> {
    path: &'a Path,
    prefix: &'static str,
    object: Map<String, Value>,
}

impl<'a> Fields<'a> {
    pub(super) fn parse(path: &'a Path, json: &[u8]) -> Result<Self, ConfigError> {
        match serde_json::from_slice(json) {
            Ok(Value::Object(object)) => Ok(Self { path, prefix: "", object }),
            Ok(_) => Err(ConfigError::Json { path: path.into(), why: "it holds another kind of value".into() }),
            Err(error) => Err(ConfigError::Json { path: path.into(), why: error.to_string() }),
        }
    }

    /// The object in field `name`, whose own fields are then reported as `name.field`.
    pub(super) fn object(&self, name: &'static str) -> Result<Option<Fields<'a>>, ConfigError> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Object(object)) => Ok(Some(Fields { path: self.path, prefix: name, object: object.clone() })),
            Some(other) => Err(self.wrong(name, format!("is {other}; it must be an object or null"))),
        }
    }

    pub(super) fn path(&self) -> &'a Path {
        self.path
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// Whether the field is there, `null` included; rope fields may stand in an object of their own.
    pub(super) fn says(&self, name: &str) -> bool {
        let nested = |object: &str| self.object.get(object).is_some_and(|rope| rope.get(name).is_some());
        self.object.contains_key(name) || nested("rope_parameters") || nested("rope_scaling")
    }

    pub(super) fn wrong(&self, name: &str, why: String) -> ConfigError {
        let field = if self.prefix.is_empty() { name.into() } else { format!("{}.{name}", self.prefix) };
        ConfigError::Field { path: self.path.into(), field, why }
    }

    pub(super) fn optional_size(&self, name: &str, range: RangeInclusive<usize>) -> Result<Option<usize>, ConfigError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let size = value.as_u64().and_then(|size| usize::try_from(size).ok()).filter(|size| range.contains(size));
        match size {
            Some(size) => Ok(Some(size)),
            None => {
                let (from, to) = range.into_inner();
                Err(self.wrong(name, format!("is {value}; it must be a whole number from {from} to {to}")))
            }
        }
    }

    pub(super) fn size(&self, name: &str, range: RangeInclusive<usize>) -> Result<usize, ConfigError> {
        self.optional_size(name, range)?.ok_or_else(|| self.wrong(name, "is missing".into()))
    }

    /// The first of several spellings that is present.
    pub(super) fn size_of(&self, names: &[&str], range: RangeInclusive<usize>) -> Result<usize, ConfigError> {
        let name = names.iter().find(|name| self.has(name)).unwrap_or(&names[0]);
        self.size(name, range)
    }

    pub(super) fn optional_number(&self, name: &str) -> Result<Option<f64>, ConfigError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        match value.as_f64().filter(|number| number.is_finite() && *number > 0.0) {
            Some(number) => Ok(Some(number)),
            None => Err(self.wrong(name, format!("is {value}; it must be a positive number"))),
        }
    }

    pub(super) fn number(&self, name: &str) -> Result<f64, ConfigError> {
        self.optional_number(name)?.ok_or_else(|| self.wrong(name, "is missing".into()))
    }

    /// The first of several spellings that is present, or the default of the configuration class.
    pub(super) fn number_of(&self, names: &[&str], default: f64) -> Result<f64, ConfigError> {
        match names.iter().find(|name| self.has(name)) {
            Some(name) => self.number(name),
            None => Ok(default),
        }
    }

    pub(super) fn optional_flag(&self, name: &str) -> Result<Option<bool>, ConfigError> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(other) => Err(self.wrong(name, format!("is {other}; it must be true or false"))),
        }
    }

    pub(super) fn optional_text(&self, name: &str) -> Result<Option<&str>, ConfigError> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong(name, format!("is {other}; it must be a string"))),
        }
    }

    pub(super) fn optional_list(&self, name: &str) -> Result<Option<&[Value]>, ConfigError> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Array(list)) => Ok(Some(list)),
            Some(other) => Err(self.wrong(name, format!("is {other}; it must be a list"))),
        }
    }

    fn get(&self, name: &str) -> Option<&Value> {
        self.object.get(name).filter(|value| !value.is_null())
    }
}
