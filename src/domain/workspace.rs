//! Workspaces, the tenants, and their quotas (docs/api.md).

use std::fmt;

use sha2::{Digest, Sha256};

use super::id::WorkspaceId;
use super::payload::Target;
use super::zone::Zone;
use crate::error::quote;

/// The most characters of a workspace's name.
const MAX_NAME_CHARS: usize = 64;
/// The largest quota of a window.
const MAX_QUOTA: u64 = 1_000_000_000_000;

/// A tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workspace {
    /// Its id.
    pub id: WorkspaceId,
    /// Its name.
    pub name: String,
    /// The default zone of new schedules.
    pub default_zone: Zone,
    /// Its quotas.
    pub limits: Limits,
    /// Whether its sending is paused. Sending may also be paused for all workspaces.
    pub sending_paused: bool,
}

/// Checks the name of a workspace. An error does not repeat it: on a mistyped command line it may
/// be a piece of a secret.
pub fn check_name(name: &str) -> Result<(), String> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(c);
    if !name.is_empty() && name.len() <= MAX_NAME_CHARS && name.chars().all(allowed) {
        return Ok(());
    }
    Err(format!(
        "is not a valid name; use 1 to {MAX_NAME_CHARS} lower-case letters, digits, hyphens, \
         underscores and dots"
    ))
}

/// The window of a quota. It starts at the full minute or hour (UTC).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QuotaWindow {
    /// 60 s.
    Minute,
    /// 3,600 s.
    Hour,
}

impl QuotaWindow {
    /// Its length in milliseconds.
    pub fn millis(self) -> i64 {
        match self {
            Self::Minute => 60_000,
            Self::Hour => 3_600_000,
        }
    }

    /// The start of the window that contains `now_ms`.
    pub fn start(self, now_ms: i64) -> i64 {
        now_ms - now_ms.rem_euclid(self.millis())
    }

    /// The window of this stored length.
    pub fn from_millis(millis: i64) -> Option<Self> {
        [Self::Minute, Self::Hour]
            .into_iter()
            .find(|window| window.millis() == millis)
    }
}

/// A maximum in each window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    /// The maximum.
    pub limit: u64,
    /// The window.
    pub window: QuotaWindow,
}

impl Quota {
    /// Parses a quota such as `250000/hour` or `6000/minute`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let read = text.split_once('/').and_then(|(limit, window)| {
            let window = match window {
                "minute" => QuotaWindow::Minute,
                "hour" => QuotaWindow::Hour,
                _ => return None,
            };
            limit
                .parse()
                .ok()
                .filter(|limit| *limit <= MAX_QUOTA)
                .map(|limit| Self { limit, window })
        });
        read.ok_or_else(|| {
            format!(
                "{} is not a valid quota; use a number up to {MAX_QUOTA} and a window, such as \
                 250000/hour or 6000/minute",
                quote(text)
            )
        })
    }
}

/// A replica's request for a chunk of a quota.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuotaRequest {
    /// The cost of a waiting call, which needs all of it; 0 when no call waits.
    pub needed: u64,
    /// The amount that the replica expects to use soon.
    pub wanted: u64,
}

impl Quota {
    /// How much a replica may take when `taken` of the quota is used. A waiting call gets all that
    /// it needs, or nothing if less is left. In advance a replica gets at most an eighth of its
    /// share of what is left, so that it holds little that another one needs, and less towards the
    /// end.
    pub fn chunk(&self, taken: u64, request: QuotaRequest, replicas: u32) -> u64 {
        let left = self.limit.saturating_sub(taken);
        if request.needed > left {
            return 0;
        }
        let share = left / (8 * u64::from(replicas.max(1)));
        request
            .wanted
            .min(share.max(1))
            .max(request.needed)
            .min(left)
    }
}

impl fmt::Display for Quota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let window = match self.window {
            QuotaWindow::Minute => "minute",
            QuotaWindow::Hour => "hour",
        };
        write!(f, "{}/{window}", self.limit)
    }
}

/// The kinds of calls that quotas count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum QuotaKind {
    /// Calls and each entry of a batch, except those below.
    Requests,
    /// Creations with `broadcast` or `audience`.
    Broadcasts,
    /// Creations with the same audience.
    SameAudience,
}

impl QuotaKind {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::Requests, Self::Broadcasts, Self::SameAudience];

    /// The name, which is also that of the command line's flag.
    pub fn name(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Broadcasts => "broadcasts",
            Self::SameAudience => "same-audience",
        }
    }
}

/// The status of a quota after a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuotaStatus {
    /// The number that the window allows.
    pub limit: u64,
    /// The number that is left over all replicas, as far as this one knows.
    pub remaining: u64,
    /// When the next window begins, in milliseconds since 1970.
    pub resets_ms: i64,
}

/// The charge of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Charge {
    /// This many requests.
    Requests(u64),
    /// A creation with `broadcast`.
    Broadcast,
    /// A creation with this audience: a digest of 32 hex digits.
    Audience(String),
}

impl Charge {
    /// The cost of a creation for `target`.
    pub fn of_creation(target: &Target) -> Self {
        match &target.audience {
            _ if target.broadcast => Self::Broadcast,
            // Keys are sorted, so equal audiences have equal digests.
            Some(audience) => Self::Audience(digest(
                &serde_json::Value::Object(audience.clone()).to_string(),
            )),
            None => Self::Requests(1),
        }
    }
}

fn digest(text: &str) -> String {
    Sha256::digest(text.as_bytes())
        .iter()
        .take(16)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// The quotas of one workspace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    requests: Quota,
    broadcasts: Quota,
    same_audience: Quota,
}

impl Limits {
    /// The quota of one kind.
    pub fn of(&self, counted: QuotaKind) -> Quota {
        match counted {
            QuotaKind::Requests => self.requests,
            QuotaKind::Broadcasts => self.broadcasts,
            QuotaKind::SameAudience => self.same_audience,
        }
    }

    /// The limits with one quota replaced.
    pub fn with(mut self, counted: QuotaKind, quota: Quota) -> Self {
        match counted {
            QuotaKind::Requests => self.requests = quota,
            QuotaKind::Broadcasts => self.broadcasts = quota,
            QuotaKind::SameAudience => self.same_audience = quota,
        }
        self
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            requests: Quota {
                limit: 250_000,
                window: QuotaWindow::Hour,
            },
            broadcasts: Quota {
                limit: 250,
                window: QuotaWindow::Minute,
            },
            same_audience: Quota {
                limit: 10,
                window: QuotaWindow::Minute,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quota_is_a_number_and_a_window() {
        for text in ["250000/hour", "1/minute", "0/hour"] {
            assert_eq!(
                Quota::parse(text).map(|quota| quota.to_string()).as_deref(),
                Ok(text)
            );
        }
        for wrong in [
            "",
            "5",
            "5/day",
            "-1/hour",
            "1.5/hour",
            "/hour",
            "5/hour/minute",
            "1000000000001/hour",
        ] {
            let error = Quota::parse(wrong).expect_err(wrong);
            assert!(
                error.contains(&quote(wrong)) && error.contains("250000/hour"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_chunk_is_an_eighth_of_the_share_and_chunks_add_up_to_the_quota() {
        let quota = Quota::parse("6000/minute").expect("a quota");
        for (taken, needed, wanted, replicas, got) in [
            (0, 0, 10_000, 1, 750),
            (0, 0, 10_000, 2, 375),
            (0, 1, 100, 2, 100),
            (0, 1_000, 100, 2, 1_000),
            (5_000, 1_000, 100, 2, 1_000),
            (5_001, 1_000, 100, 2, 0),
            (5_995, 0, 100, 2, 1),
            (6_000, 0, 1, 1, 0),
            (6_000, 1, 1, 1, 0),
            (7_000, 0, 1, 1, 0),
            (0, 0, 1, 0, 1),
        ] {
            assert_eq!(
                quota.chunk(taken, QuotaRequest { needed, wanted }, replicas),
                got,
                "{taken} {needed} {wanted} {replicas}"
            );
        }
        let (mut taken, mut chunks) = (0, 0);
        let most = QuotaRequest {
            needed: 0,
            wanted: u64::MAX,
        };
        while quota.chunk(taken, most, 2) > 0 {
            taken += quota.chunk(taken, most, 2);
            chunks += 1;
        }
        assert_eq!(taken, 6_000);
        assert!(chunks < 150, "{chunks}");
    }

    #[test]
    fn a_window_turns_with_the_clock() {
        assert_eq!(QuotaWindow::Minute.start(119_999), 60_000);
        assert_eq!(QuotaWindow::Hour.start(3_600_000), 3_600_000);
        assert_eq!(QuotaWindow::Minute.start(-1), -60_000);
    }

    #[test]
    fn the_cost_of_a_creation_depends_on_its_target() {
        let audience = |json: &str| Target {
            audience: Some(serde_json::from_str(json).expect("an object")),
            ..Target::default()
        };
        assert_eq!(Charge::of_creation(&Target::default()), Charge::Requests(1));
        assert_eq!(
            Charge::of_creation(&Target {
                broadcast: true,
                ..Target::default()
            }),
            Charge::Broadcast
        );
        let one = Charge::of_creation(&audience(r#"{"a": 1, "b": 2}"#));
        assert!(matches!(&one, Charge::Audience(digest) if digest.len() == 32));
        assert_eq!(
            one,
            Charge::of_creation(&audience(r#"{"b": 2, "a": 1}"#)),
            "in any order of keys"
        );
        assert_ne!(one, Charge::of_creation(&audience(r#"{"a": 2, "b": 2}"#)));
    }

    #[test]
    fn a_name_is_safe_in_commands_and_logs() {
        for name in ["default", "team-7", "a.b_c"] {
            assert_eq!(check_name(name), Ok(()), "{name}");
        }
        for name in ["", "Team", "a b", "ü", &"x".repeat(65)] {
            assert!(
                check_name(name).expect_err(name).contains("lower-case"),
                "{name}"
            );
        }
    }

    #[test]
    fn one_quota_changes_and_the_others_stay() {
        let other = Quota::parse("7/minute").expect("a quota");
        for changed in QuotaKind::ALL {
            let limits = Limits::default().with(changed, other);
            for counted in QuotaKind::ALL {
                let expected = if counted == changed {
                    other
                } else {
                    Limits::default().of(counted)
                };
                assert_eq!(limits.of(counted), expected, "{counted:?}");
            }
        }
    }
}
