//! Vectors of texts, for all APIs.

use std::sync::Arc;

use engine_core::sampler::SamplingParams;
use engine_core::session::{Output, Request};

use super::prompt::TextPrompt;
use crate::engine_thread::SequenceEvent;
use crate::error::ApiError;
use crate::served::Shared;

/// One request for each text.
pub(crate) fn requests(
    shared: &Shared,
    prompts: Vec<TextPrompt>,
    model: Option<&str>,
    output: Output,
    field: &str,
) -> Result<Vec<Request>, ApiError> {
    let adapters = shared.adapters_of(model)?;
    if prompts.is_empty() {
        return Err(ApiError::field(field, format!("`{field}` is empty; send at least one")));
    }
    let request = |prompt: TextPrompt| {
        let tokens = prompt.prompted(&shared.model, field)?.tokens;
        if tokens.len() > shared.model.ctx_size {
            return Err(ApiError::context(tokens.len(), 0, shared.model.ctx_size, field));
        }
        let request = Request::new(tokens, 0, SamplingParams::default());
        Ok(Request { output, adapters: adapters.clone(), ..request })
    };
    prompts.into_iter().map(request).collect()
}

/// The vectors, and how many tokens were read for them. Texts go to the engine in groups that always find room, so a long
/// list is no reason for a 429.
pub(crate) async fn vectors(shared: &Arc<Shared>, requests: Vec<Request>) -> Result<(Vec<Vec<f32>>, usize), ApiError> {
    let prompt_tokens = requests.iter().map(|request| request.tokens.len()).sum();
    let mut vectors: Vec<Vec<f32>> = vec![Vec::new(); requests.len()];
    let mut requests = requests.into_iter();
    let mut first = 0;
    loop {
        let group: Vec<Request> = requests.by_ref().take(shared.model.width).collect();
        let count = group.len();
        if count == 0 {
            return Ok((vectors, prompt_tokens));
        }
        let admission = shared.engine.admit(count)?;
        let mut running = shared.engine.submit(group, admission)?;
        while let Some((index, event)) = running.next().await {
            match event {
                SequenceEvent::Embedded(values) => vectors[first + index] = values,
                SequenceEvent::Failed(error) => return Err(error),
                _ => {}
            }
        }
        first += count;
    }
}
