//! A Canvas engine at its smallest: takes dispatches over gRPC, prints each once, and knows those that it took before.
//!
//! `cargo run --example canvas_engine -- 127.0.0.1:50061`, then `canvas-scheduler serve --sink grpc --sink-url http://127.0.0.1:50061`.

#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use std::collections::{HashSet, VecDeque};
use std::error::Error;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};

use canvas_scheduler::pb::v1::canvas_trigger_service_server::{
    CanvasTriggerService, CanvasTriggerServiceServer,
};
use canvas_scheduler::pb::v1::{TriggerCanvasRequest, TriggerCanvasResponse};
use tonic::transport::Server;
use tonic::{Request, Response, Status};

/// How many dispatches are remembered. A real engine keeps them in its database, with what it is about to send, in one transaction.
const REMEMBERED: usize = 100_000;

/// What was taken: the ids, and the order in which they came.
#[derive(Default)]
struct Taken {
    ids: HashSet<String>,
    order: VecDeque<String>,
}

impl Taken {
    /// Whether this one is new.
    fn take(&mut self, id: &str) -> bool {
        if !self.ids.insert(id.to_owned()) {
            return false;
        }
        self.order.push_back(id.to_owned());
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.ids.remove(&oldest);
        }
        true
    }
}

#[derive(Default)]
struct Engine(Mutex<Taken>);

#[tonic::async_trait]
impl CanvasTriggerService for Engine {
    async fn trigger_canvas(
        &self,
        request: Request<TriggerCanvasRequest>,
    ) -> Result<Response<TriggerCanvasResponse>, Status> {
        let dispatch = request.into_inner();
        let Some(wave) = &dispatch.wave else {
            return Err(Status::invalid_argument("wave: is missing"));
        };
        // A panic under the lock leaves nothing half done.
        let new = self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take(&dispatch.dispatch_id);
        let whom = match (dispatch.broadcast, &dispatch.audience) {
            (true, _) => "everyone".to_owned(),
            (false, Some(_)) => format!("an audience and {} recipients", dispatch.recipients.len()),
            (false, None) => format!("{} recipients", dispatch.recipients.len()),
        };
        let (id, canvas, n, attempt) = (
            &dispatch.dispatch_id,
            &dispatch.canvas_id,
            dispatch.n,
            dispatch.attempt,
        );
        let what = if new {
            "send"
        } else {
            "seen before, nothing to do:"
        };
        println!(
            "{what} {canvas} to {whom} in {} zones (dispatch {id}, firing {n}, attempt {attempt})",
            wave.zones.len()
        );
        Ok(Response::new(TriggerCanvasResponse {}))
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let addr: SocketAddr = std::env::args()
        .nth(1)
        .unwrap_or_else(|| "127.0.0.1:50061".to_owned())
        .parse()?;
    println!("a Canvas engine listens at {addr}");
    Server::builder()
        .add_service(CanvasTriggerServiceServer::new(Engine::default()))
        .serve(addr)
        .await?;
    Ok(())
}
