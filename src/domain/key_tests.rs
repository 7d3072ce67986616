use chrono::TimeDelta;

use super::*;

const RANDOM: [u8; RANDOM_BYTES] = [7; RANDOM_BYTES];

fn now() -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000, 0).expect("an instant")
}

fn key(change: impl FnOnce(&mut ApiKey)) -> (ApiKey, PresentedKey) {
    let new = NewKey::from_random(&RANDOM);
    let mut key = ApiKey::of_tests(&new, now());
    change(&mut key);
    (
        key,
        PresentedKey::parse(new.reveal().as_bytes()).expect("well formed"),
    )
}

#[test]
fn a_key_is_its_id_and_192_bits_of_secret_and_only_this_form_is_one() {
    let new = NewKey::from_random(&RANDOM);
    assert_eq!(
        new.reveal(),
        format!("cs_{}_{}", "07".repeat(8), "07".repeat(24))
    );
    assert_eq!(new.id.to_string(), "cs_0707070707070707");
    assert_eq!(KeyId::parse("cs_0707070707070707"), Ok(new.id));
    let text = new.reveal();
    for wrong in [
        "",
        "cs_",
        "0707070707070707",
        &text[1..],
        &text[..text.len() - 1],
        &format!("{text}0"),
        &text.to_uppercase(),
    ] {
        assert!(PresentedKey::parse(wrong.as_bytes()).is_none(), "{wrong}");
    }
    assert!(PresentedKey::parse(text.replacen('7', "ü", 1).as_bytes()).is_none());
    assert!(PresentedKey::parse(text.replace("7_", "70").as_bytes()).is_none());
    let message = KeyId::parse(text).expect_err("a whole key is not an id");
    assert!(!message.contains(text), "and it is not repeated: {message}");
}

#[test]
fn a_hash_survives_its_storage() {
    let (key, presented) =
        key(|key| key.hash = SecretHash::from_hex(&key.hash.to_hex()).expect("hex"));
    assert_eq!(key.admit(&presented, None, Permission::Read, now()), Ok(()));
    for wrong in ["", "07", &"g".repeat(64), &"0".repeat(65)] {
        assert!(SecretHash::from_hex(wrong).is_none(), "{wrong}");
    }
}

#[test]
fn a_wrong_secret_is_an_unknown_key_whatever_else_is_wrong() {
    let mut other = RANDOM;
    other[31] = 8;
    let other =
        PresentedKey::parse(NewKey::from_random(&other).reveal().as_bytes()).expect("well formed");
    let (key, right) = key(|key| key.revoked_at = Some(now()));
    assert_eq!(other.id, key.id, "the same id, another secret");
    assert_eq!(
        key.admit(&other, None, Permission::Read, now()),
        Err(KeyRefusal::Unknown)
    );
    assert_eq!(
        key.admit(&right, None, Permission::Read, now()),
        Err(KeyRefusal::Revoked)
    );
}

#[test]
fn a_key_works_until_it_expires() {
    let (key, presented) = key(|key| key.expires_at = Some(now()));
    assert_eq!(
        key.admit(
            &presented,
            None,
            Permission::Read,
            now() - TimeDelta::milliseconds(1)
        ),
        Ok(())
    );
    assert_eq!(
        key.admit(&presented, None, Permission::Read, now()),
        Err(KeyRefusal::Expired)
    );
}

#[test]
fn an_allowlist_needs_an_address_in_it() {
    let (key, presented) = key(|key| {
        key.allowlist = networks("10.0.0.0/8, 192.0.2.7,2001:db8::/32").expect("networks")
    });
    let from = |address: &str| {
        key.admit(
            &presented,
            Some(address.parse().expect("an address")),
            Permission::Read,
            now(),
        )
    };
    for inside in ["10.255.0.1", "192.0.2.7", "2001:db8::1", "::ffff:10.0.0.1"] {
        assert_eq!(from(inside), Ok(()), "{inside}");
    }
    for outside in ["11.0.0.1", "192.0.2.8", "2001:db9::1", "::1"] {
        assert_eq!(from(outside), Err(KeyRefusal::Address), "{outside}");
    }
    assert_eq!(
        key.admit(&presented, None, Permission::Read, now()),
        Err(KeyRefusal::Address),
        "an address that is not known is in no list"
    );
}

#[test]
fn a_missing_permission_is_named() {
    let (key, presented) =
        key(|key| key.permissions = Permissions::parse("update, read").expect("permissions"));
    for one in Permission::ALL {
        let expected = if [Permission::Update, Permission::Read].contains(&one) {
            Ok(())
        } else {
            Err(KeyRefusal::Permission(one))
        };
        assert_eq!(key.admit(&presented, None, one, now()), expected);
    }
}

#[test]
fn permissions_are_read_in_either_form_and_every_wrong_one_is_message() {
    let set = Permissions::parse("canvas.trigger.schedule.create,delete").expect("permissions");
    assert_eq!(
        set.to_string(),
        "canvas.trigger.schedule.create,canvas.trigger.schedule.delete"
    );
    assert_eq!(Permissions::from_stored(&set.to_string()), set);
    assert_eq!(
        Permissions::from_stored(&format!("{set},canvas.trigger.schedule.bless")),
        set,
        "of a newer release"
    );
    assert_eq!(Permissions::from_stored(""), Permissions::default());
    assert_eq!(Permissions::parse("all"), Ok(Permissions::all()));
    let message = Permissions::parse("read,write,,admin").expect_err("three are wrong");
    for part in [
        "\"write\"",
        "\"\"",
        "\"admin\"",
        "create, update, delete and read",
    ] {
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn every_invalid_network_is_reported() {
    assert_eq!(networks(""), Ok(vec![]));
    let message = networks("10.0.0.0/8,10.0.0.0/33,here").expect_err("two are wrong");
    assert!(
        message.contains("\"10.0.0.0/33\" and \"here\"") && !message.contains("/8\" and"),
        "{message}"
    );
    assert!(
        networks(&vec!["10.0.0.1"; 51].join(","))
            .expect_err("too many")
            .contains("at most 50")
    );
}
