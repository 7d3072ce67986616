//! What the sinks share in judging an answer.

use std::error::Error;
use std::time::Duration;

use super::Answer;

/// The longest wait that a consumer may ask for; a longer one counts as this.
const RETRY_AFTER_MOST: Duration = Duration::from_secs(3600);
/// The most characters of a reason.
const WHY_MOST: usize = 300;

/// The answer that an HTTP status is: also that of a proxy before a gRPC engine, and of a JetStream error, whose codes are HTTP's.
pub(super) fn by_http_status(status: u16, retry_after: Option<Duration>, why: String) -> Answer {
    match status {
        200..=299 => Answer::Delivered,
        429 | 503 => Answer::NotTaken {
            why,
            retry_after: bounded(retry_after),
        },
        300..=499 => Answer::Rejected { why },
        _ => Answer::Unknown { why },
    }
}

/// A wait that is not too long.
pub(super) fn bounded(retry_after: Option<Duration>) -> Option<Duration> {
    retry_after.map(|wait| wait.min(RETRY_AFTER_MOST))
}

/// An error of the transport with its causes. It holds nothing that the consumer wrote.
pub(super) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(why) = cause {
        text = format!("{text}: {why}");
        cause = why.source();
    }
    if let Some((cut, _)) = text.char_indices().nth(WHY_MOST) {
        text.truncate(cut);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_http_status_has_its_answer() {
        let why = String::new;
        let not_taken = |retry_after| Answer::NotTaken {
            why: why(),
            retry_after,
        };
        let minute = Some(Duration::from_secs(60));
        let cases = [
            (200, None, Answer::Delivered),
            (204, None, Answer::Delivered),
            (299, None, Answer::Delivered),
            (301, None, Answer::Rejected { why: why() }),
            (302, None, Answer::Rejected { why: why() }),
            (307, minute, Answer::Rejected { why: why() }),
            (400, None, Answer::Rejected { why: why() }),
            (401, None, Answer::Rejected { why: why() }),
            (404, None, Answer::Rejected { why: why() }),
            (409, None, Answer::Rejected { why: why() }),
            (410, None, Answer::Rejected { why: why() }),
            (429, None, not_taken(None)),
            (429, minute, not_taken(minute)),
            (503, minute, not_taken(minute)),
            (
                503,
                Some(Duration::from_secs(86_400)),
                not_taken(Some(RETRY_AFTER_MOST)),
            ),
            (500, None, Answer::Unknown { why: why() }),
            (502, None, Answer::Unknown { why: why() }),
            (504, minute, Answer::Unknown { why: why() }),
            (101, None, Answer::Unknown { why: why() }),
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
        assert_eq!(chain(&error).chars().count(), WHY_MOST);
    }
}
