//! Guest memory as a tree of regions, its flat view, and the RAM behind it.
#![cfg_attr(not(any(feature = "host", test)), no_std)]

extern crate alloc;

mod addr;

pub use addr::{AddrRange, Address, Gpa, Gva, Hpa, Hva, PageSize};
