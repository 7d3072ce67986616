//! Every RPC that the process serves, one row each. The layers take the kind, the permission, the
//! quota and the name in telemetry from here, the gateway its routes. A test compares the rows with
//! the protobuf descriptors.

use crate::domain::Permission;

/// How a method answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MethodKind {
    /// One request, one response.
    Unary,
    /// The response is a stream.
    Stream,
    /// A unary health check, which the load of other calls never causes to be refused.
    Health,
}

/// How a call is charged to the quota of its workspace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Charging {
    /// Nothing.
    Free,
    /// One request, counted before the message is read.
    PerCall,
    /// As much as its message says, counted by the handler.
    PerMessage,
}

/// The beginning of the paths of our package.
const OUR_PACKAGE: &str = "/canvas.schedule.v1.";

/// An RPC.
#[derive(Debug)]
pub struct RpcMethod {
    /// The path of its requests, `/package.Service/Method`.
    pub path: &'static str,
    /// How it answers.
    pub kind: MethodKind,
    /// The permission that a key needs; absent when the method needs no key.
    pub permission: Option<Permission>,
    /// How a call is charged.
    pub charging: Charging,
    /// The paths of its REST routes, with parameters in braces.
    pub routes: &'static [&'static str],
}

impl RpcMethod {
    /// The name in logs, metrics and spans: the path without its first slash.
    pub fn name(&self) -> &'static str {
        self.path.trim_start_matches('/')
    }
}

/// A unary method of our service.
const fn unary(
    path: &'static str,
    permission: Permission,
    charging: Charging,
    routes: &'static [&'static str],
) -> RpcMethod {
    RpcMethod {
        path,
        kind: MethodKind::Unary,
        permission: Some(permission),
        charging,
        routes,
    }
}

/// A method that needs no key.
const fn open(path: &'static str, kind: MethodKind) -> RpcMethod {
    RpcMethod {
        path,
        kind,
        permission: None,
        charging: Charging::Free,
        routes: &[],
    }
}

/// Defines a static for each row, and `METHODS` with all of them.
macro_rules! methods {
    ($($name:ident = $row:expr;)+) => {
        $(
            #[allow(missing_docs, reason = "named after the RPC")]
            pub static $name: RpcMethod = $row;
        )+

        /// Every method, the most frequent first: a call is looked up from the start.
        pub const METHODS: [&RpcMethod; [$(stringify!($name)),+].len()] = [$(&$name),+];
    };
}

methods! {
    UPDATE = unary(
        "/canvas.schedule.v1.CanvasScheduleService/UpdateCanvasSchedule",
        Permission::Update,
        Charging::PerCall,
        &[
            "/canvas/trigger/schedule/update",
            "/fr/canvas/trigger/schedule/update",
            "/campaigns/trigger/schedule/update",
        ],
    );
    CREATE = unary(
        "/canvas.schedule.v1.CanvasScheduleService/CreateCanvasSchedule",
        Permission::Create,
        Charging::PerMessage,
        &["/canvas/trigger/schedule/create"],
    );
    CANCEL = unary(
        "/canvas.schedule.v1.CanvasScheduleService/CancelCanvasSchedule",
        Permission::Delete,
        Charging::PerCall,
        &["/canvas/trigger/schedule/delete"],
    );
    GET = unary(
        "/canvas.schedule.v1.CanvasScheduleService/GetCanvasSchedule",
        Permission::Read,
        Charging::PerCall,
        &["/canvas/trigger/schedule/{schedule_id}"],
    );
    LIST = unary(
        "/canvas.schedule.v1.CanvasScheduleService/ListCanvasSchedules",
        Permission::Read,
        Charging::PerCall,
        &["/canvas/trigger/schedule"],
    );
    LIST_REVISIONS = unary(
        "/canvas.schedule.v1.CanvasScheduleService/ListCanvasScheduleRevisions",
        Permission::Read,
        Charging::PerCall,
        &[],
    );
    LIST_DISPATCHES = unary(
        "/canvas.schedule.v1.CanvasScheduleService/ListDispatches",
        Permission::Read,
        Charging::PerCall,
        &[],
    );
    RETRY_DISPATCH = unary(
        "/canvas.schedule.v1.CanvasScheduleService/RetryDispatch",
        Permission::Update,
        Charging::PerCall,
        &[],
    );
    BATCH_UPDATE = unary(
        "/canvas.schedule.v1.CanvasScheduleService/BatchUpdateCanvasSchedules",
        Permission::Update,
        Charging::PerMessage,
        &[],
    );
    HEALTH_CHECK = open("/grpc.health.v1.Health/Check", MethodKind::Health);
    HEALTH_LIST = open("/grpc.health.v1.Health/List", MethodKind::Health);
    HEALTH_WATCH = open("/grpc.health.v1.Health/Watch", MethodKind::Stream);
    REFLECTION_V1 = open(
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        MethodKind::Stream,
    );
    REFLECTION_V1ALPHA = open(
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        MethodKind::Stream,
    );
}

/// The name of every unknown method, by OpenTelemetry's conventions: unknown paths add no series.
pub const UNKNOWN_METHOD: &str = "_OTHER";

/// How a request of this path is answered. An unknown method of our package is refused like a unary
/// call; any other unknown method has the limits of a stream until it is refused.
pub fn kind_of(path: &str) -> MethodKind {
    match find(path) {
        Some(method) => method.kind,
        None if path.starts_with(OUR_PACKAGE) => MethodKind::Unary,
        None => MethodKind::Stream,
    }
}

/// The method that requests of this path call.
pub fn find(path: &str) -> Option<&'static RpcMethod> {
    METHODS.iter().copied().find(|method| method.path == path)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use prost::Message;
    use prost_types::FileDescriptorSet;

    use super::*;
    use crate::pb;

    /// The paths of every method of `service` in `descriptors`.
    fn described(descriptors: &[u8], service: &str) -> BTreeSet<(String, bool)> {
        let set = FileDescriptorSet::decode(descriptors).expect("descriptors");
        let mut methods = BTreeSet::new();
        for file in set.file {
            for found in &file.service {
                let name = format!("{}.{}", file.package(), found.name());
                methods.extend(
                    found
                        .method
                        .iter()
                        .filter(|_| name == service)
                        .map(|one| (format!("/{name}/{}", one.name()), one.server_streaming())),
                );
            }
        }
        methods
    }

    #[test]
    fn the_table_has_every_method_of_the_descriptors_and_no_other() {
        let health = tonic_health::pb::FILE_DESCRIPTOR_SET;
        let mut described: BTreeSet<_> = [
            (
                pb::FILE_DESCRIPTOR_SET,
                pb::v1::canvas_schedule_service_server::SERVICE_NAME,
            ),
            (health, tonic_health::pb::health_server::SERVICE_NAME),
            (
                tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
                "grpc.reflection.v1.ServerReflection",
            ),
            (
                tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
                "grpc.reflection.v1alpha.ServerReflection",
            ),
        ]
        .into_iter()
        .flat_map(|(descriptors, service)| described(descriptors, service))
        .collect();
        // tonic-health serves it, but its descriptors lack it.
        described.insert((HEALTH_LIST.path.to_owned(), false));
        let rows: BTreeSet<_> = METHODS
            .iter()
            .map(|row| (row.path.to_owned(), row.kind == MethodKind::Stream))
            .collect();
        assert_eq!(rows.len(), METHODS.len(), "each method has one row");
        assert_eq!(rows, described);
    }

    #[test]
    fn a_method_needs_a_key_exactly_when_it_is_ours_and_is_found_by_its_path() {
        for row in METHODS {
            let ours = row.path.starts_with(OUR_PACKAGE);
            assert_eq!(row.permission.is_some(), ours, "{}", row.path);
            assert_eq!(row.charging != Charging::Free, ours, "{}", row.path);
            assert!(find(row.path).is_some_and(|found| std::ptr::eq(found, row)));
        }
        for unknown in ["", "/", UPDATE.name(), "/x.Y/Z"] {
            assert!(find(unknown).is_none(), "{unknown}");
        }
    }

    #[test]
    fn no_two_methods_share_a_route() {
        let routes: Vec<_> = METHODS.iter().flat_map(|row| row.routes).collect();
        let distinct: BTreeSet<_> = routes.iter().collect();
        assert_eq!(distinct.len(), routes.len(), "{routes:?}");
    }
}
