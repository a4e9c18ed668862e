//! The host side of devices: disks, network back ends and terminals.
#![deny(unsafe_code)]

pub mod block;
pub mod net;
pub mod tty;
mod zone;

pub use zone::local_utc_offset;
