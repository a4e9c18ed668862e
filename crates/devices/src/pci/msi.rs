//! The MSI capability (PCI 3.0, 6.8.1): several messages, 32 or 64 address bits, no mask bits.

use bus::Msi;

use super::config_space::{ConfigSpace, LayoutError};

/// Capability id.
const ID: u8 = 0x05;
// Message control (6.8.1.3).
const ENABLE: u16 = 1 << 0;
const WIDE: u16 = 1 << 7;

/// The capability's place in configuration space.
#[derive(Clone, Copy, Debug)]
pub struct MsiCapability {
    offset: usize,
    log_vectors: u8,
    wide: bool,
}

/// What the guest has programmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsiSetting {
    message: Msi,
    /// Low bits of the data that select the vector.
    vector_mask: u32,
}

impl MsiCapability {
    /// Adds a capability for `vectors` (1, 2, 4 … 32) messages.
    pub fn add(space: &mut ConfigSpace, vectors: usize, wide: bool) -> Result<Self, LayoutError> {
        if !vectors.is_power_of_two() || vectors > 32 {
            return Err(LayoutError::Vectors(vectors));
        }
        let log_vectors = vectors.trailing_zeros() as u8;
        let control = u16::from(log_vectors) << 1 | if wide { WIDE } else { 0 };
        let mut body = control.to_le_bytes().to_vec();
        // Enable and multiple message enable; a dword-aligned address; 16 bits of data.
        let mut mask = vec![0x71, 0, 0xfc, 0xff, 0xff, 0xff];
        if wide {
            mask.extend([0xff; 4]);
        }
        mask.extend([0xff; 2]);
        body.resize(mask.len(), 0);
        let offset = space.add_capability(ID, &body, &mask)?;
        Ok(Self { offset, log_vectors, wide })
    }

    /// What the registers say now; `None` while MSI is off.
    pub fn setting(&self, space: &ConfigSpace) -> Option<MsiSetting> {
        let control = space.dword(self.offset + 2) as u16;
        if control & ENABLE == 0 {
            return None;
        }
        let low = u64::from(space.dword(self.offset + 4));
        let (high, data) = if self.wide {
            (u64::from(space.dword(self.offset + 8)), space.dword(self.offset + 12))
        } else {
            (0, space.dword(self.offset + 8))
        };
        // More than was offered counts as all that was offered.
        let log = (control >> 4 & 7).min(u16::from(self.log_vectors));
        Some(MsiSetting {
            message: Msi { address: low | high << 32, data: data & 0xffff },
            vector_mask: (1 << log) - 1,
        })
    }
}

impl MsiSetting {
    /// The message of `vector`. With fewer messages than vectors, several vectors share one.
    pub fn message(&self, vector: u16) -> Msi {
        let data = self.message.data & !self.vector_mask | u32::from(vector) & self.vector_mask;
        Msi { data, ..self.message }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::Identity;

    #[test]
    fn vectors_are_in_the_low_bits_of_the_data() {
        for wide in [false, true] {
            let mut space = ConfigSpace::new(&Identity::default());
            let msi = MsiCapability::add(&mut space, 4, wide).unwrap();
            assert_eq!(msi.setting(&space), None);
            space.write(0x44, &0xfee0_1003u32.to_le_bytes());
            let data = if wide { 0x4c } else { 0x48 };
            space.write(data, &0x4041u16.to_le_bytes());
            // Asks for 8 messages of 4.
            space.write(0x42, &[0x31]);
            let setting = msi.setting(&space).unwrap();
            assert_eq!(setting.message(2), Msi { address: 0xfee0_1000, data: 0x4042 });
            assert_eq!(setting.message(5), Msi { address: 0xfee0_1000, data: 0x4041 });
            space.write(0x42, &[0x01]);
            assert_eq!(msi.setting(&space).unwrap().message(3).data, 0x4041);
            // Message control keeps what the function offers.
            assert_eq!(space.byte(0x42), 0x05 | if wide { 0x80 } else { 0 });
        }
        let mut space = ConfigSpace::new(&Identity::default());
        assert!(MsiCapability::add(&mut space, 3, true).is_err());
        assert!(MsiCapability::add(&mut space, 64, true).is_err());
    }
}
