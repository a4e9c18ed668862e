//! The tables, read back by hand and by ACPICA's disassembler.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::*;
use crate::platform::example::platform;
use crate::{ACPI_BASE, PciRoute, SEGMENT_END};

fn tables(p: &Platform) -> AcpiTables {
    build(p, &mut Pool::new(ACPI_BASE, SEGMENT_END)).unwrap()
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn find(t: &AcpiTables, gpa: u64) -> &[u8] {
    &t.blobs.iter().find(|(at, _)| *at == gpa).unwrap().1
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, b| sum.wrapping_add(*b))
}

/// A directory that goes away with its value.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("firmware-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn signature(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..4]).into_owned()
}

#[test]
fn the_rsdp_leads_to_every_table() {
    let t = tables(&platform(2));
    assert_eq!(t.rsdp, ACPI_BASE);
    let rsdp = find(&t, t.rsdp);
    assert_eq!((sum(&rsdp[..20]), sum(rsdp)), (0, 0));
    let xsdt = find(&t, u64_at(rsdp, 24));
    let rsdt = find(&t, u64::from(u32_at(rsdp, 16)));
    let long: Vec<u64> = xsdt[36..].chunks(8).map(|c| u64_at(c, 0)).collect();
    let short: Vec<u64> = rsdt[36..].chunks(4).map(|c| u64::from(u32_at(c, 0))).collect();
    assert_eq!(long, short);
    let names: Vec<_> = long.iter().map(|gpa| signature(find(&t, *gpa))).collect();
    assert_eq!(names, ["FACP", "APIC", "HPET", "MCFG"]);
    let fadt = find(&t, long[0]);
    assert_eq!(signature(find(&t, u64_at(fadt, 140))), "DSDT");
    let facs = u64::from(u32_at(fadt, 36));
    assert_eq!((signature(find(&t, facs)).as_str(), facs % 64), ("FACS", 0));
    for (_, table) in t.blobs.iter().filter(|(gpa, _)| *gpa != t.rsdp && *gpa != facs) {
        assert_eq!((sum(table), u32_at(table, 4) as usize), (0, table.len()), "{}", signature(table));
    }
}

#[test]
fn the_fadt_has_its_fields_where_the_specification_has_them() {
    let t = tables::fadt(&platform(1), 0x1234, 0x5678);
    assert_eq!(t.len(), 268);
    assert_eq!((u32_at(&t, 36), u32_at(&t, 40), u64_at(&t, 140)), (0x1234, 0x5678, 0x5678));
    assert_eq!((t[46], t[48], t[52], t[53]), (9, 0xb2, 0xa0, 0xa1));
    assert_eq!(
        (u32_at(&t, 56), u32_at(&t, 64), u32_at(&t, 76), u32_at(&t, 80)),
        (0x400, 0x404, 0x408, 0x40c)
    );
    assert_eq!(t[88..96], [4, 2, 0, 4, 2, 0, 0, 0]);
    assert_eq!((t[108], t[109] & 4, t[128]), (0x32, 4, 6));
    assert_eq!((u64_at(&t, 120), u64_at(&t, 152), u64_at(&t, 212)), (0xcf9, 0x400, 0x408));
    assert_eq!(u64_at(&t, 224), 0x40c);
}

#[test]
fn large_apic_ids_get_x2apic_entries() {
    let t = tables::madt(&platform(300));
    let (mut at, mut kinds) = (44, std::collections::BTreeMap::new());
    while at < t.len() {
        *kinds.entry(t[at]).or_insert(0) += 1;
        at += usize::from(t[at + 1]);
    }
    assert_eq!(at, t.len());
    let expected = [(0, 255), (1, 1), (2, 2), (4, 1), (9, 45), (10, 1)];
    assert_eq!(kinds.into_iter().collect::<Vec<_>>(), expected);
}

#[test]
fn the_largest_machine_fits() {
    let mut p = platform(1024);
    for slot in 0..32 {
        for pin in 0..4 {
            p.routes.push(PciRoute { bus: 0, slot, pin, gsi: 16 + u32::from(slot + pin) % 16, pirq: pin });
        }
    }
    assert!(build(&p, &mut Pool::new(ACPI_BASE, SEGMENT_END)).is_ok());
}

fn disassemble(dir: &Path, name: &str, bytes: &[u8]) -> Option<String> {
    let file = dir.join(format!("{name}.aml"));
    std::fs::write(&file, bytes).unwrap();
    let out = match Command::new("iasl").arg("-d").arg(&file).output() {
        Ok(out) => out,
        Err(e) => {
            println!("skipped: iasl (package acpica-tools) does not run: {e}");
            return None;
        }
    };
    let text = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{name}: {text}");
    for bad in ["Error", "Warning", "rror:", "nvalid", "Could not"] {
        assert!(!text.contains(bad), "{name}: {text}");
    }
    Some(std::fs::read_to_string(file.with_extension("dsl")).unwrap())
}

#[test]
fn acpica_reads_every_table() {
    let scratch = Scratch::new("all");
    let t = tables(&platform(300));
    for (gpa, bytes) in t.blobs.iter().filter(|(gpa, _)| *gpa != t.rsdp) {
        let Some(text) = disassemble(&scratch.0, &format!("{}{gpa:x}", signature(bytes)), bytes) else {
            return;
        };
        assert!(!text.contains("Invalid"), "{text}");
    }
}

#[test]
fn the_dsdt_recompiles_without_a_complaint() {
    let scratch = Scratch::new("dsdt");
    for (name, lpc) in [("lpc", true), ("none", false)] {
        let mut p = platform(2);
        if !lpc {
            p.lpc = None;
        }
        let Some(text) = disassemble(&scratch.0, name, &dsdt::build(&p)) else { return };
        for needle in ["PNP0A03", "PNP0501", "0x0003FFFF", "PC05", "_S5", "PNP0C02"] {
            assert!(text.contains(needle), "{needle}\n{text}");
        }
        assert_eq!(text.contains("LNKH"), lpc);
        let source = scratch.0.join(format!("{name}.dsl"));
        let out = Command::new("iasl").arg("-we").arg(&source).output().unwrap();
        let text = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "{}{text}", String::from_utf8_lossy(&out.stdout));
    }
}

/// What ACPICA prints when it runs `commands` on the example's DSDT.
fn execute(commands: &[&str]) -> Option<String> {
    let scratch = Scratch::new(&format!("exec{}", commands.len()));
    let file = scratch.0.join("dsdt.aml");
    std::fs::write(&file, dsdt::build(&platform(1))).unwrap();
    match Command::new("acpiexec").arg("-b").arg(commands.join("; ")).arg(&file).output() {
        Ok(out) => Some(String::from_utf8_lossy(&out.stdout).into_owned()),
        Err(e) => {
            println!("skipped: acpiexec (package acpica-tools) does not run: {e}");
            None
        }
    }
}

#[test]
fn routing_follows_the_interrupt_model() {
    let Some(text) = execute(&[r"execute \_SB.PC00._PRT", r"execute \_PIC 1", r"execute \_SB.PC00._PRT"])
    else {
        return;
    };
    let (pic, apic) = text.split_once(r"Evaluating \_PIC").unwrap();
    assert!(pic.contains("Name LNKD Device") && !apic.contains("LNK"), "{text}");
    assert!(apic.contains("= 0000000000000013"), "{text}");
}

#[test]
fn link_devices_set_and_clear_their_register() {
    let Some(text) = execute(&[
        r"execute \_SB.PC00.ISA.LNKA._SRS (23 00 08 18 79 00)",
        r"execute \_SB.PC00.ISA.LNKA._STA",
        r"execute \_SB.PC00.ISA.LNKA._CRS",
        r"execute \_SB.PC00.ISA.LNKA._DIS",
        r"execute \_SB.PC00.ISA.LNKA._STA",
        r"execute \_SB.PC00.ISA.LNKA._CRS",
    ]) else {
        return;
    };
    let (set, cleared) = text.split_once("Evaluating \\_SB.PC00.ISA.LNKA._DIS").unwrap();
    assert!(set.contains("= 000000000000000F") && set.contains("23 00 08 18 79 00"), "{text}");
    assert!(cleared.contains("= 000000000000000D") && cleared.contains("23 00 00 18 79 00"), "{text}");
}
