//! Metrics of calls and connections.

use std::sync::Arc;

use prometheus::{Histogram, HistogramOpts, HistogramVec, Opts, Result};

use super::{LabelCounters, MetricRegistry, SECONDS};

/// The reasons for which a call is not authenticated or not authorized.
const AUTH_REASONS: [&str; 8] = [
    "KEY_MISSING",
    "KEY_MALFORMED",
    "KEY_UNKNOWN",
    "KEY_REVOKED",
    "KEY_EXPIRED",
    "ADDRESS_NOT_ALLOWED",
    "PERMISSION_MISSING",
    "STORE_UNAVAILABLE",
];
/// The quotas of a workspace.
const QUOTAS: [&str; 3] = ["requests", "broadcasts", "same-audience"];

/// Metrics of calls. Cheap to clone.
#[derive(Clone, Default)]
pub struct CallMetrics(Option<Arc<CallHandles>>);

struct CallHandles {
    durations: HistogramVec,
    shed: LabelCounters<2>,
    refusals: LabelCounters<8>,
    over_quota: LabelCounters<3>,
}

impl CallMetrics {
    pub(super) fn register(registry: &MetricRegistry) -> Result<Self> {
        let durations = HistogramOpts::new(
            "rpc_server_call_duration_seconds",
            "Duration of calls, by method and status code.",
        );
        let durations = durations
            .const_label("rpc_system_name", "grpc")
            .buckets(SECONDS.to_vec());
        Ok(Self(Some(Arc::new(CallHandles {
            durations: registry
                .histograms(durations, &["rpc_method", "rpc_response_status_code"])?,
            shed: registry.counters(
                Opts::new(
                    "canvas_scheduler_calls_shed_total",
                    "Calls refused because the maximum number of calls was in flight.",
                ),
                "kind",
                ["unary", "stream"],
            )?,
            refusals: registry.counters(
                Opts::new(
                    "canvas_scheduler_auth_refusals_total",
                    "Calls refused by authentication or authorization, \
                     by the reason in the response.",
                ),
                "reason",
                AUTH_REASONS,
            )?,
            over_quota: registry.counters(
                Opts::new(
                    "canvas_scheduler_rate_limit_refusals_total",
                    "Calls refused because a quota of the workspace was used up.",
                ),
                "quota",
                QUOTAS,
            )?,
        }))))
    }

    /// The durations of calls of a method that end with a code. Keep the histogram: the lookup
    /// takes a lock.
    pub fn duration_histogram(&self, method: &str, code: &str) -> Option<Histogram> {
        self.0
            .as_ref()
            .map(|handles| handles.durations.with_label_values(&[method, code]))
    }

    /// Counts a call that was refused because too many were in flight.
    pub fn count_shed(&self, stream: bool) {
        if let Some(handles) = &self.0 {
            handles.shed.count(if stream { "stream" } else { "unary" });
        }
    }

    /// Counts a call that was not authenticated or not authorized.
    pub fn count_refused(&self, reason: &str) {
        if let Some(handles) = &self.0 {
            handles.refusals.count(reason);
        }
    }

    /// Counts a call that was refused because a quota is used up.
    pub fn count_over_quota(&self, quota: &str) {
        if let Some(handles) = &self.0 {
            handles.over_quota.count(quota);
        }
    }
}

/// Metrics of connections. Cheap to clone.
#[derive(Clone, Default)]
pub struct ConnectionMetrics(Option<Arc<LabelCounters<2>>>);

impl ConnectionMetrics {
    pub(super) fn register(registry: &MetricRegistry) -> Result<Self> {
        let refused = Opts::new(
            "canvas_scheduler_connections_refused_total",
            "Connections closed when accepted because there were too many.",
        );
        Ok(Self(Some(Arc::new(registry.counters(
            refused,
            "reason",
            ["all", "address"],
        )?))))
    }

    /// Counts a connection that was closed because there were too many, in total or from one
    /// address.
    pub fn count_refused(&self, from_one_address: bool) {
        if let Some(refused) = &self.0 {
            refused.count(if from_one_address { "address" } else { "all" });
        }
    }
}
