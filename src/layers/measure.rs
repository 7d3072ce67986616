//! How long calls take, by method and code.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use prometheus::Histogram;
use tonic::Code;

use super::name_of;
use crate::telemetry::metrics::CallMetrics;

/// Every method that is served. What is none of them is [`OTHER`], so that strangers make no new series.
pub const METHODS: [&str; 14] = [
    "canvas.schedule.v1.CanvasScheduleService/UpdateCanvasSchedule",
    "canvas.schedule.v1.CanvasScheduleService/CreateCanvasSchedule",
    "canvas.schedule.v1.CanvasScheduleService/CancelCanvasSchedule",
    "canvas.schedule.v1.CanvasScheduleService/GetCanvasSchedule",
    "canvas.schedule.v1.CanvasScheduleService/ListCanvasSchedules",
    "canvas.schedule.v1.CanvasScheduleService/ListCanvasScheduleRevisions",
    "canvas.schedule.v1.CanvasScheduleService/ListDispatches",
    "canvas.schedule.v1.CanvasScheduleService/RetryDispatch",
    "canvas.schedule.v1.CanvasScheduleService/BatchUpdateCanvasSchedules",
    "grpc.health.v1.Health/Check",
    "grpc.health.v1.Health/List",
    "grpc.health.v1.Health/Watch",
    "grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
];
/// As OpenTelemetry's conventions call it.
const OTHER: &str = "_OTHER";
/// The codes of gRPC are 0 to 16.
const CODES: usize = 17;

/// Where durations go: a histogram for each method and code, made when it is first needed and found without a lock from then on.
#[derive(Clone)]
pub struct CallDurations {
    calls: CallMetrics,
    cells: Arc<[OnceLock<Option<Histogram>>]>,
}

/// The method that a path stands for; the number after the last for one that is not served.
fn number_of(path: &str) -> usize {
    METHODS
        .iter()
        .position(|method| path.strip_prefix('/') == Some(method))
        .unwrap_or(METHODS.len())
}

fn method_name(number: usize) -> &'static str {
    METHODS.get(number).copied().unwrap_or(OTHER)
}

/// What the method that a path stands for is called in telemetry.
pub(super) fn method_of(path: &str) -> &'static str {
    method_name(number_of(path))
}

impl CallDurations {
    /// Of these calls.
    pub fn new(calls: CallMetrics) -> Self {
        Self {
            calls,
            cells: (0..=METHODS.len())
                .flat_map(|_| (0..CODES).map(|_| OnceLock::new()))
                .collect(),
        }
    }

    /// A call of `path` has ended.
    pub(super) fn ended(&self, path: &str, code: Code, took: Duration) {
        let method = number_of(path);
        let Some(cell) = usize::try_from(i32::from(code))
            .ok()
            .and_then(|code| self.cells.get(method * CODES + code))
        else {
            return;
        };
        if let Some(durations) = cell.get_or_init(|| {
            self.calls
                .duration_histogram(method_name(method), name_of(code))
        }) {
            durations.observe(took.as_secs_f64());
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::watch;

    use super::*;
    use crate::layers::concurrency_limit::ConcurrencyLimit;
    use crate::layers::support::{UNARY, done, pass, request, verdict};
    use crate::layers::{Phase, Stack};
    use crate::telemetry::metrics::Metrics;

    #[test]
    fn a_call_counts_for_its_method_and_code_and_a_strange_one_for_other() {
        let metrics = Metrics::new().expect("metrics");
        let durations = CallDurations::new(metrics.calls.clone());
        durations.ended(
            "/canvas.schedule.v1.CanvasScheduleService/UpdateCanvasSchedule",
            Code::Ok,
            Duration::from_millis(2),
        );
        durations.ended(
            "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
            Code::Unauthenticated,
            Duration::from_millis(2),
        );
        for path in [
            "/a.B/C",
            "/",
            "",
            "canvas.schedule.v1.CanvasScheduleService/UpdateCanvasSchedule",
        ] {
            durations.ended(path, Code::Unimplemented, Duration::ZERO);
        }
        let text = metrics.text().expect("a text");
        let counted = |method: &str, code: &str, count: u32| {
            let labels = format!(
                "rpc_method=\"{method}\",rpc_response_status_code=\"{code}\",rpc_system_name=\"grpc\""
            );
            let line = format!("rpc_server_call_duration_seconds_count{{{labels}}} {count}");
            assert!(text.lines().any(|one| one == line), "{line} in\n{text}");
        };
        counted(
            "canvas.schedule.v1.CanvasScheduleService/UpdateCanvasSchedule",
            "OK",
            1,
        );
        counted(
            "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
            "UNAUTHENTICATED",
            1,
        );
        counted(OTHER, "UNIMPLEMENTED", 4);
        assert_eq!(
            text.matches("rpc_server_call_duration_seconds_count")
                .count(),
            3,
            "and for nothing else"
        );
    }

    #[tokio::test]
    async fn what_is_refused_is_counted_by_its_reason() {
        let metrics = Metrics::new().expect("metrics");
        let (_phase, phase) = watch::channel(Phase::Serving);
        let stack = |max_calls| {
            let mut stack = Stack {
                in_flight: ConcurrencyLimit::new(max_calls, usize::MAX),
                ..Stack::new(phase.clone())
            };
            stack.authenticator.calls = metrics.calls.clone();
            stack
        };
        let mut stranger = request(UNARY);
        stranger.headers_mut().clear();
        assert_eq!(
            verdict(&pass(stack(1), stranger, |_| async { panic!("let in") }).await).1,
            "KEY_MISSING"
        );
        for _ in 0..2 {
            assert_eq!(
                verdict(&pass(stack(0), request(UNARY), |_| async { panic!("let in") }).await).1,
                "OVERLOADED"
            );
        }
        assert_eq!(
            verdict(&pass(stack(1), request(UNARY), |_| async { done() }).await).1,
            ""
        );
        let text = metrics.text().expect("a text");
        for line in [
            "canvas_scheduler_auth_refusals_total{reason=\"KEY_MISSING\"} 1",
            "canvas_scheduler_calls_shed_total{kind=\"unary\"} 2",
        ] {
            assert!(text.lines().any(|one| one == line), "{line} in\n{text}");
        }
    }
}
