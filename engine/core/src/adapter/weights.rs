//! An adapter in memory: low-rank matrices in panels of float32, and what it replaces.
//!
//! Float32 holds what was trained as BF16 or F16 exactly, and meets activations as they are: so all adapters of a step
//! take one form of their input, and their products are as exact as any. They are small beside what they add to.

use std::collections::BTreeMap;
use std::ops::Range;

use numa::Region;
use simd::matmul::Matrix;
use simd::{Dtype, Isa};

use super::folder::{AdapterFolder, Parts, Tensor};
use super::names::{MODULES, Module, Norm, Replaced};
use super::{ALIGNMENT, AdapterError};
use crate::checkpoint::header::printable;

/// An adapter that is ready to compute. It is never merged into the model: rows that did not choose it meet the weights
/// as they were published.
pub struct Adapter {
    pub(super) name: String,
    pub(super) digest: [u8; 32],
    rank: usize,
    bytes: usize,
    region: Region,
    layers: Vec<LayerPairs>,
    lm_head_pair: Option<PairAt>,
    norms: BTreeMap<(usize, Norm), Vec<f32>>,
    embedding: Option<WholeAt>,
    lm_head: Option<WholeAt>,
}

#[derive(Clone, Default)]
struct LayerPairs {
    /// By [`Module`].
    modules: [Option<PairAt>; MODULES],
    /// Gate, up and down of each expert; empty if the adapter has none of them.
    experts: Vec<[Option<PairAt>; 3]>,
    /// Which of the three any expert has.
    of_experts: [bool; 3],
}

/// Where a pair's panels are in the region.
#[derive(Clone)]
struct PairAt {
    rank: usize,
    /// Of the matrix that it adds to: `[out, in]`.
    shape: [usize; 2],
    scaling: f64,
    a: Range<usize>,
    b: Range<usize>,
}

/// Where a whole matrix is in the region.
struct WholeAt {
    dtype: Dtype,
    shape: [usize; 2],
    bytes: Range<usize>,
}

/// Two matrices whose product adds to a weight: `y += scaling * b (a x)`.
pub(crate) struct LowRankPair<'a> {
    /// `[rank, in]`
    pub(crate) a: Matrix<'a>,
    /// `[out, rank]`
    pub(crate) b: Matrix<'a>,
    pub(crate) scaling: f64,
}

impl LowRankPair<'_> {
    /// Bytes that its products read.
    pub(crate) fn bytes(&self) -> usize {
        self.a.bytes().len() + self.b.bytes().len()
    }
}

impl Adapter {
    /// Reads and checks the weights of a folder, and lays them into panels in memory of their own. `name` is what messages
    /// call it.
    ///
    /// # Errors
    /// [`AdapterError`]: weights that are no numbers, a file that was cut short meanwhile, or memory that is not there.
    pub fn load(name: &str, folder: &AdapterFolder, isa: Isa) -> Result<Self, AdapterError> {
        let bytes = folder.bytes();
        let region = Region::anonymous(bytes).map_err(|source| AdapterError::Memory { bytes, source })?;
        let mut adapter = Self {
            name: name.into(),
            digest: folder.digest,
            rank: folder.rank(),
            bytes,
            region,
            layers: vec![LayerPairs::default(); folder.layers],
            lm_head_pair: None,
            norms: BTreeMap::new(),
            embedding: None,
            lm_head: None,
        };
        let mut laying = Laying { folder, isa, next: 0 };
        for pair in &folder.pairs {
            let (a, b) = (laying.widened(&pair.a)?, laying.widened(&pair.b)?);
            let (rank, scaling, cols) = (pair.rank, pair.scaling, pair.a.shape[1]);
            let region = adapter.region.as_mut_slice();
            match pair.parts {
                Parts::One { layer, module, expert } => {
                    let shape = [pair.b.shape[0], cols];
                    let (a, b) = (laying.lay(region, &a, [rank, cols]), laying.lay(region, &b, [shape[0], rank]));
                    *adapter.at(folder, layer, module, expert) = Some(PairAt { rank, shape, scaling, a, b });
                }
                Parts::Experts { layer, experts, modules, in_turn } => {
                    let out = pair.b.shape[0] / modules.len();
                    let mut of_one = vec![0.0; out * rank];
                    for expert in 0..experts {
                        let region = adapter.region.as_mut_slice();
                        let a = laying.lay(region, &a[expert * rank * cols..][..rank * cols], [rank, cols]);
                        for (nth, module) in modules.iter().enumerate() {
                            let (first, step) = if in_turn { (nth, modules.len()) } else { (nth * out, 1) };
                            for (row, of_one) in of_one.chunks_exact_mut(rank).enumerate() {
                                let row = &b[(first + row * step) * rank * experts..][..rank * experts];
                                for (of_one, all) in of_one.iter_mut().zip(row.chunks_exact(experts)) {
                                    *of_one = all[expert];
                                }
                            }
                            let region = adapter.region.as_mut_slice();
                            let b = laying.lay(region, &of_one, [out, rank]);
                            let at = PairAt { rank, shape: [out, cols], scaling, a: a.clone(), b };
                            *adapter.at(folder, layer, *module, Some(expert)) = Some(at);
                        }
                    }
                }
            }
        }
        for (what, tensor) in &folder.replaced {
            let widened = laying.widened(tensor)?; // checked in this
            match what {
                Replaced::Norm { layer, norm } => {
                    adapter.norms.insert((*layer, *norm), widened);
                }
                Replaced::Embedding => {
                    adapter.embedding = Some(laying.whole(adapter.region.as_mut_slice(), tensor, false))
                }
                Replaced::LmHead => adapter.lm_head = Some(laying.whole(adapter.region.as_mut_slice(), tensor, true)),
            }
        }
        folder.check_intact()?;
        Ok(adapter)
    }

    /// What messages call it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// BLAKE3 of its files, in hexadecimal.
    pub fn digest(&self) -> String {
        blake3::Hash::from_bytes(self.digest).to_hex().to_string()
    }

    /// Greatest rank of its matrices.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Bytes of memory that its matrices take.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// What decides the order in which a row adds up its adapters.
    pub(crate) fn order(&self) -> [u8; 32] {
        self.digest
    }

    fn at(
        &mut self,
        folder: &AdapterFolder,
        layer: usize,
        module: Module,
        expert: Option<usize>,
    ) -> &mut Option<PairAt> {
        if module == Module::LmHead {
            return &mut self.lm_head_pair;
        }
        let layer = &mut self.layers[layer];
        match expert {
            None => &mut layer.modules[module as usize],
            Some(expert) => {
                if layer.experts.is_empty() {
                    layer.experts = vec![[None, None, None]; folder.num_experts];
                }
                let part = module as usize - Module::Gate as usize;
                layer.of_experts[part] = true;
                &mut layer.experts[expert][part]
            }
        }
    }

    /// What it adds to a matrix, of one expert or the only one.
    pub(crate) fn pair(&self, layer: usize, module: Module, expert: Option<usize>) -> Option<LowRankPair<'_>> {
        let at = match (module, expert) {
            (Module::LmHead, _) => &self.lm_head_pair,
            (_, None) => &self.layers[layer].modules[module as usize],
            (_, Some(expert)) => &self.layers[layer].experts.get(expert)?[module as usize - Module::Gate as usize],
        };
        let PairAt { rank, shape: [out, cols], scaling, a, b } = at.as_ref()?;
        let panels = |bytes: &Range<usize>, shape| {
            Matrix::panels(Dtype::F32, &self.region.as_slice()[bytes.clone()], shape).expect("as long as it was laid")
        };
        Some(LowRankPair { a: panels(a, [*rank, *cols]), b: panels(b, [*out, *rank]), scaling: *scaling })
    }

    /// Whether it adds to this matrix of any expert, or of the only one.
    pub(crate) fn adapts(&self, layer: usize, module: Module) -> bool {
        match module {
            Module::LmHead => self.lm_head_pair.is_some(),
            Module::Gate | Module::Up | Module::Down if self.adapts_experts(layer) => {
                self.layers[layer].of_experts[module as usize - Module::Gate as usize]
            }
            _ => self.layers[layer].modules[module as usize].is_some(),
        }
    }

    /// Whether it adds to experts of a layer.
    pub(crate) fn adapts_experts(&self, layer: usize) -> bool {
        !self.layers[layer].experts.is_empty()
    }

    pub(crate) fn norm(&self, layer: usize, norm: Norm) -> Option<&[f32]> {
        self.norms.get(&(layer, norm)).map(Vec::as_slice)
    }

    /// Type and bytes, row after row.
    pub(crate) fn embedding(&self) -> Option<(Dtype, &[u8])> {
        let WholeAt { dtype, bytes, .. } = self.embedding.as_ref()?;
        Some((*dtype, &self.region.as_slice()[bytes.clone()]))
    }

    pub(crate) fn lm_head(&self) -> Option<Matrix<'_>> {
        let WholeAt { dtype, shape, bytes } = self.lm_head.as_ref()?;
        Matrix::panels(*dtype, &self.region.as_slice()[bytes.clone()], *shape)
    }

    /// Names of what it replaces as a whole.
    pub(super) fn replaces(&self) -> impl Iterator<Item = Replaced> + '_ {
        let norms = self.norms.keys().map(|(layer, norm)| Replaced::Norm { layer: *layer, norm: *norm });
        let embedding = self.embedding.as_ref().map(|_| Replaced::Embedding);
        norms.chain(embedding).chain(self.lm_head.as_ref().map(|_| Replaced::LmHead))
    }
}

/// Fills the region from its start.
struct Laying<'a> {
    folder: &'a AdapterFolder,
    isa: Isa,
    next: usize,
}

impl Laying<'_> {
    /// All numbers of a tensor, which must be numbers.
    fn widened(&self, tensor: &Tensor) -> Result<Vec<f32>, AdapterError> {
        let mut values = vec![0.0; tensor.shape.iter().product()];
        tensor.dtype.widen(self.folder.tensor_bytes(tensor), &mut values);
        match values.iter().position(|value| !value.is_finite()) {
            None => Ok(values),
            Some(index) => {
                let (path, tensor) = (self.folder.path.clone(), printable(&tensor.name));
                Err(AdapterError::NotFinite { path, tensor, index, value: values[index] })
            }
        }
    }

    fn take(&mut self, bytes: usize) -> Range<usize> {
        let range = self.next..self.next + bytes;
        self.next = range.end.next_multiple_of(ALIGNMENT);
        range
    }

    /// Lays the row-major matrix `values` into panels.
    fn lay(&mut self, region: &mut [u8], values: &[f32], shape: [usize; 2]) -> Range<usize> {
        self.lay_bytes(region, Dtype::F32, bytemuck::cast_slice(values), shape)
    }

    fn lay_bytes(&mut self, region: &mut [u8], dtype: Dtype, bytes: &[u8], shape: [usize; 2]) -> Range<usize> {
        let matrix = Matrix::row_major(dtype, bytes, shape).expect("the shape was checked when the folder was opened");
        let panel_bytes = matrix.bytes_of_panel();
        let range = self.take(panel_bytes * matrix.panel_count());
        for (panel, out) in region[range.clone()].chunks_exact_mut(panel_bytes).enumerate() {
            matrix.pack_panel_with(self.isa, panel, out);
        }
        range
    }

    fn whole(&mut self, region: &mut [u8], tensor: &Tensor, panels: bool) -> WholeAt {
        let (dtype, shape) = (tensor.dtype, [tensor.shape[0], tensor.shape[1]]);
        let published = self.folder.tensor_bytes(tensor);
        let bytes = if panels {
            self.lay_bytes(region, dtype, published, shape)
        } else {
            let range = self.take(published.len());
            region[range.clone()].copy_from_slice(published);
            range
        };
        WholeAt { dtype, shape, bytes }
    }
}
