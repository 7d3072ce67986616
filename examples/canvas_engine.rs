//! A minimal Canvas engine: takes dispatches over gRPC, prints each once, and recognizes
//! duplicates.
//!
//! `cargo run --example canvas_engine -- 127.0.0.1:50061`, then `canvas-scheduler serve --sink grpc
//! --sink-url http://127.0.0.1:50061`.

#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use std::collections::{HashSet, VecDeque};
use std::error::Error;
use std::net::SocketAddr;

use canvas_scheduler::pb::v1::canvas_trigger_service_server::{
    CanvasTriggerService, CanvasTriggerServiceServer,
};
use canvas_scheduler::pb::v1::{TriggerCanvasRequest, TriggerCanvasResponse};
use parking_lot::Mutex;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

/// The most dispatches that are remembered. A real engine stores their ids in its database, in the
/// transaction that stores what it sends.
const MAX_REMEMBERED: usize = 100_000;

/// The dispatches that were taken: their ids, and the order of arrival.
#[derive(Default)]
struct SeenDispatches {
    ids: HashSet<String>,
    order: VecDeque<String>,
}

impl SeenDispatches {
    /// Remembers a dispatch. Returns whether it is new.
    fn insert(&mut self, id: &str) -> bool {
        if !self.ids.insert(id.to_owned()) {
            return false;
        }
        self.order.push_back(id.to_owned());
        if self.order.len() > MAX_REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.ids.remove(&oldest);
        }
        true
    }
}

#[derive(Default)]
struct Engine(Mutex<SeenDispatches>);

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
        let new = self.0.lock().insert(&dispatch.dispatch_id);
        let whom = match (dispatch.broadcast, &dispatch.audience) {
            (true, _) => "everyone".to_owned(),
            (false, Some(_)) => format!("an audience and {} recipients", dispatch.recipients.len()),
            (false, None) => format!("{} recipients", dispatch.recipients.len()),
        };
        let (id, canvas, number, attempt) = (
            &dispatch.dispatch_id,
            &dispatch.canvas_id,
            dispatch.n,
            dispatch.attempt,
        );
        let what = if new {
            "send"
        } else {
            "already seen, not sent again:"
        };
        println!(
            "{what} {canvas} to {whom} in {} zones (dispatch {id}, number {number}, attempt {attempt})",
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
