//! How long calls take, by method and code.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use prometheus::Histogram;
use tonic::Code;

use crate::methods::{METHODS, RpcMethod, UNKNOWN_METHOD};
use crate::status::code_name;
use crate::telemetry::metrics::CallMetrics;

/// The codes of gRPC are 0 to 16.
const CODES: usize = 17;

/// A histogram for each method and code, created when it is first needed and from then on found
/// without a lock.
#[derive(Clone)]
pub struct CallDurations {
    calls: CallMetrics,
    cells: Arc<[OnceLock<Option<Histogram>>]>,
}

impl CallDurations {
    /// The durations of `calls`.
    pub fn new(calls: CallMetrics) -> Self {
        let cells = (METHODS.len() + 1) * CODES;
        Self {
            calls,
            cells: (0..cells).map(|_| OnceLock::new()).collect(),
        }
    }

    /// Records the end of a call; `method` is absent when no method has its path.
    pub(super) fn record(&self, method: Option<&RpcMethod>, code: Code, duration: Duration) {
        let row = method.and_then(|method| METHODS.iter().position(|row| row.path == method.path));
        let row = row.unwrap_or(METHODS.len());
        let cell = usize::try_from(i32::from(code))
            .ok()
            .and_then(|code| self.cells.get(row * CODES + code));
        let histogram = cell.and_then(|cell| {
            let name = method.map_or(UNKNOWN_METHOD, RpcMethod::name);
            cell.get_or_init(|| self.calls.duration_histogram(name, code_name(code)))
                .as_ref()
        });
        if let Some(histogram) = histogram {
            histogram.observe(duration.as_secs_f64());
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
    use crate::methods;
    use crate::telemetry::metrics::Metrics;

    #[test]
    fn a_call_counts_for_its_method_and_code_and_a_strange_one_for_other() {
        let metrics = Metrics::new().expect("metrics");
        let durations = CallDurations::new(metrics.calls.clone());
        durations.record(Some(&methods::UPDATE), Code::Ok, Duration::from_millis(2));
        durations.record(
            Some(&methods::REFLECTION_V1ALPHA),
            Code::Unauthenticated,
            Duration::from_millis(2),
        );
        for path in [
            "/a.B/C",
            "/",
            "",
            "canvas.schedule.v1.CanvasScheduleService/UpdateCanvasSchedule",
        ] {
            durations.record(methods::find(path), Code::Unimplemented, Duration::ZERO);
        }
        let text = metrics.text().expect("a text");
        let counted = |method: &str, code: &str, count: u32| {
            let labels = format!(
                "rpc_method=\"{method}\",rpc_response_status_code=\"{code}\",\
                 rpc_system_name=\"grpc\""
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
        counted(UNKNOWN_METHOD, "UNIMPLEMENTED", 4);
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
                concurrency: ConcurrencyLimit::new(max_calls),
                ..Stack::new(phase.clone())
            };
            stack.authenticator.calls = metrics.calls.clone();
            stack
        };
        let mut stranger = request(UNARY);
        stranger.headers_mut().clear();
        assert_eq!(
            verdict(&pass(stack(1), stranger, |_| async { panic!("admitted") }).await).1,
            "KEY_MISSING"
        );
        for _ in 0..2 {
            assert_eq!(
                verdict(&pass(stack(0), request(UNARY), |_| async { panic!("admitted") }).await).1,
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
