//! Counts as a small JSON file.
//!
//! A file may come from anywhere, so what the rest of the module takes for granted is checked here: sizes, and that the
//! counts of a layer are those of so many tokens.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{ExpertCounts, LayerCounts, is_name};
use crate::whole_file;

const FORMAT: &str = "nightmonk expert counts";
const VERSION: u32 = 1;

/// Some hundred times the largest model's.
const BYTES_MAX: u64 = 16 << 20;
const LAYERS_MAX: usize = 4096;
const EXPERTS_MAX: usize = 65_536;
const SETTINGS_CHARS_MAX: usize = 4000;

/// Why a file of counts cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum CountsFileError {
    /// The system says so.
    #[error("cannot {verb} {path}: {source}")]
    Io {
        /// Read or write.
        verb: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// It is no file of counts that this version reads.
    #[error("{path}: {why}; `nightmonk experts record` writes files of counts")]
    Wrong {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

/// What every version of the format begins with.
#[derive(Deserialize)]
struct Head {
    format: String,
    version: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    format: String,
    version: u32,
    model: String,
    settings: String,
    workloads: BTreeMap<String, u64>,
    layers: Vec<LayerCounts>,
}

impl ExpertCounts {
    /// Reads a file that [`ExpertCounts::write`] wrote.
    ///
    /// # Errors
    /// If it cannot be read, is too long, is no such file, or its counts are not of the tokens that it names.
    pub fn read(path: &Path) -> Result<Self, CountsFileError> {
        let failed = |source| CountsFileError::Io { verb: "read", path: path.to_owned(), source };
        let mut json = Vec::new();
        File::open(path).and_then(|file| file.take(BYTES_MAX + 1).read_to_end(&mut json)).map_err(failed)?;
        let counts = match json.len() as u64 {
            0..=BYTES_MAX => Self::from_json(&json),
            _ => Err(format!("it has more than the {BYTES_MAX} bytes that are read")),
        };
        counts.map_err(|why| CountsFileError::Wrong { path: path.to_owned(), why })
    }

    /// Writes them to a file.
    ///
    /// # Errors
    /// What the system says.
    pub fn write(&self, path: &Path) -> Result<(), CountsFileError> {
        let failed = |source| CountsFileError::Io { verb: "write", path: path.to_owned(), source };
        let json = serde_json::to_vec(&self.content()).map_err(|error| failed(error.into()))?;
        whole_file::write(path, &json).map_err(failed)
    }

    /// What [`ExpertCounts::write`] writes, for a file that is written elsewhere.
    ///
    /// # Errors
    /// None that counts could lead to: they are texts and numbers.
    pub fn to_json(&self) -> Result<serde_json::Value, serde_json::Error> {
        serde_json::to_value(self.content())
    }

    fn content(&self) -> Content {
        let Self { model, settings, workloads, layers, .. } = self.clone();
        Content { format: FORMAT.into(), version: VERSION, model, settings, workloads, layers }
    }

    fn from_json(json: &[u8]) -> Result<Self, String> {
        let no_counts = |error: serde_json::Error| format!("it is no file of counts: {error}");
        let head: Head = serde_json::from_slice(json).map_err(no_counts)?;
        if head.format != FORMAT {
            return Err(format!("its format is not `{FORMAT}`"));
        }
        if head.version != VERSION {
            return Err(format!("it is of version {}, and this program reads version {VERSION}", head.version));
        }
        let content: Content = serde_json::from_slice(json).map_err(no_counts)?;
        content.check()
    }
}

impl Content {
    fn check(self) -> Result<ExpertCounts, String> {
        let Self { model, settings, workloads, layers, .. } = self;
        let is_digest = model.len() == 64 && model.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if !is_digest {
            return Err("its `model` is no digest of 64 hexadecimal digits".into());
        }
        if settings.chars().count() > SETTINGS_CHARS_MAX || settings.contains(char::is_control) {
            return Err(format!("its `settings` have control characters or more than {SETTINGS_CHARS_MAX} characters"));
        }
        if !workloads.keys().all(|name| is_name(name)) {
            return Err("the name of a workload is empty, too long or has control characters".into());
        }
        let tokens = sum(workloads.values()).ok_or("its tokens are beyond 64 bits")?;
        if tokens == 0 {
            return Err("it counts no tokens".into());
        }
        if layers.is_empty() || layers.len() > LAYERS_MAX {
            return Err(format!("it has {} layers; 1 to {LAYERS_MAX} are read", layers.len()));
        }
        if !layers.is_sorted_by(|a, b| a.layer < b.layer) {
            return Err("its layers are not in their order".into());
        }
        for LayerCounts { layer, experts_per_token, counts } in &layers {
            let experts = counts.len();
            if experts > EXPERTS_MAX || !(1..=experts).contains(experts_per_token) {
                return Err(format!("layer {layer} has {experts_per_token} of {experts} experts a token"));
            }
            let choices = tokens.checked_mul(*experts_per_token as u64);
            if choices.is_none() || sum(counts.iter()) != choices || counts.iter().any(|count| *count > tokens) {
                return Err(format!(
                    "the counts of layer {layer} are not those of {tokens} tokens and {experts_per_token} experts a token"
                ));
            }
        }
        Ok(ExpertCounts { model, settings, workloads, layers, seen: tokens })
    }
}

fn sum<'a>(mut numbers: impl Iterator<Item = &'a u64>) -> Option<u64> {
    numbers.try_fold(0_u64, |sum, next| sum.checked_add(*next))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::tests::sample;
    use super::*;

    fn document() -> Value {
        json!({
            "format": FORMAT, "version": 1, "model": "ab".repeat(32), "settings": "", "workloads": {"prose": 3},
            "layers": [
                {"layer": 1, "experts_per_token": 2, "counts": [3, 1, 2, 0]},
                {"layer": 3, "experts_per_token": 2, "counts": [2, 2, 1, 1]},
            ],
        })
    }

    #[test]
    fn what_was_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("counts.json");
        let counts = sample("prose", [[3, 1, 2, 0], [2, 2, 1, 1]]);
        counts.write(&path).unwrap();
        assert_eq!(ExpertCounts::read(&path).unwrap(), counts);
        assert_eq!(serde_json::from_slice::<Value>(&std::fs::read(&path).unwrap()).unwrap(), document());
    }

    #[test]
    fn what_no_recording_writes_is_refused_with_its_name() {
        let long = "x".repeat(201);
        let changes: [(&str, &str, Value); 18] = [
            ("/format", "format", json!("gguf")),
            ("/version", "version 2", json!(2)),
            ("/version", "no file of counts", json!(-1)),
            ("/model", "digest", json!("ab")),
            ("/model", "digest", json!("AB".repeat(32))),
            ("/settings", "settings", json!("\u{1b}[2J")),
            ("/workloads", "name", json!({"": 3})),
            ("/workloads", "name", json!({long: 3})),
            ("/workloads", "64 bits", json!({"a": u64::MAX, "b": 1})),
            ("/workloads", "no tokens", json!({})),
            ("/workloads/prose", "layer 1", json!(4)),
            ("/workloads/prose", "layer 1", json!(u64::MAX)),
            ("/layers", "0 layers", json!([])),
            ("/layers/1/layer", "order", json!(1)),
            ("/layers/0/experts_per_token", "0 of 4", json!(0)),
            ("/layers/0/experts_per_token", "5 of 4", json!(5)),
            ("/layers/0/counts", "layer 1", json!([4, 0, 2, 0])),
            ("/layers/0/counts/0", "no file of counts", json!(1.5)),
        ];
        for (pointer, part, value) in changes {
            let mut wrong = document();
            *wrong.pointer_mut(pointer).unwrap() = value;
            let why = ExpertCounts::from_json(wrong.to_string().as_bytes()).unwrap_err();
            assert!(why.contains(part), "{pointer}: {why}");
        }
        let mut more = document();
        more["more"] = json!(1);
        assert!(ExpertCounts::from_json(more.to_string().as_bytes()).unwrap_err().contains("more"));
        assert!(ExpertCounts::from_json(b"[").is_err());
        assert!(ExpertCounts::read(Path::new("/dev/zero")).unwrap_err().to_string().contains("bytes that are read"));
    }
}
