//! KVM's table from GSIs to messages: the I/O APIC's pins, then eventfds.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use bus::Msi;
use kvm_bindings::{
    KVM_IRQ_ROUTING_MSI, KVM_IRQFD_FLAG_DEASSIGN, KvmIrqRouting, kvm_irq_routing_entry, kvm_msi,
};
use kvm_ioctls::VmFd;

use super::{failed, sys};
use crate::{Error, Result};

/// Pins of the I/O APIC, which KVM keeps the first GSIs for.
pub const PINS: u32 = 32;
/// Most eventfds, so that the table stays within what every KVM takes (1024 routes before Linux 4.17).
const EVENTS: usize = 1024 - PINS as usize;

struct Event {
    /// The number by which the owner names it.
    name: i32,
    /// Our own descriptor of it.
    fd: OwnedFd,
    msi: Msi,
}

/// What the table shall be.
pub struct Routes {
    pins: [Option<Msi>; PINS as usize],
    events: Vec<Option<Event>>,
}

/// The message as KVM_SIGNAL_MSI takes it.
pub fn message(msi: Msi) -> kvm_msi {
    kvm_msi {
        address_lo: msi.address as u32,
        address_hi: (msi.address >> 32) as u32,
        data: msi.data,
        ..Default::default()
    }
}

fn entry(gsi: usize, msi: Msi) -> kvm_irq_routing_entry {
    let mut entry =
        kvm_irq_routing_entry { gsi: gsi as u32, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
    entry.u.msi.address_lo = msi.address as u32;
    entry.u.msi.address_hi = (msi.address >> 32) as u32;
    entry.u.msi.data = msi.data;
    entry
}

impl Routes {
    pub fn new() -> Self {
        Self { pins: [None; PINS as usize], events: Vec::new() }
    }

    fn store(&self, vm: &VmFd) -> Result<()> {
        let pins = self.pins.iter().enumerate().filter_map(|(pin, msi)| Some(entry(pin, (*msi)?)));
        let events = self.events.iter().enumerate();
        let events = events.filter_map(|(i, e)| e.as_ref().map(|event| entry(PINS as usize + i, event.msi)));
        let all: Vec<_> = pins.chain(events).collect();
        let table = KvmIrqRouting::from_entries(&all)
            .map_err(|_| Error::Unsupported("too many interrupt routes".into()))?;
        vm.set_gsi_routing(&table).map_err(failed("KVM_SET_GSI_ROUTING"))
    }

    /// A pin of the I/O APIC sends another message.
    pub fn set_pin(&mut self, vm: &VmFd, pin: u32, msi: Option<Msi>) -> Result<()> {
        let Some(slot) = self.pins.get_mut(pin as usize) else {
            return Err(Error::Unsupported(format!("the I/O APIC has no pin {pin}")));
        };
        if *slot == msi {
            return Ok(());
        }
        *slot = msi;
        self.store(vm)
    }

    /// An event sends a message.
    pub fn add_event(&mut self, vm: &VmFd, msi: Msi, event: &OwnedFd) -> Result<()> {
        let name = event.as_raw_fd();
        if let Some(known) = self.events.iter_mut().flatten().find(|e| e.name == name) {
            known.msi = msi;
            return self.store(vm);
        }
        let system = |what| move |source| Error::System { what, source };
        let fd = event.try_clone().map_err(system("cannot keep an interrupt's eventfd"))?;
        let free = self.events.iter().position(Option::is_none);
        let index = free.unwrap_or(self.events.len());
        if index >= EVENTS {
            return Err(Error::Unsupported("too many interrupt eventfds".into()));
        }
        let new = Some(Event { name, fd, msi });
        match self.events.get_mut(index) {
            Some(slot) => *slot = new,
            None => self.events.push(new),
        }
        let done = self.store(vm).and_then(|()| self.tie(vm, index, 0).map_err(system("KVM_IRQFD")));
        if done.is_err()
            && let Some(slot) = self.events.get_mut(index)
        {
            *slot = None;
        }
        done
    }

    /// The event sends nothing any more.
    pub fn remove_event(&mut self, vm: &VmFd, event: &OwnedFd) -> Result<()> {
        let name = event.as_raw_fd();
        let Some(index) = self.events.iter().position(|e| e.as_ref().is_some_and(|e| e.name == name)) else {
            return Ok(());
        };
        self.tie(vm, index, KVM_IRQFD_FLAG_DEASSIGN)
            .map_err(|source| Error::System { what: "KVM_IRQFD", source })?;
        if let Some(slot) = self.events.get_mut(index) {
            *slot = None;
        }
        self.store(vm)
    }

    fn tie(&self, vm: &VmFd, index: usize, flags: u32) -> std::io::Result<()> {
        match self.events.get(index) {
            Some(Some(event)) => sys::irqfd(vm, event.fd.as_fd(), PINS + index as u32, flags),
            _ => Ok(()),
        }
    }
}
