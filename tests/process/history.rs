//! Compares the history that the service keeps with the answers that its callers received.

use std::collections::{HashMap, HashSet};

use canvas_scheduler::pb::v1;
use tonic::{Code, Status};

use super::load::{Call, Cancellation, millis};
use super::server::Client;

/// Every schedule with its revisions, the oldest first.
pub(crate) struct History(HashMap<String, Vec<Revision>>);

/// A revision of a schedule.
struct Revision {
    time_ms: i64,
    cancels: bool,
}

/// A call whose answer and the history contradict each other.
#[derive(Debug)]
pub(crate) struct Contradiction {
    /// The unique time that the call asked for; of a cancellation, 0.
    pub time_ms: i64,
    /// Whether the call was answered with success: its write is lost.
    pub lost: bool,
    /// What the caller was answered, and what is there.
    pub what: String,
}

/// How calls ended.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Acknowledged calls.
    pub done: usize,
    /// Calls that were certainly refused.
    pub refused: usize,
    /// Calls with an unknown outcome that are in the history.
    pub unknown_done: usize,
    /// Calls with an unknown outcome that are not in the history.
    pub unknown_not_done: usize,
    /// Calls repeated under their request ids.
    pub repeated: usize,
}

impl History {
    /// Reads everything, page by page, and checks it: revisions have no gap, and the newest equals
    /// what Get returns.
    pub(crate) async fn read(client: &mut Client) -> Self {
        let mut all = HashMap::new();
        for listed in every_schedule(client).await {
            let id = listed.schedule_id;
            let kept: Vec<Revision> = revisions_of(client, &id)
                .await
                .iter()
                .map(|one| Revision {
                    time_ms: millis(one.schedule.as_ref()),
                    cancels: one.kind() == v1::RevisionKind::Cancel,
                })
                .collect();
            let request = v1::GetCanvasScheduleRequest {
                schedule_id: id.clone(),
            };
            let got = client
                .get_canvas_schedule(request)
                .await
                .expect("it is there")
                .into_inner()
                .canvas_schedule
                .expect("a schedule");
            assert_eq!(
                usize::try_from(got.revision).unwrap(),
                kept.len(),
                "{id}: Get and the history differ"
            );
            assert_eq!(
                Some(&millis(got.schedule.as_ref())),
                kept.last().map(|newest| &newest.time_ms),
                "{id}: Get and the newest revision differ"
            );
            all.insert(id, kept);
        }
        Self(all)
    }

    /// The number of revisions of a schedule.
    pub(crate) fn newest(&self, id: &str) -> i64 {
        i64::try_from(self.0[id].len()).unwrap()
    }

    /// Compares it with the calls that made it: each acknowledged one is there once and as
    /// answered, no refused one is there, none is there twice, and there are no others.
    pub(crate) fn check(&self, calls: &[Call]) -> Tally {
        let (tally, contradictions) = self.compare(calls);
        assert!(contradictions.is_empty(), "{contradictions:#?}");
        tally
    }

    /// As [`Self::check`], and returns the calls whose answers differ from it.
    pub(crate) fn compare(&self, calls: &[Call]) -> (Tally, Vec<Contradiction>) {
        let mut found: HashMap<i64, (&str, i64)> = HashMap::new();
        for (id, kept) in &self.0 {
            let changes = kept.iter().zip(1_i64..).filter(|(one, _)| !one.cancels);
            for (one, revision) in changes {
                let earlier = found.insert(one.time_ms, (id, revision));
                assert!(
                    earlier.is_none(),
                    "{id}: the call of {} was applied twice: {earlier:?} and {revision}",
                    one.time_ms
                );
            }
        }
        let asked: HashSet<i64> = calls.iter().map(|call| call.time_ms).collect();
        assert_eq!(asked.len(), calls.len(), "times are unique");
        assert!(
            found.keys().all(|time| asked.contains(time)),
            "a revision that no call asked for"
        );
        let (mut tally, mut contradictions) = (Tally::default(), Vec::new());
        for call in calls {
            tally.repeated += usize::from(call.repeats > 0);
            let there = found.get(&call.time_ms).copied();
            let holds = match &call.end {
                Ok((id, revision)) => there == Some((id.as_str(), *revision)),
                Err(_) => there.is_none() || !call.certainly_not_done(),
            };
            if !holds {
                contradictions.push(Contradiction {
                    time_ms: call.time_ms,
                    lost: call.end.is_ok(),
                    what: format!("answered {:?}, but there is {there:?}", brief(&call.end)),
                });
                continue;
            }
            match &call.end {
                Ok(_) => tally.done += 1,
                Err(_) if call.certainly_not_done() => tally.refused += 1,
                Err(_) if there.is_some() => tally.unknown_done += 1,
                Err(_) => tally.unknown_not_done += 1,
            }
        }
        (tally, contradictions)
    }

    /// The cancellations whose answers differ from it, and the number of those acknowledged that
    /// are there.
    pub(crate) fn compare_cancellations(
        &self,
        cancellations: &[Cancellation],
    ) -> (usize, Vec<Contradiction>) {
        let (mut there, mut contradictions) = (0, Vec::new());
        for cancellation in cancellations {
            let kept = self.0.get(&cancellation.schedule_id);
            let cancelled = kept
                .and_then(|kept| kept.iter().position(|one| one.cancels))
                .map(|place| i64::try_from(place).unwrap() + 1);
            let holds = match &cancellation.end {
                Ok((_, revision)) => cancelled == Some(*revision),
                Err(_) => cancelled.is_none() || !cancellation.certainly_not_done(),
            };
            there += usize::from(holds && cancellation.end.is_ok());
            if !holds {
                contradictions.push(Contradiction {
                    time_ms: 0,
                    lost: cancellation.end.is_ok(),
                    what: format!(
                        "a cancellation was answered {:?}, but there is {cancelled:?}",
                        brief(&cancellation.end)
                    ),
                });
            }
        }
        (there, contradictions)
    }
}

/// An answer without the details of its error.
fn brief<T>(end: &Result<T, Status>) -> Result<&T, (Code, &str)> {
    end.as_ref()
        .map_err(|status| (status.code(), status.message()))
}

/// Lists every schedule.
pub(crate) async fn every_schedule(client: &mut Client) -> Vec<v1::CanvasSchedule> {
    let (mut all, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = v1::ListCanvasSchedulesRequest {
            page_size: 1000,
            page_token,
            ..Default::default()
        };
        let page = client
            .list_canvas_schedules(request)
            .await
            .expect("a page")
            .into_inner();
        all.extend(page.canvas_schedules);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return all;
        }
    }
}

/// All revisions of a schedule, from 1 on.
pub(crate) async fn revisions_of(
    client: &mut Client,
    schedule_id: &str,
) -> Vec<v1::CanvasScheduleRevision> {
    let (mut all, mut page_token): (Vec<v1::CanvasScheduleRevision>, _) =
        (Vec::new(), String::new());
    loop {
        let request = v1::ListCanvasScheduleRevisionsRequest {
            schedule_id: schedule_id.to_owned(),
            page_size: 1000,
            page_token,
        };
        let page = client
            .list_canvas_schedule_revisions(request)
            .await
            .expect("a page")
            .into_inner();
        all.extend(page.revisions);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    all.reverse();
    let numbers: Vec<i64> = all.iter().map(|one| one.revision).collect();
    let without_gap: Vec<i64> = (1..=i64::try_from(all.len()).unwrap()).collect();
    assert_eq!(
        numbers, without_gap,
        "{schedule_id}: the revisions have a gap"
    );
    all
}
