//! The list of all PCI devices, and what a device is made from.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use bus::{Bus, Clock, EventLoop, MsiSink, PowerSwitch, Timers};
use config::{Key, Node, PciAddress};
use memory::GuestMemory;

use crate::pci::{LayoutError, PciFunction, PirqRouter};

/// Where a guest write rings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DoorbellAddress {
    /// A port write of `size` bytes, optionally only of `value`.
    Port {
        /// The port.
        port: u16,
        /// 1, 2 or 4 bytes.
        size: u8,
        /// Only this value rings, if given.
        value: Option<u32>,
    },
    /// A memory write of `size` bytes, optionally only of `value`.
    Memory {
        /// Guest-physical address.
        gpa: u64,
        /// 1, 2, 4 or 8 bytes.
        size: u8,
        /// Only this value rings, if given.
        value: Option<u32>,
    },
}

/// The engine's short cut from a guest write to an eventfd.
pub trait Doorbells: Send + Sync {
    /// Makes writes to `at` signal `event` instead of going to the bus. False where there is no
    /// such short cut: the writes then come through the bus.
    fn add(&self, at: DoorbellAddress, event: &OwnedFd) -> bool;
    /// Undoes a successful `add`.
    fn remove(&self, at: DoorbellAddress, event: &OwnedFd);
}

/// No short cuts.
pub struct NoDoorbells;

impl Doorbells for NoDoorbells {
    fn add(&self, _: DoorbellAddress, _: &OwnedFd) -> bool {
        false
    }

    fn remove(&self, _: DoorbellAddress, _: &OwnedFd) {}
}

/// What a device is made from.
#[derive(Clone)]
pub struct BuildContext {
    /// Guest RAM; functions reach it through [`crate::pci::FunctionCore::dma`] only.
    pub memory: GuestMemory,
    /// Ports and memory-mapped registers, for devices with fixed ones. BARs are the PCI bus's.
    pub bus: Arc<Bus>,
    /// Where MSIs go.
    pub msi: Arc<dyn MsiSink>,
    /// The engine's doorbells.
    pub doorbells: Arc<dyn Doorbells>,
    /// PIRQ routing, for the LPC bridge.
    pub pirq: Arc<dyn PirqRouter>,
    /// Timers.
    pub timers: Arc<Timers>,
    /// The event loop.
    pub events: Arc<EventLoop>,
    /// The VM's clock.
    pub clock: Clock,
    /// Reset and power-off.
    pub power: Arc<PowerSwitch>,
    /// Where the device is.
    pub address: PciAddress,
    /// The VM's name.
    pub vm_name: String,
    /// Whether virtio devices have MSI-X (`virtio_msix`); otherwise they have MSI.
    pub virtio_msix: bool,
}

/// Why a device can't be made.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// Its configuration is wrong.
    #[error(transparent)]
    Config(#[from] config::Error),
    /// The host refuses something; the text says what.
    #[error("{what}: {source}")]
    Host {
        /// What was being done.
        what: String,
        /// The host's answer.
        source: std::io::Error,
    },
    /// BARs or capabilities do not fit.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// Any other reason.
    #[error("{0}")]
    Other(String),
}

/// Makes a device.
pub type Build = fn(&BuildContext, &Node<'_>) -> Result<Arc<dyn PciFunction>, BuildError>;

/// One kind of PCI device.
#[derive(Clone, Copy)]
pub struct DeviceEntry {
    /// Name in `-s` and in the tree's `device` key.
    pub name: &'static str,
    /// Other names that `-s` takes for it.
    pub aliases: &'static [&'static str],
    /// One line for the user.
    pub help: &'static str,
    /// Its keys.
    pub keys: &'static [Key],
    /// Makes one. The node is declared with `keys`.
    pub build: Build,
}

include!(concat!(env!("OUT_DIR"), "/registry.rs"));

/// All PCI devices, by name.
pub fn registry() -> &'static [DeviceEntry] {
    REGISTRY
}

/// The device that goes by `name` or has it as an alias.
pub fn find(name: &str) -> Option<&'static DeviceEntry> {
    REGISTRY.iter().find(|entry| entry.name == name || entry.aliases.contains(&name))
}

/// The keys of device `name`, for [`config::validate`].
pub fn keys(name: &str) -> Option<&'static [Key]> {
    find(name).map(|entry| entry.keys)
}

/// What `-s help` prints: each device with its keys.
pub fn help() -> String {
    let mut text = String::new();
    for entry in REGISTRY {
        let names = std::iter::once(entry.name).chain(entry.aliases.iter().copied());
        text.push_str(&names.collect::<Vec<_>>().join(", "));
        text.extend([": ", entry.help, "\n", &config::help(entry.keys)]);
    }
    text
}

#[cfg(test)]
#[path = "registry_tests.rs"]
mod tests;
