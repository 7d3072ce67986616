//! The body of a request: its content type, its size and its bytes.

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, StatusCode};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use tonic::body::Body;
use tonic::{Code, Status};

/// The same limit as for a gRPC message.
const MAX_BODY_BYTES: usize = 1024 * 1024;

/// A request from which no message could be read.
#[derive(Debug, Clone)]
pub(super) struct RequestError {
    pub(super) status: StatusCode,
    pub(super) message: String,
}

impl RequestError {
    pub(super) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
        }
    }

    fn too_large() -> Self {
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("the body is larger than {MAX_BODY_BYTES} bytes, the limit"),
        )
    }
}

/// Checks that the headers announce uncompressed JSON within the size limit.
pub(super) fn check_headers(headers: &HeaderMap) -> Result<(), RequestError> {
    let unsupported = |message| {
        Err(RequestError::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            message,
        ))
    };
    if !headers
        .get(CONTENT_TYPE)
        .is_some_and(|content_type| content_type.to_str().is_ok_and(is_json))
    {
        return unsupported(
            "the body must be JSON in UTF-8; send `Content-Type: application/json`",
        );
    }
    if headers
        .get(CONTENT_ENCODING)
        .is_some_and(|encoding| encoding != "identity")
    {
        return unsupported("the body must not be compressed; omit `Content-Encoding`");
    }
    let length = headers
        .get(CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok())
        .and_then(|length| length.parse::<u64>().ok());
    if length.is_some_and(|length| length > MAX_BODY_BYTES as u64) {
        Err(RequestError::too_large())
    } else {
        Ok(())
    }
}

/// Whether a content type is JSON in UTF-8. Parameters other than the charset do not matter.
fn is_json(content_type: &str) -> bool {
    let mut parts = content_type.split(';').map(str::trim);
    let json = parts
        .next()
        .is_some_and(|kind| kind.eq_ignore_ascii_case("application/json"));
    let mut charsets = parts
        .filter_map(|part| part.split_once('='))
        .filter(|(name, _)| name.trim().eq_ignore_ascii_case("charset"));
    json && charsets.all(|(_, charset)| {
        charset
            .trim()
            .trim_matches('"')
            .eq_ignore_ascii_case("utf-8")
    })
}

/// Reads the whole body.
///
/// # Errors
/// The body is too large, the limit on buffered bytes is reached, or the connection ended before
/// the body did.
pub(super) async fn read(body: Body) -> Result<Bytes, RequestError> {
    let collected = Limited::new(body, MAX_BODY_BYTES).collect().await;
    collected
        .map(http_body_util::Collected::to_bytes)
        .map_err(|error| {
            if error.is::<LengthLimitError>() {
                return RequestError::too_large();
            }
            match error
                .downcast_ref::<Status>()
                .filter(|status| status.code() == Code::Unavailable)
            {
                Some(overloaded) => {
                    RequestError::new(StatusCode::SERVICE_UNAVAILABLE, overloaded.message())
                }
                None => RequestError::new(StatusCode::BAD_REQUEST, "the body is incomplete"),
            }
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_json_in_utf_8_is_accepted() {
        for (content_type, accepted) in [
            ("application/json", true),
            ("Application/JSON; charset=UTF-8", true),
            ("application/json;charset=\"utf-8\"", true),
            ("application/json; version=1", true),
            ("application/json; charset=latin1", false),
            ("application/jsonp", false),
            ("text/plain", false),
            ("application/x-www-form-urlencoded", false),
            ("", false),
        ] {
            let headers =
                HeaderMap::from_iter([(CONTENT_TYPE, content_type.parse().expect("a header"))]);
            let checked = check_headers(&headers).map_err(|error| error.status);
            assert_eq!(
                checked,
                if accepted {
                    Ok(())
                } else {
                    Err(StatusCode::UNSUPPORTED_MEDIA_TYPE)
                },
                "{content_type}"
            );
        }
        assert!(check_headers(&HeaderMap::new()).is_err(), "none");
    }
}
