//! MP table (Intel MultiProcessor Specification 1.4), for systems without ACPI.

use crate::{Platform, checksum};

const FLOATING_LEN: usize = 16;
const HEADER_LEN: usize = 44;
const LAPIC_BASE: u32 = 0xfee0_0000;
const IOAPIC_BASE: u32 = 0xfec0_0000;
/// Version registers of an integrated local APIC and of the I/O APIC.
const LAPIC_VERSION: u8 = 0x14;
const IOAPIC_VERSION: u8 = 0x11;
/// APIC id in an entry that means every local APIC.
const ALL: u8 = 0xff;
const SCI: u8 = 9;

/// Entry types (table 4-3).
const PROCESSOR: u8 = 0;
const BUS: u8 = 1;
const IOAPIC: u8 = 2;
const IO_INTERRUPT: u8 = 3;
const LOCAL_INTERRUPT: u8 = 4;

/// Interrupt types (table 4-10).
const INT: u8 = 0;
const NMI: u8 = 1;
const EXT_INT: u8 = 3;

/// Polarity and trigger: as the bus has it, or level and active low.
const CONFORMS: u16 = 0;
const LEVEL_LOW: u16 = 0xf;

struct Entries {
    bytes: Vec<u8>,
    count: u16,
}

impl Entries {
    fn add(&mut self, entry: &[u8]) {
        self.bytes.extend_from_slice(entry);
        self.count += 1;
    }

    /// An I/O or local interrupt assignment: `from` is bus and source interrupt, `to` APIC and
    /// input.
    fn interrupt(&mut self, entry: u8, kind: u8, flags: u16, from: (u8, u8), to: (u8, u8)) {
        let [low, high] = flags.to_le_bytes();
        self.add(&[entry, kind, low, high, from.0, from.1, to.0, to.1]);
    }
}

/// The floating pointer structure for `base` with the table behind it. `None` when the machine
/// can't be described: an APIC id that 8 bits don't hold, or more than `room` bytes. Such a
/// machine needs ACPI.
pub fn build(platform: &Platform, base: u64, room: u64) -> Option<Vec<u8>> {
    let entries = entries(platform)?;
    let table_len = u16::try_from(HEADER_LEN + entries.bytes.len()).ok()?;
    if FLOATING_LEN as u64 + u64::from(table_len) > room {
        return None;
    }
    let table_at = u32::try_from(base).ok()? + FLOATING_LEN as u32;

    let mut floating = Vec::with_capacity(FLOATING_LEN + usize::from(table_len));
    floating.extend_from_slice(b"_MP_");
    floating.extend_from_slice(&table_at.to_le_bytes());
    floating.extend_from_slice(&[1, 4, 0]); // 16 bytes long, revision 1.4, checksum
    floating.extend_from_slice(&[0; 5]); // a table follows; virtual wire mode
    *floating.get_mut(10)? = checksum(&floating);

    let mut table = Vec::with_capacity(usize::from(table_len));
    table.extend_from_slice(b"PCMP");
    table.extend_from_slice(&table_len.to_le_bytes());
    table.extend_from_slice(&[4, 0]); // revision 1.4, checksum
    table.extend_from_slice(b"BHyVe   Hypervisor  ");
    table.extend_from_slice(&[0; 6]); // no OEM table
    table.extend_from_slice(&entries.count.to_le_bytes());
    table.extend_from_slice(&LAPIC_BASE.to_le_bytes());
    table.extend_from_slice(&[0; 4]); // no extended entries
    table.extend_from_slice(&entries.bytes);
    *table.get_mut(7)? = checksum(&table);

    floating.extend_from_slice(&table);
    Some(floating)
}

fn entries(platform: &Platform) -> Option<Entries> {
    const ENABLED: u8 = 1;
    const BOOTSTRAP: u8 = 2;
    let mut entries = Entries { bytes: Vec::new(), count: 0 };
    for (index, id) in platform.apic_ids.iter().enumerate() {
        let id = u8::try_from(*id).ok().filter(|id| *id != ALL)?;
        let flags = ENABLED | if index == 0 { BOOTSTRAP } else { 0 };
        let mut entry = vec![PROCESSOR, id, LAPIC_VERSION, flags];
        entry.extend_from_slice(&platform.cpu_signature.to_le_bytes());
        entry.extend_from_slice(&platform.cpu_features.to_le_bytes());
        entry.extend_from_slice(&[0; 8]);
        entries.add(&entry);
    }
    // Entries of a kind follow each other; buses in ascending order of their ids.
    let isa_bus = platform.roots.iter().map(|r| r.bus).max()?.checked_add(1)?;
    let mut buses: Vec<(u8, &[u8; 6])> = platform.roots.iter().map(|r| (r.bus, b"PCI   ")).collect();
    buses.push((isa_bus, b"ISA   "));
    buses.sort_unstable();
    for (id, name) in buses {
        let mut entry = vec![BUS, id];
        entry.extend_from_slice(name);
        entries.add(&entry);
    }
    let ioapic = platform.ioapic_id;
    let mut entry = vec![IOAPIC, ioapic, IOAPIC_VERSION, ENABLED];
    entry.extend_from_slice(&IOAPIC_BASE.to_le_bytes());
    entries.add(&entry);

    // The 8259 pair on pin 0, the PIT on pin 2, all other ISA interrupts on the pin of their
    // number; interrupt 2 is the cascade.
    entries.interrupt(IO_INTERRUPT, EXT_INT, CONFORMS, (isa_bus, 0), (ioapic, 0));
    for irq in (0..16).filter(|irq| *irq != 2) {
        let pin = if irq == 0 { 2 } else { irq };
        let flags = if irq == SCI { LEVEL_LOW } else { CONFORMS };
        entries.interrupt(IO_INTERRUPT, INT, flags, (isa_bus, irq), (ioapic, pin));
    }
    for route in &platform.routes {
        let source = (route.bus, route.slot << 2 | route.pin);
        let pin = u8::try_from(route.gsi).ok()?;
        entries.interrupt(IO_INTERRUPT, INT, CONFORMS, source, (ioapic, pin));
    }
    entries.interrupt(LOCAL_INTERRUPT, EXT_INT, CONFORMS, (isa_bus, 0), (ALL, 0));
    entries.interrupt(LOCAL_INTERRUPT, NMI, CONFORMS, (isa_bus, 0), (ALL, 1));
    Some(entries)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::example::platform;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, b| sum.wrapping_add(*b))
    }

    #[test]
    fn entries_parse_back() {
        let p = platform(3);
        let bytes = build(&p, 0xf_0000, 0x1000).unwrap();
        assert_eq!((&bytes[..4], sum(&bytes[..16])), (&b"_MP_"[..], 0));
        assert_eq!(u32::from_le_bytes(bytes[4..8].try_into().unwrap()), 0xf_0010);
        let table = &bytes[16..];
        assert_eq!((&table[..4], sum(table)), (&b"PCMP"[..], 0));
        assert_eq!(usize::from(u16::from_le_bytes([table[4], table[5]])), table.len());
        let (mut at, mut kinds, mut pins) = (HEADER_LEN, [0u32; 5], Vec::new());
        while at < table.len() {
            let kind = table[at];
            kinds[usize::from(kind)] += 1;
            if kind == IO_INTERRUPT && table[at + 4] == 5 {
                pins.push((table[at + 5], table[at + 7]));
            }
            at += if kind == PROCESSOR { 20 } else { 8 };
        }
        assert_eq!(kinds, [3, 3, 1, 16 + 5, 2]);
        assert_eq!(pins, [(1 << 2, 31)]);
        assert_eq!(u32::from(u16::from_le_bytes([table[34], table[35]])), kinds.iter().sum());
    }

    #[test]
    fn machines_that_it_cannot_describe_get_none() {
        assert!(build(&platform(255), 0xf_0000, 0x10000).is_some());
        assert!(build(&platform(256), 0xf_0000, 0x10000).is_none());
        assert!(build(&platform(255), 0xf_0000, 0x1000).is_none());
    }
}
