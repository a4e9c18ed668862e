//! Boots real operating systems under bhyve and talks to them on their console.
//!
//! [`artifacts`] gets kernels and programs out of Debian packages and makes initramfs and disk
//! images of them, [`Machine`] says what PC to build, [`Vmm`] with which program, and [`Guest`] is
//! the running VM. The same scenario runs under a peer by another [`Vmm`].

pub mod artifacts;
mod console;
mod guest;
mod lab;
mod machine;
mod network;
mod process;
mod shell;

pub use console::Console;
pub use guest::{Guest, MARKER};
pub use lab::{Lab, Scratch, bhyve_binary, is_root};
pub use machine::{Chipset, Machine, Vmm};
pub use network::Namespace;
pub use process::{Exit, Process};
pub use shell::Shell;

/// What goes wrong here is only ever read by people.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// A result with [`Error`].
pub type Result<T> = std::result::Result<T, Error>;
