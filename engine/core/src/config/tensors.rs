//! The tensors that a config.json asks for: names, shapes and what they hold, nothing more and nothing less.
//!
//! The checkpoint must hold exactly these, so that a wrong or damaged file is refused before any of it is used, and the
//! planner can count bytes from a config.json alone.

use simd::Dtype;
use simd::matmul::MXFP4_BLOCK;

use super::family::{ExpertLayout, ExpertNames, MlpRule};
use super::{AttentionBias, ExpertStorage, Mlp, ModelConfig, QkNorm, Sparse};

/// A tensor that the model needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Name in the shards.
    pub name: String,
    /// Shape, row-major; matrices are `[out_features, in_features]`.
    pub shape: Vec<usize>,
    /// What it holds.
    pub kind: TensorKind,
}

/// What a tensor holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TensorKind {
    /// A matrix of BF16, F16 or F32.
    Matrix,
    /// Norms, biases or sinks, in the same types; small, and float32 in memory.
    Vector,
    /// A stack of matrices of BF16, F16 or F32, `[experts, out_features, in_features]`, or with these two swapped.
    Stack {
        /// How many matrices, of equally many rows.
        matrices: usize,
        /// `[experts, in_features, out_features]`.
        transposed: bool,
    },
    /// U8, two weights a byte, of several matrices one after the other.
    Mxfp4Blocks {
        /// How many matrices, of equally many rows.
        matrices: usize,
    },
    /// U8, a scale for each block.
    Mxfp4Scales,
}

impl TensorKind {
    /// Whether it holds numbers in one of the three types that the shard names.
    pub fn is_numbers(self) -> bool {
        matches!(self, Self::Matrix | Self::Vector | Self::Stack { .. })
    }
}

impl TensorSpec {
    fn elements(&self) -> u64 {
        self.shape.iter().map(|size| *size as u64).product()
    }

    /// Parameters of the model in this tensor; scales are none.
    pub fn parameters(&self) -> u64 {
        match self.kind {
            TensorKind::Matrix | TensorKind::Vector | TensorKind::Stack { .. } => self.elements(),
            TensorKind::Mxfp4Blocks { .. } => 2 * self.elements(),
            TensorKind::Mxfp4Scales => 0,
        }
    }

    /// Whether it belongs to experts.
    pub fn is_of_expert(&self) -> bool {
        self.name.contains(".experts.")
    }

    /// Bytes in the shards, where numbers have type `dtype`.
    pub fn published_bytes(&self, dtype: Dtype) -> u64 {
        match self.kind.is_numbers() {
            true => self.elements() * dtype.size() as u64,
            false => self.elements(),
        }
    }
}

/// Name of a tensor of layer `layer`.
pub fn layer_names(layer: usize, tensor: &str) -> String {
    format!("model.layers.{layer}.{tensor}")
}

/// Names of gate, up and down of one expert that is published in tensors of its own.
///
/// # Panics
/// If experts are stacked: then [`ModelConfig::stacked_experts`] names them.
pub fn expert_names(config: &ModelConfig, layer: usize, expert: usize) -> [String; 3] {
    let ExpertNames::Each { experts, gate, up, down } = config.layout(layer).experts else {
        panic!("experts of layer {layer} are stacked")
    };
    [gate, up, down].map(|part| layer_names(layer, &format!("{experts}.{expert}.{part}")))
}

/// Names of one stack of matrices; which of them are tensors is the storage's to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StackedExperts {
    /// `[experts, rows, cols]`, or transposed.
    pub weights: String,
    /// `[experts, rows, cols / 32, 16]`.
    pub blocks: String,
    /// `[experts, rows, cols / 32]`.
    pub scales: String,
}

impl ModelConfig {
    /// How the router and the experts of layer `layer` are published.
    ///
    /// # Panics
    /// If the layer has none.
    fn layout(&self, layer: usize) -> &'static ExpertLayout {
        let Mlp::Sparse(sparse) = &self.layers[layer].mlp else { panic!("layer {layer} has no experts") };
        self.family.layout(sparse.storage)
    }

    /// Name of the router's matrix in layer `layer`.
    ///
    /// # Panics
    /// If the layer has none.
    pub fn router_name(&self, layer: usize) -> String {
        layer_names(layer, &format!("{}.weight", self.layout(layer).router))
    }

    /// Name of the router's bias in layer `layer`.
    ///
    /// # Panics
    /// If the layer has none.
    pub fn router_bias_name(&self, layer: usize) -> String {
        layer_names(layer, &format!("{}.bias", self.layout(layer).router))
    }

    /// Looks which layout the experts have in a folder that `has` these tensors: config.json does not say whether they
    /// are stacked. Where it has none, the layout stays the hub's own, and what is missing of it is named.
    pub fn find_experts(&mut self, has: impl Fn(&str) -> bool) {
        let layouts = self.family.layouts;
        for (index, layer) in self.layers.iter_mut().enumerate() {
            let Mlp::Sparse(sparse) = &mut layer.mlp else { continue };
            if sparse.storage == ExpertStorage::StackedMxfp4 {
                continue; // Then config.json has said it.
            }
            let mut unquantised = layouts.iter().filter(|layout| layout.storage != ExpertStorage::StackedMxfp4);
            let found = unquantised.find(|layout| match layout.experts {
                ExpertNames::Each { experts, gate, .. } => has(&layer_names(index, &format!("{experts}.0.{gate}"))),
                ExpertNames::Stacked { gate_up, .. } => has(&layer_names(index, gate_up)),
            });
            sparse.storage = found.map_or(sparse.storage, |layout| layout.storage);
        }
    }

    /// Name of the attention sinks in layer `layer`.
    pub fn sinks_name(&self, layer: usize) -> String {
        layer_names(layer, "self_attn.sinks")
    }

    /// Names of the stacks of gate with up, and of down, in layer `layer`.
    ///
    /// # Panics
    /// If experts are not stacked: then [`expert_names`] names them.
    pub fn stacked_experts(&self, layer: usize) -> [StackedExperts; 2] {
        let ExpertNames::Stacked { gate_up, down } = self.layout(layer).experts else {
            panic!("experts of layer {layer} are not stacked")
        };
        [gate_up, down].map(|stack| {
            let part = |part: &str| layer_names(layer, &format!("{stack}{part}"));
            StackedExperts { weights: part(""), blocks: part("_blocks"), scales: part("_scales") }
        })
    }

    /// The same model with a tensor for each matrix of unquantised experts.
    #[must_use]
    pub fn with_experts_apart(&self) -> Self {
        let mut apart = self.clone();
        for layer in &mut apart.layers {
            if let Mlp::Sparse(sparse) = &mut layer.mlp
                && sparse.storage != ExpertStorage::StackedMxfp4
            {
                sparse.storage = ExpertStorage::Matrices;
            }
        }
        apart
    }

    /// Whether gate and up alternate row by row in stacks of both, and in what is made for such stacks: biases, adapters.
    /// Else all of gate comes before all of up.
    pub fn gate_and_up_alternate(&self) -> bool {
        self.family.mlp == MlpRule::GptOss
    }

    /// Where up lies in a stack of gate and up with `width` rows each: its first row, and from each row to the next. Gate
    /// begins at row 0, with the same step.
    pub fn rows_of_up(&self, width: usize) -> [usize; 2] {
        if self.gate_and_up_alternate() { [1, 2] } else { [width, 1] }
    }

    /// Names of the biases `[experts, 2 * moe_intermediate_size]` of gate with up and `[experts, hidden_size]` of down in
    /// layer `layer`, of a family that has them. They are stacked however matrices are.
    pub fn expert_bias_names(&self, layer: usize) -> [String; 2] {
        ["gate_up_proj_bias", "down_proj_bias"].map(|bias| layer_names(layer, &format!("mlp.experts.{bias}")))
    }

    /// Name of the matrix that gives the logits.
    pub fn lm_head_name(&self) -> &'static str {
        if self.tie_word_embeddings { "model.embed_tokens.weight" } else { "lm_head.weight" }
    }

    /// Every tensor that the model needs, in the order of the forward pass.
    pub fn tensors(&self) -> Vec<TensorSpec> {
        let mut specs = Specs(Vec::new());
        let (hidden, query, key_value) = (self.hidden_size, self.query_size(), self.key_value_size());
        specs.matrix("model.embed_tokens.weight".into(), [self.vocab_size, hidden]);
        for (index, layer) in self.layers.iter().enumerate() {
            let name = |tensor: &str| layer_names(index, tensor);
            specs.vector(name("input_layernorm.weight"), hidden);
            let projections =
                [("q", query, hidden), ("k", key_value, hidden), ("v", key_value, hidden), ("o", hidden, query)];
            for (part, rows, cols) in projections {
                specs.matrix(name(&format!("self_attn.{part}_proj.weight")), [rows, cols]);
                if self.attention_bias == AttentionBias::Qkvo
                    || (self.attention_bias == AttentionBias::Qkv && part != "o")
                {
                    specs.vector(name(&format!("self_attn.{part}_proj.bias")), rows);
                }
            }
            if self.qk_norm == QkNorm::PerHead {
                specs.vector(name("self_attn.q_norm.weight"), self.head_dim);
                specs.vector(name("self_attn.k_norm.weight"), self.head_dim);
            }
            if self.attention_sinks {
                specs.vector(self.sinks_name(index), self.num_attention_heads);
            }
            specs.vector(name("post_attention_layernorm.weight"), hidden);
            match &layer.mlp {
                Mlp::Dense { intermediate_size } => {
                    specs.matrix(name("mlp.gate_proj.weight"), [*intermediate_size, hidden]);
                    specs.matrix(name("mlp.up_proj.weight"), [*intermediate_size, hidden]);
                    specs.matrix(name("mlp.down_proj.weight"), [hidden, *intermediate_size]);
                }
                Mlp::Sparse(sparse) => specs.experts(self, index, sparse),
            }
        }
        specs.vector("model.norm.weight".into(), hidden);
        if !self.tie_word_embeddings {
            specs.matrix("lm_head.weight".into(), [self.vocab_size, hidden]);
        }
        specs.0
    }
}

/// Tensors, one after the other.
struct Specs(Vec<TensorSpec>);

impl Specs {
    fn matrix(&mut self, name: String, shape: [usize; 2]) {
        self.0.push(TensorSpec { name, shape: shape.into(), kind: TensorKind::Matrix });
    }

    fn vector(&mut self, name: String, len: usize) {
        self.0.push(TensorSpec { name, shape: vec![len], kind: TensorKind::Vector });
    }

    /// A router and its experts.
    fn experts(&mut self, config: &ModelConfig, layer: usize, sparse: &Sparse) {
        let (hidden, width, experts) = (config.hidden_size, sparse.moe_intermediate_size, sparse.num_experts);
        self.matrix(config.router_name(layer), [experts, hidden]);
        if sparse.biased {
            self.vector(config.router_bias_name(layer), experts);
        }
        let biases = config.expert_bias_names(layer).into_iter().zip([2 * width, hidden]);
        let biases = biases.filter(|_| sparse.biased);
        let mut biases =
            biases.map(|(name, rows)| TensorSpec { name, shape: vec![experts, rows], kind: TensorKind::Vector });
        match sparse.storage {
            ExpertStorage::Matrices => {
                for expert in 0..experts {
                    let [gate, up, down] = expert_names(config, layer, expert);
                    self.matrix(gate, [width, hidden]);
                    self.matrix(up, [width, hidden]);
                    self.matrix(down, [hidden, width]);
                }
                self.0.extend(biases);
            }
            storage => {
                // Gate and up are two matrices of one stack.
                let shapes = [(2 * experts, 2 * width, hidden), (experts, hidden, width)];
                for (names, (matrices, rows, cols)) in config.stacked_experts(layer).into_iter().zip(shapes) {
                    self.stack(storage, &names, matrices, [experts, rows, cols]);
                    self.0.extend(biases.next());
                }
            }
        }
    }

    /// Matrices of several experts in one tensor, or in one of blocks and one of scales.
    fn stack(&mut self, storage: ExpertStorage, names: &StackedExperts, matrices: usize, shape: [usize; 3]) {
        let [experts, rows, cols] = shape;
        let mut push = |name: &String, shape, kind| self.0.push(TensorSpec { name: name.clone(), shape, kind });
        let blocks = cols / MXFP4_BLOCK;
        match storage {
            ExpertStorage::StackedMxfp4 => {
                let shape = vec![experts, rows, blocks, MXFP4_BLOCK / 2];
                push(&names.blocks, shape, TensorKind::Mxfp4Blocks { matrices });
                push(&names.scales, vec![experts, rows, blocks], TensorKind::Mxfp4Scales);
            }
            ExpertStorage::StackedTransposed => {
                push(&names.weights, vec![experts, cols, rows], TensorKind::Stack { matrices, transposed: true });
            }
            ExpertStorage::Stacked | ExpertStorage::Matrices => {
                push(&names.weights, vec![experts, rows, cols], TensorKind::Stack { matrices, transposed: false });
            }
        }
    }
}
