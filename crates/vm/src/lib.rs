//! A VM outlives its process: the files that name it, and how a running one is spoken to.
//!
//! `DIR/NAME` is the VM: its state, and what `ls` lists. Beside it, in `DIR.io`, lie its memory
//! (`NAME.ram`), the lock of the process that holds it (`NAME.lock`) and that one's control socket
//! (`NAME.sock`).
//!
//! A loader makes a [`Loading`], puts a kernel into its memory and finishes it with the
//! [`boot::Entry`] of that kernel; a later `bhyve` takes a [`Claim`] on the VM and runs it.
#![forbid(unsafe_code)]

mod claim;
pub mod control;
mod directory;
mod entry;
mod error;
mod loading;
mod name;
mod ram;
mod size;
mod state;

#[cfg(test)]
mod tests;

pub use claim::Claim;
pub use directory::Directory;
pub use entry::apply;
pub use error::{Error, Result};
pub use loading::{Loading, Options};
pub use name::Name;
pub use size::{SizeError, memory_map};
pub use state::{Phase, Ram, State, Topology};
