//! The tables without AML.

use super::{OEM_ID, Table};
use crate::{Ecam, Platform, checksum};

/// Length of a revision 2 RSDP (ACPI 6.4, table 5.3).
pub const RSDP_LEN: usize = 36;

/// Address space ids of a generic address structure.
const SPACE_MEMORY: u8 = 0;
const SPACE_IO: u8 = 1;

/// Ports and interrupt of the power management block.
const SCI: u8 = 9;
const SMI_CMD: u32 = 0xb2;
const ACPI_ENABLE: u8 = 0xa0;
const ACPI_DISABLE: u8 = 0xa1;
const PM1_EVT: u16 = 0x400;
const PM1_CNT: u16 = 0x404;
const PM_TIMER: u16 = 0x408;
const GPE0: u16 = 0x40c;
/// Reset control register and the value that resets hard.
const RESET_PORT: u16 = 0xcf9;
const RESET_VALUE: u8 = 6;
/// CMOS index of the century.
const CMOS_CENTURY: u8 = 0x32;

const IOAPIC_BASE: u32 = 0xfec0_0000;
const LAPIC_BASE: u32 = 0xfee0_0000;
const HPET_BASE: u64 = 0xfed0_0000;

/// Largest APIC id and processor uid that the 8-bit MADT entries can name; FFh means all.
const XAPIC_MAX: u32 = 0xfe;

pub fn rsdp(rsdt: u32, xsdt: u64) -> Vec<u8> {
    let mut b = Vec::with_capacity(RSDP_LEN);
    b.extend_from_slice(b"RSD PTR \0");
    b.extend_from_slice(&OEM_ID);
    b.push(2);
    b.extend_from_slice(&rsdt.to_le_bytes());
    // The first checksum covers the 20 bytes of revision 0.
    let sum = checksum(&b);
    if let Some(field) = b.get_mut(8) {
        *field = sum;
    }
    b.extend_from_slice(&(RSDP_LEN as u32).to_le_bytes());
    b.extend_from_slice(&xsdt.to_le_bytes());
    let sum = checksum(&b);
    b.extend_from_slice(&[sum, 0, 0, 0]);
    b
}

pub fn rsdt(entries: &[u64]) -> Vec<u8> {
    let mut t = Table::new(*b"RSDT", 1, *b"BVRSDT  ");
    for entry in entries {
        t.u32(*entry as u32);
    }
    t.finish()
}

pub fn xsdt(entries: &[u64]) -> Vec<u8> {
    let mut t = Table::new(*b"XSDT", 1, *b"BVXSDT  ");
    for entry in entries {
        t.u64(*entry);
    }
    t.finish()
}

/// FACS (ACPI 6.4, 5.2.10): no checksum, no common header.
pub fn facs() -> Vec<u8> {
    let mut b = Vec::with_capacity(64);
    b.extend_from_slice(b"FACS");
    b.extend_from_slice(&64u32.to_le_bytes());
    b.resize(32, 0);
    b.push(1);
    b.resize(64, 0);
    b
}

/// FADT revision 5 (ACPI 5.0, 5.2.9).
pub fn fadt(platform: &Platform, facs: u32, dsdt: u32) -> Vec<u8> {
    // WBINVD works, C1 works, no sleep button and no RTC wake in the fixed block, 32-bit timer, reset register,
    // headless, physical APIC destinations only.
    const FLAGS: u32 = 1 | 1 << 2 | 1 << 5 | 1 << 6 | 1 << 8 | 1 << 10 | 1 << 12 | 1 << 19;
    // Legacy devices on LPC, 8042, no ASPM; bit 2: no VGA.
    const BOOT_FLAGS: u16 = 1 | 1 << 1 | 1 << 4;
    const NO_VGA: u16 = 1 << 2;
    // Longer than any C2 (100 µs) or C3 (1000 µs) may take: neither is supported.
    const NO_C2: u16 = 101;
    const NO_C3: u16 = 1001;

    let mut t = Table::new(*b"FACP", 5, *b"BVFACP  ");
    t.u32(facs);
    t.u32(dsdt);
    t.put(&[0, 0]); // reserved, profile: unspecified
    t.u16(u16::from(SCI));
    t.u32(SMI_CMD);
    t.put(&[ACPI_ENABLE, ACPI_DISABLE, 0, 0]);
    for block in [PM1_EVT, 0, PM1_CNT, 0, 0, PM_TIMER, GPE0, 0] {
        t.u32(u32::from(block));
    }
    // Lengths: PM1 event, PM1 control, PM2 control, timer, GPE0, GPE1; GPE1 base; C-state control.
    t.put(&[4, 2, 0, 4, 2, 0, 0, 0]);
    t.u16(NO_C2);
    t.u16(NO_C3);
    t.u16(0); // flush size and stride: WBINVD is used
    t.u16(0);
    t.put(&[0, 0]); // duty cycle: none
    t.put(&[0, 0, CMOS_CENTURY]);
    t.u16(BOOT_FLAGS | if platform.vga { 0 } else { NO_VGA });
    t.u8(0);
    t.u32(FLAGS);
    t.gas(SPACE_IO, 8, 1, u64::from(RESET_PORT));
    t.u8(RESET_VALUE);
    t.put(&[0, 0, 0]); // ARM flags, minor version
    t.u64(0); // the FACS has its 32-bit address only: giving both is deprecated
    t.u64(u64::from(dsdt));
    t.gas(SPACE_IO, 32, 2, u64::from(PM1_EVT));
    t.gas(0, 0, 0, 0);
    t.gas(SPACE_IO, 16, 2, u64::from(PM1_CNT));
    t.gas(0, 0, 0, 0);
    t.gas(0, 0, 0, 0);
    t.gas(SPACE_IO, 32, 3, u64::from(PM_TIMER));
    t.gas(SPACE_IO, 16, 1, u64::from(GPE0));
    for _ in 0..3 {
        t.gas(0, 0, 0, 0); // GPE1, sleep control, sleep status
    }
    t.finish()
}

/// MADT (ACPI 6.4, 5.2.12).
pub fn madt(platform: &Platform) -> Vec<u8> {
    // Polarity active low (bits 0–1 = 3), level triggered (bits 2–3 = 3).
    const LEVEL_LOW: u16 = 0xf;
    const ENABLED: u32 = 1;
    /// The machine also has an 8259 pair.
    const PCAT_COMPAT: u32 = 1;
    const NMI_LINT: u8 = 1;

    let mut t = Table::new(*b"APIC", 3, *b"BVMADT  ");
    t.u32(LAPIC_BASE);
    t.u32(PCAT_COMPAT);
    let mut x2apic = false;
    for (uid, id) in (0u32..).zip(&platform.apic_ids) {
        if *id <= XAPIC_MAX && uid <= XAPIC_MAX {
            t.put(&[0, 8, uid as u8, *id as u8]);
            t.u32(ENABLED);
        } else {
            x2apic = true;
            t.put(&[9, 16, 0, 0]);
            t.u32(*id);
            t.u32(ENABLED);
            t.u32(uid);
        }
    }
    t.put(&[1, 12, platform.ioapic_id, 0]);
    t.u32(IOAPIC_BASE);
    t.u32(0);
    for (irq, gsi, flags) in [(0, 2, 0), (SCI, u32::from(SCI), LEVEL_LOW)] {
        t.put(&[2, 10, 0, irq]);
        t.u32(gsi);
        t.u16(flags);
    }
    t.put(&[4, 6, 0xff]);
    t.u16(0);
    t.u8(NMI_LINT);
    if x2apic {
        t.put(&[0xa, 12]);
        t.u16(0);
        t.u32(u32::MAX);
        t.put(&[NMI_LINT, 0, 0, 0]);
    }
    t.finish()
}

/// HPET table (IA-PC HPET 1.0a, 3.2.4).
pub fn hpet(id: u32) -> Vec<u8> {
    let mut t = Table::new(*b"HPET", 1, *b"BVHPET  ");
    t.u32(id);
    t.gas(SPACE_MEMORY, 0, 0, HPET_BASE);
    t.u8(0); // sequence number
    t.u16(0); // no lower limit for periodic mode
    t.u8(0); // no page protection
    t.finish()
}

/// MCFG (PCI Firmware 3.2, 4.1.2).
pub fn mcfg(ecam: Ecam) -> Vec<u8> {
    let mut t = Table::new(*b"MCFG", 1, *b"BVMCFG  ");
    t.u64(0);
    t.u64(u64::from(ecam.base));
    t.u16(0);
    t.put(&[0, ecam.last_bus]);
    t.u32(0);
    t.finish()
}
