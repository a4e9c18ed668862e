//! Emulated devices, one file each.
#![forbid(unsafe_code)]

pub mod chipset;
pub mod pci;
mod registry;
pub mod storage;
#[cfg(test)]
mod testing;
pub mod virtio;

pub use registry::{
    Build, BuildContext, BuildError, DeviceEntry, DoorbellAddress, Doorbells, NoDoorbells, find, help, keys,
    registry,
};
