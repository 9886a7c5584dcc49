//! The mapper against a plain map of pages, against a processor that walks all the time, and each refusal.

mod concurrent;
mod flags;
mod oracle;
mod refusals;
mod sizes;
mod states;
mod tables;
mod world;
