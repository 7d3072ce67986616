//! The page that renders the description: Swagger UI, held in the binary. It loads nothing from elsewhere, and may not.

use std::borrow::Cow;
use std::sync::Arc;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderValue, StatusCode};
use utoipa_swagger_ui::Config;

use super::answer;
use super::status::Refusal;

const PAGE: &str = r#"<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>canvas-scheduler</title>
<link rel="icon" href="/docs/favicon-32x32.png">
<link rel="stylesheet" href="/docs/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="/docs/swagger-ui-bundle.js"></script>
<script src="/docs/start.js"></script>
</body>
</html>
"#;

const START: &str = r##"SwaggerUIBundle({ url: "/openapi.json", dom_id: "#swagger-ui", deepLinking: true, validatorUrl: null });
"##;

/// Swagger UI sets styles on its elements and draws icons from data.
const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self'; \
     base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
);

/// The page.
pub(super) async fn page() -> Response {
    file(PAGE.as_bytes().into(), "text/html; charset=utf-8")
}

/// What starts it.
pub(super) async fn start() -> Response {
    file(START.as_bytes().into(), "text/javascript; charset=utf-8")
}

/// A file of Swagger UI.
pub(super) fn of_swagger_ui(name: &str) -> Response {
    match utoipa_swagger_ui::serve(name, Arc::new(Config::from("/openapi.json"))) {
        Ok(Some(found)) => file(found.bytes, &found.content_type),
        Ok(None) => answer::json(
            StatusCode::NOT_FOUND,
            &Refusal::new("there is no such file"),
        ),
        Err(why) => {
            tracing::error!(%why, name, "a file of the documentation cannot be read");
            answer::json(
                StatusCode::INTERNAL_SERVER_ERROR,
                &Refusal::new("internal error"),
            )
        }
    }
}

fn file(content: Cow<'static, [u8]>, kind: &str) -> Response {
    let bytes = match content {
        Cow::Borrowed(held) => Bytes::from_static(held),
        Cow::Owned(read) => read.into(),
    };
    let mut response = Response::new(Body::from(bytes));
    let headers = response.headers_mut();
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::try_from(kind).unwrap_or(HeaderValue::from_static("application/octet-stream")),
    );
    headers.insert(CONTENT_SECURITY_POLICY, POLICY);
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}
