//! How a PCI function reaches guest memory: only while its bus-master bit is set.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use memory::{GuestMemory, GuestSlice};

/// Why a DMA access did not happen.
#[derive(Debug, thiserror::Error)]
pub enum DmaError {
    /// The function's bus-master bit is clear (PCI 3.0, 6.2.2).
    #[error("bus mastering is off")]
    Off,
    /// The address is not RAM. DMA to another device's registers is not routed.
    #[error(transparent)]
    Memory(#[from] memory::Error),
}

/// Result of a DMA access.
pub type DmaResult<T> = Result<T, DmaError>;

/// Guest memory as one PCI function sees it. Cloning shares the switch.
///
/// Slices that were handed out stay usable when the switch goes off: the bus first drains the
/// function, then turns the switch.
#[derive(Clone)]
pub struct DmaMemory {
    memory: GuestMemory,
    enabled: Arc<AtomicBool>,
}

impl DmaMemory {
    /// An accessor that refuses everything until it is enabled.
    pub fn new(memory: GuestMemory) -> Self {
        Self { memory, enabled: Arc::new(AtomicBool::new(false)) }
    }

    /// Whether accesses are let through now.
    pub fn enabled(&self) -> bool {
        self.enabled.load(Ordering::Acquire)
    }

    /// Follows the bus-master bit.
    pub fn set_enabled(&self, on: bool) {
        self.enabled.store(on, Ordering::Release);
    }

    fn memory(&self) -> DmaResult<&GuestMemory> {
        if self.enabled() { Ok(&self.memory) } else { Err(DmaError::Off) }
    }

    /// Whether `len` bytes at `gpa` are RAM, whatever the switch says.
    pub fn contains(&self, gpa: u64, len: u64) -> bool {
        self.memory.contains(gpa, len)
    }

    /// A piece of RAM for host I/O.
    pub fn slice(&self, gpa: u64, len: u64) -> DmaResult<GuestSlice> {
        Ok(self.memory()?.slice(gpa, len)?)
    }

    /// Copies from guest RAM.
    pub fn read(&self, gpa: u64, to: &mut [u8]) -> DmaResult<()> {
        Ok(self.memory()?.read(gpa, to)?)
    }

    /// Copies into guest RAM.
    pub fn write(&self, gpa: u64, from: &[u8]) -> DmaResult<()> {
        Ok(self.memory()?.write(gpa, from)?)
    }

    /// Loads a little-endian `u16`.
    pub fn load_u16(&self, gpa: u64, order: Ordering) -> DmaResult<u16> {
        Ok(self.memory()?.load_u16(gpa, order)?)
    }

    /// Stores a little-endian `u16`.
    pub fn store_u16(&self, gpa: u64, value: u16, order: Ordering) -> DmaResult<()> {
        Ok(self.memory()?.store_u16(gpa, value, order)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use memory::Backing;

    #[test]
    fn nothing_passes_while_the_switch_is_off() {
        let memory = GuestMemory::new(&[(0, 0x1000)], &Backing::Anonymous).unwrap();
        let dma = DmaMemory::new(memory);
        let other = dma.clone();
        assert!(matches!(dma.read(0, &mut [0]), Err(DmaError::Off)));
        assert!(matches!(dma.slice(0, 1), Err(DmaError::Off)));
        other.set_enabled(true);
        dma.write(8, &[7]).unwrap();
        assert_eq!(dma.load_u16(8, Ordering::Relaxed).unwrap(), 7);
        assert!(matches!(dma.write(0xfff, &[1, 2]), Err(DmaError::Memory(_))));
        other.set_enabled(false);
        assert!(matches!(dma.store_u16(8, 1, Ordering::Relaxed), Err(DmaError::Off)));
    }
}
