//! Flags that say what a generated text has to be, or which tokens it should have.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use clap::Args;
use engine_core::constraint::{Constraint, ConstraintCompiler, Limits};
use engine_core::text::SpeechFormat;
use serde_json::Value;

use crate::failure::Failure;
use crate::model::ModelText;

#[derive(Args)]
pub(crate) struct TextForm {
    /// The answer is JSON of this schema: a file, or the schema itself
    #[arg(short, long, alias = "json-schema-file", value_name = "FILE|JSON", conflicts_with = "grammar")]
    json_schema: Option<String>,
    /// The answer is what this grammar derives: a file in llguidance's Lark
    #[arg(long, alias = "grammar-file", value_name = "FILE")]
    grammar: Option<PathBuf>,
    /// Make a token more or less likely: its id, a sign and a number up to 100, as in 15043+1; may be given several times
    #[arg(short, long, value_name = "TOKEN_ID(+/-)BIAS", value_parser = bias, allow_hyphen_values = true)]
    pub(crate) logit_bias: Vec<(u32, f32)>,
}

/// Larger files are refused by their size before they are read; the limits of schemas and grammars are lower.
const FILE_BYTES_MAX: u64 = 4 << 20;

impl TextForm {
    /// The constraint, if one was asked for, in a text of `format` after `prompt_end`.
    pub(crate) fn constraint(
        &self,
        text: &ModelText,
        format: SpeechFormat,
        prompt_end: &str,
    ) -> Result<Option<Constraint>, Failure> {
        if self.json_schema.is_none() && self.grammar.is_none() {
            return Ok(None);
        }
        let usage = |error: &dyn std::fmt::Display| Failure::Usage(error.to_string());
        let compiler = ConstraintCompiler::new(&text.tokenizer, &text.eos).map_err(|error| usage(&error))?;
        let compiled = match (&self.json_schema, &self.grammar) {
            (Some(schema), _) => {
                let json = if schema.trim_start().starts_with('{') { schema.clone() } else { read(Path::new(schema))? };
                let schema: Value = serde_json::from_str(&json)
                    .map_err(|error| Failure::Usage(format!("`--json-schema` is no JSON: {error}")))?;
                compiler.json_schema(&schema, &Limits::default())
            }
            (None, Some(path)) => compiler.lark(&read(path)?),
            (None, None) => return Ok(None),
        };
        let constraint = compiled.and_then(|constraint| constraint.after_thinking(format, prompt_end));
        constraint.map(Some).map_err(|error| usage(&error))
    }
}

fn read(path: &Path) -> Result<String, Failure> {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text));
    match read {
        Ok(bytes) if bytes as u64 <= FILE_BYTES_MAX => Ok(text),
        Ok(_) => Err(Failure::Usage(format!("{} has more than {FILE_BYTES_MAX} bytes", path.display()))),
        Err(error) => Err(Failure::Usage(format!("cannot read {}: {error}", path.display()))),
    }
}

/// `15043+1`, `15043-1.5`
fn bias(text: &str) -> Result<(u32, f32), String> {
    let form = || "a token's id, a sign and a number, as in 15043+1 or 15043-1.5".to_owned();
    let at = text.find(['+', '-']).ok_or_else(form)?;
    let (token, bias) = text.split_at(at);
    Ok((token.parse().map_err(|_| form())?, bias.parse().map_err(|_| form())?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bias_is_an_id_a_sign_and_a_number() {
        assert_eq!(bias("15043+1"), Ok((15043, 1.0)));
        assert_eq!(bias("7-1.5"), Ok((7, -1.5)));
        for wrong in ["", "7", "+1", "-1", "7+", "7=1", "x+1", "7+x", "4294967296+1"] {
            bias(wrong).expect_err(wrong);
        }
    }
}
