//! The hand-off, field by field.

use std::collections::BTreeMap;

use super::*;
use crate::test_elf::{KERNBASE, Maker, freebsd_kernel, freebsd_module};
use crate::test_image::{MAP, at, image, long, memory, word};
use crate::{Error, Mode};

const SAYS: crate::test_elf::Says = (&[("kernel", 1_400_000), ("pci", 1)], &[]);

/// A record of the list: kind and data.
type Record = (u32, Vec<u8>);

/// The records from `modulep` to the end.
fn records(memory: &GuestMemory, modulep: u64) -> (Vec<Record>, u64) {
    let (mut list, mut gpa) = (Vec::new(), modulep);
    loop {
        let (kind, len) = (word(memory, gpa), u64::from(word(memory, gpa + 4)));
        let mut data = vec![0; len as usize];
        memory.read(gpa + 8, &mut data).unwrap();
        gpa += 8 + len.next_multiple_of(8);
        if kind == 0 {
            return (list, gpa);
        }
        list.push((kind, data));
    }
}

fn number(data: &[u8]) -> u64 {
    let mut bytes = [0; 8];
    bytes[..data.len()].copy_from_slice(data);
    u64::from_le_bytes(bytes)
}

/// Registers, and tables that show the first GiB at KERNBASE and at 0.
fn check_processor(m: &GuestMemory, entry: &Entry) {
    assert_eq!(
        (entry.mode, entry.rip, entry.rsp, entry.cr3),
        (Mode::Long, KERNBASE + 0x20_1000, 0x1000, 0x2000)
    );
    for vaddr in [KERNBASE + 0x20_1000, 0x20_1000] {
        let mut table = entry.cr3;
        for shift in [39, 30] {
            table = long(m, table + 8 * (vaddr >> shift & 0x1ff)) & !0xfff;
        }
        let leaf = long(m, table + 8 * (vaddr >> 21 & 0x1ff));
        assert_eq!(leaf & 0xfff, 0x83);
        assert_eq!(&at::<4>(m, (leaf & !0xfff) + (vaddr & 0x1f_ffff)), b"CODE");
    }
    assert_eq!(long(m, entry.gdt_base + u64::from(entry.code)) >> 40 & 0xf0ff, 0x2098);
    assert_eq!(long(m, entry.gdt_base + u64::from(entry.data)) >> 40 & 0xff, 0x92);
}

#[test]
fn the_kernel_finds_everything_where_the_layout_says() {
    let m = memory(64 << 20);
    let kernel = image("disk0p2:/boot/kernel/kernel", freebsd_kernel(b"CODE", SAYS));
    let mut preload = Preload::kernel(kernel, "/boot/kernel/kernel", Some("-v")).unwrap();
    let module = freebsd_module(b"MODULE", (&[("if_x", 3)], &[("pci", 1, 1, 1)]));
    preload.module(image("x", module), "/boot/kernel/if_x.ko", None).unwrap();
    preload.raw(image("s", vec![5; 100]), "/boot/entropy", "boot_entropy_cache", None).unwrap();
    let environment = [("boot_serial".to_owned(), "1".to_owned()), ("a.b".to_owned(), String::new())];
    let request =
        Request { memory: &m, howto: howto::SERIAL | howto::VERBOSE, environment: &environment, map: &MAP };
    let entry = preload.load(&request).unwrap();

    check_processor(&m, &entry);

    // The stack: return address, list of modules, end of what is used.
    let (modulep, kernend) = (u64::from(word(&m, 0x1004)), u64::from(word(&m, 0x1008)));
    assert_eq!(word(&m, 0x1000), 0);
    let (list, end) = records(&m, modulep);
    assert!(end <= kernend && kernend - end < 4096 && kernend % 4096 == 0 && modulep % 4096 == 0);

    // Three files, each starting with its name.
    let starts: Vec<usize> = (0..list.len()).filter(|n| list[*n].0 == 1).collect();
    assert_eq!(starts.len(), 3);
    let file = |n: usize| -> BTreeMap<u32, Vec<u8>> {
        let end = starts.get(n + 1).copied().unwrap_or(list.len());
        list[starts[n]..end].iter().cloned().collect()
    };
    let (kernel, module, raw) = (file(0), file(1), file(2));
    assert_eq!((&kernel[&1][..], &kernel[&2][..]), (&b"/boot/kernel/kernel\0"[..], &b"elf kernel\0"[..]));
    assert_eq!((&kernel[&6][..], number(&kernel[&3])), (&b"-v\0"[..], 0x20_0000));
    assert_eq!(number(&kernel[&0x8007]), 0x1800);
    assert_eq!(kernel[&0x8007].len(), 4);
    assert_eq!((number(&kernel[&0x8008]), number(&kernel[&0x9006])), (kernend, modulep));
    assert_eq!(kernel[&0x9001], handoff_map());
    assert_eq!(&kernel[&0x8002][..4], b"\x7fELF");
    assert_eq!(kernel[&0x8002].len(), 64);
    assert_eq!(kernel[&0x8009].len() % 64, 0);

    // Symbols: length and table, length and names.
    let (ssym, esym) = (number(&kernel[&0x8003]), number(&kernel[&0x8004]));
    assert_eq!((long(&m, ssym), word(&m, ssym + 8 + 24)), (48, 1));
    assert_eq!((long(&m, ssym + 56), &at::<7>(&m, ssym + 64)), (7, b"\0btext\0"));
    assert_eq!(esym, ssym + 72);
    assert_eq!(number(&kernel[&4]), esym - 0x20_0000);

    // The environment, in front of the list.
    let envp = number(&kernel[&0x8006]);
    assert_eq!((envp % 4096, modulep - envp), (0, 4096));
    assert_eq!(&at::<20>(&m, envp), b"boot_serial=1\0a.b=\0\0");

    // The module: sections at the places that its headers give.
    assert_eq!(
        (&module[&1][..], &module[&2][..]),
        (&b"/boot/kernel/if_x.ko\0"[..], &b"elf obj module\0"[..])
    );
    let start = number(&module[&3]);
    assert_eq!((start % 4096, start >= esym), (0, true));
    let headers = &module[&0x8009];
    let addr = |n: usize| number(&headers[64 * n + 16..64 * n + 24]);
    assert_eq!((addr(0), addr(1)), (0, start));
    assert_eq!(&at::<6>(&m, start), b"MODULE");
    assert_eq!(addr(2) % 64, 0);
    assert!([1, 2, 3, 4, 5, 6, 7, 9].iter().all(|n| addr(*n) != 0 && addr(*n) < start + number(&module[&4])));
    assert_eq!(addr(8), 0, "a section without SHF_ALLOC");
    assert_eq!((&raw[&2][..], number(&raw[&4])), (&b"boot_entropy_cache\0"[..], 100));
    assert_eq!(at::<100>(&m, number(&raw[&3])), [5; 100]);
    assert!(number(&raw[&3]) + 100 <= envp);
}

fn handoff_map() -> Vec<u8> {
    crate::handoff::smap(&MAP)
}

#[test]
fn modules_say_what_they_have_and_need() {
    let mut preload = Preload::kernel(image("k", freebsd_kernel(b"", SAYS)), "/k", None).unwrap();
    let provide = |name: &str, version| Provide { name: name.into(), version };
    assert_eq!(preload.files()[0].provides(), [provide("kernel", 1_400_000), provide("pci", 1)]);
    let says: crate::test_elf::Says = (&[("a", 1), ("b", 2)], &[("pci", 1, 1, 1), ("kernel", 1, 2, 3)]);
    let file = preload.module(image("m", freebsd_module(b"", says)), "/m.ko", None).unwrap();
    assert_eq!(file.provides(), [provide("a", 1), provide("b", 2)]);
    let depend =
        |name: &str, minimum, preferred, maximum| Depend { name: name.into(), minimum, preferred, maximum };
    assert_eq!(file.depends(), [depend("pci", 1, 1, 1), depend("kernel", 1, 2, 3)]);
    assert!(depend("x", 2, 9, 4).takes(9) && depend("x", 2, 9, 4).takes(3) && !depend("x", 2, 9, 4).takes(5));
}

#[test]
fn what_is_no_kernel_is_named() {
    let kernel = freebsd_kernel(b"", SAYS);
    let module = freebsd_module(b"", SAYS);
    let mut arm = kernel.clone();
    arm[0x12] = 183;
    let low = Maker::executable(true, 0x20_0000).segment(0x20_0000, 0x20_0000, b"x", 1).build();
    let cases = [
        (b"#!/bin/sh".to_vec(), "not an ELF file, so no FreeBSD kernel"),
        (arm, "an ELF file, but not for x86"),
        (Maker::executable(false, 0).build(), "a FreeBSD/i386 kernel; only FreeBSD/amd64 is supported"),
        (module.clone(), "a kernel module, not a kernel"),
        (low, "its segment at 0x200000+0x1 is not where FreeBSD/amd64 kernels are"),
        (kernel[..0x2000].to_vec(), "truncated"),
    ];
    for (bytes, expected) in cases {
        let error = Preload::kernel(image("k", bytes), "/k", None).err().unwrap().to_string();
        assert!(error.starts_with(&format!("k: {expected}")), "{error}");
    }
    let mut preload = Preload::kernel(image("k", kernel.clone()), "/k", None).unwrap();
    let error = preload.module(image("m", kernel), "/m", None).err().unwrap().to_string();
    assert_eq!(error, "m: a kernel, not a module");
    let error = preload.module(image("m", module[..600].to_vec()), "/m", None).err().unwrap().to_string();
    assert!(error.starts_with("m: truncated"), "{error}");
    assert_eq!(preload.files().len(), 1);
}

#[test]
fn a_guest_too_small_is_told_how_much_is_needed() {
    let kernel = image("k", freebsd_kernel(b"", SAYS));
    let mut preload = Preload::kernel(kernel, "/k", None).unwrap();
    preload.raw(image("big", vec![1; 5 << 20]), "/big", "md_image", None).unwrap();
    let load = |size: u64, preload: &Preload| {
        let m = memory(size);
        preload.load(&Request { memory: &m, howto: 0, environment: &[], map: &MAP }).map(|_| ())
    };
    assert_eq!(
        load(4 << 20, &preload).unwrap_err().to_string(),
        "big: needs memory up to 8 MiB, the guest has 4 MiB"
    );
    preload.truncate(1);
    assert!(load(4 << 20, &preload).is_ok());
    let end = preload.files()[0].address() + preload.files()[0].size();
    let just = crate::bsd::page_up(end);
    assert!(matches!(load(just, &preload), Err(Error::Room { .. })));
}

#[test]
fn damaged_files_are_no_danger() {
    let good = [freebsd_kernel(b"", SAYS), freebsd_module(b"x", (&[("a", 1)], &[("pci", 1, 1, 1)]))];
    let mut seed = 1u64;
    for n in 0..4000 {
        let mut bytes = good[n % 2].clone();
        for _ in 0..=n % 5 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let place = (seed >> 33) as usize;
            // Headers are worth most of the damage.
            let len = bytes.len();
            let at = if place.is_multiple_of(3) { place % 120 } else { len - 1 - place % 800.min(len) };
            bytes[at] = (seed >> 24) as u8;
        }
        if n % 2 == 0 {
            let _ = Preload::kernel(image("k", bytes), "/k", None);
        } else {
            let mut preload = Preload::kernel(image("k", good[0].clone()), "/k", None).unwrap();
            let _ = preload.module(image("m", bytes), "/m", None);
        }
    }
}
