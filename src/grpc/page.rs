//! Page sizes and page tokens.

use std::hash::{DefaultHasher, Hash, Hasher};

use crate::error::{Violations, quote};

/// The size of a page when none is stated.
const SIZE_DEFAULT: u64 = 50;
/// The largest page.
const SIZE_MAX: i32 = 1_000;

/// The size of the page that a caller asks for.
pub(super) fn size(sent: i32, violations: &mut Violations) -> u64 {
    match sent {
        0 => SIZE_DEFAULT,
        1..=SIZE_MAX => u64::from(sent.unsigned_abs()),
        _ => {
            violations.add(
                "page_size",
                format!(
                    "{sent} is not a valid page size; send 1 to {SIZE_MAX}, or 0 for {SIZE_DEFAULT}"
                ),
            );
            SIZE_DEFAULT
        }
    }
}

/// The last entry of a page: a number, and a second one where the first alone does not say it.
pub(super) type Last = (u128, u32);

/// The token of the page after `last` of the list that `query` describes: opaque, and of use for
/// that list only.
pub(super) fn token(query: &impl Hash, (last, second): Last) -> String {
    format!("{:016x}{last:032x}{second:08x}", fingerprint(query))
}

/// The last entry of the previous page, from the page token; None for the first page.
pub(super) fn after(sent: &str, query: &impl Hash, violations: &mut Violations) -> Option<Last> {
    if sent.is_empty() {
        return None;
    }
    let split = sent
        .split_at_checked(16)
        .filter(|(_, last)| last.len() == 40 && last.is_ascii());
    let last = split.and_then(|(list, last)| {
        let same = u64::from_str_radix(list, 16).ok()? == fingerprint(query);
        let (last, second) = last.split_at_checked(32).filter(|_| same)?;
        Some((
            u128::from_str_radix(last, 16).ok()?,
            u32::from_str_radix(second, 16).ok()?,
        ))
    });
    if last.is_none() {
        let message = format!(
            "{} is not a valid page token of this list; send the next_page_token of a page with \
             the same filters",
            quote(sent)
        );
        violations.add("page_token", message);
    }
    last
}

/// Fixed for a build: a token of another release is refused, and the list is begun again.
fn fingerprint(query: &impl Hash) -> u64 {
    let mut hash = DefaultHasher::new();
    query.hash(&mut hash);
    hash.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_of_its_own_list_only() {
        let mut violations = Violations::default();
        let token = token(&"a", (7, 9));
        assert_eq!(after(&token, &"a", &mut violations), Some((7, 9)));
        assert!(violations.is_empty());
        for (wrong, query) in [
            (token.as_str(), "b"),
            ("x", "a"),
            (&token[1..], "a"),
            ("ü000000000000000", "a"),
        ] {
            assert_eq!(after(wrong, &query, &mut violations), None, "{wrong}");
        }
        assert_eq!(violations.len(), 4);
    }

    #[test]
    fn sizes_out_of_bounds_are_refused() {
        let mut violations = Violations::default();
        assert_eq!(
            [0, 1, 1000].map(|sent| size(sent, &mut violations)),
            [50, 1, 1000]
        );
        assert!(violations.is_empty());
        size(-1, &mut violations);
        size(1001, &mut violations);
        assert_eq!(violations.len(), 2);
    }
}
