//! An adapter's folder as PEFT writes it, opened and checked against the model: every tensor has a place, and every pair
//! the shapes that its place asks for.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use simd::Dtype;
use simd::matmul::Matrix;

use super::config::AdapterConfig;
use super::names::{self, Module, Norm, Place, Replaced};
use super::{ALIGNMENT, AdapterError};
use crate::checkpoint::MappedFile;
use crate::checkpoint::header::{self, Element, TensorInfo, printable};
use crate::config::{Mlp, ModelConfig, QkNorm, Sparse};

const CONFIG_FILE: &str = "adapter_config.json";
const WEIGHTS_FILE: &str = "adapter_model.safetensors";
const CONFIG_BYTES_MAX: u64 = 1 << 20;
const PREFIX: &str = "base_model.model.";
const LORA_A: &str = "lora_A";
const LORA_B: &str = "lora_B";

/// A folder that fits its model; its weights are not read yet.
pub struct AdapterFolder {
    pub(super) path: PathBuf,
    pub(super) map: MappedFile,
    pub(super) digest: [u8; 32],
    pub(super) pairs: Vec<Pair>,
    pub(super) replaced: Vec<(Replaced, Tensor)>,
    pub(super) rank: usize,
    pub(super) layers: usize,
    pub(super) num_experts: usize,
    bytes: usize,
}

/// A tensor of the file.
#[derive(Clone, Debug)]
pub(super) struct Tensor {
    pub(super) name: String,
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    bytes: std::ops::Range<usize>,
}

impl Tensor {
    /// The module that it is the weight of.
    fn module(&self) -> &str {
        let name = self.name.strip_prefix(PREFIX).unwrap_or(&self.name);
        name.strip_suffix(".weight").unwrap_or(name)
    }
}

/// Two tensors whose product is a delta, and the modules that it is for.
#[derive(Debug)]
pub(super) struct Pair {
    pub(super) a: Tensor,
    pub(super) b: Tensor,
    pub(super) rank: usize,
    pub(super) scaling: f64,
    pub(super) parts: Parts,
}

/// How the rows and columns of a pair belong to modules.
#[derive(Debug)]
pub(super) enum Parts {
    /// `a` is `[rank, in]`, `b` `[out, rank]`, of one module.
    One { layer: usize, module: Module, expert: Option<usize> },
    /// `a` is `[experts * rank, in]`, a block of rows for each expert; `b` is `[out, rank * experts]`, in which the
    /// columns of experts alternate. Its rows are those of all `modules`: one after the other, or in turn.
    Experts { layer: usize, experts: usize, modules: &'static [Module], in_turn: bool },
}

/// The two matrices of a module whose names the file has.
#[derive(Default)]
struct Found {
    a: Option<Tensor>,
    b: Option<Tensor>,
}

impl AdapterFolder {
    /// Opens `folder` and checks it against a model's config.
    ///
    /// # Errors
    /// [`AdapterError`] with the file, the tensor or field, and what is wrong with it.
    pub fn open(folder: &Path, config: &ModelConfig) -> Result<Self, AdapterError> {
        let settings_path = folder.join(CONFIG_FILE);
        let json = read_small(&settings_path)?;
        let settings = AdapterConfig::from_json(&settings_path, &json)?;
        let path = folder.join(WEIGHTS_FILE);
        let open = |source| AdapterError::Open { path: path.clone(), source };
        let map = MappedFile::open(&path).map_err(open)?;
        let tensors = header::read(&path, map.bytes())?.tensors;
        if tensors.is_empty() {
            return Err(AdapterError::Empty { path });
        }

        let mut found: BTreeMap<String, Found> = BTreeMap::new();
        let mut replaced = BTreeMap::new();
        for (name, info) in tensors {
            let tensor = numbers(&path, name, info)?;
            let inner = tensor.name.strip_prefix(PREFIX).unwrap_or(&tensor.name).to_owned();
            let pair_of = |suffix: &str| inner.strip_suffix(suffix).map(str::to_owned);
            if let Some(module) = pair_of(".lora_A.weight") {
                found.entry(module).or_default().a = Some(tensor);
            } else if let Some(module) = pair_of(".lora_B.weight") {
                found.entry(module).or_default().b = Some(tensor);
            } else {
                let what = whole(&path, &inner, &tensor, config)?;
                if replaced.insert(what, tensor.clone()).is_some() {
                    return Err(twice(&path, &tensor));
                }
            }
        }
        let check = Check { path: &path, settings: &settings, config };
        let pairs = check.pairs(found)?;
        check.all_targets_are_there(&pairs)?;
        let saved: Vec<&str> = replaced.values().map(Tensor::module).collect();
        if let Some(module) = settings.unsaved(&saved) {
            return Err(AdapterError::Missing { path, module: printable(module) });
        }

        let mut hasher = blake3::Hasher::new();
        for bytes in [&json[..], map.bytes()] {
            hasher.update(&(bytes.len() as u64).to_le_bytes()).update(bytes);
        }
        let num_experts = config.sparse_layers().map(|(_, sparse)| sparse.num_experts).max().unwrap_or(0);
        let mut opened = Self {
            rank: pairs.iter().map(|pair| pair.rank).max().unwrap_or(0),
            digest: *hasher.finalize().as_bytes(),
            pairs,
            replaced: replaced.into_iter().collect(),
            layers: config.layers.len(),
            num_experts,
            bytes: 0,
            map,
            path,
        };
        opened.check_intact()?;
        opened.bytes = opened.count_bytes();
        Ok(opened)
    }

    /// Bytes of memory that its matrices will take.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Greatest rank of its matrices.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// BLAKE3 of its two files, in hexadecimal.
    pub fn digest(&self) -> String {
        blake3::Hash::from_bytes(self.digest).to_hex().to_string()
    }

    pub(super) fn tensor_bytes(&self, tensor: &Tensor) -> &[u8] {
        &self.map.bytes()[tensor.bytes.clone()]
    }

    /// Zeros in the place of a file that was cut short pass every other check.
    pub(super) fn check_intact(&self) -> Result<(), AdapterError> {
        if self.map.is_intact() { Ok(()) } else { Err(AdapterError::Broken { path: self.path.clone() }) }
    }

    /// What [`Adapter::load`](super::Adapter::load) will ask for.
    fn count_bytes(&self) -> usize {
        let panels = |dtype, shape| {
            Matrix::panel_bytes(dtype, shape).map_or(usize::MAX, |bytes| bytes.next_multiple_of(ALIGNMENT))
        };
        let of_pair = |pair: &Pair| {
            let (parts, modules) = pair.parts.counts();
            let [out, cols] = [pair.b.shape[0] / modules, pair.a.shape[1]];
            let b = panels(Dtype::F32, [out, pair.rank]).saturating_mul(modules);
            panels(Dtype::F32, [pair.rank, cols]).saturating_add(b).saturating_mul(parts)
        };
        let of_whole = |(what, tensor): &(Replaced, Tensor)| match what {
            Replaced::Norm { .. } => tensor.shape[0] * 4,
            Replaced::Embedding => tensor.bytes.len().next_multiple_of(ALIGNMENT),
            Replaced::LmHead => panels(tensor.dtype, [tensor.shape[0], tensor.shape[1]]),
        };
        let all = self.pairs.iter().map(of_pair).chain(self.replaced.iter().map(of_whole));
        all.fold(0, usize::saturating_add)
    }
}

impl Parts {
    /// Experts, or 1, and modules of each that share their `a`.
    fn counts(&self) -> (usize, usize) {
        match self {
            Self::One { .. } => (1, 1),
            Self::Experts { experts, modules, .. } => (*experts, modules.len()),
        }
    }
}

fn read_small(path: &Path) -> Result<Vec<u8>, AdapterError> {
    let open = |source| AdapterError::Open { path: path.into(), source };
    if !std::fs::metadata(path).map_err(open)?.is_file() {
        return Err(open(std::io::Error::new(std::io::ErrorKind::InvalidInput, "it is not a regular file")));
    }
    let mut json = Vec::new();
    File::open(path).map_err(open)?.take(CONFIG_BYTES_MAX + 1).read_to_end(&mut json).map_err(open)?;
    match json.len() as u64 > CONFIG_BYTES_MAX {
        true => Err(AdapterError::TooLarge { path: path.into(), most: CONFIG_BYTES_MAX }),
        false => Ok(json),
    }
}

fn numbers(path: &Path, name: String, info: TensorInfo) -> Result<Tensor, AdapterError> {
    match info.element {
        Element::Number(dtype) if info.layout == crate::checkpoint::Layout::RowMajor => {
            Ok(Tensor { name, dtype, shape: info.shape, bytes: info.bytes })
        }
        _ => {
            let why = "not of BF16, F16 or F32, row after row".into();
            Err(AdapterError::Tensor { path: path.into(), tensor: printable(&name), why })
        }
    }
}

fn twice(path: &Path, tensor: &Tensor) -> AdapterError {
    let why = "the second one for its place in the model".into();
    AdapterError::Tensor { path: path.into(), tensor: printable(&tensor.name), why }
}

/// What a tensor that is none of a pair replaces, if its shape is right.
fn whole(path: &Path, name: &str, tensor: &Tensor, config: &ModelConfig) -> Result<Replaced, AdapterError> {
    let wrong =
        |why: &str| Err(AdapterError::Tensor { path: path.into(), tensor: printable(&tensor.name), why: why.into() });
    for (mark, why) in [
        (".lora_magnitude_vector", "of DoRA, which this version does not have; train without `use_dora`"),
        (
            ".lora_embedding_",
            "of an adapted embedding, which this version does not have; save it whole by `modules_to_save`",
        ),
        (".bias", "a bias, which this version does not adapt; train with bias \"none\""),
    ] {
        if name.contains(mark) {
            return wrong(why);
        }
    }
    let Some(what) = names::replaced(name) else {
        return wrong("for no part of this model that an adapter may replace: norms, embed_tokens and lm_head");
    };
    let (hidden, head_dim) = (config.hidden_size, config.head_dim);
    let want = match what {
        Replaced::Norm { norm: Norm::Query | Norm::Key, .. } if config.qk_norm != QkNorm::PerHead => {
            return wrong("for a norm that this model does not have");
        }
        Replaced::Norm { layer, .. } if layer >= config.layers.len() => return wrong("for a layer beyond the last"),
        Replaced::Norm { norm: Norm::Query | Norm::Key, .. } => vec![head_dim],
        Replaced::Norm { .. } => vec![hidden],
        Replaced::Embedding | Replaced::LmHead => vec![config.vocab_size, hidden],
    };
    if tensor.shape != want {
        let (got, want) = (tensor.shape.clone(), format!("{want:?}"));
        return Err(AdapterError::WrongShape { path: path.into(), tensor: printable(&tensor.name), got, want });
    }
    Ok(what)
}

struct Check<'a> {
    path: &'a Path,
    settings: &'a AdapterConfig,
    config: &'a ModelConfig,
}

impl Check<'_> {
    fn pairs(&self, found: BTreeMap<String, Found>) -> Result<Vec<Pair>, AdapterError> {
        let mut pairs = BTreeMap::new();
        for (name, found) in found {
            let unpaired = |has, lacks| {
                Err(AdapterError::Unpaired { path: self.path.into(), module: printable(&name), has, lacks })
            };
            let (a, b) = match found {
                Found { a: Some(a), b: Some(b) } => (a, b),
                Found { a: Some(_), b: None } => return unpaired(LORA_A, LORA_B),
                Found { a: None, .. } => return unpaired(LORA_B, LORA_A),
            };
            let pair = self.pair(&name, a, b)?;
            let place = match pair.parts {
                Parts::One { layer, module, expert } => (layer, module, expert),
                Parts::Experts { layer, modules, .. } => (layer, modules[0], None),
            };
            if let Some(other) = pairs.insert(place, pair) {
                return Err(twice(self.path, &other.a));
            }
        }
        // Experts one by one and all at once would add up, which no training does.
        let at_once = |pair: &Pair| match pair.parts {
            Parts::Experts { layer, .. } => Some(layer),
            Parts::One { .. } => None,
        };
        let stacked: Vec<usize> = pairs.values().filter_map(at_once).collect();
        match pairs
            .values()
            .find(|pair| matches!(pair.parts, Parts::One { layer, expert: Some(_), .. } if stacked.contains(&layer)))
        {
            Some(pair) => Err(twice(self.path, &pair.a)),
            None => Ok(pairs.into_values().collect()),
        }
    }

    fn pair(&self, name: &str, a: Tensor, b: Tensor) -> Result<Pair, AdapterError> {
        let Some(place) = names::place(name) else { return Err(self.no_place(&a)) };
        let ([a_rows, a_cols], [b_rows, b_cols]) = (self.matrix(&a)?, self.matrix(&b)?);
        // What PEFT matched patterns with has no traces of how modules were wrapped.
        let name = name.replace(".base_layer", "");
        let wrong_shape = |tensor: &Tensor, want: String| {
            let got = tensor.shape.clone();
            AdapterError::WrongShape { path: self.path.into(), tensor: printable(&tensor.name), got, want }
        };
        let one = |layer, module, expert, [out, cols]: [usize; 2]| {
            if a_cols != cols {
                return Err(wrong_shape(&a, format!("[rank, {cols}]")));
            }
            if b_rows != out {
                return Err(wrong_shape(&b, format!("[{out}, rank]")));
            }
            Ok((Parts::One { layer, module, expert }, a_rows, b_cols, name.clone()))
        };
        let (parts, rank, b_rank, key) = match place {
            Place::One { layer, module } => {
                let Some(shape) = self.shape(layer, module) else { return Err(self.no_place(&a)) };
                let mut found = one(layer, module, None, shape)?;
                // Where a router's matrix is a parameter and no module, it is targeted and has patterns as such.
                let parameter = format!("{name}.weight");
                if module == Module::Router && self.settings.targets_parameter(&parameter) {
                    found.3 = parameter;
                } else if !self.settings.targets_module(&name) {
                    return Err(self.not_targeted(&a));
                }
                found
            }
            Place::Expert { layer, expert, module } => {
                let sparse = self.sparse(layer).filter(|sparse| expert < sparse.num_experts);
                let Some(sparse) = sparse else { return Err(self.no_place(&a)) };
                if !self.settings.targets_module(&name) {
                    return Err(self.not_targeted(&a));
                }
                one(layer, module, Some(expert), self.expert_shape(sparse, module))?
            }
            Place::Experts { layer } => {
                let Some(sparse) = self.sparse(layer) else { return Err(self.no_place(&a)) };
                let (hidden, width, experts) =
                    (self.config.hidden_size, sparse.moe_intermediate_size, sparse.num_experts);
                let (modules, parameter): (&[Module], _) = match (a_cols, b_rows) {
                    (cols, rows) if (cols, rows) == (hidden, 2 * width) => {
                        (&[Module::Gate, Module::Up], "gate_up_proj")
                    }
                    (cols, rows) if (cols, rows) == (width, hidden) => (&[Module::Down], "down_proj"),
                    _ => {
                        let want = format!(
                            "[{experts} * rank, {hidden}] beside a lora_B of [{}, rank * {experts}], or [{experts} * rank, {width}] beside [{hidden}, rank * {experts}]",
                            2 * width
                        );
                        return Err(wrong_shape(&a, want));
                    }
                };
                if !a_rows.is_multiple_of(experts) || !b_cols.is_multiple_of(experts) {
                    return Err(wrong_shape(&a, format!("[{experts} * rank, {a_cols}]")));
                }
                let key = format!("{name}.{parameter}");
                if !self.settings.targets_parameter(&key) {
                    return Err(self.not_targeted(&a));
                }
                // Gate and up alternate in memory where they do in the file.
                let in_turn = self.config.gate_and_up_alternate();
                (Parts::Experts { layer, experts, modules, in_turn }, a_rows / experts, b_cols / experts, key)
            }
        };
        let want = self.settings.rank(&key);
        if let Some(got) = [rank, b_rank].into_iter().find(|rank| *rank != want) {
            return Err(AdapterError::Rank { path: self.path.into(), module: printable(&name), got, want });
        }
        Ok(Pair { a, b, rank, scaling: self.settings.scaling(&key), parts })
    }

    /// Every attention and dense matrix that the settings mean must be in the file. (Of experts and routers it depends on
    /// the version that trained whether they are modules that a name can mean.)
    fn all_targets_are_there(&self, pairs: &[Pair]) -> Result<(), AdapterError> {
        use Module::{Down, Gate, Key, Output, Query, Up, Value};
        let has = |at: usize, of: Module| {
            pairs.iter().any(
                |pair| matches!(pair.parts, Parts::One { layer, module, expert: None } if (layer, module) == (at, of)),
            )
        };
        for (index, layer) in self.config.layers.iter().enumerate() {
            let attention = [(Query, "q"), (Key, "k"), (Value, "v"), (Output, "o")];
            let attention = attention.map(|(module, part)| (module, format!("self_attn.{part}_proj")));
            let dense = match layer.mlp {
                Mlp::Dense { .. } => [(Gate, "gate"), (Up, "up"), (Down, "down")]
                    .map(|(module, part)| (module, format!("mlp.{part}_proj")))
                    .to_vec(),
                Mlp::Sparse(_) => Vec::new(),
            };
            for (module, part) in attention.into_iter().chain(dense) {
                let name = format!("model.layers.{index}.{part}");
                if self.settings.targets_module(&name) && !has(index, module) {
                    return Err(AdapterError::Missing { path: self.path.into(), module: name });
                }
            }
        }
        Ok(())
    }

    fn no_place(&self, tensor: &Tensor) -> AdapterError {
        let why = "for a module that this model does not have, or that this version does not adapt".into();
        AdapterError::Tensor { path: self.path.into(), tensor: printable(&tensor.name), why }
    }

    fn not_targeted(&self, tensor: &Tensor) -> AdapterError {
        let why = "not among the targets of adapter_config.json; the two files do not belong together".into();
        AdapterError::Tensor { path: self.path.into(), tensor: printable(&tensor.name), why }
    }

    fn matrix(&self, tensor: &Tensor) -> Result<[usize; 2], AdapterError> {
        match tensor.shape[..] {
            [rows, cols] => Ok([rows, cols]),
            _ => {
                let (got, want) = (tensor.shape.clone(), "a matrix".into());
                Err(AdapterError::WrongShape { path: self.path.into(), tensor: printable(&tensor.name), got, want })
            }
        }
    }

    fn sparse(&self, layer: usize) -> Option<&Sparse> {
        match &self.config.layers.get(layer)?.mlp {
            Mlp::Sparse(sparse) => Some(sparse),
            Mlp::Dense { .. } => None,
        }
    }

    fn expert_shape(&self, sparse: &Sparse, module: Module) -> [usize; 2] {
        let (hidden, width) = (self.config.hidden_size, sparse.moe_intermediate_size);
        if module == Module::Down { [hidden, width] } else { [width, hidden] }
    }

    /// Shape `[out, in]` of a matrix that is there once a layer, or once.
    fn shape(&self, layer: usize, module: Module) -> Option<[usize; 2]> {
        let config = self.config;
        let hidden = config.hidden_size;
        let mlp = &config.layers.get(layer)?.mlp;
        match (module, mlp) {
            (Module::Query, _) => Some([config.query_size(), hidden]),
            (Module::Key | Module::Value, _) => Some([config.key_value_size(), hidden]),
            (Module::Output, _) => Some([hidden, config.query_size()]),
            (Module::LmHead, _) => Some([config.vocab_size, hidden]),
            (Module::Router, Mlp::Sparse(sparse)) => Some([sparse.num_experts, hidden]),
            (Module::Gate | Module::Up, Mlp::Dense { intermediate_size }) => Some([*intermediate_size, hidden]),
            (Module::Down, Mlp::Dense { intermediate_size }) => Some([hidden, *intermediate_size]),
            _ => None,
        }
    }
}
