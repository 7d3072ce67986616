//! The page that renders the OpenAPI description: Swagger UI, embedded in the binary. Its content
//! security policy forbids loading anything from elsewhere.

use std::borrow::Cow;
use std::sync::Arc;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderValue, StatusCode};
use utoipa_swagger_ui::Config;

use super::responses;
use super::status::ErrorBody;

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

const START: &str = r##"SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  validatorUrl: null,
});
"##;

/// Swagger UI sets inline styles and draws icons from `data:` URLs.
const CONTENT_POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; \
     img-src 'self' data:; connect-src 'self'; \
     base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
);

pub(super) async fn page() -> Response {
    file(PAGE.as_bytes().into(), "text/html; charset=utf-8")
}

/// The script that starts Swagger UI.
pub(super) async fn start_script() -> Response {
    file(START.as_bytes().into(), "text/javascript; charset=utf-8")
}

pub(super) fn swagger_ui_file(name: &str) -> Response {
    match utoipa_swagger_ui::serve(name, Arc::new(Config::from("/openapi.json"))) {
        Ok(Some(asset)) => file(asset.bytes, &asset.content_type),
        Ok(None) => responses::json(StatusCode::NOT_FOUND, &ErrorBody::new("file not found")),
        Err(error) => {
            tracing::error!(%error, name, "failed to read a file of Swagger UI");
            responses::internal_error()
        }
    }
}

fn file(content: Cow<'static, [u8]>, kind: &str) -> Response {
    let bytes = match content {
        Cow::Borrowed(embedded) => Bytes::from_static(embedded),
        Cow::Owned(read) => read.into(),
    };
    let mut response = Response::new(Body::from(bytes));
    let headers = response.headers_mut();
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::try_from(kind).unwrap_or(HeaderValue::from_static("application/octet-stream")),
    );
    headers.insert(CONTENT_SECURITY_POLICY, CONTENT_POLICY);
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}
