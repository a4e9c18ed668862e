//! The host bridge's work: both ways into configuration space, and the BARs on the bus.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};

use bus::{Bus, BusDevice, ClaimError, Device, IrqLine, SavedState, StateError};
use config::PciAddress;
use memory::GuestMemory;

use super::assign::{self, AssignError, PIRQ_IRQS, RootWindows, Route, Router};
use super::config_space::{Bar, BarKind};
use super::function::PciFunction;
use super::lpc;

/// Address and data port of configuration mechanism 1 (PCI 3.0, 3.2.2.3.2).
const CONFIG_ADDRESS: u16 = 0xcf8;
const CONFIG_DATA: u16 = 0xcfc;
/// Enable bit of the address register.
const CONFIG_ENABLE: u32 = 1 << 31;
/// Bits of the address register that exist: enable, bus, device, function, register.
const CONFIG_WRITABLE: u32 = CONFIG_ENABLE | 0x00ff_fffc;
/// The reset control register is the byte after the low one of the address register, for byte
/// accesses only.
const RESET_CONTROL: u64 = 1;
/// Memory-mapped configuration space (PCIe 3.0, 7.2.2): 256 buses at E0000000, as bhyve.
pub const ECAM: Range<u64> = 0xe000_0000..0xf000_0000;
/// Last register that decides where a function answers: the end of the BARs.
const DECODE_END: u16 = 0x28;
const DECODE_START: u16 = 0x04;

const VERSION: u32 = 1;

/// The reset control register (CF9), which lies among the configuration ports.
pub trait ResetControl: Send + Sync {
    /// Reads it.
    fn read(&self) -> u8;
    /// Writes it.
    fn write(&self, value: u8);
}

/// Makes an input of an I/O APIC pin for one device.
pub type LineSource = Box<dyn Fn(u32) -> IrqLine + Send + Sync>;

/// What the bus is connected to.
pub struct PciBusConfig {
    /// Ports and memory.
    pub bus: Arc<Bus>,
    /// RAM, over which no BAR is mapped.
    pub memory: GuestMemory,
    /// Interrupt inputs 16–31.
    pub line: LineSource,
    /// CF9.
    pub reset_control: Option<Arc<dyn ResetControl>>,
    /// Whether there is firmware: it assigns BARs and knows a fixed interrupt routing.
    pub firmware: bool,
}

/// Why a function can't be added.
#[derive(Debug, thiserror::Error)]
#[error("there already is a device in slot {0}")]
pub struct SlotTaken(pub PciAddress);

#[derive(Clone, PartialEq, Eq)]
struct Mapping {
    address: PciAddress,
    bar: Bar,
    range: Range<u64>,
}

/// All PCI buses of a machine.
pub struct PciBus {
    config: PciBusConfig,
    functions: RwLock<BTreeMap<PciAddress, Arc<dyn PciFunction>>>,
    /// What is mapped. Its lock serializes all changes of configuration space.
    mapped: Mutex<Vec<Mapping>>,
    router: Mutex<Router>,
    windows: Mutex<Vec<RootWindows>>,
    latch: AtomicU32,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl PciBus {
    /// Empty buses. Claims the configuration ports and the ECAM window.
    pub fn new(config: PciBusConfig) -> Result<Arc<Self>, ClaimError> {
        let this = Arc::new(Self {
            functions: RwLock::default(),
            mapped: Mutex::default(),
            router: Mutex::new(Router::new(config.firmware)),
            windows: Mutex::default(),
            latch: AtomicU32::new(0),
            config,
        });
        let bus = &this.config.bus;
        let weak = Arc::downgrade(&this);
        bus.claim_ports(CONFIG_ADDRESS..CONFIG_DATA, Arc::new(AddressPort(weak.clone())))?;
        bus.claim_ports(CONFIG_DATA..CONFIG_DATA + 4, Arc::new(DataPort(weak.clone())))?;
        bus.claim_memory(ECAM, Arc::new(EcamWindow(weak)))?;
        Ok(this)
    }

    /// Puts a function on its bus and gives it an interrupt input if it wants one.
    pub fn add(&self, function: Arc<dyn PciFunction>) -> Result<(), SlotTaken> {
        let address = function.core().address();
        let mut functions = self.functions.write().unwrap_or_else(PoisonError::into_inner);
        if functions.contains_key(&address) {
            return Err(SlotTaken(address));
        }
        if function.core().wants_intx() {
            let route = lock(&self.router).add(address.bus, address.slot);
            function.core().connect_intx(route.pin, (self.config.line)(route.gsi));
        }
        functions.insert(address, function);
        let slot = PciAddress { function: 0, ..address }..=PciAddress { function: u8::MAX, ..address };
        if functions.range(slot.clone()).any(|(address, _)| address.function > 0) {
            functions.range(slot).for_each(|(_, f)| f.core().set_multi_function());
        }
        Ok(())
    }

    /// All functions in the order of their addresses.
    pub fn functions(&self) -> Vec<Arc<dyn PciFunction>> {
        self.functions.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// The function at `address`.
    pub fn function(&self, address: PciAddress) -> Option<Arc<dyn PciFunction>> {
        self.functions.read().unwrap_or_else(PoisonError::into_inner).get(&address).cloned()
    }

    /// Where interrupt pins go, for ACPI and the MP table.
    pub fn routes(&self) -> Vec<Route> {
        lock(&self.router).routes()
    }

    /// The windows of all root buses, bus 0 first, for ACPI. Known after [`PciBus::assign`].
    pub fn windows(&self) -> Vec<RootWindows> {
        lock(&self.windows).clone()
    }

    /// Gives addresses to all BARs. Where there is no firmware, also turns them on and routes the
    /// PIRQs. RAM ends at `memory_end`. To be called after the last [`PciBus::add`] and after each
    /// reset.
    pub fn assign(&self, memory_end: u64) -> Result<(), AssignError> {
        let functions = self.functions();
        let bars: Vec<_> = functions
            .iter()
            .flat_map(|f| f.core().bars().into_iter().map(|bar| (f.core().address(), bar)))
            .collect();
        let mut buses: Vec<u8> = functions.iter().map(|f| f.core().address().bus).chain([0]).collect();
        buses.sort_unstable();
        buses.dedup();
        let plan = assign::plan(&bars, &buses, memory_end)?;
        for (address, bar, base) in plan.bars {
            if let Some(function) = self.function(address) {
                function.core().assign_bar(bar, base);
            }
        }
        *lock(&self.windows) = plan.windows;
        if !self.config.firmware {
            self.play_firmware(&functions);
        }
        self.refresh();
        Ok(())
    }

    /// What is left to do where no firmware runs.
    fn play_firmware(&self, functions: &[Arc<dyn PciFunction>]) {
        let routes = self.routes();
        for function in functions {
            function.core().enable_spaces();
            let address = function.core().address();
            let pin = function.core().pin();
            let route =
                routes.iter().find(|r| (r.bus, r.slot, Some(r.pin)) == (address.bus, address.slot, pin));
            if let Some(irq) = route.and_then(|r| PIRQ_IRQS.get(usize::from(r.pirq))) {
                function.core().set_interrupt_line(*irq);
            }
        }
        for (pirq, irq) in (0..).zip(PIRQ_IRQS) {
            let used = routes.iter().any(|r| r.pirq == pirq);
            for bridge in functions.iter().filter(|f| used && lpc::is_bridge(f.core())) {
                bridge.config_write(lpc::pirq_register(pirq), &[irq]);
            }
        }
    }

    /// Makes the bus follow the functions' command and base address registers: after they were
    /// changed by other means than a guest's write, as a reset or a restore.
    pub fn refresh(&self) {
        let mut mapped = lock(&self.mapped);
        self.map(&mut mapped);
        for function in self.functions() {
            follow_bus_master(&*function);
        }
    }

    fn config_read(&self, address: PciAddress, register: u16, data: &mut [u8]) {
        match self.function(address) {
            Some(function) => function.config_read(register, data),
            None => data.fill(0xff),
        }
    }

    fn config_write(&self, address: PciAddress, register: u16, data: &[u8]) {
        let Some(function) = self.function(address) else { return };
        let mut mapped = lock(&self.mapped);
        function.config_write(register, data);
        let end = register.saturating_add(data.len() as u16);
        if register < DECODE_END && end > DECODE_START {
            self.map(&mut mapped);
            follow_bus_master(&*function);
        }
    }

    /// Unmaps what moved away, then maps what can be: a BAR over RAM or over somebody else's
    /// registers stays unmapped until there is room.
    fn map(&self, mapped: &mut Vec<Mapping>) {
        let functions = self.functions();
        let wanted: Vec<(Mapping, &Arc<dyn PciFunction>)> = functions
            .iter()
            .flat_map(|f| {
                let address = f.core().address();
                f.core().decoded().into_iter().map(move |(bar, range)| (Mapping { address, bar, range }, f))
            })
            .collect();
        mapped.retain(|mapping| {
            let keep = wanted.iter().any(|(w, _)| w == mapping);
            if !keep {
                self.release(mapping);
                if let Some(function) = self.function(mapping.address) {
                    function.bar_moved(mapping.bar.index, None);
                }
            }
            keep
        });
        for (mapping, function) in wanted {
            if !mapped.contains(&mapping) && self.claim(&mapping, function) {
                function.bar_moved(mapping.bar.index, Some(mapping.range.start));
                mapped.push(mapping);
            }
        }
    }

    fn claim(&self, mapping: &Mapping, function: &Arc<dyn PciFunction>) -> bool {
        // Software leaves a BAR at 0 until it knows better.
        if mapping.range.start == 0 {
            return false;
        }
        let window = Arc::new(BarWindow {
            function: function.clone(),
            bar: mapping.bar.index,
            msix: function.core().msix_bar() == Some(mapping.bar.index),
        });
        let bus = &self.config.bus;
        match Place::of(mapping) {
            Place::Ports(ports) => bus.claim_ports(ports, window).is_ok(),
            Place::Nowhere => false,
            Place::Memory => {
                let ram = self.config.memory.regions().iter().any(|region| {
                    region.gpa() < mapping.range.end && mapping.range.start < region.gpa() + region.len()
                });
                !ram && bus.claim_memory(mapping.range.clone(), window).is_ok()
            }
        }
    }

    fn release(&self, mapping: &Mapping) {
        match Place::of(mapping) {
            Place::Ports(ports) => self.config.bus.release_ports(&ports),
            Place::Nowhere => {}
            Place::Memory => self.config.bus.release_memory(&mapping.range),
        }
    }
}

/// Which part of the bus a mapping claims.
enum Place {
    Ports(Range<u16>),
    Memory,
    /// The last ports: a range of the bus can't say where they end.
    Nowhere,
}

impl Place {
    fn of(mapping: &Mapping) -> Self {
        let port = |address: u64| u16::try_from(address).ok();
        if mapping.bar.kind != BarKind::Io {
            return Self::Memory;
        }
        match port(mapping.range.start).zip(port(mapping.range.end)) {
            Some((start, end)) => Self::Ports(start..end),
            None => Self::Nowhere,
        }
    }
}

/// Turns DMA on or off as the bus-master bit says; off only when nothing is in flight any more.
fn follow_bus_master(function: &dyn PciFunction) {
    let core = function.core();
    match (core.dma().enabled(), core.bus_master()) {
        (true, false) => {
            function.drain();
            core.dma().set_enabled(false);
        }
        (false, true) => {
            core.dma().set_enabled(true);
            function.resume();
        }
        _ => {}
    }
}

impl Device for PciBus {
    fn name(&self) -> String {
        "pci".into()
    }

    /// Resets the bus and all functions.
    fn reset(&self) {
        self.latch.store(0, Ordering::Relaxed);
        for function in self.functions() {
            function.reset();
        }
        self.refresh();
    }

    /// The bus alone; each function saves itself.
    fn save(&self) -> Result<SavedState, StateError> {
        SavedState::encode(VERSION, &self.latch.load(Ordering::Relaxed))
    }

    /// To be called after the functions were restored.
    fn restore(&self, state: &SavedState) -> Result<(), StateError> {
        let latch: u32 = state.decode(VERSION)?;
        self.latch.store(latch & CONFIG_WRITABLE, Ordering::Relaxed);
        self.refresh();
        Ok(())
    }
}

/// One mapped BAR.
struct BarWindow {
    function: Arc<dyn PciFunction>,
    bar: u8,
    msix: bool,
}

impl BusDevice for BarWindow {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if self.msix {
            self.function.core().interrupts().table_read(offset, data);
        } else {
            self.function.bar_read(self.bar, offset, data);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if self.msix {
            self.function.core().interrupts().table_write(offset, data);
        } else {
            self.function.bar_write(self.bar, offset, data);
        }
    }
}

/// CF8: only whole-register accesses count. Others go to whatever else is there: CF9.
struct AddressPort(Weak<PciBus>);

impl BusDevice for AddressPort {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        let Some(pci) = self.0.upgrade() else { return };
        match (offset, data) {
            (0, data @ [_, _, _, _]) => {
                data.copy_from_slice(&pci.latch.load(Ordering::Relaxed).to_le_bytes());
            }
            (RESET_CONTROL, [byte]) => {
                if let Some(control) = &pci.config.reset_control {
                    *byte = control.read();
                }
            }
            _ => {}
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let Some(pci) = self.0.upgrade() else { return };
        match (offset, data) {
            (0, &[a, b, c, d]) => {
                let value = u32::from_le_bytes([a, b, c, d]) & CONFIG_WRITABLE;
                pci.latch.store(value, Ordering::Relaxed);
            }
            (RESET_CONTROL, &[byte]) => {
                if let Some(control) = &pci.config.reset_control {
                    control.write(byte);
                }
            }
            _ => {}
        }
    }
}

/// CFC–CFF: the register that the address register selects.
struct DataPort(Weak<PciBus>);

impl DataPort {
    fn target(&self, offset: u64) -> Option<(Arc<PciBus>, PciAddress, u16)> {
        let pci = self.0.upgrade()?;
        let latch = pci.latch.load(Ordering::Relaxed);
        let address = decode(latch >> 8);
        let register = (latch & 0xfc) as u16 + offset as u16;
        (latch & CONFIG_ENABLE != 0).then_some((pci, address, register))
    }
}

impl BusDevice for DataPort {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match self.target(offset) {
            Some((pci, address, register)) => pci.config_read(address, register, data),
            None => data.fill(0xff),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some((pci, address, register)) = self.target(offset) {
            pci.config_write(address, register, data);
        }
    }
}

/// Bus, slot and function from the bits that both mechanisms use.
fn decode(bits: u32) -> PciAddress {
    PciAddress { bus: (bits >> 8) as u8, slot: (bits >> 3 & 0x1f) as u8, function: (bits & 7) as u8 }
}

/// Memory-mapped configuration space.
struct EcamWindow(Weak<PciBus>);

/// Parts of an access within one register of 4 bytes each, as (offset, bytes).
fn dwords(offset: u64, len: usize) -> impl Iterator<Item = (u64, Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = offset + done as u64;
        let part = (4 - (at % 4) as usize).min(len - done);
        let range = done..done + part;
        done += part;
        (part > 0).then_some((at, range))
    })
}

impl BusDevice for EcamWindow {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let Some(pci) = self.0.upgrade() else { return data.fill(0xff) };
        for (at, part) in dwords(offset, data.len()) {
            if let Some(data) = data.get_mut(part) {
                pci.config_read(decode((at >> 12) as u32), (at & 0xfff) as u16, data);
            }
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let Some(pci) = self.0.upgrade() else { return };
        for (at, part) in dwords(offset, data.len()) {
            if let Some(data) = data.get(part) {
                pci.config_write(decode((at >> 12) as u32), (at & 0xfff) as u16, data);
            }
        }
    }
}

#[cfg(test)]
#[path = "bus_tests.rs"]
mod tests;
