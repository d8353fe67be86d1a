//! `/v1/embeddings`: the final hidden states of a text as one vector.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::Request;
use axum::response::{IntoResponse, Response};
use engine_core::session::{Output, Pooling, normalize};
use serde::Deserialize;
use serde_json::json;
use utoipa::ToSchema;

use super::completions::PromptField;
use crate::error::ApiError;
use crate::generation::{embed, in_background, patiently, refuse_unsupported};
use crate::input::Input;
use crate::served::Shared;

/// Texts to embed.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct Embed {
    /// A text, a list of texts, a list of token ids, or a list of those.
    #[schema(value_type = serde_json::Value)]
    input: PromptField,
    /// The model, or a loaded adapter.
    model: Option<String>,
    /// `float` or `base64`, of little-endian float32.
    encoding_format: Option<String>,
    /// The length of the vectors; only the model's own is known.
    dimensions: Option<usize>,
    /// `last` (the default), `mean` or `cls`.
    pooling: Option<String>,
    /// Whether vectors get the length 1, which is the default.
    normalize: Option<bool>,
}

/// Vectors of texts.
#[utoipa::path(post, path = "/v1/embeddings", tag = "OpenAI", request_body = Embed,
    responses((status = 200, description = "A vector for each text"), (status = "4XX", description = "What is wrong with the request")))]
pub(crate) async fn embeddings(State(shared): State<Arc<Shared>>, request: Request<Body>) -> Response {
    match answer(shared, request).await {
        Ok(response) => response,
        Err(error) => error.into_response(),
    }
}

async fn answer(shared: Arc<Shared>, request: Request<Body>) -> Result<Response, ApiError> {
    shared.engine.check_ready()?;
    let input = Input::read(request, shared.config.body_bytes_max).await?;
    let asked = in_background(&shared, move |shared| {
        refuse_unsupported(&input)?;
        let Embed { input, model, encoding_format, dimensions, pooling, normalize } = input.parse()?;
        let base64 = match encoding_format.as_deref() {
            None | Some("float") => false,
            Some("base64") => true,
            Some(_) => return Err(ApiError::unsupported("encoding_format", "known are `float` and `base64`")),
        };
        let hidden_size = shared.model.config.hidden_size;
        if dimensions.is_some_and(|dimensions| dimensions != hidden_size) {
            return Err(ApiError::unsupported(
                "dimensions",
                format!("vectors of this model have {hidden_size} numbers"),
            ));
        }
        let pooling = match pooling.as_deref() {
            None | Some("last") => Pooling::Last,
            Some("mean") => Pooling::Mean,
            Some("cls") => Pooling::First,
            Some(_) => return Err(ApiError::unsupported("pooling", "known are `last`, `mean` and `cls`")),
        };
        let prompts = input.into_prompts();
        let requests = embed::requests(shared, prompts, model.as_deref(), Output::Embedding(pooling), "input")?;
        Ok((requests, base64, normalize.unwrap_or(true), model))
    });
    let (requests, base64, normalized, model) = asked.await?;
    Ok(patiently(async move {
        let (vectors, prompt_tokens) = embed::vectors(&shared, requests).await?;
        let data = vectors.into_iter().enumerate().map(|(index, mut values)| {
            if normalized {
                normalize(&mut values);
            }
            let embedding = if base64 { json!(of_floats(&values)) } else { json!(values) };
            json!({"object": "embedding", "index": index, "embedding": embedding})
        });
        let model = model.filter(|name| !name.is_empty()).unwrap_or_else(|| shared.name().to_owned());
        let usage = json!({"prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens});
        Ok(json!({"object": "list", "data": data.collect::<Vec<_>>(), "model": model, "usage": usage}))
    })
    .await)
}

/// Base64 (RFC 4648) of little-endian numbers.
fn of_floats(values: &[f32]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let byte = |index: usize| u32::from(group.get(index).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for place in 0..4 {
            let six = (bits >> (18 - 6 * place)) & 63;
            text.push(if place <= group.len() { char::from(ALPHABET[six as usize]) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_other_programs_write_them() {
        // Python: base64.b64encode(struct.pack("<3f", 1, -2.5, 0.1))
        assert_eq!(of_floats(&[1.0, -2.5, 0.1]), "AACAPwAAIMDNzMw9");
        assert_eq!(of_floats(&[1.0]), "AACAPw==");
        assert_eq!(of_floats(&[1.0, 1.0]), "AACAPwAAgD8=");
    }
}
