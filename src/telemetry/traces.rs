//! Traces, exported by OTLP over gRPC to a collector. Without a collector, a [`Span`] is empty and
//! costs one check (docs/adr/0009).

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::HeaderMap;
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::client::legacy::connect::HttpConnector;
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::{SpanKind, Status, TraceContextExt, Tracer, TracerProvider};
use opentelemetry::{Context, KeyValue, Value};
use opentelemetry_otlp::{SpanExporter, WithTonicConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::resource::{EnvResourceDetector, TelemetryResourceDetector};
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};
use tonic::transport::{Channel, Endpoint};

use super::CollectorSettings;
use crate::client_tls;

/// How long a connection to the collector may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Limits the export of the last spans when the process stops.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// The traces of a process. Cheap to clone. The default exports nothing.
#[derive(Clone, Default)]
pub struct Traces(Option<Arc<Exporter>>);

struct Exporter {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
}

/// When a span began; empty when tracing is off.
#[derive(Debug, Clone, Copy, Default)]
pub struct SpanStart(Option<SystemTime>);

impl Traces {
    /// Exports to a collector, on the current runtime. The collector may start later. Sampling,
    /// batch sizes and further attributes come from the environment variables that OpenTelemetry
    /// defines.
    pub fn export_to(collector: &CollectorSettings) -> Result<Self, String> {
        let exporter = SpanExporter::builder()
            .with_tonic()
            .with_channel(channel(collector)?)
            .build();
        let exporter = exporter.map_err(|error| format!("cannot be exported to: {error}"))?;
        let resource = Resource::builder_empty()
            .with_service_name("canvas-scheduler")
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .with_detectors(&[
                Box::new(TelemetryResourceDetector),
                Box::new(EnvResourceDetector::new()),
            ])
            .build();
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_resource(resource)
            .build();
        let tracer = provider.tracer("canvas-scheduler");
        Ok(Self(Some(Arc::new(Exporter { provider, tracer }))))
    }

    /// Starts the span of a call. It continues the trace of the caller if the headers name one.
    pub fn call_span(&self, method: &'static str, headers: &HeaderMap) -> Span {
        let Some(exporter) = &self.0 else {
            return Span::default();
        };
        let parent = TraceContextPropagator::new()
            .extract_with_context(&Context::new(), &HeaderExtractor(headers));
        let attributes = [
            KeyValue::new("rpc.system.name", "grpc"),
            KeyValue::new("rpc.method", method),
        ];
        let builder = exporter
            .tracer
            .span_builder(method)
            .with_kind(SpanKind::Server)
            .with_attributes(attributes);
        Span::start(&exporter.tracer, &parent, builder)
    }

    /// Starts the root span of a new trace.
    pub fn root_span(&self, name: &'static str, began: SpanStart) -> Span {
        let Some(exporter) = &self.0 else {
            return Span::default();
        };
        let builder = exporter
            .tracer
            .span_builder(name)
            .with_start_time(began.0.unwrap_or_else(SystemTime::now));
        Span::start(&exporter.tracer, &Context::new(), builder)
    }

    /// The current time as the start of a span.
    pub fn now(&self) -> SpanStart {
        SpanStart(self.0.as_ref().map(|_| SystemTime::now()))
    }

    /// Exports the remaining spans, for at most 2 seconds.
    pub async fn flush(self) {
        let Some(exporter) = self.0 else { return };
        // The shutdown blocks until this runtime has sent the spans.
        let flushed = tokio::task::spawn_blocking(move || {
            exporter.provider.shutdown_with_timeout(FLUSH_TIMEOUT)
        })
        .await;
        if let Ok(Err(error)) = flushed {
            tracing::warn!(%error, "failed to export the last spans");
        }
    }
}

/// A connection that is opened when it is needed. The connector speaks TLS, not tonic
/// (`Cargo.toml`).
fn channel(collector: &CollectorSettings) -> Result<Channel, String> {
    let url = &collector.url.0;
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
    let endpoint = Endpoint::from(url.clone());
    if url.scheme_str() != Some("https") {
        return Ok(endpoint.connect_with_connector_lazy(tcp));
    }
    let roots = client_tls::roots(collector.ca.as_deref())
        .map_err(|why| format!("needs OTEL_EXPORTER_OTLP_CERTIFICATE, which {why}"))?;
    let tls = client_tls::trusting(roots).map_err(|why| why.to_string())?;
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(tls.with_no_client_auth())
        .https_only()
        .enable_http2()
        .wrap_connector(tcp);
    Ok(endpoint.connect_with_connector_lazy(connector))
}

/// A span in progress, or empty. It ends by [`Span::end`] or when its last clone is dropped. Cheap
/// to clone.
#[derive(Clone, Default)]
pub struct Span(Option<Arc<ActiveSpan>>);

struct ActiveSpan {
    tracer: SdkTracer,
    /// Contains the span.
    context: Context,
}

impl Span {
    fn start(
        tracer: &SdkTracer,
        parent: &Context,
        builder: opentelemetry::trace::SpanBuilder,
    ) -> Self {
        let context = parent.with_span(tracer.build_with_context(builder, parent));
        Self(Some(Arc::new(ActiveSpan {
            tracer: tracer.clone(),
            context,
        })))
    }

    /// Starts a child span.
    #[must_use]
    pub fn child(&self, name: &'static str) -> Self {
        self.child_from(name, SpanKind::Internal, SpanStart::default())
    }

    /// Starts a child span for a request to another service.
    #[must_use]
    pub fn client_child(&self, name: &'static str) -> Self {
        self.child_from(name, SpanKind::Client, SpanStart::default())
    }

    /// Records a child span that ends now.
    pub fn record_child(&self, name: &'static str, began: SpanStart) {
        self.child_from(name, SpanKind::Internal, began).end();
    }

    fn child_from(&self, name: &'static str, kind: SpanKind, began: SpanStart) -> Self {
        let Some(active) = &self.0 else {
            return Self::default();
        };
        let builder = active
            .tracer
            .span_builder(name)
            .with_kind(kind)
            .with_start_time(began.0.unwrap_or_else(SystemTime::now));
        Self::start(&active.tracer, &active.context, builder)
    }

    /// Sets an attribute. `value` is called only if the span is not empty.
    pub fn set<V: Into<Value>>(&self, name: &'static str, value: impl FnOnce() -> V) {
        if let Some(active) = &self.0 {
            active
                .context
                .span()
                .set_attribute(KeyValue::new(name, value()));
        }
    }

    /// Marks the span as failed.
    pub fn fail(&self, reason: &'static str) {
        if let Some(active) = &self.0 {
            active.context.span().set_status(Status::error(reason));
        }
    }

    /// Ends the span.
    pub fn end(&self) {
        if let Some(active) = &self.0 {
            active.context.span().end();
        }
    }

    /// The header `traceparent` of W3C Trace Context, by which other services continue the trace.
    pub fn traceparent(&self) -> Option<String> {
        let context = self.0.as_ref()?.context.span().span_context().clone();
        let (trace, span, flags) = (
            context.trace_id(),
            context.span_id(),
            context.trace_flags().to_u8(),
        );
        context
            .is_valid()
            .then(|| format!("00-{trace}-{span}-{flags:02x}"))
    }
}

impl std::fmt::Debug for Span {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Span").field(&self.traceparent()).finish()
    }
}

/// Gives the propagator access to the headers.
struct HeaderExtractor<'a>(&'a HeaderMap);

impl Extractor for HeaderExtractor<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_collector_spans_are_empty() {
        let traces = Traces::default();
        let span = traces.call_span("a.B/C", &HeaderMap::new());
        span.set("never", || -> i64 { panic!("called") });
        assert!(
            span.traceparent().is_none()
                && span.child("x").0.is_none()
                && traces.root_span("x", traces.now()).0.is_none()
        );
    }
}
