//! Interrupt lines and message-signalled interrupts. Devices know nothing else of interrupts.

use std::sync::Arc;

/// A message-signalled interrupt: one 32-bit store of `data` to `address` (PCI 3.0, 6.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Msi {
    /// Address in the local APIC window, FEExxxxx (Intel SDM vol. 3, 11.11.1).
    pub address: u64,
    /// Vector, delivery mode and trigger mode (Intel SDM vol. 3, 11.11.2).
    pub data: u32,
}

/// Where MSIs go: the engine's VM.
pub trait MsiSink: Send + Sync {
    /// Delivers the message. Never blocks.
    fn signal_msi(&self, msi: Msi);

    /// Raises or drops the INTR pin that the 8259 pair drives (vCPU 0's LINT0 and, in virtual
    /// wire mode, any CPU that takes ExtINT).
    fn set_intr(&self, level: bool);
}

/// Takes line levels: the chipset's fan-out to PIC and I/O APIC.
pub trait IrqSink: Send + Sync {
    /// Sets the level of global system interrupt `gsi`.
    fn set_irq(&self, gsi: u32, level: bool);
}

/// One interrupt input, held by one device.
#[derive(Clone)]
pub struct IrqLine {
    sink: Arc<dyn IrqSink>,
    gsi: u32,
}

impl IrqLine {
    /// The input `gsi` of `sink`.
    pub fn new(sink: Arc<dyn IrqSink>, gsi: u32) -> Self {
        Self { sink, gsi }
    }

    /// Sets the level.
    pub fn set(&self, level: bool) {
        self.sink.set_irq(self.gsi, level);
    }

    /// An edge: high, then low.
    pub fn pulse(&self) {
        self.set(true);
        self.set(false);
    }

    /// The global system interrupt number.
    pub fn gsi(&self) -> u32 {
        self.gsi
    }
}

/// What an engine asks of the chipset's interrupt controllers.
pub trait InterruptController: Send + Sync {
    /// An INTA cycle to the 8259 pair: the vector of the highest pending request, which moves to
    /// in-service. `None` when no request is pending any more (the caller then drops it).
    fn acknowledge(&self) -> Option<u8>;

    /// A local APIC's EOI of a level-triggered `vector`, for the I/O APIC.
    fn end_of_interrupt(&self, vector: u8);
}
