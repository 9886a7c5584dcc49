//! The case space of kvm-unit-tests' `access` test: what one access to one page does, for every legal combination of
//! the entries' bits, the processor's controls and the kind of access. In release all cases of the four spaces of
//! rule C3 run, 59,424,768 together; else those of the first, 19,169,280.

mod case;
mod directed;
mod model;
mod run;
