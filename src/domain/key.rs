//! API keys: what one looks like, what it may do, and whether a call is let in.

// `core::net` is addresses as values; nothing here talks to a network.
use core::net::IpAddr;
use std::fmt;

use chrono::{DateTime, Utc};
use ipnet::IpNet;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::id::{WorkspaceId, opaque};
use crate::error::quote;

/// Random bytes that make a key: 8 of its id, 24 of its secret.
pub const RANDOM_BYTES: usize = 32;
/// What every key begins with, so that people and scanners know one.
const PREFIX: &str = "cs_";
const ID_DIGITS: usize = 16;
const SECRET_DIGITS: usize = 48;
/// The most characters of a key's name.
const MAX_NAME_CHARS: usize = 100;
/// The most networks of one allowlist.
const MAX_ALLOWLIST_NETWORKS: usize = 50;

/// Names a key; no secret. Shown as `cs_` and 16 hex digits, which is how the key begins.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyId(u64);

impl KeyId {
    /// # Errors
    /// What would be right. The value is not repeated: it may be a whole key.
    pub fn parse(value: &str) -> Result<Self, String> {
        let id = value
            .strip_prefix(PREFIX)
            .and_then(|digits| number(digits.as_bytes()))
            .map(Self);
        id.ok_or_else(|| format!("is not the id of a key; `api-key list` shows them: {PREFIX} and {ID_DIGITS} lower-case hex digits"))
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

/// SHA-256 of a key's secret. A fast hash is enough: the secret is 192 random bits, so that nobody finds it by trying, however
/// fast the hash; a slow one protects secrets that people choose, and would cost each call its time.
#[derive(Clone, Copy)]
pub struct SecretHash([u8; 32]);

impl SecretHash {
    fn of(secret: &[u8]) -> Self {
        Self(Sha256::digest(secret).into())
    }

    /// As it is stored: 64 hex digits.
    pub fn to_hex(self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// As it was stored.
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

    /// Takes as long whatever differs.
    fn is(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

/// A key that was just made: the only moment at which its text is there.
pub struct NewKey {
    /// Its id.
    pub id: KeyId,
    /// What is stored of its secret.
    pub hash: SecretHash,
    text: String,
}

impl NewKey {
    /// The key that these random bytes make.
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

    /// The whole key, to be shown once.
    pub fn reveal(&self) -> &str {
        &self.text
    }
}

/// A key as a caller presents it; of its secret only the hash.
#[derive(Clone, Copy)]
pub struct PresentedKey {
    /// The key that it claims to be.
    pub id: KeyId,
    hash: SecretHash,
}

impl PresentedKey {
    /// None when the text is no key at all.
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

/// What a key may be allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Permission {
    /// To schedule.
    Create,
    /// To replace schedules and retry their dispatches.
    Update,
    /// To cancel.
    Delete,
    /// To read and list.
    Read,
}

impl Permission {
    /// Every one.
    pub const ALL: [Self; 4] = [Self::Create, Self::Update, Self::Delete, Self::Read];

    /// The name, as callers and operators know it.
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

    /// Reads what [`fmt::Display`] wrote. What a newer release allows besides is not allowed here.
    pub fn from_stored(list: &str) -> Self {
        let known = list
            .split(',')
            .filter_map(|name| Permission::ALL.into_iter().find(|one| one.name() == name));
        known.fold(Self::default(), Self::with)
    }

    /// Whether `one` is among them.
    pub fn include(self, one: Permission) -> bool {
        self.0 & 1 << one as u8 != 0
    }

    /// Reads names separated by commas, whole or their last word, or `all`.
    ///
    /// # Errors
    /// Every name that is none, and those that are, without the field's name.
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
            "{} is no permission; some of create, update, delete, read are needed, separated by commas, or all",
            wrong.join(" and ")
        ))
    }
}

impl fmt::Display for Permissions {
    /// Whole names separated by commas, as they are stored.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = Permission::ALL
            .into_iter()
            .filter(|one| self.include(*one))
            .map(Permission::name)
            .collect();
        f.write_str(&names.join(","))
    }
}

/// Networks separated by commas, such as `10.0.0.0/8,2001:db8::/32`; an address alone is a network of one.
///
/// # Errors
/// Every entry that is none, without the field's name.
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
        "{} is no network; addresses such as 192.0.2.7 or 10.0.0.0/8 are needed, separated by commas",
        wrong.join(" and ")
    ))
}

/// Whether `address` lies in one of `networks`. One of IPv4 that came over IPv6 counts as what it is.
pub fn lies_in(networks: &[IpNet], address: IpAddr) -> bool {
    let address = address.to_canonical();
    networks.iter().any(|network| network.contains(&address))
}

/// Checks what a key is called.
///
/// # Errors
/// What is wrong and what would be right, without the field's name.
pub fn check_name(name: &str) -> Result<(), String> {
    opaque(name, MAX_NAME_CHARS)
}

/// A key as the service knows it.
#[derive(Clone)]
pub struct ApiKey {
    /// Its id.
    pub id: KeyId,
    /// Where it may act.
    pub workspace: WorkspaceId,
    /// Unique within the workspace; the history names it.
    pub name: String,
    /// Of its secret.
    pub hash: SecretHash,
    /// What it may do.
    pub permissions: Permissions,
    /// When it stops working by itself.
    pub expires_at: Option<DateTime<Utc>>,
    /// Where it may be used from; empty means anywhere.
    pub allowlist: Vec<IpNet>,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it was made to stop.
    pub revoked_at: Option<DateTime<Utc>>,
    /// When it was last used, to about a minute.
    pub last_used_at: Option<DateTime<Utc>>,
}

/// Why a key does not let a call in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyRefusal {
    /// There is no such key, or its secret is another one: these are not told apart.
    Unknown,
    /// It was revoked.
    Revoked,
    /// It has expired.
    Expired,
    /// The caller's address is not in its allowlist, or not known.
    Address,
    /// It has not this permission.
    Permission(Permission),
}

impl ApiKey {
    /// Whether a call with this key may go on. Only who knows the secret learns more than [`KeyRefusal::Unknown`].
    ///
    /// # Errors
    /// The first reason why not.
    pub fn admit(
        &self,
        presented: &PresentedKey,
        from: Option<IpAddr>,
        needs: Permission,
        now: DateTime<Utc>,
    ) -> Result<(), KeyRefusal> {
        if presented.id != self.id || !self.hash.is(&presented.hash) {
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
        if !self.permissions.include(needs) {
            return Err(KeyRefusal::Permission(needs));
        }
        Ok(())
    }
}

#[cfg(test)]
impl ApiKey {
    /// The key `test` of the workspace `default`, which may do everything from anywhere.
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
