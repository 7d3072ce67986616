//! A log line for each dispatch: what `dev` uses, and a way to see what would be sent.

use super::{Answer, Answering, Sink, json};
use crate::domain::DispatchMessage;

/// Writes each dispatch to the log: ids, zones and counts, never a recipient or a property.
#[derive(Debug, Clone, Copy)]
pub struct Log;

impl Sink for Log {
    fn deliver<'a>(&'a self, dispatch: &'a DispatchMessage) -> Answering<'a> {
        write(dispatch);
        Box::pin(std::future::ready(Answer::Delivered))
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
        n = dispatch.n,
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
