//! Registers of one width behind accesses of any width.

use std::ops::Range;
use std::sync::Arc;

use bus::{Bus, BusDevice, ClaimError};

/// Byte-wide registers at fixed ports. A wider access reaches them one byte at a time, the low
/// port first, as the ISA bus splits it.
pub(crate) trait BytePorts: Send + Sync {
    /// Reads one port.
    fn read_port(&self, port: u16) -> u8;
    /// Writes one port.
    fn write_port(&self, port: u16, value: u8);
}

/// A claimed range of ports of a [`BytePorts`] device.
struct PortRange<D> {
    base: u16,
    device: Arc<D>,
}

impl<D: BytePorts> BusDevice for PortRange<D> {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let mut port = self.base.wrapping_add(offset as u16);
        for byte in data {
            *byte = self.device.read_port(port);
            port = port.wrapping_add(1);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut port = self.base.wrapping_add(offset as u16);
        for byte in data {
            self.device.write_port(port, *byte);
            port = port.wrapping_add(1);
        }
    }
}

/// Gives `ports` to `device`.
pub(crate) fn claim_ports<D: BytePorts + 'static>(
    bus: &Bus,
    ports: Range<u16>,
    device: &Arc<D>,
) -> Result<(), ClaimError> {
    let range = PortRange { base: ports.start, device: device.clone() };
    bus.claim_ports(ports, Arc::new(range))
}

/// The part of an access that lies in one aligned register.
pub(crate) struct Part {
    /// Offset of the register.
    pub register: u64,
    /// First bit of the register that is accessed.
    pub shift: u32,
    /// The bytes of the access that belong to it.
    pub bytes: Range<usize>,
}

/// Splits an access of `len` bytes at `offset` at the borders of registers of `width` bytes (a
/// power of two, at most 8).
pub(crate) fn parts(offset: u64, len: usize, width: u64) -> impl Iterator<Item = Part> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done >= len {
            return None;
        }
        let at = offset.wrapping_add(done as u64);
        let inside = at & (width - 1);
        let count = (len - done).min((width - inside) as usize);
        let part = Part { register: at & !(width - 1), shift: inside as u32 * 8, bytes: done..done + count };
        done += count;
        Some(part)
    })
}

/// Fills `data` from registers of `width` bytes.
pub(crate) fn read_registers(offset: u64, data: &mut [u8], width: u64, mut read: impl FnMut(u64) -> u64) {
    for part in parts(offset, data.len(), width) {
        let value = read(part.register) >> part.shift;
        if let Some(bytes) = data.get_mut(part.bytes) {
            for (byte, from) in bytes.iter_mut().zip(value.to_le_bytes()) {
                *byte = from;
            }
        }
    }
}

/// Hands the parts of `data` to registers of `width` bytes, as a value and the mask of the bits
/// that the access covers.
pub(crate) fn write_registers(offset: u64, data: &[u8], width: u64, mut write: impl FnMut(u64, u64, u64)) {
    for part in parts(offset, data.len(), width) {
        let (mut value, mut mask) = (0u64, 0u64);
        for (i, byte) in data.get(part.bytes).unwrap_or_default().iter().enumerate() {
            let shift = part.shift + 8 * i as u32;
            value |= u64::from(*byte) << shift;
            mask |= 0xff << shift;
        }
        write(part.register, value, mask);
    }
}

#[cfg(test)]
pub(crate) mod testing {
    //! What the tests of several devices share.

    use super::*;
    use std::sync::Mutex;

    use bus::{Device, IrqSink, Msi, MsiSink};

    use crate::testing::Random;

    /// Random accesses of every size and offset, with resets and save/restore in between.
    pub(crate) fn hammer(device: &dyn Device, registers: &dyn BusDevice, span: u64) {
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        for round in 0..20_000 {
            let size = 1usize << (random.next() % 4);
            let offset = random.next() % span;
            let size = size.min((span - offset) as usize);
            let value = if random.next() & 1 == 0 { random.next() } else { random.next() & 0xff };
            if random.next() & 1 == 0 {
                registers.write(offset, &value.to_le_bytes()[..size]);
            } else {
                registers.read(offset, &mut [0; 8][..size]);
            }
            if round % 1000 == 999 {
                let saved = device.save().unwrap();
                device.restore(&saved).unwrap();
            }
        }
        device.reset();
        let mut saved = device.save().unwrap();
        saved.version += 1;
        assert!(device.restore(&saved).is_err());
        saved.version -= 1;
        saved.data.clear();
        assert!(device.restore(&saved).is_err());
    }

    /// Remembers line changes and messages.
    #[derive(Default)]
    pub(crate) struct Probe {
        pub irqs: Mutex<Vec<(u32, bool)>>,
        pub msis: Mutex<Vec<Msi>>,
        pub intr: Mutex<bool>,
    }

    impl Probe {
        /// The changes since the last call.
        pub(crate) fn take_irqs(&self) -> Vec<(u32, bool)> {
            std::mem::take(&mut *self.irqs.lock().unwrap())
        }
        /// The messages since the last call.
        pub(crate) fn take_msis(&self) -> Vec<Msi> {
            std::mem::take(&mut *self.msis.lock().unwrap())
        }
        pub(crate) fn intr(&self) -> bool {
            *self.intr.lock().unwrap()
        }
    }

    impl IrqSink for Probe {
        fn set_irq(&self, gsi: u32, level: bool) {
            self.irqs.lock().unwrap().push((gsi, level));
        }
    }

    impl MsiSink for Probe {
        fn signal_msi(&self, msi: Msi) {
            self.msis.lock().unwrap().push(msi);
        }
        fn set_intr(&self, level: bool) {
            *self.intr.lock().unwrap() = level;
        }
    }

    /// The registers of a byte-port device as one range.
    pub(crate) fn as_range<D: BytePorts>(base: u16, device: &Arc<D>) -> impl BusDevice + use<D> {
        PortRange { base, device: device.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accesses_split_at_registers() {
        let mut data = [0; 7];
        read_registers(2, &mut data, 4, |r| 0x0302_0100 + r * 0x0101_0101);
        assert_eq!(data, [2, 3, 4, 5, 6, 7, 8]);
        let mut seen = Vec::new();
        write_registers(3, &[1, 2, 3, 4, 5, 6], 4, |r, v, m| seen.push((r, v, m)));
        assert_eq!(seen, [(0, 0x0100_0000, 0xff00_0000), (4, 0x0504_0302, 0xffff_ffff), (8, 6, 0xff)]);
    }
}
