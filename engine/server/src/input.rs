//! A JSON body, checked before it is looked at.

use axum::body::Body;
use axum::http::{HeaderMap, Request, StatusCode, header};
use serde::Deserialize;
use serde_json::Value;

use crate::config::JSON_DEPTH_MAX;
use crate::error::ApiError;
use crate::guard;

/// A JSON object that came as a body.
pub(crate) struct Input(Value);

impl Input {
    /// Reads a request's body. It has to say that it is JSON: pages of other origins cannot send that without being asked.
    pub(crate) async fn read(request: Request<Body>, bytes_max: usize) -> Result<Self, ApiError> {
        is_json(request.headers())?;
        let body = guard::read_body(request.into_body(), bytes_max).await?;
        if guard::json_depth(&body) > JSON_DEPTH_MAX {
            let why = format!("the body nests deeper than {JSON_DEPTH_MAX} levels");
            return Err(ApiError::bad_request(why));
        }
        let value = serde_json::from_slice(&body)
            .map_err(|error| ApiError::bad_request(format!("the body is not JSON: {error}")))?;
        match value {
            Value::Object(_) => Ok(Self(value)),
            _ => Err(ApiError::bad_request("the body must be a JSON object")),
        }
    }

    /// Its fields as `T` has them; others are passed over.
    pub(crate) fn parse<'de, T: Deserialize<'de>>(&'de self) -> Result<T, ApiError> {
        serde_path_to_error::deserialize(&self.0).map_err(|error| {
            let path = error.path().to_string();
            let reason = error.into_inner().to_string();
            // A missing field is told of the object that lacks it.
            let missing = reason.strip_prefix("missing field `").and_then(|rest| rest.split('`').next());
            let param = match (missing, path.as_str()) {
                (Some(field), ".") => field.to_owned(),
                (Some(field), object) => format!("{object}.{field}"),
                (None, path) => path.to_owned(),
            };
            ApiError::field(param.clone(), format!("`{param}`: {reason}"))
        })
    }

    /// A field as it came; `null` counts as absent.
    pub(crate) fn field(&self, name: &str) -> Option<&Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }
}

/// Refuses a body that does not say that it is JSON.
pub(crate) fn is_json(headers: &HeaderMap) -> Result<(), ApiError> {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if value.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    let why = "the body must be JSON, with the header `Content-Type: application/json`";
    Err(ApiError::client(StatusCode::UNSUPPORTED_MEDIA_TYPE, why))
}
