//! Dirty logs on the in-process kernel: no page is ever lost.

mod block;
mod collect;
mod machine;
mod no_page_lost;
mod pause;
