//! The tensors that a config.json asks for: names and shapes, nothing more and nothing less.
//!
//! The checkpoint must hold exactly these, so that a wrong or damaged file is refused before any of it is used, and the
//! planner can count bytes from a config.json alone.

use super::{AttentionBias, Mlp, ModelConfig, QkNorm};

/// A tensor that the model needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Name in the shards.
    pub name: String,
    /// Shape, row-major; matrices are `[out_features, in_features]`.
    pub shape: Vec<usize>,
}

/// Name of a tensor of layer `layer`.
pub fn layer_names(layer: usize, tensor: &str) -> String {
    format!("model.layers.{layer}.{tensor}")
}

/// Names of gate, up and down of one expert.
pub fn expert_names(config: &ModelConfig, layer: usize, expert: usize) -> [String; 3] {
    let names = config.family.moe_names;
    [names.gate, names.up, names.down].map(|part| layer_names(layer, &format!("{}.{expert}.{part}", names.experts)))
}

impl ModelConfig {
    /// Name of the router's matrix in layer `layer`.
    pub fn router_name(&self, layer: usize) -> String {
        layer_names(layer, self.family.moe_names.router)
    }

    /// Name of the matrix that gives the logits.
    pub fn lm_head_name(&self) -> &'static str {
        if self.tie_word_embeddings { "model.embed_tokens.weight" } else { "lm_head.weight" }
    }

    /// Every tensor that the model needs, in the order of the forward pass.
    pub fn tensors(&self) -> Vec<TensorSpec> {
        let mut specs = Vec::new();
        let mut add = |name: String, shape: &[usize]| specs.push(TensorSpec { name, shape: shape.to_vec() });
        let (hidden, query, key_value) = (self.hidden_size, self.query_size(), self.key_value_size());
        add("model.embed_tokens.weight".into(), &[self.vocab_size, hidden]);
        for (index, layer) in self.layers.iter().enumerate() {
            let mut part = |tensor: &str, shape: &[usize]| add(layer_names(index, tensor), shape);
            part("input_layernorm.weight", &[hidden]);
            let projections =
                [("q", query, hidden), ("k", key_value, hidden), ("v", key_value, hidden), ("o", hidden, query)];
            for (name, rows, cols) in projections {
                part(&format!("self_attn.{name}_proj.weight"), &[rows, cols]);
                if self.attention_bias == AttentionBias::Qkvo
                    || (self.attention_bias == AttentionBias::Qkv && name != "o")
                {
                    part(&format!("self_attn.{name}_proj.bias"), &[rows]);
                }
            }
            if self.qk_norm == QkNorm::PerHead {
                part("self_attn.q_norm.weight", &[self.head_dim]);
                part("self_attn.k_norm.weight", &[self.head_dim]);
            }
            part("post_attention_layernorm.weight", &[hidden]);
            match &layer.mlp {
                Mlp::Dense { intermediate_size } => {
                    part("mlp.gate_proj.weight", &[*intermediate_size, hidden]);
                    part("mlp.up_proj.weight", &[*intermediate_size, hidden]);
                    part("mlp.down_proj.weight", &[hidden, *intermediate_size]);
                }
                Mlp::Sparse(sparse) => {
                    add(self.router_name(index), &[sparse.num_experts, hidden]);
                    for expert in 0..sparse.num_experts {
                        let [gate, up, down] = expert_names(self, index, expert);
                        add(gate, &[sparse.moe_intermediate_size, hidden]);
                        add(up, &[sparse.moe_intermediate_size, hidden]);
                        add(down, &[hidden, sparse.moe_intermediate_size]);
                    }
                }
            }
        }
        add("model.norm.weight".into(), &[hidden]);
        if !self.tie_word_embeddings {
            add("lm_head.weight".into(), &[self.vocab_size, hidden]);
        }
        specs
    }
}
