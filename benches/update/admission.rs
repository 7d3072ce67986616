//! The processor time that keys and quotas cost a call. The service cannot run without them, so
//! this part of a call is measured separately and compared with the processor time of a whole
//! update.

use std::sync::Arc;
use std::time::{Duration, Instant};

use canvas_scheduler::clock::SystemClock;
use canvas_scheduler::config::DatabaseUrl;
use canvas_scheduler::domain::{
    Permission, Permissions, PresentedKey, Quota, QuotaKind, QuotaWindow, SchedulePolicy,
};
use canvas_scheduler::service::access::Access;
use canvas_scheduler::service::admin::{Admin, KeyOrder, WorkspaceChange};
use canvas_scheduler::store::{Options, Store};

use super::Fallible;

/// The number of measured calls. As many calls precede them as a warm-up.
const CALLS: u32 = 500_000;

/// Measures the processor time for the key and the quota of a call, on one thread.
pub(crate) fn cost() -> Fallible<Duration> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let cost = runtime.block_on(measure())?;
    println!(
        "keys and limits: {:.2} us of the processor for a call",
        cost.as_secs_f64() * 1e6
    );
    Ok(cost)
}

async fn measure() -> Fallible<Duration> {
    let clock = Arc::new(SystemClock);
    let url = DatabaseUrl::parse("sqlite::memory:")?;
    let policy = SchedulePolicy::default();
    let (store, _writers) = Store::open(&Options::new(&url), clock.clone(), policy);
    store.migrate().await?;
    let admin = Admin::new(store.clone(), clock.clone());
    let quotas = vec![(
        QuotaKind::Requests,
        Quota {
            limit: 1_000_000_000_000,
            window: QuotaWindow::Hour,
        },
    )];
    admin
        .set_workspace(
            "default",
            &WorkspaceChange {
                default_zone: None,
                quotas,
            },
        )
        .await?;
    let order = KeyOrder {
        name: "bench".to_owned(),
        permissions: Permissions::all(),
        expires_at: None,
        allowlist: vec![],
    };
    let key = admin.create_key("default", order, |_| Ok(())).await?;
    let access = Access::new(store, clock);
    access.reload().await?;
    let mut took = Duration::ZERO;
    for _ in 0..2 {
        let begin = Instant::now();
        for _ in 0..CALLS {
            admit(&access, key.reveal().as_bytes()).await?;
        }
        took = begin.elapsed();
    }
    Ok(took / CALLS)
}

/// Authenticates and charges a call as the layers do for an update.
async fn admit(access: &Access, key: &[u8]) -> Fallible<()> {
    let presented = PresentedKey::parse(key).ok_or("not a key")?;
    let authenticated = access
        .admit(&presented, None, Permission::Update)
        .await
        .map_err(|why| format!("{why:?}"))?;
    let charged = match authenticated.budget().charge_without_wait(1) {
        Some(charged) => charged,
        None => {
            authenticated
                .budget()
                .charge(&canvas_scheduler::domain::Charge::Requests(1))
                .await
        }
    };
    std::hint::black_box(charged.map_err(|over| format!("{over:?}"))?);
    Ok(())
}

/// Prints `postgres 64 callers keys and limits ratio 0.98 (0.5 us of 28.0 us of the service's
/// processor for an update)`: the throughput relative to a service without them, if the service's
/// processor is the bottleneck. With another bottleneck, the ratio is higher.
pub(crate) fn print_ratio(title: &str, cost: Duration, update: Duration) {
    let ratio = 1.0 - cost.as_secs_f64() / update.as_secs_f64().max(f64::MIN_POSITIVE);
    println!(
        "{title} keys and limits ratio {ratio:.2} ({:.2} us of {:.1} us of the service's processor for an update)",
        cost.as_secs_f64() * 1e6,
        update.as_secs_f64() * 1e6
    );
}
