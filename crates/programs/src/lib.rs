//! What the programs share besides the library crates.
#![deny(unsafe_code)]

#[allow(unsafe_code)]
pub mod title;

pub mod setup;
