//! The transitional PCI transport (VIRTIO 1.2, 4.1): a legacy register block in port space, as
//! bhyve has it, and the modern one in memory; MSI-X, MSI or INTx.

mod doorbells;
mod fields;
mod legacy;
mod modern;
mod signals;
mod state;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bus::{Device, SavedState, StateError};
use serde::{Deserialize, Serialize};

use self::doorbells::Bells;
use self::signals::{Signals, status};
use self::state::{Parts, Registers, State};
use super::{RingPosition, VirtioDevice};
use crate::pci::{BarKind, CoreState, FunctionBuilder, FunctionCore, Identity, PciFunction};
use crate::registry::{BuildContext, BuildError};

/// Vendor id (4.1.2).
const VENDOR: u16 = 0x1af4;
/// The legacy block must be BAR 0, and bhyve has the MSI-X table in BAR 1.
const LEGACY_BAR: u8 = 0;
const MSIX_BAR: u8 = 1;
// Offsets in the capability that is a window to the BARs (4.1.4.9).
const WINDOW_BAR: u16 = 4;
const WINDOW_OFFSET: u16 = 8;
const WINDOW_LENGTH: u16 = 12;
const WINDOW_DATA: u16 = 16;

const VERSION: u32 = 1;

/// Makes a PCI function of a virtio device.
pub fn function(
    context: &BuildContext,
    device: Arc<dyn VirtioDevice>,
) -> Result<Arc<dyn PciFunction>, BuildError> {
    Ok(Arc::new(VirtioPci::new(context, device)?))
}

/// What is saved.
#[derive(Serialize, Deserialize)]
struct Saved {
    core: CoreState,
    registers: Registers,
    status: u8,
    isr: u8,
    config_vector: u16,
    queue_vectors: Vec<u16>,
    positions: Vec<Option<RingPosition>>,
    activated: bool,
    device: SavedState,
}

struct VirtioPci {
    core: FunctionCore,
    parts: Parts,
    state: Mutex<State>,
    bells: Bells,
    /// Offset of the window capability.
    window: u16,
    legacy_size: u64,
}

impl VirtioPci {
    fn new(context: &BuildContext, device: Arc<dyn VirtioDevice>) -> Result<Self, BuildError> {
        let kind = device.kind();
        let [class, subclass] = kind.pci_class;
        let identity = Identity {
            vendor: VENDOR,
            device: kind.pci_device,
            // Legacy drivers take no other revision.
            revision: 0,
            class: [class, subclass, 0],
            subsystem_vendor: VENDOR,
            subsystem: kind.id,
        };
        let queues = device.queue_sizes().len();
        let legacy_size = legacy::bar_size(device.config_len());
        let mut builder = FunctionBuilder::new(&identity).bar(LEGACY_BAR, BarKind::Io, legacy_size)?;
        // One vector a queue and one for configuration changes, as bhyve; one MSI.
        builder = if context.virtio_msix { builder.msix(queues + 1, MSIX_BAR)? } else { builder.msi(1)? };
        let prefetchable = false;
        builder = builder.bar(modern::BAR, BarKind::Memory64 { prefetchable }, modern::BAR_SIZE)?.intx();
        let mut window = 0;
        for (body, mask) in modern::capabilities(queues, device.config_len()) {
            window = builder.next_capability();
            builder = builder.capability(modern::VENDOR_CAPABILITY, &body, &mask)?;
        }
        let core = builder.build(context);
        let vectors = if context.virtio_msix { queues as u16 + 1 } else { 0 };
        let signals = Arc::new(Signals::new(core.name(), core.interrupts().clone(), queues, vectors));
        device.attach(signals.clone());
        Ok(Self {
            state: Mutex::new(State::new(&*device)),
            bells: Bells::new(context.doorbells.clone(), context.events.clone(), device.clone()),
            parts: Parts { device, signals, dma: core.dma().clone() },
            core,
            window,
            legacy_size,
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn config_dword(&self, offset: u16) -> u32 {
        let mut data = [0; 4];
        self.core.config_read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    /// Where the window in configuration space leads, if to a place that exists.
    fn window_target(&self) -> Option<(u8, u64, usize)> {
        let bar = self.core.config_byte(self.window + WINDOW_BAR);
        let offset = u64::from(self.config_dword(self.window + WINDOW_OFFSET));
        let len = u64::from(self.config_dword(self.window + WINDOW_LENGTH));
        let size = match bar {
            LEGACY_BAR => self.legacy_size,
            modern::BAR => modern::BAR_SIZE,
            _ => return None,
        };
        let good = matches!(len, 1 | 2 | 4) && offset % len == 0 && offset + len <= size;
        good.then_some((bar, offset, len as usize))
    }

    fn in_window(&self, offset: u16, len: usize) -> bool {
        let data = usize::from(self.window + WINDOW_DATA);
        usize::from(offset) < data + 4 && usize::from(offset) + len > data
    }
}

impl Device for VirtioPci {
    fn name(&self) -> String {
        self.core.name()
    }

    fn reset(&self) {
        let mut state = self.state();
        self.parts.reset(&mut state);
        self.core.reset();
    }

    fn drain(&self) {
        self.parts.drain(&self.state());
    }

    fn resume(&self) {
        self.parts.resume(&self.state());
    }

    fn save(&self) -> Result<SavedState, StateError> {
        let state = self.state();
        let signals = &self.parts.signals;
        let queues = state.registers.queues.len() as u16;
        let saved = Saved {
            core: self.core.save(),
            registers: state.registers.clone(),
            status: signals.status(),
            isr: signals.isr_pending(),
            config_vector: signals.config_vector(),
            queue_vectors: (0..queues).map(|queue| signals.queue_vector(queue)).collect(),
            positions: state.positions().ok_or(StateError::Invalid("requests are in flight"))?,
            activated: state.activated(),
            device: self.parts.device.save()?,
        };
        SavedState::encode(VERSION, &saved)
    }

    fn restore(&self, state: &SavedState) -> Result<(), StateError> {
        self.reset();
        let result = state.decode(VERSION).and_then(|saved| self.take(saved));
        if result.is_err() {
            self.reset();
        }
        result
    }
}

impl VirtioPci {
    fn take(&self, saved: Saved) -> Result<(), StateError> {
        let mut state = self.state();
        if saved.registers.queues.len() != state.registers.queues.len() {
            return Err(StateError::Invalid("number of virtqueues"));
        }
        let sizes = saved.registers.queues.iter().map(|q| q.ring.size);
        if sizes
            .zip(self.parts.device.queue_sizes())
            .any(|(size, max)| size > *max || !size.is_power_of_two())
        {
            return Err(StateError::Invalid("size of a virtqueue"));
        }
        self.core.restore(&saved.core)?;
        let signals = &self.parts.signals;
        signals.restore(saved.status & (status::DRIVER_BITS | status::NEEDS_RESET), saved.isr);
        signals.set_config_vector(saved.config_vector);
        for (queue, vector) in (0..).zip(saved.queue_vectors) {
            signals.set_queue_vector(queue, vector);
        }
        self.parts.device.restore(&saved.device)?;
        let running = saved.activated && saved.status & status::NEEDS_RESET == 0;
        self.parts
            .restart(&mut state, saved.registers, &saved.positions, running)
            .map_err(|_| StateError::Invalid("address of a virtqueue"))
    }
}

impl PciFunction for VirtioPci {
    fn core(&self) -> &FunctionCore {
        &self.core
    }

    fn config_read(&self, offset: u16, data: &mut [u8]) {
        if self.in_window(offset, data.len())
            && let Some((bar, at, len)) = self.window_target()
        {
            let mut value = [0; 4];
            self.bar_read(bar, at, value.get_mut(..len).unwrap_or_default());
            self.core.config_write(self.window + WINDOW_DATA, &value);
        }
        self.core.config_read(offset, data);
    }

    fn config_write(&self, offset: u16, data: &[u8]) {
        self.core.config_write(offset, data);
        if self.in_window(offset, data.len())
            && let Some((bar, at, len)) = self.window_target()
        {
            let value = self.config_dword(self.window + WINDOW_DATA).to_le_bytes();
            self.bar_write(bar, at, value.get(..len).unwrap_or_default());
        }
    }

    fn bar_read(&self, bar: u8, offset: u64, data: &mut [u8]) {
        match bar {
            LEGACY_BAR => legacy::read(&self.parts, &self.state(), offset, data),
            modern::BAR => modern::read(&self.parts, &mut self.state(), offset, data),
            _ => data.fill(0xff),
        }
    }

    fn bar_write(&self, bar: u8, offset: u64, data: &[u8]) {
        match bar {
            // The two ways to notify come first and take no lock.
            LEGACY_BAR if offset == legacy::NOTIFY && data.len() == 2 => {
                let index = data.iter().rev().fold(0, |value, byte| value << 8 | u16::from(*byte));
                self.parts.device.notify(index);
            }
            LEGACY_BAR => legacy::write(&self.parts, &mut self.state(), offset, data),
            modern::BAR => match modern::notified(offset) {
                Some(index) => self.parts.device.notify(index),
                None => modern::write(&self.parts, &mut self.state(), offset, data),
            },
            _ => {}
        }
    }

    fn bar_moved(&self, bar: u8, address: Option<u64>) {
        if bar == LEGACY_BAR || bar == modern::BAR {
            self.bells.moved(bar, address);
        }
    }
}

#[cfg(test)]
pub(crate) mod guest;
#[cfg(test)]
mod tests;
