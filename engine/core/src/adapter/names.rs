//! Which part of a model a module's name means.
//!
//! Files name modules as transformers 4 or 5 does: experts one by one or as one module, Mixtral's under
//! `block_sparse_moe` or `mlp`. Whether a model has the part is for the shapes to say.

/// A matrix that adapters can add to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Module {
    Query,
    Key,
    Value,
    Output,
    Router,
    Gate,
    Up,
    Down,
    LmHead,
}

/// Kinds of [`Module`].
pub(super) const MODULES: usize = Module::LmHead as usize + 1;

/// A norm that adapters can replace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Norm {
    Input,
    PostAttention,
    Query,
    Key,
    Final,
}

/// Where a pair of low-rank matrices belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    /// A matrix of its own; of the output matrix the layer is 0.
    One { layer: usize, module: Module },
    /// A matrix of one expert.
    Expert { layer: usize, expert: usize, module: Module },
    /// All experts of a layer, in one of two pairs that the shapes tell apart.
    Experts { layer: usize },
}

/// What a tensor without a partner replaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Replaced {
    /// Of the final norm the layer is 0.
    Norm {
        layer: usize,
        norm: Norm,
    },
    Embedding,
    LmHead,
}

/// The place of the module `name`; `None` if no supported model has one of that name.
pub(super) fn place(name: &str) -> Option<Place> {
    if name == "lm_head" {
        return Some(Place::One { layer: 0, module: Module::LmHead });
    }
    let (layer, part) = layer_and_part(name)?;
    let one = |module| Some(Place::One { layer, module });
    match part.strip_prefix("block_sparse_moe.").or_else(|| part.strip_prefix("mlp.")) {
        None => match part {
            "self_attn.q_proj" => one(Module::Query),
            "self_attn.k_proj" => one(Module::Key),
            "self_attn.v_proj" => one(Module::Value),
            "self_attn.o_proj" => one(Module::Output),
            _ => None,
        },
        Some("gate" | "router") => one(Module::Router),
        // Two parameters of one module are wrapped one around the other.
        Some("experts" | "experts.base_layer") => Some(Place::Experts { layer }),
        Some(part) => match part.strip_prefix("experts.") {
            None => one(gated_mlp(part)?),
            Some(part) => {
                let (expert, part) = part.split_once('.')?;
                Some(Place::Expert { layer, expert: expert.parse().ok()?, module: gated_mlp(part)? })
            }
        },
    }
}

fn gated_mlp(part: &str) -> Option<Module> {
    match part {
        "gate_proj" | "w1" => Some(Module::Gate),
        "up_proj" | "w3" => Some(Module::Up),
        "down_proj" | "w2" => Some(Module::Down),
        _ => None,
    }
}

/// What the weight `name` of an adapter's file replaces; `None` for what cannot be replaced.
pub(super) fn replaced(name: &str) -> Option<Replaced> {
    match name {
        "lm_head.weight" => return Some(Replaced::LmHead),
        "model.embed_tokens.weight" => return Some(Replaced::Embedding),
        "model.norm.weight" => return Some(Replaced::Norm { layer: 0, norm: Norm::Final }),
        _ => {}
    }
    let (layer, part) = layer_and_part(name)?;
    let norm = match part {
        "input_layernorm.weight" => Norm::Input,
        "post_attention_layernorm.weight" => Norm::PostAttention,
        "self_attn.q_norm.weight" => Norm::Query,
        "self_attn.k_norm.weight" => Norm::Key,
        _ => return None,
    };
    Some(Replaced::Norm { layer, norm })
}

fn layer_and_part(name: &str) -> Option<(usize, &str)> {
    let (layer, part) = name.strip_prefix("model.layers.")?.split_once('.')?;
    Some((layer.parse().ok()?, part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_have_a_place_under_the_names_of_both_transformers() {
        for (name, want) in [
            ("lm_head", Place::One { layer: 0, module: Module::LmHead }),
            ("model.layers.12.self_attn.o_proj", Place::One { layer: 12, module: Module::Output }),
            ("model.layers.0.mlp.gate_proj", Place::One { layer: 0, module: Module::Gate }),
            ("model.layers.0.mlp.gate", Place::One { layer: 0, module: Module::Router }),
            ("model.layers.0.block_sparse_moe.gate", Place::One { layer: 0, module: Module::Router }),
            ("model.layers.3.mlp.experts.7.down_proj", Place::Expert { layer: 3, expert: 7, module: Module::Down }),
            ("model.layers.3.block_sparse_moe.experts.7.w3", Place::Expert { layer: 3, expert: 7, module: Module::Up }),
            ("model.layers.3.mlp.experts.base_layer", Place::Experts { layer: 3 }),
        ] {
            assert_eq!(place(name), Some(want), "{name}");
        }
        for name in
            ["model.embed_tokens", "model.layers.x.self_attn.q_proj", "model.layers.1.mlp.experts.q.w1", "q_proj"]
        {
            assert_eq!(place(name), None, "{name}");
        }
    }
}
