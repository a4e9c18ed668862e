use std::sync::Arc;

use super::*;
use crate::testing::{Scratch, have, run};
use crate::{Bytes, FileSource};

const MIB: u64 = 1 << 20;

fn names(partitions: &[Partition]) -> Vec<&str> {
    partitions.iter().map(|p| p.name.as_str()).collect()
}

fn from_script(scratch: &Scratch, size: u64, tool: &str, arguments: &[&str]) -> SourceRef {
    let image = scratch.join("disk.img");
    std::fs::File::create(&image).unwrap().set_len(size).unwrap();
    let mut all = arguments.to_vec();
    all.push(image.to_str().unwrap());
    run(tool, &all).unwrap();
    Arc::new(FileSource::open(&image).unwrap())
}

fn sfdisk(scratch: &Scratch, size: u64, script: &str) -> SourceRef {
    std::fs::write(scratch.join("script"), script).unwrap();
    let command = format!("sfdisk -q \"$0\" < {}", scratch.join("script").display());
    from_script(scratch, size, "sh", &["-c", &command])
}

#[test]
fn sfdisk_primary_and_logical_partitions() {
    if !have("sfdisk") {
        return;
    }
    let scratch = Scratch::new("mbr");
    let script = "label: dos\nlabel-id: 0x1234abcd\n\
        start=2048, size=4096, type=83, bootable\nstart=8192, size=40000, type=5\n\
        start=50000, size=1000, type=a5\n\
        start=10240, size=2048, type=8e\nstart=14336, size=2048, type=82\nstart=20000, size=100, type=83\n";
    let found = scan(&sfdisk(&scratch, 32 * MIB, script));
    assert_eq!(names(&found), ["msdos1", "msdos3", "msdos5", "msdos6", "msdos7"]);
    assert_eq!((found[0].start, found[0].size, found[0].active), (2048 * 512, 4096 * 512, true));
    assert_eq!(found[0].uuid.as_deref(), Some("1234abcd-01"));
    assert_eq!((found[2].start, found[2].kind.clone()), (10240 * 512, PartitionKind::Msdos(0x8e)));
    assert_eq!((found[4].start, found[4].size), (20000 * 512, 100 * 512));
    assert_eq!(found[4].uuid.as_deref(), Some("1234abcd-07"));
}

#[test]
fn sgdisk_gpt_and_its_backup() {
    if !have("sgdisk") {
        return;
    }
    let scratch = Scratch::new("gpt");
    let arguments = [
        "-n",
        "1:2048:+1M",
        "-t",
        "1:ef02",
        "-n",
        "3:8192:+2M",
        "-t",
        "3:8300",
        "-c",
        "3:Würzel",
        "-u",
        "3:01234567-89AB-CDEF-0123-456789ABCDEF",
        "-A",
        "3:set:2",
    ];
    let source = from_script(&scratch, 16 * MIB, "sgdisk", &arguments);
    let found = scan(&source);
    assert_eq!(names(&found), ["gpt1", "gpt3"]);
    assert_eq!((found[1].start, found[1].size, found[1].active), (8192 * 512, 2 * MIB, true));
    assert_eq!(found[1].label.as_deref(), Some("Würzel"));
    assert_eq!(found[1].uuid.as_deref(), Some("01234567-89ab-cdef-0123-456789abcdef"));
    assert_eq!(found[0].kind, PartitionKind::Gpt("21686148-6449-6e6f-744e-656564454649".into()));
    // A primary header, then primary entries, that a checksum doesn't fit.
    for at in [512 + 60, 1024 + 5] {
        let mut bytes = source.read_vec(0, source.size() as usize).unwrap();
        bytes[at] ^= 0x40;
        let damaged: SourceRef = Arc::new(Bytes(bytes.clone()));
        assert_eq!(scan(&damaged), found);
        let end = bytes.len() - 512;
        bytes[end + 20] ^= 1;
        let damaged: SourceRef = Arc::new(Bytes(bytes));
        assert!(scan(&damaged).is_empty(), "no table is sound, so none is believed");
    }
}

#[test]
fn a_gpt_with_large_sectors() {
    let mut bytes = vec![0; 4 << 20];
    bytes[446 + 4] = 0xee;
    bytes[446 + 12] = 1;
    bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
    let entries = 2 * 4096;
    bytes[entries] = 7;
    bytes[entries + 32..entries + 40].copy_from_slice(&10u64.to_le_bytes());
    bytes[entries + 40..entries + 48].copy_from_slice(&19u64.to_le_bytes());
    let sum = |bytes: &[u8]| {
        let mut crc = flate2::Crc::new();
        crc.update(bytes);
        crc.sum().to_le_bytes()
    };
    let table = sum(&bytes[entries..entries + 128 * 4]);
    let header = &mut bytes[4096..4096 + 92];
    header[..8].copy_from_slice(b"EFI PART");
    header[12] = 92;
    header[24] = 1;
    header[72] = 2;
    header[80] = 4;
    header[84] = 128;
    header[88..92].copy_from_slice(&table);
    let own = sum(header);
    header[16..20].copy_from_slice(&own);
    let source: SourceRef = Arc::new(Bytes(bytes));
    let found = scan(&source);
    assert_eq!((found[0].name.as_str(), found[0].start, found[0].size), ("gpt1", 40960, 40960));
}

/// A label as disklabel(5) describes it.
fn disklabel(bytes: &mut [u8], at: usize, version: u16, entries: &[(u64, u64, u8)]) {
    let label = &mut bytes[at..at + 512];
    label.fill(0);
    for place in [0, 132] {
        label[place..place + 4].copy_from_slice(&0x8256_4557u32.to_le_bytes());
    }
    label[40..44].copy_from_slice(&512u32.to_le_bytes());
    label[114..116].copy_from_slice(&version.to_le_bytes());
    label[138] = entries.len() as u8;
    for (n, (offset, size, kind)) in entries.iter().enumerate() {
        let entry = &mut label[148 + 16 * n..164 + 16 * n];
        entry[..4].copy_from_slice(&(*size as u32).to_le_bytes());
        entry[4..8].copy_from_slice(&(*offset as u32).to_le_bytes());
        entry[8..10].copy_from_slice(&((offset >> 32) as u16).to_le_bytes());
        entry[10..12].copy_from_slice(&((size >> 32) as u16).to_le_bytes());
        entry[12] = *kind;
    }
    let sum = label.chunks(2).fold(0, |sum, w| sum ^ u16::from_le_bytes([w[0], w[1]]));
    label[136..138].copy_from_slice(&sum.to_le_bytes());
}

fn slices(bytes: &mut [u8], slices: &[(u32, u32, u8)]) {
    bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
    for (n, (start, size, kind)) in slices.iter().enumerate() {
        let at = 446 + 16 * n;
        bytes[at + 4] = *kind;
        bytes[at + 8..at + 12].copy_from_slice(&start.to_le_bytes());
        bytes[at + 12..at + 16].copy_from_slice(&size.to_le_bytes());
    }
}

#[test]
fn disklabels_of_whole_disks_and_slices() {
    let mut bytes = vec![0; 1 << 20];
    disklabel(&mut bytes, 512, 0, &[(16, 100, 7), (116, 50, 1), (0, 2048, 0), (166, 10, 7)]);
    let source: SourceRef = Arc::new(Bytes(bytes.clone()));
    let found = scan(&source);
    assert_eq!(names(&found), ["bsd1", "bsd2", "bsd4"]);
    assert_eq!((found[2].start, found[2].size, &found[2].kind), (166 * 512, 5120, &PartitionKind::Bsd(7)));
    bytes[512 + 150] ^= 1;
    let source: SourceRef = Arc::new(Bytes(bytes.clone()));
    assert!(scan(&source).is_empty(), "the checksum is wrong");

    // A slice that counts from itself and one that counts from the disk.
    let mut bytes = vec![0; 1 << 20];
    slices(&mut bytes, &[(64, 400, 0xa5), (500, 400, 0xa5), (1000, 300, 0xa9), (1400, 300, 0xa6)]);
    disklabel(&mut bytes, 65 * 512, 0, &[(16, 100, 7), (0, 0, 0), (0, 400, 0)]);
    disklabel(&mut bytes, 501 * 512, 0, &[(516, 100, 7), (0, 0, 0), (500, 400, 0)]);
    disklabel(&mut bytes, 1001 * 512, 0, &[(1000, 200, 7), (0, 0, 0), (1000, 300, 0), (0, 2048, 0)]);
    disklabel(&mut bytes, 1401 * 512, 1, &[(1464, 200, 7), (1 << 33, 10, 7), (0, 2048, 0)]);
    let source: SourceRef = Arc::new(Bytes(bytes));
    let found = scan(&source);
    assert_eq!(
        names(&found),
        [
            "msdos1",
            "msdos1,bsd1",
            "msdos2",
            "msdos2,bsd1",
            "msdos3",
            "msdos4",
            "netbsd1",
            "netbsd4",
            "openbsd1"
        ]
    );
    let starts: Vec<u64> = found.iter().map(|p| p.start / 512).collect();
    assert_eq!(starts, [64, 80, 500, 516, 1000, 1400, 1000, 0, 1464]);
    assert_eq!(found[1].parent(), Some("msdos1"));
}

#[test]
fn chains_that_bite_their_tail_end() {
    let mut bytes = vec![0; 64 << 10];
    slices(&mut bytes, &[(10, 100, 5)]);
    let (_, link) = bytes.split_at_mut(10 * 512);
    slices(link, &[(1, 5, 0x83), (10, 20, 5)]);
    let (_, link) = bytes.split_at_mut(20 * 512);
    slices(link, &[(2, 5, 0x83), (0, 20, 5)]);
    let source: SourceRef = Arc::new(Bytes(bytes));
    let found = scan(&source);
    assert_eq!(names(&found), ["msdos5", "msdos6"]);
    assert_eq!(found[1].start, 22 * 512);
}

#[test]
fn a_hybrid_iso() {
    if !have("xorriso") || !std::path::Path::new("/usr/lib/ISOLINUX/isohdpfx.bin").exists() {
        eprintln!("skipped: no xorriso or isolinux");
        return;
    }
    let scratch = Scratch::new("hybrid");
    std::fs::create_dir(scratch.join("tree")).unwrap();
    std::fs::copy("/usr/lib/ISOLINUX/isolinux.bin", scratch.join("tree/isolinux.bin")).unwrap();
    let (iso, tree) = (scratch.join("a.iso"), scratch.join("tree"));
    run(
        "xorriso",
        &[
            "-as",
            "mkisofs",
            "-o",
            iso.to_str().unwrap(),
            "-isohybrid-mbr",
            "/usr/lib/ISOLINUX/isohdpfx.bin",
            "-b",
            "isolinux.bin",
            "-c",
            "boot.cat",
            "-no-emul-boot",
            "-boot-load-size",
            "4",
            "-boot-info-table",
            tree.to_str().unwrap(),
        ],
    )
    .unwrap();
    let source: SourceRef = Arc::new(FileSource::open(&iso).unwrap());
    assert_eq!(names(&scan(&source)), ["msdos1"]);
}

#[test]
fn an_apple_map() {
    let mut bytes = vec![0; 256 << 10];
    bytes[..4].copy_from_slice(&[0x45, 0x52, 2, 0]);
    for (n, (start, size, kind)) in
        [(1u32, 3u32, "Apple_partition_map"), (100, 50, "Apple_HFS")].iter().enumerate()
    {
        let entry = &mut bytes[512 * (n + 1)..512 * (n + 2)];
        entry[..2].copy_from_slice(b"PM");
        entry[7] = 2;
        entry[8..12].copy_from_slice(&start.to_be_bytes());
        entry[12..16].copy_from_slice(&size.to_be_bytes());
        entry[48..48 + kind.len()].copy_from_slice(kind.as_bytes());
    }
    let source: SourceRef = Arc::new(Bytes(bytes));
    let found = scan(&source);
    assert_eq!(names(&found), ["apple1", "apple2"]);
    assert_eq!((found[1].start, found[1].size), (51200, 25600));
    assert_eq!(found[1].kind, PartitionKind::Apple("Apple_HFS".into()));
}
