//! Calls with a key.

use tonic::metadata::AsciiMetadataValue;
use tonic::service::Interceptor;
use tonic::{Request, Status};

/// Adds a key to every call.
#[derive(Debug, Clone)]
pub(crate) struct Bearer(AsciiMetadataValue);

impl Bearer {
    /// A key as `api-key create` prints it.
    pub(crate) fn new(key: &str) -> Self {
        Self(format!("Bearer {key}").parse().expect("ASCII"))
    }
}

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request
            .metadata_mut()
            .insert("authorization", self.0.clone());
        Ok(request)
    }
}
