//! The rules. Pure: no async, no I/O, no transport, no ORM; `now` is an argument.

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
    Applied, CanvasSchedule, Outcome, Policy, Revision, RevisionKind, State,
};
pub use command::{Cancel, Command, Create, Overwrite};
pub use dispatch::{ClaimedWave, DeliveryPolicy, Dispatch, DispatchState, Hold, Settled};
pub use dispatch_message::{Answer, DispatchMessage};
pub use id::{CanvasId, DispatchId, Etag, PropertiesId, RequestId, ScheduleId, WorkspaceId};
pub use key::{ApiKey, Barred, KeyId, NewKey, Permission, Permissions, Presented};
pub use payload::{Identifier, Properties, Recipient, Target};
pub use schedule::Schedule;
pub use wave::{Plan, Wave, WaveMode};
pub use workspace::{Ask, Charge, Counted, Limits, Quota, Window, Workspace};
pub use zone::{Zone, ZoneSet};
