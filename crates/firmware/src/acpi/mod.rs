//! ACPI tables (ACPI 6.4; the tables are of the revisions that bhyve has).

mod aml;
mod dsdt;
mod link;
mod tables;

#[cfg(test)]
mod tests;

use crate::pool::Pool;
use crate::{Error, Platform};

/// The tables, ready to be copied into guest RAM.
pub struct AcpiTables {
    /// Address of the RSDP.
    pub rsdp: u64,
    /// (gpa, bytes), the RSDP first.
    pub blobs: Vec<(u64, Vec<u8>)>,
}

/// OEM id of every table.
const OEM_ID: [u8; 6] = *b"BHYVE ";
/// The generator's id, in the place of a compiler's.
const CREATOR_ID: [u8; 4] = *b"BASL";
const CREATOR_REVISION: u32 = 0x2026_1124;
/// Length of the header that all tables but RSDP and FACS share (ACPI 6.4, table 5.4).
const HEADER_LEN: usize = 36;

/// A table under construction.
struct Table {
    bytes: Vec<u8>,
}

impl Table {
    /// Starts with the common header; length and checksum come with [`Table::finish`].
    fn new(signature: [u8; 4], revision: u8, oem_table_id: [u8; 8]) -> Self {
        let mut table = Self { bytes: Vec::with_capacity(256) };
        table.put(&signature);
        table.u32(0);
        table.put(&[revision, 0]);
        table.put(&OEM_ID);
        table.put(&oem_table_id);
        table.u32(1);
        table.put(&CREATOR_ID);
        table.u32(CREATOR_REVISION);
        table
    }

    fn put(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    fn u8(&mut self, value: u8) {
        self.bytes.push(value);
    }

    fn u16(&mut self, value: u16) {
        self.put(&value.to_le_bytes());
    }

    fn u32(&mut self, value: u32) {
        self.put(&value.to_le_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.put(&value.to_le_bytes());
    }

    /// A generic address structure (ACPI 6.4, 5.2.3.2): `bits` wide, at offset 0, accessed as
    /// `access` (1 byte, 2 word, 3 dword).
    fn gas(&mut self, space: u8, bits: u8, access: u8, address: u64) {
        self.put(&[space, bits, 0, access]);
        self.u64(address);
    }

    fn finish(mut self) -> Vec<u8> {
        let len = self.bytes.len() as u32;
        if let Some(field) = self.bytes.get_mut(4..8) {
            field.copy_from_slice(&len.to_le_bytes());
        }
        let sum = crate::checksum(&self.bytes);
        if let Some(field) = self.bytes.get_mut(9) {
            *field = sum;
        }
        self.bytes
    }
}

/// Builds all tables and gives each its place in `pool`; the RSDP comes first.
pub fn build(platform: &Platform, pool: &mut Pool) -> Result<AcpiTables, Error> {
    // FACP, APIC and MCFG are always there, HPET only with the device.
    let count = 3 + usize::from(platform.hpet.is_some());
    let rsdp = pool.take("RSDP", tables::RSDP_LEN as u64)?;
    let rsdt = pool.take("RSDT", (HEADER_LEN + 4 * count) as u64)?;
    let xsdt = pool.take("XSDT", (HEADER_LEN + 8 * count) as u64)?;
    let mut blobs = Vec::new();
    let mut entries = Vec::new();
    let mut place = |pool: &mut Pool, what, bytes: Vec<u8>| -> Result<u64, Error> {
        let gpa = pool.take(what, bytes.len() as u64)?;
        blobs.push((gpa, bytes));
        Ok(gpa)
    };
    let madt = place(pool, "MADT", tables::madt(platform))?;
    let facs = place(pool, "FACS", tables::facs())?;
    let dsdt = place(pool, "DSDT", dsdt::build(platform))?;
    entries.push(place(pool, "FADT", tables::fadt(platform, facs as u32, dsdt as u32))?);
    entries.push(madt);
    if let Some(id) = platform.hpet {
        entries.push(place(pool, "HPET", tables::hpet(id))?);
    }
    entries.push(place(pool, "MCFG", tables::mcfg(platform.ecam))?);
    let mut all = vec![
        (rsdp, tables::rsdp(rsdt as u32, xsdt)),
        (rsdt, tables::rsdt(&entries)),
        (xsdt, tables::xsdt(&entries)),
    ];
    all.append(&mut blobs);
    Ok(AcpiTables { rsdp, blobs: all })
}
