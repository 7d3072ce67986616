//! The rules of schedules, dispatches, keys and quotas. Pure: no async, no I/O, no transport, no
//! ORM; `now` is an argument.

pub mod breaker;
pub mod canvas_schedule;
pub mod command;
pub mod dispatch;
pub mod dispatch_message;
pub mod id;
pub mod key;
pub mod payload;
pub mod schedule;
pub mod wave;
pub mod workspace;
pub mod zone;

pub use breaker::Breaker;
pub use canvas_schedule::{
    Applied, CanvasSchedule, Outcome, Revision, RevisionKind, SchedulePolicy, ScheduleState,
};
pub use command::{Cancel, Command, Create, Overwrite};
pub use dispatch::{ClaimedWave, DeliveryPolicy, Dispatch, DispatchState, Hold, Settled};
pub use dispatch_message::{DeliveryOutcome, DispatchMessage};
pub use id::{CanvasId, DispatchId, Etag, PropertiesId, RequestId, ScheduleId, WorkspaceId};
pub use key::{ApiKey, KeyId, KeyRefusal, NewKey, Permission, Permissions, PresentedKey};
pub use payload::{Identifier, Properties, Recipient, Target};
pub use schedule::Schedule;
pub use wave::{Plan, Wave, WaveMode};
pub use workspace::{
    Charge, Limits, Quota, QuotaKind, QuotaRequest, QuotaStatus, QuotaWindow, Workspace,
};
pub use zone::{Zone, ZoneSet};
