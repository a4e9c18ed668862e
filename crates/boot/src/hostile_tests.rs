//! Damaged kernels: an error or a kernel that crashes itself, never us.

use crate::test_elf::{Maker, Section, symbol64};
use crate::test_image::{MAP, bzimage, elf, image, memory};
use crate::{linux, multiboot, netbsd, openbsd};

/// A kernel with symbols that takes part in everything.
fn kernel(base: u64) -> Vec<u8> {
    let mut bytes = vec![0; 64];
    bytes.extend([0x1bad_b002u32, 0, 0xe452_4ffe].iter().flat_map(|w| w.to_le_bytes()));
    bytes.resize(0x1000, 0);
    bytes.extend(512u32.to_le_bytes());
    bytes.resize(0x2000, 1);
    let mut elf = Maker::executable(true, base).segment(base, 0x20_0000, &bytes, 0x3000);
    let names = b"\0rd_root_size\0rd_root_image\0".to_vec();
    let strings = elf.section(Section { name: ".strtab", kind: 3, bytes: names, ..Section::default() });
    let symbols = [symbol64(0, 0, 0), symbol64(1, 1, base + 0x1000), symbol64(14, 1, base + 0x1100)].concat();
    elf.section(Section { name: ".symtab", kind: 2, bytes: symbols, link: strings, ..Section::default() });
    elf.build()
}

/// Reads and loads the file as everything that it may be.
fn load_as_all(bytes: &[u8]) -> usize {
    let m = memory(16 << 20);
    let disk = image("rd", vec![1; 100]);
    let mut loaded = 0;
    let linux_request = linux::Request {
        memory: &m,
        initrds: &[image("i", vec![2; 5000])],
        cmdline: b"x mem=14M",
        map: &MAP,
        rsdp: None,
        text_screen: true,
    };
    let named = || image("k", bytes.to_vec());
    loaded += usize::from(crate::load_direct(&linux_request, named()).is_ok());
    loaded += usize::from(linux::Kernel::read(named()).and_then(|k| k.load(&linux_request)).is_ok());
    let request = multiboot::Request { memory: &m, cmdline: b"", modules: &[], loader: "x", map: &MAP };
    loaded += usize::from(multiboot::Kernel::read(named()).and_then(|k| k.load(&request)).is_ok());
    let request = openbsd::Request {
        memory: &m,
        howto: 0,
        root: 0,
        duid: None,
        console: None,
        ramdisk: Some(&disk),
        map: &MAP,
    };
    loaded += usize::from(openbsd::Kernel::read(named()).and_then(|k| k.load(&request)).is_ok());
    let request = netbsd::Request {
        memory: &m,
        howto: 0,
        path: "k",
        root: None,
        wedge: None,
        console: None,
        modules: &[],
        map: &MAP,
    };
    loaded + usize::from(netbsd::Kernel::read(named()).and_then(|k| k.load(&request)).is_ok())
}

#[test]
fn damaged_kernels_are_no_danger() {
    let good = [
        kernel(0xffff_ffff_8020_0000),
        bzimage(0x20f, 1),
        elf(true, 0x20_0000, Some(0x20_0010)),
        elf(false, 0x20_0000, Some(0x20_0010)),
    ];
    assert_eq!(good.each_ref().map(|bytes| load_as_all(bytes)), [3, 2, 1, 1]);
    let mut seed = 1u64;
    let mut random = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize
    };
    for n in 0..2000 {
        let mut bytes = good[n % good.len()].clone();
        for _ in 0..=n % 4 {
            let (len, place) = (bytes.len(), random());
            let at = match place % 4 {
                // Headers at the start and the end are worth most of the damage.
                0 | 1 => place % 700.min(len),
                2 => len - 1 - place % 600.min(len),
                _ => place % len,
            };
            bytes[at] = [0, 0xff, 0x80, random() as u8][random() % 4];
        }
        if n % 7 == 0 {
            bytes.truncate(random() % bytes.len());
        }
        load_as_all(&bytes);
    }
}
