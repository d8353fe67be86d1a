//! What a checkpoint says about generation: where to stop, and how its makers sample.
//!
//! These are defaults. Flags, requests and jobs override them; nothing here is applied behind the user's back, so every
//! field is an option and tells "not said" from a value.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::bounded_file::{describe, read_json_object};
use super::tokenizer::CONFIG_BYTES_MAX;
use super::{TextError, Tokenizer};

/// Fields of generation_config.json, under Hugging Face's names.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationDefaults {
    /// Generation ends at any of these; config.json's where generation_config.json names none.
    pub eos_token_ids: Vec<u32>,
    /// Begin-of-text token.
    pub bos_token_id: Option<u32>,
    /// Padding token.
    pub pad_token_id: Option<u32>,
    /// `false` asks for greedy choice, whatever `temperature` says.
    pub do_sample: Option<bool>,
    /// See [`SamplingParams`](crate::sampler::SamplingParams), also for the next three.
    pub temperature: Option<f32>,
    /// 0 is off.
    pub top_k: Option<usize>,
    /// 1 is off.
    pub top_p: Option<f32>,
    /// 0 is off.
    pub min_p: Option<f32>,
    /// 1 is off.
    pub repetition_penalty: Option<f32>,
    /// Largest number of tokens of an answer.
    pub max_new_tokens: Option<usize>,
}

impl GenerationDefaults {
    /// Reads `generation_config.json` and `config.json`; either may be absent.
    pub fn from_dir(dir: &Path) -> Result<Self, TextError> {
        let read = |name| {
            let path = dir.join(name);
            let fields = read_json_object(&path, CONFIG_BYTES_MAX)?.unwrap_or_default();
            Ok(Fields { path, fields })
        };
        let generation = read("generation_config.json")?;
        let config = read("config.json")?;

        let mut eos_token_ids = generation.ids("eos_token_id")?;
        if eos_token_ids.is_empty() {
            eos_token_ids = config.ids("eos_token_id")?;
        }
        if let (true, Some(Value::Object(fields))) = (eos_token_ids.is_empty(), config.fields.get("text_config")) {
            let nested = Fields { path: config.path.clone(), fields: fields.clone() };
            eos_token_ids = nested.ids("eos_token_id")?;
        }
        Ok(Self {
            eos_token_ids,
            bos_token_id: generation.ids("bos_token_id")?.first().copied(),
            pad_token_id: generation.ids("pad_token_id")?.first().copied(),
            do_sample: generation.get("do_sample", "true or false", Value::as_bool)?,
            temperature: generation.number("temperature", "a number from 0 to 100", |x| (0.0..=100.0).contains(&x))?,
            top_k: generation.count("top_k")?,
            top_p: generation.number("top_p", "a number above 0 and at most 1", |x| x > 0.0 && x <= 1.0)?,
            min_p: generation.number("min_p", "a number from 0 to 1", |x| (0.0..=1.0).contains(&x))?,
            repetition_penalty: generation.number("repetition_penalty", "a number above 0", |x| x > 0.0)?,
            max_new_tokens: generation.count("max_new_tokens")?,
        })
    }

    /// Every id at which generation ends: these and the tokenizer's own, sorted, each once.
    pub fn stop_token_ids(&self, tokenizer: &Tokenizer) -> Vec<u32> {
        let mut ids = [&self.eos_token_ids, tokenizer.eos_token_ids()].concat();
        ids.sort_unstable();
        ids.dedup();
        ids
    }
}

struct Fields {
    path: PathBuf,
    fields: Map<String, Value>,
}

impl Fields {
    /// Absent and `null` are both "not said".
    fn get<T>(
        &self,
        field: &str,
        expected: &'static str,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Result<Option<T>, TextError> {
        match self.fields.get(field) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => read(value).map(Some).ok_or_else(|| TextError::Field {
                path: self.path.clone(),
                field: field.to_owned(),
                expected,
                found: describe(value),
            }),
        }
    }

    fn number(&self, field: &str, expected: &'static str, ok: impl Fn(f32) -> bool) -> Result<Option<f32>, TextError> {
        self.get(field, expected, |value| value.as_f64().map(|x| x as f32).filter(|&x| x.is_finite() && ok(x)))
    }

    fn count(&self, field: &str) -> Result<Option<usize>, TextError> {
        self.get(field, "a whole number from 0", |value| value.as_u64().and_then(|n| usize::try_from(n).ok()))
    }

    /// One id or a list of ids.
    fn ids(&self, field: &str) -> Result<Vec<u32>, TextError> {
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        let ids = self.get(field, "a token id or a list of token ids", |value| match value {
            Value::Array(list) => list.iter().map(id).collect(),
            one => id(one).map(|id| vec![id]),
        })?;
        Ok(ids.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn defaults(files: &[(&str, &str)]) -> Result<GenerationDefaults, TextError> {
        let dir = tempfile::tempdir().expect("a directory");
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text).expect("a file");
        }
        GenerationDefaults::from_dir(dir.path())
    }

    #[test]
    fn generation_config_comes_before_config() {
        let got = defaults(&[
            ("generation_config.json", r#"{"eos_token_id": [151645, 151643], "pad_token_id": 151643, "do_sample": true,
                "temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05, "transformers_version": "4"}"#),
            ("config.json", r#"{"eos_token_id": 7}"#),
        ])
        .expect("valid files");
        let want = GenerationDefaults {
            eos_token_ids: vec![151645, 151643],
            pad_token_id: Some(151643),
            do_sample: Some(true),
            temperature: Some(0.7),
            top_p: Some(0.8),
            top_k: Some(20),
            repetition_penalty: Some(1.05),
            ..Default::default()
        };
        assert_eq!(got, want);
    }

    #[test]
    fn config_stands_in_where_generation_config_is_silent() {
        assert_eq!(defaults(&[]).expect("no files"), GenerationDefaults::default());
        for config in [r#"{"eos_token_id": [2, 3]}"#, r#"{"text_config": {"eos_token_id": [2, 3]}}"#] {
            let got = defaults(&[("generation_config.json", r#"{"eos_token_id": null}"#), ("config.json", config)]);
            assert_eq!(got.expect("valid files").eos_token_ids, [2, 3]);
        }
    }

    #[test]
    fn a_wrong_field_is_named_with_its_file() {
        for (field, text) in [
            ("eos_token_id", r#"{"eos_token_id": -1}"#),
            ("eos_token_id", r#"{"eos_token_id": [1, "2"]}"#),
            ("eos_token_id", r#"{"eos_token_id": 4294967296}"#),
            ("temperature", r#"{"temperature": "hot"}"#),
            ("temperature", r#"{"temperature": 1e99}"#),
            ("top_p", r#"{"top_p": 0}"#),
            ("top_k", r#"{"top_k": 1.5}"#),
            ("min_p", r#"{"min_p": 2}"#),
            ("do_sample", r#"{"do_sample": 1}"#),
        ] {
            let error = defaults(&[("generation_config.json", text)]).expect_err(field).to_string();
            assert!(error.contains("generation_config.json") && error.contains(field), "{error}");
        }
        let error = defaults(&[("config.json", "[]")]).expect_err("not an object").to_string();
        assert!(error.contains("config.json"), "{error}");
    }
}
