//! What every PCI function has, and what it must do.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bus::{Device, IrqLine, StateError};
use config::PciAddress;
use serde::{Deserialize, Serialize};

use super::config_space::{Bar, BarKind, ConfigSpace, ConfigState, Identity, LayoutError, command};
use super::dma::DmaMemory;
use super::interrupt::{InterruptState, Interrupter, Routing};
use super::msi::MsiCapability;
use super::msix::{self, MsixCapability};
use crate::registry::BuildContext;

/// A PCI function on the bus. The bus maps its BARs where the guest puts them and calls the
/// methods below; accesses to the MSI-X BAR never get here.
///
/// `Device::drain` is called before bus mastering goes off and `Device::resume` after it went on.
pub trait PciFunction: Device {
    /// Configuration space, interrupts and DMA.
    fn core(&self) -> &FunctionCore;

    /// Reads configuration space.
    fn config_read(&self, offset: u16, data: &mut [u8]) {
        self.core().config_read(offset, data);
    }

    /// Writes configuration space.
    fn config_write(&self, offset: u16, data: &[u8]) {
        self.core().config_write(offset, data);
    }

    /// Reads `data.len()` bytes in BAR `bar`; never leaves the BAR.
    fn bar_read(&self, bar: u8, offset: u64, data: &mut [u8]) {
        let _ = (bar, offset);
        data.fill(0xff);
    }

    /// Writes in BAR `bar`; never leaves the BAR.
    fn bar_write(&self, bar: u8, offset: u64, data: &[u8]) {
        let _ = (bar, offset, data);
    }

    /// BAR `bar` was mapped at `address`, or unmapped.
    fn bar_moved(&self, bar: u8, address: Option<u64>) {
        let _ = (bar, address);
    }
}

/// PCI Express port types (PCIe 3.0, 7.8.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum ExpressKind {
    /// An endpoint.
    Endpoint = 0,
    /// A root port.
    RootPort = 4,
}

/// Capability id of PCI Express, and the length of its version 2.
const EXPRESS_ID: u8 = 0x10;
const EXPRESS_LEN: usize = 0x3c;
/// Version 2 (PCIe 3.0, 7.8.2).
const EXPRESS_VERSION: u16 = 2;
/// A link of one lane at 2.5 GT/s: maximum and current speed and width (7.8.6, 7.8.8).
const EXPRESS_LINK: u8 = 0x11;

struct Registers {
    space: ConfigSpace,
    msi: Option<MsiCapability>,
    msix: Option<MsixCapability>,
}

impl Registers {
    fn routing(&self) -> Routing {
        let (msix_enabled, msix_masked) =
            self.msix.as_ref().map_or((false, false), |msix| msix.control(&self.space));
        Routing {
            msi: self.msi.as_ref().and_then(|msi| msi.setting(&self.space)),
            msix_enabled,
            msix_masked,
            intx_disabled: self.space.command() & command::INTX_DISABLE != 0,
        }
    }
}

/// What a function saves of its core.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CoreState {
    config: ConfigState,
    interrupts: InterruptState,
}

/// Configuration space, interrupts and DMA of one function.
pub struct FunctionCore {
    address: PciAddress,
    registers: Mutex<Registers>,
    interrupts: Interrupter,
    dma: DmaMemory,
    msix_bar: Option<u8>,
    wants_intx: bool,
}

impl FunctionCore {
    fn lock(&self) -> MutexGuard<'_, Registers> {
        self.registers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the function is.
    pub fn address(&self) -> PciAddress {
        self.address
    }

    /// `pci.B.S.F`, for [`Device::name`].
    pub fn name(&self) -> String {
        self.address.key()
    }

    /// The function's interrupts.
    pub fn interrupts(&self) -> &Interrupter {
        &self.interrupts
    }

    /// The function's way to guest memory.
    pub fn dma(&self) -> &DmaMemory {
        &self.dma
    }

    /// Reads configuration space.
    pub fn config_read(&self, offset: u16, data: &mut [u8]) {
        let mut registers = self.lock();
        registers.space.show_intx(self.interrupts.asserted());
        registers.space.read(usize::from(offset), data);
    }

    /// Writes configuration space.
    pub fn config_write(&self, offset: u16, data: &[u8]) {
        let mut registers = self.lock();
        registers.space.write(usize::from(offset), data);
        self.interrupts.set_routing(registers.routing());
    }

    /// One byte of configuration space.
    pub fn config_byte(&self, offset: u16) -> u8 {
        self.lock().space.byte(usize::from(offset))
    }

    /// Whether the guest lets the function master the bus.
    pub fn bus_master(&self) -> bool {
        self.lock().space.command() & command::BUS_MASTER != 0
    }

    /// Back to the values after power-on. DMA is off afterwards.
    pub fn reset(&self) {
        self.dma.set_enabled(false);
        let mut registers = self.lock();
        registers.space.reset();
        self.interrupts.reset();
        self.interrupts.set_routing(registers.routing());
    }

    /// What the guest has programmed.
    pub fn save(&self) -> CoreState {
        CoreState { config: self.lock().space.state(), interrupts: self.interrupts.save() }
    }

    /// Takes a saved state. The bus then has to map BARs anew ([`super::PciBus::refresh`]).
    pub fn restore(&self, state: &CoreState) -> Result<(), StateError> {
        let mut registers = self.lock();
        let mut space = registers.space.clone();
        if !space.restore(&state.config) {
            return Err(StateError::Invalid("PCI configuration space"));
        }
        if !self.interrupts.restore(state.interrupts.clone()) {
            return Err(StateError::Invalid("MSI-X table"));
        }
        registers.space = space;
        self.interrupts.set_routing(registers.routing());
        Ok(())
    }

    pub(super) fn wants_intx(&self) -> bool {
        self.wants_intx
    }

    pub(super) fn msix_bar(&self) -> Option<u8> {
        self.msix_bar
    }

    pub(super) fn connect_intx(&self, pin: u8, line: IrqLine) {
        self.lock().space.set_interrupt(pin + 1, 0xff);
        self.interrupts.connect(line);
    }

    /// The interrupt pin, 0–3 for INTA–INTD.
    pub(super) fn pin(&self) -> Option<u8> {
        self.lock().space.interrupt_pin().checked_sub(1)
    }

    pub(super) fn set_interrupt_line(&self, irq: u8) {
        let mut registers = self.lock();
        let pin = registers.space.interrupt_pin();
        registers.space.set_interrupt(pin, irq);
    }

    pub(super) fn set_multi_function(&self) {
        self.lock().space.set_multi_function();
    }

    pub(crate) fn bars(&self) -> Vec<Bar> {
        self.lock().space.bars().to_vec()
    }

    pub(crate) fn decoded(&self) -> Vec<(Bar, Range<u64>)> {
        self.lock().space.decoded()
    }

    pub(super) fn assign_bar(&self, index: u8, address: u64) {
        self.lock().space.assign_bar(index, address);
    }

    /// Turns on the spaces that the function has BARs in, for every reset.
    pub(super) fn enable_spaces(&self) {
        let mut registers = self.lock();
        let bits =
            registers.space.bars().iter().fold(0, |bits, bar| {
                bits | if bar.kind == BarKind::Io { command::IO } else { command::MEMORY }
            });
        registers.space.enable(bits);
    }
}

/// Makes a [`FunctionCore`].
pub struct FunctionBuilder {
    space: ConfigSpace,
    msi: Option<MsiCapability>,
    msix: Option<(MsixCapability, usize, u8)>,
    intx: bool,
}

impl FunctionBuilder {
    /// A function with this identity and no resources.
    pub fn new(identity: &Identity) -> Self {
        Self { space: ConfigSpace::new(identity), msi: None, msix: None, intx: false }
    }

    /// Adds a base address register.
    pub fn bar(mut self, index: u8, kind: BarKind, size: u64) -> Result<Self, LayoutError> {
        self.space.add_bar(Bar { index, kind, size })?;
        Ok(self)
    }

    /// Adds an MSI capability with 64-bit addresses for `vectors` (a power of 2 up to 32).
    pub fn msi(mut self, vectors: usize) -> Result<Self, LayoutError> {
        self.msi = Some(MsiCapability::add(&mut self.space, vectors, true)?);
        Ok(self)
    }

    /// Adds MSI-X for `vectors`, with the table in a 32-bit memory BAR `bar` of its own.
    pub fn msix(mut self, vectors: usize, bar: u8) -> Result<Self, LayoutError> {
        let capability = MsixCapability::add(&mut self.space, vectors, bar)?;
        self.msix = Some((capability, vectors, bar));
        self.bar(bar, BarKind::Memory32, msix::bar_size(vectors))
    }

    /// Asks for an interrupt pin.
    #[must_use]
    pub fn intx(mut self) -> Self {
        self.intx = true;
        self
    }

    /// Adds a PCI Express capability.
    pub fn express(self, kind: ExpressKind) -> Result<Self, LayoutError> {
        let mut body = [0; EXPRESS_LEN - 2];
        let flags = (EXPRESS_VERSION | (kind as u16) << 4).to_le_bytes();
        // Offsets here are those of the capability, less the two bytes before the body.
        for (offset, value) in [(0, flags[0]), (1, flags[1]), (0x0a, EXPRESS_LINK), (0x10, EXPRESS_LINK)] {
            if let Some(byte) = body.get_mut(offset) {
                *byte = value;
            }
        }
        self.capability(EXPRESS_ID, &body, &[])
    }

    /// Where the next capability will be.
    pub fn next_capability(&self) -> u16 {
        self.space.next_capability() as u16
    }

    /// Adds any other capability: the bytes after id and pointer, and which bits can be written.
    pub fn capability(mut self, id: u8, body: &[u8], mask: &[u8]) -> Result<Self, LayoutError> {
        self.space.add_capability(id, body, mask)?;
        Ok(self)
    }

    /// Sets registers after reset and which of their bits can be written.
    #[must_use]
    pub fn registers(mut self, offset: u16, value: &[u8], mask: &[u8]) -> Self {
        self.space.set(usize::from(offset), value);
        self.space.allow(usize::from(offset), mask);
        self
    }

    /// The finished core.
    pub fn build(self, context: &BuildContext) -> FunctionCore {
        let interrupts = Interrupter::new(context.msi.clone(), self.msix.as_ref().map(|(_, n, _)| *n));
        FunctionCore {
            address: context.address,
            interrupts,
            dma: DmaMemory::new(context.memory.clone()),
            msix_bar: self.msix.as_ref().map(|(_, _, bar)| *bar),
            wants_intx: self.intx,
            registers: Mutex::new(Registers {
                space: self.space,
                msi: self.msi,
                msix: self.msix.map(|(capability, _, _)| capability),
            }),
        }
    }
}
