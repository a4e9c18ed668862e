//! What the programs share besides the library crates, and bhyvectl.
#![deny(unsafe_code)]

pub mod bhyvectl;
pub mod setup;
#[allow(unsafe_code, reason = "a process' title lies where the kernel put its arguments")]
pub mod title;
