//! Lists: pages that stay consistent under concurrent changes, and the retention of revisions.

use std::collections::HashSet;

use canvas_scheduler::pb::v1;
use canvas_scheduler::pb::v1::CanvasScheduleState;
use serde_json::json;

use crate::support::*;

on_both![
    pages_are_stable_under_concurrent_writes,
    filters_hold_from_page_to_page,
    revisions_are_listed_in_pages_newest_first,
    a_page_of_revisions_is_shortened_to_its_maximum_size,
    only_the_newest_revisions_are_shown,
];
on_both![file: expired_revisions_are_removed];

async fn pages_are_stable_under_concurrent_writes(database: &Database) {
    let app = TestApp::start(database).await;
    let mut made = Vec::new();
    for n in 0..25 {
        made.push(
            app.created(create(&format!("canvas {}", n % 3), at(LATER)))
                .await,
        );
    }
    let ids: Vec<String> = made.iter().map(|one| one.schedule_id.clone()).collect();
    assert!(ids.is_sorted(), "ids must be in the order of creation");
    assert_eq!(app.list_ids(Default::default()).await, ids);

    let (mut seen, mut request) = (
        Vec::new(),
        v1::ListCanvasSchedulesRequest {
            page_size: 4,
            ..Default::default()
        },
    );
    for n in 0.. {
        // While the page is read, concurrently create one, update one, and cancel one of an earlier
        // or later page.
        let (page, fresh, updated, cancelled) = tokio::join!(
            app.list(request.clone()),
            app.create(create("canvas 0", at(LATER))),
            app.update(update(&made[n % 12], local("2026-03-21T09:00:00"))),
            app.cancel(cancel(&made[24 - n])),
        );
        fresh.expect("created");
        updated.expect("updated");
        cancelled.expect("cancelled");
        let page = page.expect("a page");
        assert!(page.canvas_schedules.len() == 4 || page.next_page_token.is_empty());
        seen.extend(page.canvas_schedules.into_iter().map(|one| one.schedule_id));
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
        assert!(n < 12, "it ends");
    }
    assert!(
        seen.is_sorted() && seen.iter().collect::<HashSet<_>>().len() == seen.len(),
        "none twice"
    );
    assert_eq!(seen[..25], ids, "none may be missing; new ones come last");
}

async fn filters_hold_from_page_to_page(database: &Database) {
    let app = TestApp::start(database).await;
    let mut made = Vec::new();
    for n in 0..12 {
        let schedule = app
            .created(create(&format!("canvas {}", n % 2), at(LATER)))
            .await;
        if n % 3 == 0 {
            app.cancel(cancel(&schedule)).await.expect("cancelled");
        }
        made.push(schedule.schedule_id);
    }
    let all_of = |keep: fn(usize) -> bool| {
        (0..12)
            .filter(|n| keep(*n))
            .map(|n| made[n].clone())
            .collect::<Vec<_>>()
    };
    let canvas = |canvas_id: &str, state: CanvasScheduleState| v1::ListCanvasSchedulesRequest {
        canvas_id: canvas_id.to_owned(),
        state: state.into(),
        page_size: 2,
        page_token: String::new(),
    };
    assert_eq!(
        app.list_ids(canvas("canvas 1", CanvasScheduleState::Unspecified))
            .await,
        all_of(|n| n % 2 == 1)
    );
    assert_eq!(
        app.list_ids(canvas("", CanvasScheduleState::Cancelled))
            .await,
        all_of(|n| n % 3 == 0)
    );
    assert_eq!(
        app.list_ids(canvas("canvas 0", CanvasScheduleState::Pending))
            .await,
        all_of(|n| n % 2 == 0 && n % 3 != 0)
    );
    assert_eq!(
        app.list_ids(canvas("canvas", CanvasScheduleState::Unspecified))
            .await,
        Vec::<String>::new(),
        "a part of a name must not match"
    );
    let exact = v1::ListCanvasSchedulesRequest {
        page_size: 12,
        ..Default::default()
    };
    assert_eq!(
        app.list(exact).await.expect("a page").next_page_token,
        "",
        "the last page must not announce an empty one"
    );
}

/// The revision numbers on every page of `page_size`.
async fn pages(app: &TestApp, of: &v1::CanvasSchedule, page_size: i32) -> Vec<Vec<i64>> {
    let mut request = v1::ListCanvasScheduleRevisionsRequest {
        schedule_id: of.schedule_id.clone(),
        page_size,
        page_token: String::new(),
    };
    let mut pages = Vec::new();
    loop {
        let page = app.revisions_page(request.clone()).await.expect("a page");
        pages.push(page.revisions.iter().map(|one| one.revision).collect());
        if page.next_page_token.is_empty() {
            return pages;
        }
        request.page_token = page.next_page_token;
        if pages.len() == 1 {
            // A change between two pages must not move a revision to the next page.
            app.update(update(of, at(LATER))).await.expect("updated");
        }
    }
}

async fn revisions_are_listed_in_pages_newest_first(database: &Database) {
    let app = TestApp::start(database).await;
    let schedule = app.created(create("canvas", at(LATER))).await;
    app.batch(vec![update(&schedule, at(LATER)); 6])
        .await
        .expect("answers");
    assert_eq!(
        pages(&app, &schedule, 3).await,
        [vec![7, 6, 5], vec![4, 3, 2], vec![1]]
    );
    assert_eq!(
        pages(&app, &schedule, 8).await,
        [vec![8, 7, 6, 5, 4, 3, 2, 1]]
    );
}

async fn a_page_of_revisions_is_shortened_to_its_maximum_size(database: &Database) {
    let app = TestApp::start(database).await;
    let schedule = app.created(create("canvas", at(LATER))).await;
    for n in 0..40 {
        let properties = Some(object(json!({ "k": format!("{n}{}", "x".repeat(50_000)) })));
        app.update(v1::UpdateCanvasScheduleRequest {
            trigger_properties: properties,
            ..update(&schedule, at(LATER))
        })
        .await
        .expect("updated");
    }
    let pages = pages(&app, &schedule, 1000).await;
    assert!(pages.len() > 1 && pages[0].len() >= 20, "{pages:?}");
    assert_eq!(
        pages.concat(),
        (1..=41).rev().collect::<Vec<i64>>(),
        "no revision may be missing"
    );
}

async fn only_the_newest_revisions_are_shown(database: &Database) {
    let app = TestApp::start_with(database, |settings| {
        settings.store.revisions_kept = number(5)
    })
    .await;
    let schedule = app.created(create("canvas", at(LATER))).await;
    for newest in 2..=9 {
        app.update(update(&schedule, at(LATER)))
            .await
            .expect("updated");
        let shown: Vec<i64> = app
            .revisions(&schedule)
            .await
            .iter()
            .map(|one| one.revision)
            .collect();
        assert_eq!(
            shown,
            ((newest - 4).max(1)..=newest).rev().collect::<Vec<i64>>()
        );
    }
    assert_eq!(
        pages(&app, &schedule, 2).await,
        [vec![9, 8], vec![7, 6]],
        "9 and 8 were listed, then 10 was created and 5 expired"
    );
}

async fn expired_revisions_are_removed(database: &Database) {
    let app = TestApp::start_with(database, |settings| {
        settings.store.revisions_kept = number(5)
    })
    .await;
    let schedule = app.created(create("canvas", at(LATER))).await;
    let other = app.created(create("other", at(LATER))).await;
    let rows = async || {
        database
            .count("SELECT count(*) FROM canvas_schedule_revision")
            .await
    };
    for _ in 0..120 {
        app.update(update(&schedule, at(LATER)))
            .await
            .expect("updated");
    }
    // The writer removes them after it has answered, and before it takes the next change.
    app.update(update(&schedule, at(LATER)))
        .await
        .expect("updated");
    assert_eq!(
        rows().await,
        5 + 22 + 1,
        "removed at 50 and at 100; 22 are newer, and 1 belongs to the other schedule"
    );
    let shown: Vec<i64> = app
        .revisions(&schedule)
        .await
        .iter()
        .map(|one| one.revision)
        .collect();
    assert_eq!(shown, [122, 121, 120, 119, 118]);
    assert_eq!(app.revisions(&other).await.len(), 1);
}
