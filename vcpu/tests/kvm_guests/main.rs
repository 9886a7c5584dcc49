//! The KVM backend, on guests that really run. Without `/dev/kvm` each test says so and checks nothing.

mod budget;
mod counts;
mod doorbells;
mod events;
mod exits;
mod guest;
mod guest_memfd;
mod live;
mod remap;
mod shared_faults;
mod slot_changes;
mod uffd;
mod userfaults;
