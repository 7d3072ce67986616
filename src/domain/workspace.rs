//! Workspaces: the tenants, and how much each may ask.

use std::fmt;

use sha2::{Digest, Sha256};

use super::id::WorkspaceId;
use super::payload::Target;
use super::zone::Zone;
use crate::error::quote;

/// The most characters of a workspace's name.
const MAX_NAME_CHARS: usize = 64;
/// No window may allow more.
const MAX_QUOTA: u64 = 1_000_000_000_000;

/// A tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workspace {
    /// Its number.
    pub id: WorkspaceId,
    /// Its name.
    pub name: String,
    /// What new schedules take as their zone for users with none.
    pub default_zone: Zone,
    /// How much its callers may ask.
    pub limits: Limits,
    /// Whether sending is paused for it; it may be for all besides.
    pub sending_paused: bool,
}

/// Checks what a new workspace is called.
///
/// # Errors
/// What is wrong and what would be right, without the field's name.
pub fn check_name(name: &str) -> Result<(), String> {
    let allowed = |letter: char| {
        letter.is_ascii_lowercase() || letter.is_ascii_digit() || "-_.".contains(letter)
    };
    if !name.is_empty() && name.len() <= MAX_NAME_CHARS && name.chars().all(allowed) {
        return Ok(());
    }
    Err(format!(
        "{} is no name; 1 to {MAX_NAME_CHARS} lower-case letters, digits, hyphens, underscores and points are needed",
        quote(name)
    ))
}

/// How long a quota counts before it begins anew, at the turn of the clock's minute or hour (UTC).
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

    /// When the window that `now_ms` lies in began.
    pub fn begin(self, now_ms: i64) -> i64 {
        now_ms - now_ms.rem_euclid(self.millis())
    }

    /// As it was stored.
    pub fn from_millis(millis: i64) -> Option<Self> {
        [Self::Minute, Self::Hour]
            .into_iter()
            .find(|window| window.millis() == millis)
    }
}

/// So many in each window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    /// How many.
    pub limit: u64,
    /// Of which length.
    pub window: QuotaWindow,
}

impl Quota {
    /// Reads a quota such as `250000/hour` or `6000/minute`.
    ///
    /// # Errors
    /// What would be right, without the field's name.
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
            format!("{} is no quota; a number up to {MAX_QUOTA} and a window are needed, such as 250000/hour or 6000/minute", quote(text))
        })
    }
}

/// How much a replica asks for of a quota.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuotaRequest {
    /// What a call that waits counts as: all of it is needed, or nothing. 0 when none waits.
    pub needed: u64,
    /// What would last for a while.
    pub wanted: u64,
}

impl Quota {
    /// How much a replica may take at once when `taken` is taken already. Ahead of need at most an eighth of its share of what is
    /// left, so that no replica holds much that another one needs, and the less the nearer the end; for a call that waits as much
    /// as that one counts as, since it is used at once, and nothing when there is not as much.
    pub fn chunk(&self, taken: u64, ask: QuotaRequest, replicas: u32) -> u64 {
        let left = self.limit.saturating_sub(taken);
        if ask.needed > left {
            return 0;
        }
        let share = left / (8 * u64::from(replicas.max(1)));
        ask.wanted.min(share.max(1)).max(ask.needed).min(left)
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

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum QuotaKind {
    /// Calls, and each entry of a batch; all but those below.
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

/// What a call counts as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Charge {
    /// So many requests.
    Requests(u64),
    /// A creation for everyone.
    Broadcast,
    /// A creation for an audience, by its digest: 32 hex digits.
    Audience(String),
}

impl Charge {
    /// What a creation for `target` counts as.
    pub fn of_creation(target: &Target) -> Self {
        match &target.audience {
            _ if target.broadcast => Self::Broadcast,
            // Its keys are in order, so that equal audiences have one digest.
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

    /// The same with another quota of one kind.
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
            let told = Quota::parse(wrong).expect_err(wrong);
            assert!(
                told.contains(&quote(wrong)) && told.contains("250000/hour"),
                "{told}"
            );
        }
    }

    #[test]
    fn a_chunk_is_an_eighth_of_the_share_and_all_of_them_are_the_quota() {
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
        assert_eq!(QuotaWindow::Minute.begin(119_999), 60_000);
        assert_eq!(QuotaWindow::Hour.begin(3_600_000), 3_600_000);
        assert_eq!(QuotaWindow::Minute.begin(-1), -60_000);
    }

    #[test]
    fn a_creation_counts_by_whom_it_is_for() {
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
            "whatever the order"
        );
        assert_ne!(one, Charge::of_creation(&audience(r#"{"a": 2, "b": 2}"#)));
    }

    #[test]
    fn a_name_can_stand_in_a_command_and_a_log() {
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
