//! What the device sends to the received-FIS area (Serial ATA 3.2, 10.5; AHCI 1.3.1, 4.2.1).

use crate::pci::DmaMemory;

/// Offsets in the received-FIS area.
const PIO_SETUP_AT: u64 = 0x20;
const REGISTERS_AT: u64 = 0x40;
const DEVICE_BITS_AT: u64 = 0x58;
/// FIS types.
const REGISTERS: u8 = 0x34;
const PIO_SETUP: u8 = 0x5f;
const DEVICE_BITS: u8 = 0xa1;
/// The device asks for an interrupt; data goes to the host.
const INTERRUPT: u8 = 1 << 6;
const TO_HOST: u8 = 1 << 5;

/// Status register (ACS-3, 6.2).
pub(super) mod status {
    pub const ERROR: u8 = 1 << 0;
    pub const DATA_REQUEST: u8 = 1 << 3;
    pub const SEEK_COMPLETE: u8 = 1 << 4;
    pub const READY: u8 = 1 << 6;
    pub const BUSY: u8 = 1 << 7;
    /// Nothing wrong.
    pub const GOOD: u8 = READY | SEEK_COMPLETE;
}

/// The registers of a device at the end of a command.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Reply {
    pub status: u8,
    pub error: u8,
    pub lba: u64,
    pub device: u8,
    pub count: u16,
}

impl Reply {
    /// Success.
    pub const GOOD: Self = Self { status: status::GOOD, error: 0, lba: 0, device: 0, count: 0 };

    /// The command failed with these bits of the error register.
    pub const fn failed(error: u8) -> Self {
        Self { status: status::GOOD | status::ERROR, error, ..Self::GOOD }
    }

    fn registers(&self, kind: u8, flags: u8) -> [u8; 20] {
        let [l0, l1, l2, l3, l4, l5, ..] = self.lba.to_le_bytes();
        let [c0, c1] = self.count.to_le_bytes();
        let (status, error, device) = (self.status, self.error, self.device);
        [kind, flags, status, error, l0, l1, l2, device, l3, l4, l5, 0, c0, c1, 0, 0, 0, 0, 0, 0]
    }

    /// Sends a register FIS to the area at `area`.
    pub fn send(&self, dma: &DmaMemory, area: u64, interrupt: bool) {
        let flags = if interrupt { INTERRUPT } else { 0 };
        // A driver that took its area away does not want it.
        let _ = dma.write(area.wrapping_add(REGISTERS_AT), &self.registers(REGISTERS, flags));
    }

    /// Sends the PIO set-up FIS of the last `bytes` for the host.
    pub fn send_pio(&self, dma: &DmaMemory, area: u64, bytes: u16) {
        let mut fis = self.registers(PIO_SETUP, INTERRUPT | TO_HOST);
        let [low, high] = bytes.to_le_bytes();
        // Status before the data, and in byte 15 the status after it.
        fis[2] = status::GOOD | status::DATA_REQUEST;
        (fis[15], fis[16], fis[17]) = (self.status, low, high);
        let _ = dma.write(area.wrapping_add(PIO_SETUP_AT), &fis);
    }

    /// Sends the end of the queued commands `slots`.
    pub fn send_bits(&self, dma: &DmaMemory, area: u64, slots: u32) {
        let [a, b, c, d] = slots.to_le_bytes();
        // Status without BSY and DRQ.
        let fis = [DEVICE_BITS, INTERRUPT, self.status & 0x77, self.error, a, b, c, d];
        let _ = dma.write(area.wrapping_add(DEVICE_BITS_AT), &fis);
    }
}
