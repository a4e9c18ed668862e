//! Finds the device behind a port or a guest-physical address.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;

/// Registers in port or memory space. `offset` is relative to the start of the claimed range; an
/// access never leaves the range. Any length from 1 to 8 (64 for memory) may come, at any offset.
pub trait BusDevice: Send + Sync {
    /// Reads `data.len()` bytes at `offset`. Fills all of `data`; what does not exist reads as 1s.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// Writes `data` at `offset`.
    fn write(&self, offset: u64, data: &[u8]);
}

/// A range that is taken already.
#[derive(Debug, thiserror::Error)]
#[error("range {start:#x}-{end:#x} overlaps one that is taken")]
pub struct ClaimError {
    /// First address asked for.
    pub start: u64,
    /// One past the last.
    pub end: u64,
}

#[derive(Clone)]
struct Claim {
    range: Range<u64>,
    device: Arc<dyn BusDevice>,
}

/// A sorted table of claims, replaced as a whole on change so that vCPUs read it without a lock.
struct Space {
    claims: ArcSwap<Vec<Claim>>,
    change: Mutex<()>,
}

impl Space {
    fn new() -> Self {
        Self { claims: ArcSwap::from_pointee(Vec::new()), change: Mutex::new(()) }
    }

    fn claim(&self, range: Range<u64>, device: Arc<dyn BusDevice>) -> Result<(), ClaimError> {
        let _guard = self.change.lock().unwrap_or_else(PoisonError::into_inner);
        let mut claims = Vec::clone(&self.claims.load());
        let at = claims.partition_point(|c| c.range.start < range.start);
        let before = at.checked_sub(1).and_then(|i| claims.get(i)).is_some_and(|c| c.range.end > range.start);
        let after = claims.get(at).is_some_and(|c| c.range.start < range.end);
        if before || after || range.is_empty() {
            return Err(ClaimError { start: range.start, end: range.end });
        }
        claims.insert(at, Claim { range, device });
        self.claims.store(Arc::new(claims));
        Ok(())
    }

    fn release(&self, range: &Range<u64>) {
        let _guard = self.change.lock().unwrap_or_else(PoisonError::into_inner);
        let mut claims = Vec::clone(&self.claims.load());
        claims.retain(|c| c.range != *range);
        self.claims.store(Arc::new(claims));
    }

    fn find(&self, address: u64) -> Option<Claim> {
        let claims = self.claims.load();
        let at = claims.partition_point(|c| c.range.end <= address);
        claims.get(at).filter(|c| c.range.contains(&address)).cloned()
    }

    /// Splits an access at the borders of claims and calls `each` on the parts.
    fn walk(
        &self,
        address: u64,
        len: usize,
        mut each: impl FnMut(Option<&Claim>, u64, Range<usize>),
    ) -> bool {
        let mut done = 0;
        let mut all = true;
        while done < len {
            let at = address.wrapping_add(done as u64);
            let claim = self.find(at);
            let part = match &claim {
                Some(c) => (len - done).min(usize::try_from(c.range.end - at).unwrap_or(usize::MAX)),
                None => 1,
            };
            all &= claim.is_some();
            each(claim.as_ref(), at, done..done + part);
            done += part;
        }
        all
    }

    fn read(&self, address: u64, data: &mut [u8]) -> bool {
        let len = data.len();
        self.walk(address, len, |claim, at, part| {
            let Some(data) = data.get_mut(part) else { return };
            match claim {
                Some(c) => c.device.read(at - c.range.start, data),
                None => data.fill(0xff),
            }
        })
    }

    fn write(&self, address: u64, data: &[u8]) -> bool {
        self.walk(address, data.len(), |claim, at, part| {
            if let (Some(c), Some(data)) = (claim, data.get(part)) {
                c.device.write(at - c.range.start, data);
            }
        })
    }
}

/// Port and memory space of one machine. RAM is not on the bus: engines reach it directly and
/// call the bus only for what is not RAM.
pub struct Bus {
    ports: Space,
    memory: Space,
}

impl Bus {
    /// An empty bus.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        Self { ports: Space::new(), memory: Space::new() }
    }

    /// Gives ports to a device.
    pub fn claim_ports(&self, ports: Range<u16>, device: Arc<dyn BusDevice>) -> Result<(), ClaimError> {
        self.ports.claim(u64::from(ports.start)..u64::from(ports.end), device)
    }

    /// Takes back exactly the range that was claimed.
    pub fn release_ports(&self, ports: &Range<u16>) {
        self.ports.release(&(u64::from(ports.start)..u64::from(ports.end)));
    }

    /// Gives a guest-physical range to a device.
    pub fn claim_memory(&self, range: Range<u64>, device: Arc<dyn BusDevice>) -> Result<(), ClaimError> {
        self.memory.claim(range, device)
    }

    /// Takes back exactly the range that was claimed.
    pub fn release_memory(&self, range: &Range<u64>) {
        self.memory.release(range);
    }

    /// Reads ports. What nobody claimed reads as 1s; the result tells whether all was claimed.
    pub fn port_read(&self, port: u16, data: &mut [u8]) -> bool {
        self.ports.read(u64::from(port), data)
    }

    /// Writes ports; the result tells whether all was claimed.
    pub fn port_write(&self, port: u16, data: &[u8]) -> bool {
        self.ports.write(u64::from(port), data)
    }

    /// Reads memory-mapped registers. What nobody claimed reads as 1s.
    pub fn memory_read(&self, gpa: u64, data: &mut [u8]) -> bool {
        self.memory.read(gpa, data)
    }

    /// Writes memory-mapped registers.
    pub fn memory_write(&self, gpa: u64, data: &[u8]) -> bool {
        self.memory.write(gpa, data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Echo(Mutex<Vec<(u64, Vec<u8>)>>);

    impl BusDevice for Echo {
        fn read(&self, offset: u64, data: &mut [u8]) {
            for (i, b) in data.iter_mut().enumerate() {
                *b = offset as u8 + i as u8;
            }
        }
        fn write(&self, offset: u64, data: &[u8]) {
            self.0.lock().unwrap().push((offset, data.to_vec()));
        }
    }

    #[test]
    fn accesses_split_at_claims() {
        let bus = Bus::new();
        let echo = Arc::new(Echo(Mutex::default()));
        bus.claim_ports(0x10..0x12, echo.clone()).unwrap();
        let mut data = [0; 4];
        assert!(!bus.port_read(0x0f, &mut data));
        assert_eq!(data, [0xff, 0, 1, 0xff]);
        assert!(bus.port_write(0x11, &[9]));
        assert_eq!(*echo.0.lock().unwrap(), [(1, vec![9])]);
    }

    #[test]
    fn overlaps_are_refused_and_released_ranges_are_free() {
        let bus = Bus::new();
        let echo = Arc::new(Echo(Mutex::default()));
        bus.claim_memory(0x1000..0x2000, echo.clone()).unwrap();
        for range in [0..0x1001, 0x1fff..0x3000, 0x1000..0x2000, 0x1100..0x1200, 5..5] {
            assert!(bus.claim_memory(range, echo.clone()).is_err());
        }
        bus.claim_memory(0x2000..0x3000, echo.clone()).unwrap();
        bus.release_memory(&(0x1000..0x2000));
        bus.claim_memory(0x1800..0x2000, echo).unwrap();
    }
}
