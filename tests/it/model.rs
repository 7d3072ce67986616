//! The rules of a schedule once more, as a small pure model `(state, event) -> (state, answer, effects)`, written from the
//! specification and calling nothing of the service: explored breadth-first over all short sequences of events for what must
//! always hold ([`explore`]), and the service held to it over random ones, answer by answer and state by state ([`conformance`]).

mod conformance;
mod driver;
mod events;
mod explore;
mod rules;
mod zones;
