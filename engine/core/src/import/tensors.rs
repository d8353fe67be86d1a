//! Which tensor of the file becomes which tensor of the folder.
//!
//! The list of wanted tensors follows from the settings, so that a missing one, one of another shape
//! and one too many are all errors by name, before anything is written.

use std::collections::BTreeMap;

use super::gguf::{Gguf, TensorInfo, TensorType};
use super::hyperparameters::Hyperparameters;
use super::{Dtype, ImportError};

/// A tensor of the folder, and the rows of the file's tensor that it comes from.
#[derive(Clone, Debug)]
pub(super) struct OutputTensor {
    pub(super) name: String,
    /// Slowest dimension first, as in Hugging Face folders.
    pub(super) shape: Vec<u64>,
    pub(super) dtype: Dtype,
    /// Index into [`Gguf::tensors`].
    pub(super) source: usize,
    /// First row in the source; rows are `row_len` values.
    pub(super) first_row: u64,
    pub(super) rows: u64,
    pub(super) row_len: u64,
    /// Rows of a head, when the rows of each head must be put back in order ([`unpermuted`]).
    pub(super) head_rows: Option<u64>,
}

impl OutputTensor {
    pub(super) fn values(&self) -> u64 {
        self.rows * self.row_len
    }

    pub(super) fn bytes(&self) -> u64 {
        self.values() * self.dtype.bytes()
    }
}

/// The row of a file's head that holds row `row` of a Hugging Face head with `head_dim` rows.
///
/// Files of this architecture rotate neighbouring rows (0 with 1, 2 with 3), Hugging Face rotates row i
/// with row i + head_dim / 2. The converter interleaved both halves, `reshape(heads, 2, head_dim / 2, …)
/// .swapaxes(1, 2)`; this is its inverse.
pub(super) const fn unpermuted(row: u64, head_dim: u64) -> u64 {
    let half = head_dim / 2;
    2 * (row % half) + row / half
}

/// Everything that will be written, layer by layer.
pub(super) struct TensorPlan {
    pub(super) outputs: Vec<OutputTensor>,
    pub(super) vocab_size: u64,
    pub(super) tie_word_embeddings: bool,
    pub(super) attention_bias: bool,
    pub(super) mlp_bias: bool,
    /// Index of `rope_freqs.weight`, which becomes a setting.
    pub(super) rope_freqs: Option<usize>,
}

pub(super) fn plan(gguf: &Gguf, model: &Hyperparameters, expand_to: Dtype) -> Result<TensorPlan, ImportError> {
    let mut planner = Planner {
        gguf,
        expand_to,
        unused: gguf.tensors.iter().enumerate().map(|(index, tensor)| (tensor.name.as_str(), index)).collect(),
        outputs: Vec::new(),
    };
    let hidden = model.hidden_size;
    let (q_rows, kv_rows) = (model.num_attention_heads * model.head_dim, model.num_key_value_heads * model.head_dim);

    let embedding = planner.info("token_embd.weight")?;
    let &[_, vocab_size] = embedding.dims.as_slice() else {
        return Err(ImportError::shape(embedding, &[hidden, 0]));
    };
    if vocab_size > 1 << 21 {
        return Err(ImportError::setting("token_embd.weight", format!("a vocabulary of {vocab_size} is too large")));
    }
    if let Some(named) = gguf.metadata.count("llama.vocab_size")?.filter(|named| *named > vocab_size) {
        let reason = format!("{named} tokens do not fit the {vocab_size} rows of the embedding");
        return Err(ImportError::setting("llama.vocab_size", reason));
    }
    let tie_word_embeddings = !planner.has("output.weight");
    let attention_bias = planner.has("blk.0.attn_q.bias");
    if attention_bias && model.experts.is_some() {
        let reason = "attention with biases and experts together is not supported".to_owned();
        return Err(ImportError::setting("blk.0.attn_q.bias", reason));
    }
    let mlp_bias = planner.has("blk.0.ffn_gate.bias");

    planner.take("token_embd.weight", "model.embed_tokens.weight", &[vocab_size, hidden], None)?;
    for layer in 0..model.num_hidden_layers {
        let (from, to) = (format!("blk.{layer}"), format!("model.layers.{layer}"));
        let heads = Some(model.head_dim);
        planner.take(&format!("{from}.attn_norm.weight"), &format!("{to}.input_layernorm.weight"), &[hidden], None)?;
        for (part, name, rows, columns, heads) in [
            ("attn_q", "q_proj", q_rows, hidden, heads),
            ("attn_k", "k_proj", kv_rows, hidden, heads),
            ("attn_v", "v_proj", kv_rows, hidden, None),
            ("attn_output", "o_proj", hidden, q_rows, None),
        ] {
            let (from, to) = (format!("{from}.{part}"), format!("{to}.self_attn.{name}"));
            planner.take(&format!("{from}.weight"), &format!("{to}.weight"), &[rows, columns], heads)?;
            if attention_bias {
                planner.take(&format!("{from}.bias"), &format!("{to}.bias"), &[rows], heads)?;
            }
        }
        let norm = format!("{to}.post_attention_layernorm.weight");
        planner.take(&format!("{from}.ffn_norm.weight"), &norm, &[hidden], None)?;
        let inner = model.intermediate_size;
        match model.experts {
            None => {
                for (part, rows, columns) in [("gate", inner, hidden), ("up", inner, hidden), ("down", hidden, inner)] {
                    let (from, to) = (format!("{from}.ffn_{part}"), format!("{to}.mlp.{part}_proj"));
                    planner.take(&format!("{from}.weight"), &format!("{to}.weight"), &[rows, columns], None)?;
                    if mlp_bias {
                        planner.take(&format!("{from}.bias"), &format!("{to}.bias"), &[rows], None)?;
                    }
                }
            }
            Some((experts, _)) => planner.experts(&from, &to, [experts, hidden, inner])?,
        }
    }
    planner.take("output_norm.weight", "model.norm.weight", &[hidden], None)?;
    if !tie_word_embeddings {
        planner.take("output.weight", "lm_head.weight", &[vocab_size, hidden], None)?;
    }
    let rope_freqs = planner.unused.remove("rope_freqs.weight");

    if !planner.unused.is_empty() {
        let names = planner.unused.keys().map(|name| (*name).to_owned()).collect();
        return Err(ImportError::UnknownTensors { names });
    }
    let outputs = planner.outputs;
    Ok(TensorPlan { outputs, vocab_size, tie_word_embeddings, attention_bias, mlp_bias, rope_freqs })
}

struct Planner<'a> {
    gguf: &'a Gguf,
    expand_to: Dtype,
    /// Tensors of the file that have no place yet.
    unused: BTreeMap<&'a str, usize>,
    outputs: Vec<OutputTensor>,
}

impl<'a> Planner<'a> {
    fn has(&self, name: &str) -> bool {
        self.unused.contains_key(name)
    }

    fn info(&self, name: &str) -> Result<&'a TensorInfo, ImportError> {
        let index = self.unused.get(name).ok_or_else(|| ImportError::MissingTensor { name: name.to_owned() })?;
        Ok(&self.gguf.tensors[*index])
    }

    /// Removes `name` from the unused ones after checking that it has `shape`, slowest dimension first.
    fn claim(&mut self, name: &str, shape: &[u64]) -> Result<(usize, TensorType), ImportError> {
        let info = self.info(name)?;
        if !info.dims.iter().rev().eq(shape) {
            let wanted: Vec<u64> = shape.iter().rev().copied().collect();
            return Err(ImportError::shape(info, &wanted));
        }
        Ok((self.unused.remove(name).unwrap_or_default(), info.kind))
    }

    fn take(&mut self, from: &str, to: &str, shape: &[u64], head_rows: Option<u64>) -> Result<(), ImportError> {
        let (source, kind) = self.claim(from, shape)?;
        // A vector has as many rows of one value as it has heads to put in order; else it is one row.
        let (rows, row_len) = match *shape {
            [rows, row_len] => (rows, row_len),
            _ if head_rows.is_some() => (shape[0], 1),
            _ => (1, shape[0]),
        };
        if head_rows.is_some() && !row_len.is_multiple_of(kind.block_len() as u64) {
            return Err(ImportError::setting(from, format!("a bias of type {} cannot be reordered", kind.name())));
        }
        let dtype = self.dtype_of(kind);
        let (name, shape) = (to.to_owned(), shape.to_vec());
        self.outputs.push(OutputTensor { name, shape, dtype, source, first_row: 0, rows, row_len, head_rows });
        Ok(())
    }

    /// The experts of a layer: stacked in one tensor, or one by one in older files.
    fn experts(&mut self, from: &str, to: &str, [experts, hidden, inner]: [u64; 3]) -> Result<(), ImportError> {
        let to = format!("{to}.block_sparse_moe");
        self.take(&format!("{from}.ffn_gate_inp.weight"), &format!("{to}.gate.weight"), &[experts, hidden], None)?;
        let parts = [("gate", "w1", inner, hidden), ("down", "w2", hidden, inner), ("up", "w3", inner, hidden)];
        if self.has(&format!("{from}.ffn_gate.0.weight")) {
            for expert in 0..experts {
                for (part, name, rows, columns) in parts {
                    let (from, to) = (format!("{from}.ffn_{part}.{expert}.weight"), format!("{to}.experts.{expert}"));
                    self.take(&from, &format!("{to}.{name}.weight"), &[rows, columns], None)?;
                }
            }
            return Ok(());
        }
        let mut stacks = Vec::with_capacity(parts.len());
        for (part, name, rows, row_len) in parts {
            let (source, kind) = self.claim(&format!("{from}.ffn_{part}_exps.weight"), &[experts, rows, row_len])?;
            stacks.push((name, rows, row_len, source, self.dtype_of(kind)));
        }
        for expert in 0..experts {
            for &(name, rows, row_len, source, dtype) in &stacks {
                self.outputs.push(OutputTensor {
                    name: format!("{to}.experts.{expert}.{name}.weight"),
                    shape: vec![rows, row_len],
                    dtype,
                    source,
                    first_row: expert * rows,
                    rows,
                    row_len,
                    head_rows: None,
                });
            }
        }
        Ok(())
    }

    fn dtype_of(&self, kind: TensorType) -> Dtype {
        match kind {
            TensorType::F32 => Dtype::F32,
            TensorType::F16 => Dtype::F16,
            TensorType::BF16 => Dtype::BF16,
            _ => self.expand_to,
        }
    }
}
