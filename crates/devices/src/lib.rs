//! Emulated devices, one file each.
#![forbid(unsafe_code)]

pub mod pci;
pub mod virtio;
