//! Metrics of calls and connections.

use std::sync::Arc;

use prometheus::{Histogram, HistogramOpts, HistogramVec, Opts, Result};

use super::{LabelCounters, MetricRegistry, SECONDS};

/// Why a call is not let in: the reasons that its caller is told.
const REFUSALS: [&str; 8] = [
    "KEY_MISSING",
    "KEY_MALFORMED",
    "KEY_UNKNOWN",
    "KEY_REVOKED",
    "KEY_EXPIRED",
    "ADDRESS_NOT_ALLOWED",
    "PERMISSION_MISSING",
    "STORE_UNAVAILABLE",
];
/// What is counted against quotas.
const QUOTAS: [&str; 3] = ["requests", "broadcasts", "same-audience"];

/// Metrics of calls. Cheap to clone; by default they are told nobody.
#[derive(Clone, Default)]
pub struct CallMetrics(Option<Arc<CallHandles>>);

struct CallHandles {
    durations: HistogramVec,
    shed: LabelCounters<2>,
    refusals: LabelCounters<8>,
    over_quota: LabelCounters<3>,
}

impl CallMetrics {
    pub(super) fn on(registry: &MetricRegistry) -> Result<Self> {
        let durations = HistogramOpts::new(
            "rpc_server_call_duration_seconds",
            "How long a call took, by method and code.",
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
                    "Calls refused since as many were under way as may be.",
                ),
                "kind",
                ["unary", "stream"],
            )?,
            refusals: registry.counters(
                Opts::new(
                    "canvas_scheduler_auth_refusals_total",
                    "Calls that were not let in, by the reason that the caller is told.",
                ),
                "reason",
                REFUSALS,
            )?,
            over_quota: registry.counters(
                Opts::new(
                    "canvas_scheduler_rate_limit_refusals_total",
                    "Calls refused since the workspace's quota is used up.",
                ),
                "quota",
                QUOTAS,
            )?,
        }))))
    }

    /// Where the durations of calls of one method that end with one code go. Keep it: it is looked
    /// up under a lock.
    pub fn duration_histogram(&self, method: &str, code: &str) -> Option<Histogram> {
        self.0
            .as_ref()
            .map(|handles| handles.durations.with_label_values(&[method, code]))
    }

    /// One was refused since too many are under way.
    pub fn count_shed(&self, stream: bool) {
        if let Some(handles) = &self.0 {
            handles.shed.count(if stream { "stream" } else { "unary" });
        }
    }

    /// One was not let in.
    pub fn count_refused(&self, reason: &str) {
        if let Some(handles) = &self.0 {
            handles.refusals.count(reason);
        }
    }

    /// One was refused since a quota is used up.
    pub fn count_over_quota(&self, quota: &str) {
        if let Some(handles) = &self.0 {
            handles.over_quota.count(quota);
        }
    }
}

/// Metrics of connections. Cheap to clone; by default they are told nobody.
#[derive(Clone, Default)]
pub struct ConnectionMetrics(Option<Arc<LabelCounters<2>>>);

impl ConnectionMetrics {
    pub(super) fn on(registry: &MetricRegistry) -> Result<Self> {
        let refused = Opts::new(
            "canvas_scheduler_connections_refused_total",
            "Connections closed at once, being too many.",
        );
        Ok(Self(Some(Arc::new(registry.counters(
            refused,
            "reason",
            ["all", "address"],
        )?))))
    }

    /// One was closed at once: too many in all, or of one address.
    pub fn count_refused(&self, of_one_address: bool) {
        if let Some(refused) = &self.0 {
            refused.count(if of_one_address { "address" } else { "all" });
        }
    }
}
