//! Dirty logs, private memory and doorbells of a real VM. Without `/dev/kvm` each test says so and checks nothing.

mod doorbells;
mod guest;
mod logs;
mod private;
