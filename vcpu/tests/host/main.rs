//! The simulated host: each event, with what its notifier hears, and random ones against a model of plain maps.

mod model;
mod world;

mod basics;
mod events;
mod random;
mod threads;
