//! The rules. Pure: no async, no I/O, no transport, no ORM; `now` is an argument.

pub mod canvas_schedule;
pub mod command;
pub mod dispatch;
pub mod firing;
pub mod id;
pub mod key;
pub mod payload;
pub mod probe;
pub mod schedule;
pub mod wave;
pub mod workspace;
pub mod zone;

pub use canvas_schedule::{
    Applied, CanvasSchedule, Outcome, Policy, Revision, RevisionKind, State,
};
pub use command::{Cancel, Command, Create, Overwrite};
pub use dispatch::{Answer, Dispatch};
pub use firing::{Delivery, DispatchState, Fired, Firing, Held, Settled};
pub use id::{CanvasId, DispatchId, Etag, PropertiesId, RequestId, ScheduleId, WorkspaceId};
pub use key::{ApiKey, Barred, KeyId, NewKey, Permission, Permissions, Presented};
pub use payload::{Identifier, Properties, Recipient, Target};
pub use probe::Probe;
pub use schedule::Schedule;
pub use wave::{Plan, Wave, WaveMode};
pub use workspace::{Ask, Charge, Counted, Limits, Quota, Window, Workspace};
pub use zone::{Zone, ZoneSet};
