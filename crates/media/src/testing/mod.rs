//! What the tests of the readers share: a standard tree, images of it, a judge, and damage.
//!
//! For tests only, so failures panic or come as text.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

mod compare;
mod hostile;
mod images;
mod tree;

pub use compare::{Counts, compare};
pub use hostile::{Damaged, Recorder, Walked, mutate_and_walk, mutations, walk_hostile};
pub use images::{Mounted, Scratch, cached, have, is_root, run};
pub use tree::{Random, Tree};
