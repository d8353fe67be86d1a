//! The layout of safetensors shards, decided before the first byte is written.
//!
//! Sizes are known from the header alone, so a disk that is too small is found out at once and a
//! shard is written from front to back. The format: 8 bytes of header length, a JSON header, data
//! without holes. Headers are padded with spaces so that data begins at a multiple of 64 bytes.

use serde_json::{Map, Value, json};

use super::tensors::OutputTensor;

const DATA_ALIGNMENT: usize = 64;

/// One file: its name, header and tensors in order.
pub(super) struct Shard {
    pub(super) file_name: String,
    /// Length prefix and JSON, padded.
    pub(super) header: Vec<u8>,
    pub(super) tensors: Vec<OutputTensor>,
}

impl Shard {
    pub(super) fn bytes(&self) -> u64 {
        self.header.len() as u64 + self.tensors.iter().map(OutputTensor::bytes).sum::<u64>()
    }
}

/// Fills shards one after the other; a shard ends before the tensor that would make it larger than `max_bytes`.
pub(super) fn layout(tensors: Vec<OutputTensor>, max_bytes: u64) -> Vec<Shard> {
    let mut groups: Vec<Vec<OutputTensor>> = Vec::new();
    let mut filled = 0;
    for tensor in tensors {
        match groups.last_mut() {
            Some(group) if filled + tensor.bytes() <= max_bytes => {
                filled += tensor.bytes();
                group.push(tensor);
            }
            _ => {
                filled = tensor.bytes();
                groups.push(vec![tensor]);
            }
        }
    }
    let count = groups.len();
    let name = |index: usize| match count {
        1 => "model.safetensors".to_owned(),
        _ => format!("model-{:05}-of-{count:05}.safetensors", index + 1),
    };
    groups.into_iter().enumerate().map(|(index, tensors)| shard(name(index), tensors)).collect()
}

fn shard(file_name: String, mut tensors: Vec<OutputTensor>) -> Shard {
    let mut end = 0;
    let aligned = tensors.iter().all(|tensor| {
        let start = end;
        end += tensor.bytes();
        start.is_multiple_of(tensor.dtype.bytes())
    });
    if !aligned {
        // An odd number of 2-byte values lies before a 4-byte tensor: wider formats go first then.
        tensors.sort_by_key(|tensor| std::cmp::Reverse(tensor.dtype.bytes()));
    }
    let mut entries = Map::new();
    entries.insert("__metadata__".to_owned(), json!({"format": "pt"}));
    let mut start = 0;
    for tensor in &tensors {
        let end = start + tensor.bytes();
        let entry = json!({"dtype": tensor.dtype.name(), "shape": tensor.shape, "data_offsets": [start, end]});
        entries.insert(tensor.name.clone(), entry);
        start = end;
    }
    let mut json = Value::Object(entries).to_string().into_bytes();
    json.resize((8 + json.len()).next_multiple_of(DATA_ALIGNMENT) - 8, b' ');
    let header = [&(json.len() as u64).to_le_bytes(), json.as_slice()].concat();
    Shard { file_name, header, tensors }
}

/// `model.safetensors.index.json`, or `None` for a single shard.
pub(super) fn index(shards: &[Shard]) -> Option<Value> {
    if shards.len() == 1 {
        return None;
    }
    let tensors = shards.iter().flat_map(|shard| shard.tensors.iter().map(|tensor| (tensor, &shard.file_name)));
    let total_size: u64 = tensors.clone().map(|(tensor, _)| tensor.bytes()).sum();
    let weight_map: Map<String, Value> =
        tensors.map(|(tensor, file_name)| (tensor.name.clone(), json!(file_name))).collect();
    Some(json!({"metadata": {"total_size": total_size}, "weight_map": weight_map}))
}
