//! A reference model of a schedule: a small pure function `(state, event) -> (state, answer,
//! effects)`, written from the specification without calls of the service. [`explore`] checks its
//! invariants after all short sequences of events, breadth-first; [`conformance`] compares the
//! service with it over random sequences, answer by answer and state by state.

mod conformance;
mod driver;
mod events;
mod explore;
mod rules;
mod zones;
