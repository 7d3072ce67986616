//! The payload of a schedule: properties and target (docs/api.md).

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::id::{PropertiesId, ScheduleId, opaque};
use super::zone::{Zone, ZoneSet};
use crate::error::{Violations, quote};

/// The most bytes of all properties of a request together, as compact JSON.
pub const MAX_PROPERTIES_BYTES: usize = 50 * 1024;
/// How deep properties may nest; the object itself is the first level.
pub const MAX_PROPERTIES_DEPTH: usize = 30;
/// The most recipients of one request.
pub const MAX_RECIPIENTS: usize = 50;
/// The most characters of an identifier.
pub const MAX_IDENTIFIER_CHARS: usize = 255;
/// The most entries of `prioritization`.
pub const MAX_PRIORITIZATION_ENTRIES: usize = 10;

/// A JSON object for templates. Its keys are sorted, so equal properties have equal text.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Properties(pub Map<String, Value>);

impl Properties {
    /// The compact JSON text, the same for equal properties.
    pub fn canonical(&self) -> String {
        Value::Object(self.0.clone()).to_string()
    }

    /// The id of these properties within `schedule`.
    pub fn id(&self, schedule: ScheduleId) -> PropertiesId {
        PropertiesId::of(schedule, &self.canonical())
    }

    /// Adds the violations of these properties, sent as `field`.
    pub fn check(&self, field: &str, violations: &mut Violations) {
        check_object(&self.0, field, violations);
    }
}

/// How a recipient is identified.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Identifier {
    /// The caller's own id of the user.
    ExternalUserId(String),
    /// An alias.
    UserAlias {
        /// The alias.
        alias_name: String,
        /// Its kind.
        alias_label: String,
    },
    /// An email address.
    Email(String),
}

/// One user to send to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Recipient {
    /// The user.
    pub identifier: Identifier,
    /// Which of several users with the same address to prefer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub prioritization: Vec<String>,
    /// Values for this user's message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trigger_properties: Option<Properties>,
    /// Passed on unchanged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub send_to_existing_only: Option<bool>,
    /// Passed on unchanged; only `time_zone` is used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attributes: Option<Map<String, Value>>,
}

impl Recipient {
    /// The zone that the caller stated, if any. Valid only after [`Target::check`] found no
    /// violation.
    fn zone(&self) -> Option<Zone> {
        let stated = self.attributes.as_ref()?.get("time_zone")?;
        stated.as_str().and_then(|name| Zone::parse(name).ok())
    }

    /// Adds the violations, except those of the properties, which [`Properties::check`] finds.
    fn check(&self, field: &str, violations: &mut Violations) {
        let mut check = |name: &str, value: &str| {
            if let Err(why) = opaque(value, MAX_IDENTIFIER_CHARS) {
                violations.add(format!("{field}.{name}"), why);
            }
        };
        match &self.identifier {
            Identifier::ExternalUserId(id) => check("external_user_id", id),
            Identifier::Email(address) => check("email", address),
            Identifier::UserAlias {
                alias_name,
                alias_label,
            } => {
                check("user_alias.alias_name", alias_name);
                check("user_alias.alias_label", alias_label);
            }
        }
        self.prioritization
            .iter()
            .for_each(|entry| check("prioritization", entry));
        self.check_prioritization(field, violations);
        if let Some(attributes) = &self.attributes {
            check_object(attributes, &format!("{field}.attributes"), violations);
            check_zone(attributes, field, violations);
        }
    }

    fn check_prioritization(&self, field: &str, violations: &mut Violations) {
        let field = format!("{field}.prioritization");
        if !self.prioritization.is_empty() && !matches!(self.identifier, Identifier::Email(_)) {
            violations.add(
                &field,
                "is allowed only with email; remove it, or identify the recipient by email",
            );
        }
        if self.prioritization.len() > MAX_PRIORITIZATION_ENTRIES {
            let message = format!(
                "has {} entries; at most {MAX_PRIORITIZATION_ENTRIES} are allowed",
                self.prioritization.len()
            );
            violations.add(&field, message);
        }
    }
}

/// Rejects an unknown stated zone. Replacing it with another zone would send at the wrong time,
/// without an error.
fn check_zone(attributes: &Map<String, Value>, field: &str, violations: &mut Violations) {
    let wrong = match attributes.get("time_zone") {
        None | Some(Value::Null) => None,
        Some(Value::String(name)) => Zone::parse(name).err(),
        Some(other) => Some(format!(
            "{} is not a string; send an IANA time zone name such as Europe/Paris",
            quote(&other.to_string())
        )),
    };
    if let Some(why) = wrong {
        violations.add(format!("{field}.attributes.time_zone"), why);
    }
}

/// The users that a schedule sends to. Never changes after creation.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Target {
    /// Individual users.
    pub recipients: Vec<Recipient>,
    /// A filter for the Canvas engine.
    pub audience: Option<Map<String, Value>>,
    /// Every user that the Canvas targets.
    pub broadcast: bool,
}

impl Target {
    /// Adds all violations.
    pub fn check(&self, violations: &mut Violations) {
        let some = !self.recipients.is_empty() || self.audience.is_some();
        if !some && !self.broadcast {
            violations.add(
                "recipients",
                "are missing; send recipients, an audience or broadcast: true",
            );
        }
        if some && self.broadcast {
            violations.add(
                "broadcast",
                "cannot be combined with recipients or an audience; send one or the other",
            );
        }
        for (n, recipient) in self.recipients.iter().enumerate() {
            recipient.check(&format!("recipients[{n}]"), violations);
        }
        if let Some(audience) = &self.audience {
            check_object(audience, "audience", violations);
        }
    }

    /// The target without duplicates. Of recipients with equal identifiers the last one wins, at
    /// the position of the first.
    #[must_use]
    pub fn collapsed(self) -> Self {
        let mut kept: Vec<Recipient> = Vec::with_capacity(self.recipients.len());
        for recipient in self.recipients {
            match kept
                .iter_mut()
                .find(|earlier| earlier.identifier == recipient.identifier)
            {
                Some(earlier) => *earlier = recipient,
                None => kept.push(recipient),
            }
        }
        Self {
            recipients: kept,
            ..self
        }
    }

    /// The target of a wave of these zones. A recipient with a stated zone is in the wave of that
    /// zone only; the consumer knows the zones of the others. `shared` is merged into the
    /// properties of each recipient, which take precedence key by key.
    #[must_use]
    pub fn within(mut self, zones: &ZoneSet, shared: &Properties) -> Self {
        self.recipients
            .retain(|recipient| recipient.zone().is_none_or(|zone| zones.contains(zone)));
        for recipient in &mut self.recipients {
            let mut merged = shared.clone();
            merged
                .0
                .extend(recipient.trigger_properties.take().unwrap_or_default().0);
            recipient.trigger_properties = (!merged.0.is_empty()).then_some(merged);
        }
        self
    }

    /// The zones that get waves, if not all: every recipient states one, without audience or
    /// broadcast.
    pub fn stated_zones(&self) -> Option<ZoneSet> {
        if self.broadcast || self.audience.is_some() || self.recipients.is_empty() {
            return None;
        }
        self.recipients.iter().map(Recipient::zone).collect()
    }
}

/// The total bytes of the properties of a creation, as compact JSON.
pub fn properties_bytes(own: Option<&Properties>, target: &Target) -> usize {
    let of_recipients = target
        .recipients
        .iter()
        .filter_map(|recipient| recipient.trigger_properties.as_ref());
    own.into_iter()
        .chain(of_recipients)
        .map(|properties| properties.canonical().len())
        .sum()
}

/// Adds a violation when a request has too many recipients.
pub fn check_count(recipients: usize, violations: &mut Violations) {
    if recipients > MAX_RECIPIENTS {
        let message = format!("has {recipients} recipients; at most {MAX_RECIPIENTS} are allowed");
        violations.add("recipients", message);
    }
}

/// Adds a violation when the properties of a request exceed the maximum in total.
pub fn check_bytes(bytes: usize, violations: &mut Violations) {
    if bytes > MAX_PROPERTIES_BYTES {
        let message = format!(
            "all properties of the request total {bytes} bytes of JSON; at most \
             {MAX_PROPERTIES_BYTES} are allowed"
        );
        violations.add("trigger_properties", message);
    }
}

fn check_object(object: &Map<String, Value>, field: &str, violations: &mut Violations) {
    let mut scan = ObjectScan::default();
    object
        .iter()
        .for_each(|(key, value)| scan.visit(key, value, 1));
    if scan.deepest > MAX_PROPERTIES_DEPTH {
        let message = format!(
            "is nested {} levels deep; at most {MAX_PROPERTIES_DEPTH} are allowed",
            scan.deepest
        );
        violations.add(field, message);
    }
    if let Some(key) = scan.nul_under {
        violations.add(
            field,
            format!("contains a NUL character at {}; remove it", quote(&key)),
        );
    }
}

/// A scan of a JSON object.
#[derive(Default)]
struct ObjectScan {
    deepest: usize,
    nul_under: Option<String>,
}

impl ObjectScan {
    /// Visits a value at this depth. The decoder limits the recursion.
    fn visit(&mut self, key: &str, value: &Value, depth: usize) {
        self.deepest = self.deepest.max(depth);
        let nul = key.contains('\0') || value.as_str().is_some_and(|text| text.contains('\0'));
        if nul && self.nul_under.is_none() {
            self.nul_under = Some(key.to_owned());
        }
        match value {
            Value::Object(inner) => {
                self.deepest = self.deepest.max(depth + 1);
                inner
                    .iter()
                    .for_each(|(key, value)| self.visit(key, value, depth + 1));
            }
            Value::Array(inner) => {
                self.deepest = self.deepest.max(depth + 1);
                inner
                    .iter()
                    .for_each(|value| self.visit(key, value, depth + 1));
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(value: Value) -> Map<String, Value> {
        value.as_object().expect("an object").clone()
    }

    fn user(id: &str, zone: Option<&str>) -> Recipient {
        Recipient {
            identifier: Identifier::ExternalUserId(id.to_owned()),
            prioritization: vec![],
            trigger_properties: None,
            send_to_existing_only: None,
            attributes: zone.map(|zone| object(json!({ "time_zone": zone }))),
        }
    }

    fn nested(depth: usize) -> Properties {
        let inner = (1..depth).fold(json!({}), |inner, _| json!({ "a": inner }));
        Properties(object(inner))
    }

    fn faults(check: impl FnOnce(&mut Violations)) -> Vec<String> {
        let mut violations = Violations::default();
        check(&mut violations);
        violations.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn thirty_levels_pass_and_thirty_one_do_not() {
        assert_eq!(
            faults(|all| nested(30).check("p", all)),
            Vec::<String>::new()
        );
        assert!(faults(|all| nested(31).check("p", all))[0].contains("nested 31 levels deep"));
    }

    #[test]
    fn a_target_reports_all_violations_together() {
        let mut wrong = user("", Some("Europe/Berln"));
        wrong.prioritization = vec!["most_recently_updated".to_owned()];
        let target = Target {
            recipients: vec![wrong],
            audience: None,
            broadcast: true,
        };
        let all = faults(|all| target.check(all));
        for field in [
            "broadcast",
            "recipients[0].external_user_id",
            "recipients[0].prioritization",
            "recipients[0].attributes.time_zone",
        ] {
            assert!(
                all.iter().any(|one| one.starts_with(field)),
                "{field} in {all:?}"
            );
        }
    }

    #[test]
    fn of_duplicates_the_last_wins() {
        let target = Target {
            recipients: vec![
                user("a", None),
                user("b", None),
                user("a", Some("Asia/Tokyo")),
            ],
            ..Target::default()
        };
        let kept = target.collapsed().recipients;
        assert_eq!(kept, [user("a", Some("Asia/Tokyo")), user("b", None)]);
    }

    #[test]
    fn only_recipients_that_all_state_a_zone_limit_the_zones() {
        let of = |recipients| {
            Target {
                recipients,
                ..Target::default()
            }
            .stated_zones()
            .map(|zones| zones.names())
        };
        assert_eq!(
            of(vec![user("a", Some("asia/tokyo")), user("b", Some("UTC"))]),
            Some(vec!["Asia/Tokyo", "UTC"])
        );
        assert_eq!(
            of(vec![user("a", Some("Asia/Tokyo")), user("b", None)]),
            None
        );
        let with_audience = Target {
            audience: Some(Map::new()),
            recipients: vec![user("a", Some("UTC"))],
            broadcast: false,
        };
        assert_eq!(with_audience.stated_zones(), None);
    }

    #[test]
    fn a_wave_is_for_those_in_its_zones_with_their_own_properties_on_top() {
        let shared = Properties(object(json!({ "a": 1, "b": 1 })));
        let own = Recipient {
            trigger_properties: Some(Properties(object(json!({ "b": 2, "c": 2 })))),
            ..user("a", Some("Asia/Tokyo"))
        };
        let target = Target {
            recipients: vec![own, user("b", Some("UTC")), user("c", None)],
            ..Target::default()
        };
        let zones = [Zone::parse("Asia/Tokyo").expect("a zone")]
            .into_iter()
            .collect();
        let wave = target.clone().within(&zones, &shared).recipients;
        let payloads = wave
            .iter()
            .map(|user| (user.identifier.clone(), json!(user.trigger_properties)))
            .collect::<Vec<_>>();
        let id = |id: &str| Identifier::ExternalUserId(id.to_owned());
        assert_eq!(
            payloads,
            [
                (id("a"), json!({ "a": 1, "b": 2, "c": 2 })),
                (id("c"), json!({ "a": 1, "b": 1 }))
            ]
        );
        assert_eq!(
            target.within(&zones, &Properties::default()).recipients[1].trigger_properties,
            None,
            "no properties at all are None"
        );
    }

    #[test]
    fn equal_properties_have_one_id_in_any_order_of_keys() {
        let schedule = ScheduleId::new();
        let a = Properties(object(
            serde_json::from_str(r#"{"x":1,"y":{"b":2,"a":3}}"#).expect("JSON"),
        ));
        let b = Properties(object(
            serde_json::from_str(r#"{"y":{"a":3,"b":2},"x":1}"#).expect("JSON"),
        ));
        assert_eq!(a.id(schedule), b.id(schedule));
        assert_ne!(a.id(schedule), a.id(ScheduleId::new()));
    }
}
