//! Which tensor goes into which shard, and how many bytes a shard's header may take: known before the first is packed.
//!
//! Experts that are published in stacks get a tensor for each matrix, under the names that the family's hub folders have,
//! so that reading knows nothing of where they came from.
//!
//! How far a matrix shrinks is known only when it has been packed. A pass for that alone would read a model of a terabyte
//! twice; so the header gets the room that it needs where nothing shrinks, is written last, and ends in spaces.

use std::collections::HashMap;
use std::ops::Range;

use serde_json::{Map, Value, json};
use simd::Dtype;
use simd::matmul::{Matrix, packed};

use super::{PackError, PackOptions};
use crate::checkpoint::header::Element;
use crate::checkpoint::panels::{ALIGNMENT, Entry, SOURCE_KEY, TENSOR_PREFIX, VERSION, VERSION_KEY};
use crate::checkpoint::{Checkpoint, Layout, Location, SINGLE_FILE, TensorForm};
use crate::config::{ExpertStorage, ModelConfig, Sparse, TensorKind, expert_names};

/// One tensor to write.
pub(super) struct Planned {
    /// Its name in the folder that is written.
    pub(super) name: String,
    /// The published tensor with its numbers.
    pub(super) source: String,
    /// Which of them, if it is one matrix of a stack.
    pub(super) part: Option<Part>,
    pub(super) element: Element,
    pub(super) shape: Vec<usize>,
    /// The form to try first; row-major is a copy.
    pub(super) wanted: Layout,
    /// Bytes at most, with what fills up the last line.
    pub(super) most_bytes: usize,
}

/// One matrix within a stack.
#[derive(Clone)]
pub(super) struct Part {
    /// Bytes of the stack in which its numbers lie: its rows, or the whole of its expert.
    pub(super) bytes: Range<usize>,
    /// Where it is the transpose of some columns of what lies there: the first of them, from each to the next, all.
    pub(super) columns: Option<[usize; 3]>,
}

impl Planned {
    /// Where its numbers lie, perhaps among those of others.
    pub(super) fn location(&self, checkpoint: &Checkpoint) -> Location {
        let location = checkpoint.location(&self.source);
        match &self.part {
            Some(part) => location.part(part.bytes.clone()),
            None => location,
        }
    }

    /// Rows and columns of a matrix.
    pub(super) fn matrix(&self) -> [usize; 2] {
        [self.shape[0], self.shape[1]]
    }

    /// Type of a matrix's numbers.
    pub(super) fn dtype(&self) -> Dtype {
        match self.element {
            Element::Number(dtype) => dtype,
            Element::U8 => unreachable!("only numbers are laid into panels"),
        }
    }

    /// Fewest bytes that it can take.
    fn least_bytes(&self) -> usize {
        match self.wanted {
            Layout::Packed { .. } => packed::matrix_bytes(self.matrix(), 0).unwrap_or(self.most_bytes),
            _ => self.most_bytes,
        }
    }
}

/// One file to write.
pub(super) struct PlannedShard {
    pub(super) file_name: String,
    pub(super) tensors: Vec<Planned>,
    /// Bytes before the first tensor.
    pub(super) header_bytes: usize,
}

impl PlannedShard {
    /// Published bytes from which it is made.
    pub(super) fn source_bytes(&self) -> u64 {
        self.tensors.iter().map(|tensor| published_bytes(tensor) as u64).sum()
    }

    pub(super) fn least_bytes(&self) -> u64 {
        self.header_bytes as u64 + self.tensors.iter().map(|tensor| tensor.least_bytes() as u64).sum::<u64>()
    }
}

/// Bytes of a tensor as published.
pub(super) fn published_bytes(tensor: &Planned) -> usize {
    tensor.shape.iter().product::<usize>() * tensor.element.size()
}

/// A tensor in its final form, at its place behind the header.
pub(super) struct Written {
    pub(super) layout: Layout,
    pub(super) start: usize,
    /// With what fills up the last line.
    pub(super) bytes: usize,
}

/// Lays all tensors out over shards, in the order in which the source has them, so that it is read from front to back.
pub(super) fn plan(
    checkpoint: &Checkpoint,
    digest: &str,
    options: &PackOptions,
) -> Result<Vec<PlannedShard>, PackError> {
    let config = checkpoint.config();
    let embedding = "model.embed_tokens.weight";
    let apart = config.with_experts_apart();
    let mut tensors = Vec::new();
    let mut new_names = HashMap::new();
    for (layer, sparse) in config.sparse_layers() {
        if matches!(sparse.storage, ExpertStorage::Stacked | ExpertStorage::StackedTransposed) {
            new_names.insert(config.router_name(layer), apart.router_name(layer));
            if sparse.biased {
                new_names.insert(config.router_bias_name(layer), apart.router_bias_name(layer));
            }
            for (name, source, shape, part) in parts_of_stacks(checkpoint, &apart, layer, sparse) {
                let (element, _) = checkpoint.element(&source);
                tensors.push(planned(name, source, element, shape.into(), Some(part), true, options)?);
            }
        }
    }
    let whole = |name: String, source: &str, is_matrix| {
        let (element, shape) = checkpoint.element(source);
        planned(name, source.into(), element, shape.to_vec(), None, is_matrix, options)
    };
    for spec in config.tensors() {
        if let TensorKind::Stack { .. } = spec.kind {
            continue;
        }
        let is_matrix = spec.kind == TensorKind::Matrix && spec.name != embedding;
        if spec.name == embedding && config.tie_word_embeddings {
            tensors.push(whole("lm_head.weight".into(), embedding, true)?);
        }
        let name = new_names.remove(&spec.name).unwrap_or_else(|| spec.name.clone());
        tensors.push(whole(name, &spec.name, is_matrix)?);
    }
    // All matrices of an expert from one read of it.
    tensors.sort_by_cached_key(|tensor| tensor.location(checkpoint));

    let mut groups: Vec<Vec<Planned>> = Vec::new();
    let mut filled = 0u64;
    for tensor in tensors {
        let bytes = tensor.most_bytes as u64;
        match groups.last_mut() {
            Some(group) if filled + bytes <= options.max_shard_bytes => {
                filled += bytes;
                group.push(tensor);
            }
            _ => {
                filled = bytes;
                groups.push(vec![tensor]);
            }
        }
    }
    let count = groups.len();
    let shards = groups.into_iter().enumerate().map(|(index, mut tensors)| {
        // The format allows no holes: first what begins and ends at a line, then wider types before narrower ones.
        tensors.sort_by_key(|tensor| match tensor.wanted {
            Layout::RowMajor => (1, std::cmp::Reverse(tensor.element.size())),
            _ => (0, std::cmp::Reverse(0)),
        });
        let file_name = match count {
            1 => SINGLE_FILE.to_owned(),
            _ => format!("model-{:05}-of-{count:05}.safetensors", index + 1),
        };
        let header_bytes = most_header_bytes(&tensors, digest);
        PlannedShard { file_name, tensors, header_bytes }
    });
    Ok(shards.collect())
}

/// The matrices of a layer's experts: new name, stack, shape and place, in the order of the experts.
fn parts_of_stacks(
    checkpoint: &Checkpoint,
    apart: &ModelConfig,
    layer: usize,
    sparse: &Sparse,
) -> Vec<(String, String, [usize; 2], Part)> {
    let config = checkpoint.config();
    let (hidden, width) = (config.hidden_size, sparse.moe_intermediate_size);
    let [gate_up, down] = config.stacked_experts(layer).map(|names| names.weights);
    let [up, step] = config.rows_of_up(width);
    let mut parts = Vec::with_capacity(3 * sparse.num_experts);
    for expert in 0..sparse.num_experts {
        let of_expert = [(&gate_up, [width, hidden], 0), (&gate_up, [width, hidden], up), (&down, [hidden, width], 0)];
        for (name, (stack, shape @ [rows, _], first)) in expert_names(apart, layer, expert).into_iter().zip(of_expert) {
            let bytes = checkpoint.location(stack).size() / sparse.num_experts;
            let whole = expert * bytes..(expert + 1) * bytes;
            let (all, step) = if *stack == down { (rows, 1) } else { (2 * rows, step) };
            let part = match sparse.storage {
                ExpertStorage::StackedTransposed => Part { bytes: whole, columns: Some([first, step, all]) },
                // Its rows follow each other.
                _ => {
                    let row = bytes / all;
                    Part { bytes: whole.start + first * row..whole.start + (first + rows) * row, columns: None }
                }
            };
            parts.push((name, stack.clone(), shape, part));
        }
    }
    parts
}

fn planned(
    name: String,
    source: String,
    element: Element,
    shape: Vec<usize>,
    part: Option<Part>,
    is_matrix: bool,
    options: &PackOptions,
) -> Result<Planned, PackError> {
    let published = shape.iter().product::<usize>() * element.size();
    // Blocks and scales of MXFP4 are as small as they get: they stay as published.
    let (Element::Number(dtype), true) = (element, is_matrix) else {
        let (wanted, most_bytes) = (Layout::RowMajor, published);
        return Ok(Planned { name, source, part, element, shape, wanted, most_bytes });
    };
    let matrix = [shape[0], shape[1]];
    let plain = Matrix::panel_bytes(dtype, matrix).and_then(|bytes| bytes.checked_next_multiple_of(ALIGNMENT));
    let Some(plain) = plain else {
        return Err(PackError::TooLarge { tensor: name, bytes: published as u64 });
    };
    let shrinks = dtype == Dtype::Bf16 && packed::matrix_bytes(matrix, 0).is_some_and(|bytes| bytes < plain);
    let wanted = match shrinks && !options.plain {
        true => Layout::Packed { patches: 0 },
        false => Layout::Panels,
    };
    Ok(Planned { name, source, part, element, shape, wanted, most_bytes: plain })
}

/// Bytes of a header in which every number has as many digits as it can get.
fn most_header_bytes(tensors: &[Planned], digest: &str) -> usize {
    let mut start = 0;
    let written: Vec<Written> = tensors
        .iter()
        .map(|tensor| {
            let layout = match tensor.wanted {
                Layout::Packed { .. } => Layout::Packed { patches: tensor.most_bytes / size_of::<u32>() },
                other => other,
            };
            start += tensor.most_bytes;
            Written { layout, start: start - tensor.most_bytes, bytes: tensor.most_bytes }
        })
        .collect();
    (8 + json(tensors, &written, digest).len()).next_multiple_of(ALIGNMENT)
}

fn json(tensors: &[Planned], written: &[Written], digest: &str) -> String {
    let mut metadata = Map::new();
    metadata.insert("format".into(), "pt".into());
    metadata.insert(VERSION_KEY.into(), VERSION.into());
    metadata.insert(SOURCE_KEY.into(), digest.into());
    let mut entries = Map::new();
    for (tensor, Written { layout, start, bytes }) in tensors.iter().zip(written) {
        let offsets = [*start, start + bytes];
        let entry = match layout {
            Layout::RowMajor => {
                let dtype = match tensor.element {
                    Element::Number(dtype) => dtype.name().to_ascii_uppercase(),
                    Element::U8 => "U8".to_owned(),
                };
                json!({"dtype": dtype, "shape": tensor.shape, "data_offsets": offsets})
            }
            _ => {
                let entry =
                    Entry { form: TensorForm { dtype: tensor.dtype(), layout: *layout }, shape: tensor.matrix() };
                metadata.insert(format!("{TENSOR_PREFIX}{}", tensor.name), entry.to_string().into());
                json!({"dtype": "U8", "shape": [bytes], "data_offsets": offsets})
            }
        };
        entries.insert(tensor.name.clone(), entry);
    }
    let mut header = Map::new();
    header.insert("__metadata__".into(), Value::Object(metadata));
    header.extend(entries);
    Value::Object(header).to_string()
}

/// The header's bytes, length and spaces included.
pub(super) fn header(shard: &PlannedShard, written: &[Written], digest: &str) -> Vec<u8> {
    let json = json(&shard.tensors, written, digest);
    let mut header = ((shard.header_bytes - 8) as u64).to_le_bytes().to_vec();
    header.extend(json.as_bytes());
    assert!(header.len() <= shard.header_bytes, "a header is no longer than it can get");
    header.resize(shard.header_bytes, b' ');
    header
}
