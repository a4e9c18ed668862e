//! Archives of GNU cpio against the folders that they were made of.

use std::fs;
use std::path::Path;

use super::*;
use crate::testing::{Scratch, Tree, compare, have, mutate_and_walk, run};
use crate::{Bytes, FileSource};

/// Packs `tree`; false if there is no cpio.
fn pack(tree: &Path, archive: &Path, format: &str) -> bool {
    if !have("cpio") {
        return false;
    }
    let command =
        format!("cd '{}' && find . | cpio --quiet -o -H {format} > '{}'", tree.display(), archive.display());
    run("sh", &["-c", &command]).unwrap();
    true
}

fn source(path: &Path) -> SourceRef {
    Arc::new(FileSource::open(path).unwrap())
}

#[test]
fn every_format() {
    let scratch = Scratch::new("cpio");
    let (tree, archive) = (scratch.join("tree"), scratch.join("archive"));
    fs::create_dir(&tree).unwrap();
    Tree::QUICK.write(&tree).unwrap();
    fs::hard_link(tree.join("boot/vmlinuz"), tree.join("boot/vmlinuz.old")).unwrap();
    fs::hard_link(tree.join("boot/vmlinuz"), tree.join("another")).unwrap();
    for (format, name) in [("newc", "newc"), ("crc", "newc"), ("odc", "odc"), ("bin", "cpiofs")] {
        if !pack(&tree, &archive, format) {
            return;
        }
        let fs = open(&source(&archive), &[]).unwrap().unwrap();
        let counts = compare(&*fs, "/", &tree).unwrap_or_else(|error| panic!("{format}: {error}"));
        assert!(counts.files >= 300);
        assert_eq!(fs.kind(), name);
        if format == "bin" {
            // The same for processors of the other kind: all halves are swapped, but not the names.
            let mut bytes = fs::read(&archive).unwrap();
            swap_headers(&mut bytes);
            let fs = open(&(Arc::new(Bytes(bytes)) as SourceRef), &[]).unwrap().unwrap();
            assert_eq!(compare(&*fs, "/", &tree), Ok(counts));
            assert_eq!(fs.kind(), "cpiofs_be");
        }
    }
}

fn swap_headers(bytes: &mut [u8]) {
    let mut at = 0;
    while at + 26 <= bytes.len() && bytes.u16_at(at) == Some(MAGIC) {
        let header = Header::parse(Format::Little, &bytes[at..]).unwrap();
        bytes[at..at + 26].chunks_exact_mut(2).for_each(|half| half.swap(0, 1));
        at += 26 + header.name_len.next_multiple_of(2) as usize + header.size.next_multiple_of(2) as usize;
    }
}

#[test]
fn ten_thousand_files() {
    let scratch = Scratch::new("cpio");
    let (tree, archive) = (scratch.join("tree"), scratch.join("archive"));
    fs::create_dir(&tree).unwrap();
    Tree { sparse: 1 << 20, ..Tree::FULL }.write(&tree).unwrap();
    if pack(&tree, &archive, "newc") {
        let fs = open(&source(&archive), &[]).unwrap().unwrap();
        assert_eq!(compare(&*fs, "/", &tree).unwrap().files, 10_000);
    }
}

#[test]
fn what_is_refused() {
    let open = |bytes: &[u8]| open(&(Arc::new(Bytes(bytes.to_vec())) as SourceRef), &[]);
    assert!(open(b"").unwrap().is_none());
    // The two bytes alone are no archive.
    let mut block = vec![0; 4096];
    block[..2].copy_from_slice(&MAGIC.to_le_bytes());
    assert!(open(&block).unwrap().is_none());
    let message = |bytes: &[u8]| open(bytes).err().unwrap().to_string();
    assert_eq!(message(b"070701"), "newc: damaged: the trailer is missing at 0x0");
    let header =
        |size: &str| format!("070701{}{size}{}00000002{:08}a\0\0\0", "0".repeat(48), "0".repeat(32), 0);
    assert_eq!(message(header("00000099").as_bytes()), "newc: damaged: a member is cut off at 0x70");
    assert_eq!(message(header("0000000g").as_bytes()), "newc: damaged: a header is wrong at 0x0");
}

#[test]
fn damage() {
    let scratch = Scratch::new("cpio");
    let (tree, archive) = (scratch.join("tree"), scratch.join("archive"));
    fs::create_dir(&tree).unwrap();
    Tree { files: 150, kernel: 50_000, ..Tree::QUICK }.write(&tree).unwrap();
    for format in ["newc", "odc", "bin"] {
        if !pack(&tree, &archive, format) {
            return;
        }
        let sound: SourceRef = Arc::new(Bytes(fs::read(&archive).unwrap()));
        mutate_and_walk(|source| open(source, &[]), &sound, 150);
    }
}
