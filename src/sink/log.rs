//! Logs each dispatch: the sink of `dev`, and a way to see what would be sent.

use super::{DeliveryFuture, DeliveryOutcome, Sink, json};
use crate::domain::DispatchMessage;

/// Logs ids, zones and counts of each dispatch, never a recipient or a property.
#[derive(Debug, Clone, Copy)]
pub struct Log;

impl Sink for Log {
    fn deliver<'a>(&'a self, dispatch: &'a DispatchMessage) -> DeliveryFuture<'a> {
        write(dispatch);
        Box::pin(std::future::ready(DeliveryOutcome::Delivered))
    }
}

fn write(dispatch: &DispatchMessage) {
    let DispatchMessage { wave, target, .. } = dispatch;
    tracing::info!(
        dispatch_id = %dispatch.id,
        workspace = dispatch.workspace,
        canvas_id = dispatch.canvas_id.as_str(),
        schedule_id = %dispatch.schedule_id,
        revision = dispatch.revision,
        n = dispatch.number,
        time = json::time(wave.time),
        mode = json::mode(wave.mode),
        zones_count = wave.zones.len(),
        zones = wave.zones.names().join(","),
        includes_unlisted_zones = wave.includes_unlisted_zones,
        recipients_count = target.recipients.len(),
        audience = target.audience.is_some(),
        broadcast = target.broadcast,
        lateness_ms = dispatch.lateness.num_milliseconds(),
        attempt = dispatch.attempt,
        "dispatch"
    );
}
