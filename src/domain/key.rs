//! API keys: their format, their permissions, and the calls that they admit (docs/api.md,
//! SECURITY.md).

// `core::net` has addresses as values; nothing here uses a network.
use core::net::IpAddr;
use std::fmt;

use chrono::{DateTime, Utc};
use ipnet::IpNet;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::id::{WorkspaceId, opaque};
use crate::error::quote;

/// The random bytes of a key: 8 for its id, 24 for its secret.
pub const RANDOM_BYTES: usize = 32;
/// The prefix of every key, by which people and secret scanners recognize one.
const PREFIX: &str = "cs_";
const ID_DIGITS: usize = 16;
const SECRET_DIGITS: usize = 48;
/// The most characters of a key's name.
const MAX_NAME_CHARS: usize = 100;
/// The most networks of one allowlist.
const MAX_ALLOWLIST_NETWORKS: usize = 50;

/// The id of a key; not secret. Shown as `cs_` and 16 hex digits, the beginning of the key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyId(u64);

impl KeyId {
    /// Parses an id. An error does not repeat the value, which may be a whole key.
    pub fn parse(value: &str) -> Result<Self, String> {
        let id = value
            .strip_prefix(PREFIX)
            .and_then(|digits| number(digits.as_bytes()))
            .map(Self);
        id.ok_or_else(|| {
            format!(
                "is not a valid key id; use {PREFIX} and {ID_DIGITS} lower-case hex digits, as \
                 `api-key list` shows them"
            )
        })
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{:016x}", self.0)
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn number(digits: &[u8]) -> Option<u64> {
    if digits.len() != ID_DIGITS {
        return None;
    }
    digits.iter().try_fold(0_u64, |id, digit| {
        Some(id << 4 | u64::from(hex_digit(*digit)?))
    })
}

fn hex_digit(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

/// SHA-256 of a key's secret. A fast hash is enough: 192 random bits cannot be guessed. A slow hash
/// protects secrets that people choose, and would slow down every call.
#[derive(Clone, Copy)]
pub struct SecretHash([u8; 32]);

impl SecretHash {
    fn of(secret: &[u8]) -> Self {
        Self(Sha256::digest(secret).into())
    }

    /// The stored form: 64 hex digits.
    pub fn to_hex(self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Parses the stored form.
    pub fn from_hex(hex: &str) -> Option<Self> {
        let mut bytes = [0; 32];
        if hex.len() != 2 * bytes.len() {
            return None;
        }
        for (byte, pair) in bytes.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
            *byte = hex_digit(pair[0])? << 4 | hex_digit(pair[1])?;
        }
        Some(Self(bytes))
    }

    /// Compares in constant time.
    fn matches(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

/// A new key, the only value that holds its text.
pub struct NewKey {
    /// Its id.
    pub id: KeyId,
    /// The hash of its secret, which is stored.
    pub hash: SecretHash,
    text: String,
}

impl NewKey {
    /// The key with these random bytes.
    pub fn from_random(random: &[u8; RANDOM_BYTES]) -> Self {
        let mut id = [0; 8];
        id.copy_from_slice(&random[..8]);
        let id = KeyId(u64::from_be_bytes(id));
        let secret: String = random[8..]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        Self {
            id,
            hash: SecretHash::of(secret.as_bytes()),
            text: format!("{id}_{secret}"),
        }
    }

    /// The text of the key, to show once.
    pub fn reveal(&self) -> &str {
        &self.text
    }
}

/// A key that a caller presents, with the hash of its secret.
#[derive(Clone, Copy)]
pub struct PresentedKey {
    /// The id in its text.
    pub id: KeyId,
    hash: SecretHash,
}

impl PresentedKey {
    /// Parses a key; none if the text does not have the format of one.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let rest = text.strip_prefix(PREFIX.as_bytes())?;
        let (id, secret) = (rest.get(..ID_DIGITS)?, rest.get(ID_DIGITS + 1..)?);
        let well_formed = rest[ID_DIGITS] == b'_'
            && secret.len() == SECRET_DIGITS
            && secret.iter().all(|digit| hex_digit(*digit).is_some());
        well_formed.then_some(Self {
            id: KeyId(number(id)?),
            hash: SecretHash::of(secret),
        })
    }
}

/// A permission of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Permission {
    /// Create schedules.
    Create,
    /// Replace schedules and retry their dead letters.
    Update,
    /// Cancel schedules.
    Delete,
    /// Read and list schedules and dispatches.
    Read,
}

impl Permission {
    /// All permissions.
    pub const ALL: [Self; 4] = [Self::Create, Self::Update, Self::Delete, Self::Read];

    /// The name that callers and operators use.
    pub fn name(self) -> &'static str {
        match self {
            Self::Create => "canvas.trigger.schedule.create",
            Self::Update => "canvas.trigger.schedule.update",
            Self::Delete => "canvas.trigger.schedule.delete",
            Self::Read => "canvas.trigger.schedule.read",
        }
    }
}

/// A set of permissions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Permissions(u8);

impl Permissions {
    /// All of them.
    pub fn all() -> Self {
        Permission::ALL
            .into_iter()
            .fold(Self::default(), Self::with)
    }

    fn with(self, one: Permission) -> Self {
        Self(self.0 | 1 << one as u8)
    }

    /// Parses the output of [`fmt::Display`]. Permissions of a newer release are ignored.
    pub fn from_stored(list: &str) -> Self {
        let known = list
            .split(',')
            .filter_map(|name| Permission::ALL.into_iter().find(|one| one.name() == name));
        known.fold(Self::default(), Self::with)
    }

    /// Whether the set contains `one`.
    pub fn contains(self, one: Permission) -> bool {
        self.0 & 1 << one as u8 != 0
    }

    /// Parses names separated by commas, in full or only their last part, or `all`. An error lists
    /// every invalid name.
    pub fn parse(list: &str) -> Result<Self, String> {
        if list.trim() == "all" {
            return Ok(Self::all());
        }
        let known = |name: &str| {
            let matches = |one: &Permission| {
                one.name() == name || one.name().rsplit('.').next() == Some(name)
            };
            Permission::ALL.into_iter().find(matches)
        };
        let (mut set, mut wrong) = (Self::default(), Vec::new());
        for name in list.split(',').map(str::trim) {
            match known(name) {
                Some(one) => set = set.with(one),
                None => wrong.push(quote(name)),
            }
        }
        if wrong.is_empty() {
            return Ok(set);
        }
        Err(format!(
            "{} is not a valid permission; use any of create, update, delete and read, \
             separated by commas, or all",
            wrong.join(" and ")
        ))
    }
}

impl fmt::Display for Permissions {
    /// Full names separated by commas, the stored form.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = Permission::ALL
            .into_iter()
            .filter(|one| self.contains(*one))
            .map(Permission::name)
            .collect();
        f.write_str(&names.join(","))
    }
}

/// Parses networks separated by commas, such as `10.0.0.0/8,2001:db8::/32`; a single address is a
/// network of one. An error lists every invalid entry.
pub fn networks(list: &str) -> Result<Vec<IpNet>, String> {
    let entries: Vec<&str> = list
        .split(',')
        .map(str::trim)
        .filter(|entry| !entry.is_empty())
        .collect();
    if entries.len() > MAX_ALLOWLIST_NETWORKS {
        return Err(format!(
            "has {} networks; at most {MAX_ALLOWLIST_NETWORKS} are allowed",
            entries.len()
        ));
    }
    let network = |entry: &&str| {
        entry
            .parse::<IpNet>()
            .or_else(|_| entry.parse::<IpAddr>().map(IpNet::from))
    };
    let (good, wrong): (Vec<_>, Vec<_>) = entries
        .iter()
        .map(|entry| (entry, network(entry)))
        .partition(|(_, parsed)| parsed.is_ok());
    if wrong.is_empty() {
        return Ok(good
            .into_iter()
            .filter_map(|(_, parsed)| parsed.ok())
            .map(|network| network.trunc())
            .collect());
    }
    let wrong: Vec<_> = wrong.into_iter().map(|(entry, _)| quote(entry)).collect();
    Err(format!(
        "{} is not a valid network; use addresses or networks such as 192.0.2.7 or 10.0.0.0/8, \
         separated by commas",
        wrong.join(" and ")
    ))
}

/// Whether one of `networks` contains `address`. An IPv4 address mapped to IPv6 counts as IPv4.
pub fn lies_in(networks: &[IpNet], address: IpAddr) -> bool {
    let address = address.to_canonical();
    networks.iter().any(|network| network.contains(&address))
}

/// Checks the name of a key.
pub fn check_name(name: &str) -> Result<(), String> {
    opaque(name, MAX_NAME_CHARS)
}

/// A key as it is stored.
#[derive(Clone)]
pub struct ApiKey {
    /// Its id.
    pub id: KeyId,
    /// The workspace whose schedules it may use.
    pub workspace: WorkspaceId,
    /// Unique within the workspace; the actor in the history.
    pub name: String,
    /// The hash of its secret.
    pub hash: SecretHash,
    /// Its permissions.
    pub permissions: Permissions,
    /// When it expires, if it does.
    pub expires_at: Option<DateTime<Utc>>,
    /// The networks from which it may be used; empty means anywhere.
    pub allowlist: Vec<IpNet>,
    /// When it was created.
    pub created_at: DateTime<Utc>,
    /// When it was revoked.
    pub revoked_at: Option<DateTime<Utc>>,
    /// When it was last used, to about a minute.
    pub last_used_at: Option<DateTime<Utc>>,
}

/// Why a key does not admit a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyRefusal {
    /// The id is unknown or the secret is wrong; callers do not learn which.
    Unknown,
    /// It was revoked.
    Revoked,
    /// It has expired.
    Expired,
    /// The caller's address is not in the allowlist, or is unknown.
    Address,
    /// It lacks this permission.
    Permission(Permission),
}

impl ApiKey {
    /// Admits or refuses a call with this key. Only a caller with the secret gets a reason other
    /// than [`KeyRefusal::Unknown`].
    pub fn admit(
        &self,
        presented: &PresentedKey,
        from: Option<IpAddr>,
        needs: Permission,
        now: DateTime<Utc>,
    ) -> Result<(), KeyRefusal> {
        if presented.id != self.id || !self.hash.matches(&presented.hash) {
            return Err(KeyRefusal::Unknown);
        }
        if self.revoked_at.is_some() {
            return Err(KeyRefusal::Revoked);
        }
        if self.expires_at.is_some_and(|at| at <= now) {
            return Err(KeyRefusal::Expired);
        }
        if !self.allowlist.is_empty()
            && !from.is_some_and(|address| lies_in(&self.allowlist, address))
        {
            return Err(KeyRefusal::Address);
        }
        if !self.permissions.contains(needs) {
            return Err(KeyRefusal::Permission(needs));
        }
        Ok(())
    }
}

#[cfg(test)]
impl ApiKey {
    /// The key `test` of the workspace `default`, with all permissions and no allowlist.
    pub fn of_tests(new: &NewKey, created_at: DateTime<Utc>) -> Self {
        let (id, hash, permissions) = (new.id, new.hash, Permissions::all());
        let (expires_at, revoked_at, last_used_at) = (None, None, None);
        let (workspace, name, allowlist) = (WorkspaceId::DEFAULT, "test".to_owned(), vec![]);
        Self {
            id,
            workspace,
            name,
            hash,
            permissions,
            expires_at,
            allowlist,
            created_at,
            revoked_at,
            last_used_at,
        }
    }
}

#[cfg(test)]
#[path = "key_tests.rs"]
mod tests;
