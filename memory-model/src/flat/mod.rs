//! The flat view: what the guest sees of the tree, as sorted ranges that do not overlap.

mod chunk;
mod diff;
mod index;
mod range;
mod reduce;
mod render;
#[cfg(feature = "host")]
mod splice;
mod view;

pub(crate) use diff::{Diff, News};
pub use range::FlatRange;
pub(crate) use reduce::reduced_root;
pub use view::FlatView;
