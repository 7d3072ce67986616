//! What the sinks share to derive the outcome of a delivery.

use std::error::Error;
use std::time::Duration;

use super::DeliveryOutcome;

/// The longest wait that a consumer may request; a longer one counts as this.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(3600);
/// The most characters of a reason.
const MAX_WHY_CHARS: usize = 300;

/// The outcome of an HTTP status: of a webhook, of a proxy in front of a gRPC engine, or of a
/// JetStream error, which has HTTP's codes.
pub(super) fn by_http_status(
    status: u16,
    retry_after: Option<Duration>,
    why: String,
) -> DeliveryOutcome {
    match status {
        200..=299 => DeliveryOutcome::Delivered,
        429 | 503 => DeliveryOutcome::NotTaken {
            why,
            retry_after: limit_wait(retry_after),
        },
        300..=499 => DeliveryOutcome::Rejected { why },
        _ => DeliveryOutcome::Unknown { why },
    }
}

/// The wait, up to the maximum.
pub(super) fn limit_wait(retry_after: Option<Duration>) -> Option<Duration> {
    retry_after.map(|wait| wait.min(MAX_RETRY_AFTER))
}

/// The text of a transport error with its causes. It repeats nothing that the consumer wrote.
pub(super) fn error_chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(why) = cause {
        text = format!("{text}: {why}");
        cause = why.source();
    }
    if let Some((cut, _)) = text.char_indices().nth(MAX_WHY_CHARS) {
        text.truncate(cut);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_http_status_has_its_outcome() {
        let why = String::new;
        let not_taken = |retry_after| DeliveryOutcome::NotTaken {
            why: why(),
            retry_after,
        };
        let minute = Some(Duration::from_secs(60));
        let cases = [
            (200, None, DeliveryOutcome::Delivered),
            (204, None, DeliveryOutcome::Delivered),
            (299, None, DeliveryOutcome::Delivered),
            (301, None, DeliveryOutcome::Rejected { why: why() }),
            (302, None, DeliveryOutcome::Rejected { why: why() }),
            (307, minute, DeliveryOutcome::Rejected { why: why() }),
            (400, None, DeliveryOutcome::Rejected { why: why() }),
            (401, None, DeliveryOutcome::Rejected { why: why() }),
            (404, None, DeliveryOutcome::Rejected { why: why() }),
            (409, None, DeliveryOutcome::Rejected { why: why() }),
            (410, None, DeliveryOutcome::Rejected { why: why() }),
            (429, None, not_taken(None)),
            (429, minute, not_taken(minute)),
            (503, minute, not_taken(minute)),
            (
                503,
                Some(Duration::from_secs(86_400)),
                not_taken(Some(MAX_RETRY_AFTER)),
            ),
            (500, None, DeliveryOutcome::Unknown { why: why() }),
            (502, None, DeliveryOutcome::Unknown { why: why() }),
            (504, minute, DeliveryOutcome::Unknown { why: why() }),
            (101, None, DeliveryOutcome::Unknown { why: why() }),
        ];
        for (status, retry_after, answer) in cases {
            assert_eq!(
                by_http_status(status, retry_after, why()),
                answer,
                "{status}"
            );
        }
    }

    #[test]
    fn a_long_chain_is_cut_between_characters() {
        let error = std::io::Error::other("ü".repeat(1000));
        assert_eq!(error_chain(&error).chars().count(), MAX_WHY_CHARS);
    }
}
