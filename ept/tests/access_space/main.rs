//! The case space of kvm-unit-tests' `access` test: what one access to one page does, for every legal combination of
//! the entries' bits, the processor's controls and the kind of access. All cases of all four spaces of rule C3 run,
//! 59,424,768 together.

mod case;
mod directed;
mod model;
mod run;
