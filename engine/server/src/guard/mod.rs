//! Whom the server answers, decided before anything else is looked at.
//!
//! A page in a browser can send requests to 127.0.0.1, and by rebinding a name it can read the answers. So `Host` and
//! `Origin` must be on exact lists, for every method and path; then comes the key; only then is a request routed.

mod host;
mod key;
mod limits;

pub(crate) use host::HostRules;
pub(crate) use key::Keys;
pub use key::{KeyFileError, key_file};
pub(crate) use limits::{json_depth, read_body};

use axum::http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::error::ApiError;

/// Paths that are answered without a key. They say whether the server is well, and nothing else.
const OPEN_PATHS: [&str; 2] = ["/health", "/v1/health"];

/// All rules.
pub(crate) struct Guard {
    pub(crate) hosts: HostRules,
    pub(crate) keys: Keys,
}

/// A request that may go on, and the origin that its answer is for.
pub(crate) struct Admitted {
    pub(crate) origin: Option<HeaderValue>,
}

impl Guard {
    /// Lets a request through, or says what to answer.
    pub(crate) fn admit<B>(&self, request: &Request<B>) -> Result<Admitted, Box<Response>> {
        let refuse = |error: ApiError| Err(Box::new(error.into_response()));
        if let Err(error) = self.hosts.check_host(request) {
            return refuse(error);
        }
        let origin = match self.hosts.check_origin(request.headers()) {
            Ok(origin) => origin,
            Err(error) => return refuse(error),
        };
        if let Some(origin) = &origin
            && request.method() == Method::OPTIONS
            && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
        {
            // Browsers send it without a key.
            let mut response = StatusCode::NO_CONTENT.into_response();
            allow_origin(response.headers_mut(), origin);
            let headers = response.headers_mut();
            headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST, DELETE"));
            let allowed = HeaderValue::from_static("authorization, content-type, x-api-key");
            headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, allowed);
            headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
            return Err(Box::new(response));
        }
        let open = OPEN_PATHS.contains(&request.uri().path());
        if !open && !self.keys.accept(request.headers()) {
            let mut response = ApiError::no_key().into_response();
            if let Some(origin) = &origin {
                allow_origin(response.headers_mut(), origin);
            }
            return Err(Box::new(response));
        }
        Ok(Admitted { origin })
    }
}

/// A page of this origin may read the answer.
pub(crate) fn allow_origin(headers: &mut HeaderMap, origin: &HeaderValue) {
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
    headers.append(header::VARY, HeaderValue::from_static("Origin"));
}
