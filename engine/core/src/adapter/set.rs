//! The adapters of one sequence.

use std::sync::Arc;

use simd::Dtype;

use super::names::{Module, Norm, Replaced};
use super::{Adapter, AdapterSetError};

/// Adapters that a sequence goes through, each with a factor of what it adds.
///
/// They are in the order of their digests, in which a row adds them up: so its bits depend on which they are, and not on
/// who named them first, nor on the adapters of other rows. What an adapter replaces as a whole has no factor.
#[derive(Clone, Default)]
pub struct AdapterSet(Vec<(Arc<Adapter>, f32)>);

impl AdapterSet {
    /// Adapters and their scales.
    ///
    /// # Errors
    /// [`AdapterSetError`] for those that do not go together: one twice, two that replace the same weights, or one that
    /// adds to what another replaces.
    pub fn new(mut chosen: Vec<(Arc<Adapter>, f32)>) -> Result<Self, AdapterSetError> {
        chosen.sort_by_key(|(adapter, _)| adapter.digest);
        let quoted = |adapter: &Adapter| format!("`{}`", adapter.name);
        if let Some((adapter, scale)) = chosen.iter().find(|(_, scale)| !scale.is_finite()) {
            return Err(AdapterSetError::Scale { adapter: quoted(adapter), scale: *scale });
        }
        if let Some(pair) = chosen.windows(2).find(|pair| pair[0].0.digest == pair[1].0.digest) {
            return Err(AdapterSetError::Twice { adapter: quoted(&pair[1].0) });
        }
        for (index, (first, _)) in chosen.iter().enumerate() {
            for (other, (second, _)) in chosen.iter().enumerate().filter(|(other, _)| *other != index) {
                let both = |module: &str| (quoted(first), quoted(second), module.to_owned());
                let shared = first.replaces().find(|what| second.replaces().any(|also| also == *what));
                if let Some(what) = shared.filter(|_| index < other) {
                    let (first, second, module) = both(&name_of(what));
                    return Err(AdapterSetError::BothReplace { first, second, module });
                }
                if first.lm_head().is_some() && second.adapts(0, Module::LmHead) {
                    let (first, second, module) = both("lm_head");
                    return Err(AdapterSetError::ReplacedAndAdapted { first, second, module });
                }
            }
        }
        Ok(Self(chosen))
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The adapters and their scales, in the order in which a row adds them up.
    pub fn iter(&self) -> impl Iterator<Item = (&Adapter, f32)> {
        self.0.iter().map(|(adapter, scale)| (&**adapter, *scale))
    }

    pub(crate) fn get(&self, index: usize) -> &Adapter {
        &self.0[index].0
    }

    /// Factor of an adapter that is one of these.
    pub(crate) fn scale_of(&self, adapter: &Adapter) -> Option<f32> {
        self.iter().find(|(own, _)| own.digest == adapter.digest).map(|(_, scale)| scale)
    }

    pub(crate) fn norm(&self, layer: usize, norm: Norm) -> Option<&[f32]> {
        self.iter().find_map(|(adapter, _)| adapter.norm(layer, norm))
    }

    pub(crate) fn embedding(&self) -> Option<(Dtype, &[u8])> {
        self.iter().find_map(|(adapter, _)| adapter.embedding())
    }

    pub(crate) fn replaces_lm_head(&self) -> bool {
        self.iter().any(|(adapter, _)| adapter.lm_head().is_some())
    }
}

fn name_of(replaced: Replaced) -> String {
    match replaced {
        Replaced::LmHead => "lm_head".into(),
        Replaced::Embedding => "embed_tokens".into(),
        Replaced::Norm { norm: Norm::Final, .. } => "norm".into(),
        Replaced::Norm { layer, norm } => {
            let part = match norm {
                Norm::Input => "input_layernorm",
                Norm::PostAttention => "post_attention_layernorm",
                Norm::Query => "self_attn.q_norm",
                Norm::Key | Norm::Final => "self_attn.k_norm",
            };
            format!("layers.{layer}.{part}")
        }
    }
}
