//! How large a schema may be. Schemas come from requests: what is refused here is neither compiled nor recursed into.

use serde_json::Value;

use super::error::ConstraintError;

/// Sizes that are taken. The defaults hold every schema that people write by hand or generate from their types, and keep
/// what a hostile one costs below about a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Values in a JSON schema, each list, object, text and number counted; of tools, in all of their schemas together.
    pub nodes: usize,
    /// Lists and objects inside of each other.
    pub depth: usize,
    /// Bytes of a schema's texts, of a grammar or of an expression.
    pub bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { nodes: 10_000, depth: 64, bytes: 256 << 10 }
    }
}

const SCHEMA: &str = "the JSON schema";

impl Limits {
    /// Refuses a schema that is larger.
    pub(super) fn check(&self, schema: &Value) -> Result<(), ConstraintError> {
        let (mut nodes, mut bytes) = (0, 0);
        // Not recursive: the depth is what is not known yet.
        let mut open = vec![(schema, 1)];
        while let Some((value, depth)) = open.pop() {
            nodes += 1;
            bytes += match value {
                Value::String(text) => text.len(),
                Value::Object(fields) => fields.keys().map(String::len).sum(),
                _ => 0,
            };
            self.check_size(SCHEMA, nodes, "values", self.nodes)?;
            self.check_size(SCHEMA, bytes, "bytes of text", self.bytes)?;
            self.check_size(SCHEMA, depth, "levels", self.depth)?;
            match value {
                Value::Array(items) => open.extend(items.iter().map(|item| (item, depth + 1))),
                Value::Object(fields) => open.extend(fields.values().map(|item| (item, depth + 1))),
                _ => {}
            }
        }
        Ok(())
    }

    /// Refuses a text that is larger or opens more brackets inside of each other.
    pub(super) fn check_text(&self, what: &'static str, text: &str) -> Result<(), ConstraintError> {
        self.check_size(what, text.len(), "bytes", self.bytes)?;
        let (mut depth, mut deepest) = (0usize, 0);
        for byte in text.bytes() {
            match byte {
                b'(' | b'[' | b'{' => depth += 1,
                b')' | b']' | b'}' => depth = depth.saturating_sub(1),
                _ => {}
            }
            deepest = deepest.max(depth);
        }
        self.check_size(what, deepest, "levels", self.depth)
    }

    fn check_size(
        &self,
        what: &'static str,
        size: usize,
        unit: &'static str,
        most: usize,
    ) -> Result<(), ConstraintError> {
        if size > most { Err(ConstraintError::TooLarge { what, size, unit, most }) } else { Ok(()) }
    }
}
