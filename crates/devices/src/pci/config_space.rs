//! A function's configuration space with a type 0 header (PCI 3.0, 6.1), as bytes and the mask of
//! those bits that software can write.

use std::ops::Range;

use serde::{Deserialize, Serialize};

/// Length of the space that is not all zeros.
pub const CONFIG_LEN: usize = 256;

/// Number of base address registers of a type 0 header.
pub const BARS: u8 = 6;

// Registers (PCI 3.0, figure 6-1).
const VENDOR: usize = 0x00;
const DEVICE: usize = 0x02;
pub(crate) const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const REVISION: usize = 0x08;
const CLASS: usize = 0x09;
const CACHE_LINE: usize = 0x0c;
const LATENCY: usize = 0x0d;
const HEADER_TYPE: usize = 0x0e;
const BAR0: usize = 0x10;
const SUBSYSTEM_VENDOR: usize = 0x2c;
const SUBSYSTEM: usize = 0x2e;
const CAPABILITIES: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;
const INTERRUPT_PIN: usize = 0x3d;
/// Where capabilities begin.
const FIRST_CAPABILITY: usize = 0x40;

/// Bits of the command register (6.2.2).
pub(crate) mod command {
    /// Answers in port space.
    pub const IO: u16 = 1 << 0;
    /// Answers in memory space.
    pub const MEMORY: u16 = 1 << 1;
    /// May do DMA and send MSIs.
    pub const BUS_MASTER: u16 = 1 << 2;
    /// Must not use INTx.
    pub const INTX_DISABLE: u16 = 1 << 10;
    /// What can be written: also parity error response and SERR#, which have no effect.
    pub const WRITABLE: u16 = IO | MEMORY | BUS_MASTER | 1 << 6 | 1 << 8 | INTX_DISABLE;
}

// Bits of the status register (6.2.3).
const STATUS_INTX: u8 = 1 << 3;
const STATUS_CAPABILITIES: u8 = 1 << 4;

/// Header type bit: the device has more functions (6.2.1).
const MULTI_FUNCTION: u8 = 1 << 7;

// Low bits of a BAR (6.2.5.1).
const BAR_IO: u32 = 1;
const BAR_MEMORY_64: u32 = 1 << 2;
const BAR_PREFETCHABLE: u32 = 1 << 3;

/// Smallest memory BAR (6.2.5.1: 16 bytes), and smallest I/O BAR.
const MIN_MEMORY: u64 = 16;
const MIN_IO: u64 = 4;
/// Largest I/O BAR on a PC (6.2.5.1).
const MAX_IO: u64 = 256;

/// What a function says that it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Revision.
    pub revision: u8,
    /// Class, subclass, programming interface.
    pub class: [u8; 3],
    /// Subsystem vendor id.
    pub subsystem_vendor: u16,
    /// Subsystem id.
    pub subsystem: u16,
}

/// Which space a BAR is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarKind {
    /// Ports.
    Io,
    /// Memory below 4 GiB.
    Memory32,
    /// Memory anywhere.
    Memory64 {
        /// Reads have no side effects and writes may be merged.
        prefetchable: bool,
    },
}

/// A base address register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bar {
    /// Its number; a 64-bit one takes the next number too.
    pub index: u8,
    /// Its space.
    pub kind: BarKind,
    /// Its size, a power of 2.
    pub size: u64,
}

/// A layout that can't be.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum LayoutError {
    #[error("BAR {0} does not exist or is taken")]
    BarTaken(u8),
    #[error("BAR {0} has no valid size")]
    BarSize(u8),
    #[error("no room for a capability of {0} bytes")]
    Capability(usize),
    #[error("an MSI or MSI-X capability with an impossible number of vectors, {0}")]
    Vectors(usize),
}

/// The registers.
#[derive(Clone)]
pub struct ConfigSpace {
    value: [u8; CONFIG_LEN],
    mask: [u8; CONFIG_LEN],
    /// Values after reset.
    initial: [u8; CONFIG_LEN],
    bars: Vec<Bar>,
    /// Where the next capability goes.
    end: usize,
    /// Where the pointer to it goes.
    link: usize,
}

/// The part of the registers that a guest can change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigState(Vec<u8>);

impl ConfigSpace {
    /// A function without BARs and capabilities.
    pub fn new(identity: &Identity) -> Self {
        let mut space = Self {
            value: [0; CONFIG_LEN],
            mask: [0; CONFIG_LEN],
            initial: [0; CONFIG_LEN],
            bars: Vec::new(),
            end: FIRST_CAPABILITY,
            link: CAPABILITIES,
        };
        space.set(VENDOR, &identity.vendor.to_le_bytes());
        space.set(DEVICE, &identity.device.to_le_bytes());
        space.set(REVISION, &[identity.revision]);
        let [class, subclass, interface] = identity.class;
        space.set(CLASS, &[interface, subclass, class]);
        space.set(SUBSYSTEM_VENDOR, &identity.subsystem_vendor.to_le_bytes());
        space.set(SUBSYSTEM, &identity.subsystem.to_le_bytes());
        space.allow(COMMAND, &command::WRITABLE.to_le_bytes());
        for register in [CACHE_LINE, LATENCY, INTERRUPT_LINE] {
            space.allow(register, &[0xff]);
        }
        space
    }

    /// Sets bytes now and for every reset, whatever their write mask.
    pub fn set(&mut self, offset: usize, bytes: &[u8]) {
        for space in [&mut self.value, &mut self.initial] {
            if let Some(to) = space.get_mut(offset..offset + bytes.len()) {
                to.copy_from_slice(bytes);
            }
        }
    }

    /// Sets the write mask of registers.
    pub fn allow(&mut self, offset: usize, mask: &[u8]) {
        if let Some(to) = self.mask.get_mut(offset..offset + mask.len()) {
            to.copy_from_slice(mask);
        }
    }

    /// Adds a base address register.
    pub fn add_bar(&mut self, bar: Bar) -> Result<(), LayoutError> {
        let wide = matches!(bar.kind, BarKind::Memory64 { .. });
        let last = bar.index.saturating_add(u8::from(wide));
        let taken = |b: &Bar| {
            let end = b.index + u8::from(matches!(b.kind, BarKind::Memory64 { .. }));
            b.index <= last && bar.index <= end
        };
        if last >= BARS || self.bars.iter().any(taken) {
            return Err(LayoutError::BarTaken(bar.index));
        }
        let (min, max) = match bar.kind {
            BarKind::Io => (MIN_IO, MAX_IO),
            BarKind::Memory32 => (MIN_MEMORY, 1 << 31),
            BarKind::Memory64 { .. } => (MIN_MEMORY, 1 << 40),
        };
        if !bar.size.is_power_of_two() || !(min..=max).contains(&bar.size) {
            return Err(LayoutError::BarSize(bar.index));
        }
        let flags = match bar.kind {
            BarKind::Io => BAR_IO,
            BarKind::Memory32 => 0,
            BarKind::Memory64 { prefetchable: false } => BAR_MEMORY_64,
            BarKind::Memory64 { prefetchable: true } => BAR_MEMORY_64 | BAR_PREFETCHABLE,
        };
        let offset = BAR0 + 4 * usize::from(bar.index);
        // Address bits below the size read as 0: that is how software finds the size.
        let mask = (!(bar.size - 1)).to_le_bytes();
        self.set(offset, &flags.to_le_bytes());
        self.allow(offset, mask.get(..if wide { 8 } else { 4 }).unwrap_or_default());
        self.bars.push(bar);
        Ok(())
    }

    /// Adds a capability of which `body` follows the id and the pointer, and `mask` are the bits
    /// of it that can be written. Returns its offset.
    pub fn add_capability(&mut self, id: u8, body: &[u8], mask: &[u8]) -> Result<usize, LayoutError> {
        let offset = self.end;
        let end = (offset + 2 + body.len()).next_multiple_of(4);
        if end > CONFIG_LEN {
            return Err(LayoutError::Capability(body.len() + 2));
        }
        self.set(offset, &[id, 0]);
        self.set(offset + 2, body);
        self.allow(offset + 2, mask);
        self.set(self.link, &[offset as u8]);
        self.set(STATUS, &[STATUS_CAPABILITIES]);
        (self.end, self.link) = (end, offset + 1);
        Ok(offset)
    }

    /// Where the next capability will be.
    pub fn next_capability(&self) -> usize {
        self.end
    }

    /// The base address registers.
    pub fn bars(&self) -> &[Bar] {
        &self.bars
    }

    /// Says which pin interrupts use (1–4 for INTA–INTD) and what firmware would have put in the
    /// line register.
    pub fn set_interrupt(&mut self, pin: u8, line: u8) {
        self.set(INTERRUPT_PIN, &[pin]);
        self.set(INTERRUPT_LINE, &[line]);
    }

    /// The interrupt pin, 1–4, or 0.
    pub fn interrupt_pin(&self) -> u8 {
        self.byte(INTERRUPT_PIN)
    }

    /// Says that there are more functions in this slot.
    pub fn set_multi_function(&mut self) {
        let kind = self.byte(HEADER_TYPE) | MULTI_FUNCTION;
        self.set(HEADER_TYPE, &[kind]);
    }

    /// Shows the level of INTx in the status register.
    pub fn show_intx(&mut self, level: bool) {
        if let Some(status) = self.value.get_mut(STATUS) {
            *status = *status & !STATUS_INTX | if level { STATUS_INTX } else { 0 };
        }
    }

    /// Programs a BAR as firmware would, for every reset.
    pub fn assign_bar(&mut self, index: u8, address: u64) {
        let Some(bar) = self.bars.iter().find(|b| b.index == index).copied() else { return };
        let offset = BAR0 + 4 * usize::from(index);
        let address = address & !(bar.size - 1);
        if let BarKind::Memory64 { .. } = bar.kind {
            self.set(offset + 4, &((address >> 32) as u32).to_le_bytes());
        }
        let flags = self.dword(offset) & if bar.kind == BarKind::Io { BAR_IO } else { 0xf };
        self.set(offset, &(address as u32 | flags).to_le_bytes());
    }

    /// Sets command bits for every reset.
    pub fn enable(&mut self, bits: u16) {
        let bits = (bits & command::WRITABLE).to_le_bytes();
        for space in [&mut self.value, &mut self.initial] {
            space.iter_mut().skip(COMMAND).zip(bits).for_each(|(to, bits)| *to |= bits);
        }
    }

    /// The command register.
    pub fn command(&self) -> u16 {
        self.dword(COMMAND) as u16
    }

    /// The address in a BAR, whether or not the function answers there. Ports are 16 bits wide:
    /// an address above is no address.
    pub fn bar_address(&self, bar: &Bar) -> Option<u64> {
        let offset = BAR0 + 4 * usize::from(bar.index);
        let low = u64::from(self.dword(offset));
        let base = match bar.kind {
            BarKind::Io => {
                (low & !3).checked_add(bar.size).filter(|end| *end <= 0x1_0000).map(|_| low & !3)?
            }
            BarKind::Memory32 => low & !0xf,
            BarKind::Memory64 { .. } => low & !0xf | u64::from(self.dword(offset + 4)) << 32,
        };
        base.checked_add(bar.size).map(|_| base)
    }

    /// Where the function answers now: BARs whose space is on in the command register.
    pub fn decoded(&self) -> Vec<(Bar, Range<u64>)> {
        let on = |bar: &&Bar| {
            let bit = if bar.kind == BarKind::Io { command::IO } else { command::MEMORY };
            self.command() & bit != 0
        };
        let range = |bar: &Bar| self.bar_address(bar).map(|base| (*bar, base..base + bar.size));
        self.bars.iter().filter(on).filter_map(range).collect()
    }

    /// Reads registers; what lies beyond reads as 0 (no extended capabilities).
    pub fn read(&self, offset: usize, data: &mut [u8]) {
        for (i, to) in data.iter_mut().enumerate() {
            *to = self.byte(offset + i);
        }
    }

    /// Writes registers through the mask.
    pub fn write(&mut self, offset: usize, data: &[u8]) {
        for (at, from) in (offset..).zip(data) {
            if let (Some(to), Some(mask)) = (self.value.get_mut(at), self.mask.get(at)) {
                *to = *to & !mask | from & mask;
            }
        }
    }

    /// One byte.
    pub fn byte(&self, offset: usize) -> u8 {
        self.value.get(offset).copied().unwrap_or(0)
    }

    /// Four bytes, little-endian.
    pub fn dword(&self, offset: usize) -> u32 {
        let mut bytes = [0; 4];
        self.read(offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    /// Back to the values after power-on (or as firmware has left them, where there is none).
    pub fn reset(&mut self) {
        self.value = self.initial;
    }

    /// What the guest has written.
    pub fn state(&self) -> ConfigState {
        ConfigState(self.value.iter().zip(&self.mask).map(|(v, m)| v & m).collect())
    }

    /// Takes back what the guest had written; false if it can't be.
    pub fn restore(&mut self, state: &ConfigState) -> bool {
        if state.0.len() != CONFIG_LEN || state.0.iter().zip(&self.mask).any(|(v, m)| v & !m != 0) {
            return false;
        }
        self.write(0, &state.0);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space() -> ConfigSpace {
        ConfigSpace::new(&Identity {
            vendor: 0x1af4,
            device: 0x1000,
            revision: 3,
            class: [2, 1, 7],
            subsystem_vendor: 0x1234,
            subsystem: 0x5678,
        })
    }

    #[test]
    fn header_fields_are_where_software_looks() {
        let s = space();
        assert_eq!(s.dword(0), 0x1000_1af4);
        assert_eq!(s.dword(8), 0x0201_0703);
        assert_eq!(s.dword(0x2c), 0x5678_1234);
        assert_eq!(s.dword(0xfe), 0);
        assert_eq!(s.dword(0x100), 0);
    }

    #[test]
    fn bars_tell_their_size() {
        let mut s = space();
        s.add_bar(Bar { index: 0, kind: BarKind::Io, size: 64 }).unwrap();
        s.add_bar(Bar { index: 1, kind: BarKind::Memory32, size: 0x1000 }).unwrap();
        s.add_bar(Bar { index: 4, kind: BarKind::Memory64 { prefetchable: true }, size: 1 << 33 }).unwrap();
        s.write(0x10, &[0xff; 24]);
        let bars: Vec<u32> = (0..6).map(|i| s.dword(0x10 + 4 * i)).collect();
        assert_eq!(bars, [0xffff_ffc1, 0xffff_f000, 0, 0, 0xc, 0xffff_fffe]);
    }

    #[test]
    fn bars_that_cannot_be_are_refused() {
        let mut s = space();
        let wide = BarKind::Memory64 { prefetchable: false };
        s.add_bar(Bar { index: 2, kind: wide, size: 0x1000 }).unwrap();
        for (index, kind, size) in [
            (2, BarKind::Io, 4),
            (3, BarKind::Io, 4),
            (1, wide, 0x1000),
            (5, wide, 0x1000),
            (6, BarKind::Io, 4),
            (0, BarKind::Io, 512),
            (0, BarKind::Memory32, 24),
            (0, BarKind::Memory32, 8),
        ] {
            assert!(s.add_bar(Bar { index, kind, size }).is_err(), "{index} {kind:?} {size}");
        }
    }

    #[test]
    fn only_what_is_enabled_and_addressable_is_decoded() {
        let mut s = space();
        s.add_bar(Bar { index: 0, kind: BarKind::Io, size: 64 }).unwrap();
        s.add_bar(Bar { index: 1, kind: BarKind::Memory32, size: 0x1000 }).unwrap();
        s.assign_bar(0, 0x2000);
        s.assign_bar(1, 0xc000_0000);
        assert!(s.decoded().is_empty());
        s.write(COMMAND, &[3, 0]);
        let ranges: Vec<_> = s.decoded().into_iter().map(|(b, r)| (b.index, r)).collect();
        assert_eq!(ranges, [(0, 0x2000..0x2040), (1, 0xc000_0000..0xc000_1000)]);
        s.write(0x10, &0x1_2000u32.to_le_bytes());
        s.write(COMMAND, &[1, 0]);
        assert!(s.decoded().is_empty());
        s.reset();
        assert_eq!((s.command(), s.dword(0x10)), (0, 0x2001));
        // What a guest has set is not among what is enabled for every reset.
        s.write(COMMAND, &[4, 0]);
        s.enable(command::IO);
        assert_eq!(s.command(), command::IO | command::BUS_MASTER);
        s.reset();
        assert_eq!(s.command(), command::IO);
    }

    #[test]
    fn capabilities_form_a_list_within_the_space() {
        let mut s = space();
        assert_eq!(s.add_capability(9, &[1, 2, 3], &[0xff]).unwrap(), 0x40);
        assert_eq!(s.add_capability(0x11, &[0; 10], &[]).unwrap(), 0x48);
        assert_eq!((s.byte(0x34), s.byte(0x41), s.byte(0x49), s.byte(STATUS)), (0x40, 0x48, 0, 0x10));
        s.write(0x40, &[0xee; 8]);
        assert_eq!(s.dword(0x40), 0x02ee_4809);
        assert!(s.add_capability(9, &[0; 200], &[]).is_err());
        assert!(s.add_capability(9, &[0; 160], &[]).is_ok());
    }

    #[test]
    fn a_state_that_sets_read_only_bits_is_refused() {
        let mut s = space();
        s.write(COMMAND, &[7, 4]);
        let state = s.state();
        let mut other = space();
        assert!(other.restore(&state));
        assert_eq!(other.command(), 0x0407);
        let mut bad = state.clone();
        bad.0[0] = 1;
        assert!(!other.restore(&bad));
        bad.0.pop();
        assert!(!other.restore(&bad));
    }
}
