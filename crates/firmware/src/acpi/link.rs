//! PCI interrupt link devices: the PIRQ registers of the LPC bridge, for systems that use the
//! 8259 pair rather than the I/O APIC.

use acpi_tables::aml::{
    And, Arg, Else, Field, FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule, If, LessThan, Local,
    OpRegion, OpRegionSpace, Or, Path, Return, ShiftLeft, Store, Subtract, ZERO,
};

use super::aml::*;

/// First PIRQ register: A–D lie at 60h–63h, E–H at 68h–6Bh (ICH9 datasheet, 13.1.14 and 13.1.18).
const PIRQ_OFFSET: u8 = 0x60;
const PIRQ_LEN: u8 = 0x0c;
/// Bit 7 of a PIRQ register: not routed.
const PIRQ_DISABLED: u8 = 0x80;
/// ISA interrupts that a PIRQ may go to: all but 0, 1, 2, 8 and 13.
const IRQ_MASK: u16 = 0xdef8;
/// `_STA`: present, functioning, shown; with bit 1 also enabled.
const STA_DISABLED: u8 = 0x0d;
const STA_ENABLED: u8 = 0x0f;

/// Letter of PIRQ `n`, 0–7.
fn letter(n: u8) -> char {
    char::from(b'A' + (n & 7))
}

/// Name of the link device of PIRQ `n`.
pub fn link_name(n: u8) -> String {
    format!("LNK{}", letter(n))
}

/// The register block and the eight link devices; children of the LPC bridge's device.
pub fn build() -> Vec<Code> {
    let mut parts = vec![
        code(&OpRegion::new(Path::new("PIRR"), OpRegionSpace::PCIConfig, &PIRQ_OFFSET, &PIRQ_LEN)),
        code(&registers()),
    ];
    parts.extend((0..8).map(link));
    parts
}

fn registers() -> Field {
    let named = |n: u8| FieldEntry::Named([b'P', b'I', b'R', letter(n) as u8], 8);
    let mut entries: Vec<_> = (0..4).map(named).collect();
    entries.push(FieldEntry::Reserved(32));
    entries.extend((4..8).map(named));
    Field::new(
        Path::new("PIRR"),
        FieldAccessType::Byte,
        FieldLockRule::NoLock,
        FieldUpdateRule::Preserve,
        entries,
    )
}

fn link(n: u8) -> Code {
    let register = Path::new(&format!("PIR{}", letter(n)));
    let buffer_name = format!("CBU{}", letter(n));
    let buffer = Path::new(&buffer_name);
    let (local0, arg0) = (Local(0), Arg(0));
    let field = Path::new("IRQM");

    let status = [
        code(&And::new(&local0, &register, &PIRQ_DISABLED)),
        code(&If::new(&local0, vec![&Return::new(&STA_DISABLED)])),
        code(&Else::new(vec![&Return::new(&STA_ENABLED)])),
    ];
    let current = [
        create_word_field(&buffer, 1, "IRQM"),
        code(&And::new(&local0, &register, &(PIRQ_DISABLED | 0x0f))),
        code(&If::new(&LessThan::new(&local0, &PIRQ_DISABLED), vec![&ShiftLeft::new(&field, &1u8, &local0)])),
        code(&Else::new(vec![&Store::new(&field, &ZERO)])),
        code(&Return::new(&buffer)),
    ];
    let set = [
        create_word_field(&arg0, 1, "IRQM"),
        find_set_right_bit(&field, &local0),
        code(&If::new(&local0, vec![&Subtract::new(&register, &local0, &1u8)])),
    ];
    device(
        &link_name(n),
        &[
            hid("PNP0C0F"),
            name("_UID", &(n + 1)),
            name(&buffer_name, &resources(&[link_irq(0)])),
            name("_PRS", &resources(&[link_irq(IRQ_MASK)])),
            method("_STA", 0, false, &status),
            method("_DIS", 0, true, &[code(&Or::new(&register, &register, &PIRQ_DISABLED))]),
            method("_CRS", 0, true, &current),
            method("_SRS", 1, true, &set),
        ],
    )
}
