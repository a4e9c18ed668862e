//! Builds the PC from the key tree and owns its life: start, reset, power-off.

mod cpus;
mod entry;
mod error;
mod lifecycle;
mod memory;
mod signals;
mod system;

pub use error::{Error, Result};
