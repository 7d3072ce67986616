//! Compares the history that the service keeps with the answers that its callers received.

use std::collections::{HashMap, HashSet};

use canvas_scheduler::pb::v1;

use super::load::{Call, millis};
use super::server::Client;

/// Every schedule with the times of its revisions, the oldest first.
pub(crate) struct History(HashMap<String, Vec<i64>>);

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
            let times = revisions(client, &id).await;
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
                times.len(),
                "{id}: Get and the history differ"
            );
            assert_eq!(
                Some(&millis(got.schedule.as_ref())),
                times.last(),
                "{id}: Get and the newest revision differ"
            );
            all.insert(id, times);
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
        let mut found: HashMap<i64, (&str, i64)> = HashMap::new();
        for (id, times) in &self.0 {
            for (time, revision) in times.iter().zip(1_i64..) {
                let earlier = found.insert(*time, (id, revision));
                assert!(
                    earlier.is_none(),
                    "{id}: the call of {time} was applied twice: {earlier:?} and {revision}"
                );
            }
        }
        let asked: HashSet<i64> = calls.iter().map(|call| call.time_ms).collect();
        assert_eq!(asked.len(), calls.len(), "times are unique");
        assert!(
            found.keys().all(|time| asked.contains(time)),
            "a revision that no call asked for"
        );
        let mut tally = Tally::default();
        for call in calls {
            tally.repeated += usize::from(call.repeats > 0);
            let there = found.get(&call.time_ms).copied();
            match &call.end {
                Ok((id, revision)) => {
                    assert_eq!(
                        there,
                        Some((id.as_str(), *revision)),
                        "an acknowledged change differs from the history"
                    );
                    tally.done += 1;
                }
                Err(status) if call.certainly_not_done() => {
                    assert_eq!(
                        there, None,
                        "a refused change is in the history: {status:?}"
                    );
                    tally.refused += 1;
                }
                Err(_) if there.is_some() => tally.unknown_done += 1,
                Err(_) => tally.unknown_not_done += 1,
            }
        }
        tally
    }
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

/// The times of all revisions, from 1 on.
async fn revisions(client: &mut Client, schedule_id: &str) -> Vec<i64> {
    revisions_of(client, schedule_id)
        .await
        .iter()
        .map(|one| millis(one.schedule.as_ref()))
        .collect()
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
