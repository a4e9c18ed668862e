//! Firmware tables that a PC hands to its operating system: the memory map, ACPI with its AML,
//! the MP table and SMBIOS, placed in the F0000–FFFFF segment where bhyve puts them.
//!
//! The crate knows nothing of options or devices: a [`Platform`] says what the machine looks
//! like, and [`install`] writes the tables that describe it.
#![forbid(unsafe_code)]

mod acpi;
mod map;
mod mptable;
mod platform;
mod pool;
mod smbios;

pub use map::{E820Entry, E820Kind, HIGH_BASE, LOW_LIMIT, MemoryMap};
pub use platform::{ComPort, Ecam, PciAddress, PciRoute, Platform, RootBus, SystemInfo};

use memory::GuestMemory;
use pool::Pool;

/// MP floating pointer structure, at the start of the segment that operating systems search (MP
/// specification 1.4, section 4).
pub const MPTABLE_BASE: u64 = 0xf_0000;
/// SMBIOS entry point; on a 16-byte boundary in F0000–FFFFF (SMBIOS 3.6, 5.2.1).
pub const SMBIOS_BASE: u64 = 0xf_1000;
/// RSDP; on a 16-byte boundary in E0000–FFFFF (ACPI 6.4, 5.2.5.1). The other tables follow it.
pub const ACPI_BASE: u64 = 0xf_2400;
/// End of the segment that holds the tables.
pub const SEGMENT_END: u64 = 0x10_0000;

/// Why tables can't be made or placed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The tables do not fit in the F segment.
    #[error("firmware tables do not fit below 1 MiB ({what} needs {len} bytes)")]
    Full {
        /// The table that did not fit.
        what: &'static str,
        /// Its length.
        len: u64,
    },
    /// The machine can't be described.
    #[error("firmware tables: {0}")]
    Platform(&'static str),
    /// Guest memory has no RAM there.
    #[error(transparent)]
    Memory(#[from] memory::Error),
}

/// Where tables went that a boot protocol passes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Installed {
    /// RSDP, unless ACPI is switched off.
    pub rsdp: Option<u64>,
    /// MP floating pointer, unless it is switched off or the machine is too large for it.
    pub mptable: Option<u64>,
    /// SMBIOS entry point.
    pub smbios: u64,
}

/// Builds all tables of `platform` and writes them into guest RAM.
pub fn install(platform: &Platform, memory: &GuestMemory) -> Result<Installed, Error> {
    platform.check()?;
    let mut pool = Pool::new(ACPI_BASE, SEGMENT_END);
    let mut installed = Installed { smbios: SMBIOS_BASE, ..Installed::default() };
    if platform.acpi {
        let tables = acpi::build(platform, &mut pool)?;
        for (gpa, bytes) in &tables.blobs {
            memory.write(*gpa, bytes)?;
        }
        installed.rsdp = Some(tables.rsdp);
    }
    if platform.mptable
        && let Some(bytes) = mptable::build(platform, MPTABLE_BASE, SMBIOS_BASE - MPTABLE_BASE)
    {
        memory.write(MPTABLE_BASE, &bytes)?;
        installed.mptable = Some(MPTABLE_BASE);
    }
    for (gpa, bytes) in smbios::build(platform, &mut pool)? {
        memory.write(gpa, &bytes)?;
    }
    Ok(installed)
}

/// The byte that makes `bytes` sum to zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, b| sum.wrapping_sub(*b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use memory::Backing;

    #[test]
    fn tables_land_where_operating_systems_search() {
        let memory = GuestMemory::new(&[(0, 0x10_0000)], &Backing::Anonymous).unwrap();
        let mut platform = platform::example::platform(2);
        let installed = install(&platform, &memory).unwrap();
        let expected = Installed { rsdp: Some(0xf_2400), mptable: Some(0xf_0000), smbios: 0xf_1000 };
        assert_eq!(installed, expected);
        let mut word = [0; 8];
        for (gpa, text) in [(0xf_2400, &b"RSD PTR "[..]), (0xf_0000, b"_MP_"), (0xf_1000, b"_SM_")] {
            memory.read(gpa, &mut word).unwrap();
            assert!(word.starts_with(text));
        }
        (platform.acpi, platform.mptable) = (false, false);
        let installed = install(&platform, &memory).unwrap();
        assert_eq!(installed, Installed { rsdp: None, mptable: None, smbios: 0xf_1000 });
    }
}
