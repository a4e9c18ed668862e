//! Turns guest code into host code.

mod address;
mod block;
mod branch;
mod check;
pub mod classify;
pub mod emit;
mod flags;
mod inline;
mod mode;
mod native;
mod stack;

pub use block::{Input, Tools, translate};
pub use mode::Mode;
pub use native::bounce_code;
