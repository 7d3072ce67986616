//! What stands in a request before any field is read: its type, its size, its bytes.

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, StatusCode};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use tonic::body::Body;
use tonic::{Code, Status};

/// The largest body: what the gRPC port takes as one message.
const BYTES_MOST: usize = 1024 * 1024;

/// Why no message could be made of a request.
#[derive(Debug, Clone)]
pub(super) struct Fault {
    /// As the caller gets it.
    pub status: StatusCode,
    /// What is wrong, and what would be right.
    pub message: String,
}

impl Fault {
    /// A fault.
    pub(super) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
        }
    }

    fn too_large() -> Self {
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("the body is over {BYTES_MOST} bytes, the most that is taken"),
        )
    }
}

/// Whether the headers announce a body that can be read.
///
/// # Errors
/// It is not JSON, or too large.
pub(super) fn check(headers: &HeaderMap) -> Result<(), Fault> {
    let unsupported = |message| Err(Fault::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message));
    if !headers
        .get(CONTENT_TYPE)
        .is_some_and(|stated| stated.to_str().is_ok_and(is_json))
    {
        return unsupported(
            "the body must be JSON in UTF-8; send `Content-Type: application/json`",
        );
    }
    if headers
        .get(CONTENT_ENCODING)
        .is_some_and(|stated| stated != "identity")
    {
        return unsupported("the body must not be compressed; leave `Content-Encoding` out");
    }
    let length = headers
        .get(CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok())
        .and_then(|length| length.parse::<u64>().ok());
    if length.is_some_and(|length| length > BYTES_MOST as u64) {
        Err(Fault::too_large())
    } else {
        Ok(())
    }
}

/// Whether a content type is JSON as we read it. The only parameter that could matter is another charset.
fn is_json(stated: &str) -> bool {
    let mut parts = stated.split(';').map(str::trim);
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

/// The whole body.
///
/// # Errors
/// It is too large, there is no room for it, or it does not come to its end.
pub(super) async fn whole(body: Body) -> Result<Bytes, Fault> {
    let read = Limited::new(body, BYTES_MOST).collect().await;
    read.map(http_body_util::Collected::to_bytes)
        .map_err(|why| {
            if why.is::<LengthLimitError>() {
                return Fault::too_large();
            }
            match why
                .downcast_ref::<Status>()
                .filter(|status| status.code() == Code::Unavailable)
            {
                Some(overloaded) => {
                    Fault::new(StatusCode::SERVICE_UNAVAILABLE, overloaded.message())
                }
                None => Fault::new(StatusCode::BAD_REQUEST, "the body did not come to its end"),
            }
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_in_utf_8_is_taken_and_nothing_else() {
        for (stated, taken) in [
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
            let headers = HeaderMap::from_iter([(CONTENT_TYPE, stated.parse().expect("a header"))]);
            let checked = check(&headers).map_err(|fault| fault.status);
            assert_eq!(
                checked,
                if taken {
                    Ok(())
                } else {
                    Err(StatusCode::UNSUPPORTED_MEDIA_TYPE)
                },
                "{stated}"
            );
        }
        assert!(check(&HeaderMap::new()).is_err(), "none");
    }
}
