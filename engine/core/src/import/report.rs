//! What an import did, told plainly: above all that expanding a quantized tensor gives nothing back.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Dtype;

/// What an import did.
#[derive(Clone, Debug, Serialize)]
pub struct ImportReport {
    /// The GGUF file.
    pub source: PathBuf,
    /// BLAKE3 of the file, in hexadecimal digits.
    pub source_blake3: String,
    /// The folder.
    pub target: PathBuf,
    /// Whether the folder was there already, from the same file with the same options.
    pub already_done: bool,
    /// The class in `config.json`.
    pub architecture: String,
    /// Values in all tensors that were written.
    pub parameters: u64,
    /// Bytes of the folder's files.
    pub bytes: u64,
    /// How many of the file's tensors there are of each type.
    pub source_tensors: BTreeMap<String, u64>,
    /// Quantized tensors, by their names in the file; each was expanded.
    pub quantized: Vec<String>,
    /// The format that quantized tensors were expanded to.
    pub expanded_to: Dtype,
    /// What rounding to a smaller format changed; absent where nothing was rounded.
    pub rounding: Option<Rounding>,
    /// Things worth knowing about this file.
    pub notes: Vec<String>,
}

/// What rounding expanded values to a smaller format changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Rounding {
    /// Values that were rounded to the smaller format.
    pub values: u64,
    /// Those of them that are not what they were.
    pub changed: u64,
    /// The largest difference.
    pub max_abs_error: f32,
}

impl fmt::Display for ImportReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let done = if self.already_done { "was imported before" } else { "is imported" };
        writeln!(f, "{} {done}: {}", self.source.display(), self.target.display())?;
        writeln!(f, "{}, {} parameters, {} bytes", self.architecture, self.parameters, self.bytes)?;
        let kinds: Vec<String> = self.source_tensors.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
        writeln!(f, "Tensors in the file: {}", kinds.join(", "))?;
        if self.quantized.is_empty() {
            writeln!(f, "No tensor was quantized; every value is as in the file.")?;
        } else {
            let (count, dtype) = (self.quantized.len(), self.expanded_to);
            let total: u64 = self.source_tensors.values().sum();
            writeln!(f, "{count} of {total} tensors were quantized: {}.", without_layers(&self.quantized).join(", "))?;
            write!(
                f,
                "They were expanded to {dtype}. This gave them no precision back: what quantization lost is lost. "
            )?;
            writeln!(f, "The unquantized checkpoint gives better answers.")?;
        }
        match &self.rounding {
            Some(rounding) => writeln!(
                f,
                "As asked for, their values were rounded to {}: {} of {} changed, by at most {:e}.",
                self.expanded_to, rounding.changed, rounding.values, rounding.max_abs_error
            )?,
            None if !self.quantized.is_empty() && self.expanded_to == Dtype::F32 => {
                writeln!(f, "Every expanded value was kept exactly.")?;
            }
            None => {}
        }
        for note in &self.notes {
            writeln!(f, "Note: {note}.")?;
        }
        Ok(())
    }
}

/// Names with `*` for the layer, each once, and how many there are where there are several.
fn without_layers(names: &[String]) -> Vec<String> {
    let mut groups: Vec<(String, u64)> = Vec::new();
    for name in names {
        let is_number = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
        let group = name.split('.').map(|part| if is_number(part) { "*" } else { part }).collect::<Vec<_>>().join(".");
        match groups.iter_mut().find(|(known, _)| *known == group) {
            Some((_, count)) => *count += 1,
            None => groups.push((group, 1)),
        }
    }
    let text = |(name, count)| if count == 1 { name } else { format!("{name} ({count})") };
    groups.into_iter().map(text).collect()
}
