//! How much of a body is read, how slowly it may come, how deep it may nest.

use std::time::Instant;

use axum::body::Body;
use axum::http::StatusCode;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use tokio::time::timeout;

use crate::config::{BODY_BYTES_PER_SECOND_MIN, HEAD_TIMEOUT};
use crate::error::ApiError;

/// Reads a body of at most `bytes_max` bytes that does not come more slowly than it may.
pub(crate) async fn read_body(mut body: Body, bytes_max: usize) -> Result<Bytes, ApiError> {
    let too_large = || {
        let why = format!("the body has more than {bytes_max} bytes, the most that is read (`--body-limit`)");
        ApiError::client(StatusCode::PAYLOAD_TOO_LARGE, why)
    };
    let slow = || ApiError::client(StatusCode::REQUEST_TIMEOUT, "the body comes too slowly");
    // What a client announces decides before anything is read.
    if hyper::body::Body::size_hint(&body).lower() > bytes_max as u64 {
        return Err(too_large());
    }
    let start = Instant::now();
    let mut read = BytesMut::new();
    loop {
        let frame = match timeout(HEAD_TIMEOUT, body.frame()).await {
            Err(_) => return Err(slow()),
            Ok(None) => return Ok(read.freeze()),
            Ok(Some(Err(_))) => return Err(ApiError::bad_request("the body breaks off")),
            Ok(Some(Ok(frame))) => frame,
        };
        let Ok(piece) = frame.into_data() else { continue };
        if read.len() + piece.len() > bytes_max {
            return Err(too_large());
        }
        read.extend_from_slice(&piece);
        let seconds = start.elapsed();
        if seconds > HEAD_TIMEOUT && (read.len() as u64) < BODY_BYTES_PER_SECOND_MIN * seconds.as_secs() {
            return Err(slow());
        }
    }
}

/// How deep brackets nest in a JSON text, those in strings not counted.
pub(crate) fn json_depth(json: &[u8]) -> usize {
    let (mut depth, mut deepest, mut in_string, mut escaped) = (0_usize, 0, false, false);
    for byte in json {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'[' | b'{' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brackets_in_strings_do_not_nest() {
        for (text, depth) in [("1", 0), ("[]", 1), (r#"{"a":[{}],"b":[]}"#, 3), (r#"["[[\"[["]"#, 1), ("]]][", 1)] {
            assert_eq!(json_depth(text.as_bytes()), depth, "{text}");
        }
        assert_eq!(json_depth(&[b'['; 100_000]), 100_000);
    }
}
