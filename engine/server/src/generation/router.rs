//! What routers chose, as answers tell it: arrays of `[layers][positions][experts_per_token]`, as `nightmonk logits --router`
//! writes them.

use engine_core::model::Choice;
use engine_core::session::{ROUTING_BYTES_MAX, Request, Routing};
use serde::Serialize;
use utoipa::ToSchema;

use crate::error::ApiError;
use crate::served::ServedModel;

/// The experts that the tokens of a prompt and its answer went through.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct Router {
    /// Layers with experts.
    layers: Vec<usize>,
    /// Experts of a token in a layer.
    experts_per_token: usize,
    /// The first and the last position that is told of. Positions count from the beginning of the prompt; the last token of
    /// the answer is not among them, since it went through no layer.
    positions: [usize; 2],
    /// `[layers][positions][experts_per_token]`, best first.
    experts: Vec<Vec<Vec<u32>>>,
    /// Factors of these experts' outputs.
    weights: Vec<Vec<Vec<f64>>>,
}

impl Router {
    /// Of a sequence that was computed; `None` of one of which nothing was.
    pub(crate) fn new(routing: &Routing) -> Option<Self> {
        let last = routing.positions().checked_sub(1)?;
        Some(Self {
            layers: routing.layers().to_vec(),
            experts_per_token: routing.experts_per_token(),
            positions: [0, last],
            experts: arrays(routing, |choice| choice.expert),
            // Streams and whole answers write a float32 in different ways, but a float64 in one.
            weights: arrays(routing, |choice| choice.weight.into()),
        })
    }
}

fn arrays<T>(routing: &Routing, part: fn(&Choice) -> T) -> Vec<Vec<Vec<T>>> {
    let of_position =
        |position, layer| routing.choices(position, layer).iter().filter(|choice| choice.index().is_some());
    (0..routing.layers().len())
        .map(|layer| (0..routing.positions()).map(|at| of_position(at, layer).map(part).collect()).collect())
        .collect()
}

/// Refuses what cannot be told, before it is computed: all of a request's sequences together have room for
/// [`ROUTING_BYTES_MAX`].
pub(super) fn check(model: &ServedModel, requests: &[Request]) -> Result<(), ApiError> {
    let field = "return_router";
    if model.config.sparse_layers().next().is_none() {
        return Err(ApiError::unsupported(field, "this model has no experts"));
    }
    let mut all: usize = 0;
    for request in requests {
        if request.max_tokens == 0 {
            let why = "nothing is computed for an answer of no tokens; ask for one at least";
            return Err(ApiError::unsupported(field, why));
        }
        let positions = request.tokens.len() + request.max_tokens - 1;
        all = all.saturating_add(Routing::bytes_for(&model.config, request.experts_per_token, positions));
    }
    if all > ROUTING_BYTES_MAX {
        let why = format!(
            "what routers may choose for this request takes {all} bytes, and there is room for {ROUTING_BYTES_MAX}; send a \
             smaller `max_tokens`, a shorter prompt or fewer choices"
        );
        return Err(ApiError::unsupported(field, why));
    }
    Ok(())
}
