use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::open;
use crate::fs::support::judge::{at, grub_reads, grub_says, mount, same, survives};
use crate::testing::{Scratch, Tree, have, run};
use crate::{Bytes, Error, SourceRef};

fn prepare(name: &str, tree: Tree) -> (Scratch, PathBuf, PathBuf) {
    let scratch = Scratch::new(name);
    let folder = scratch.join("tree");
    fs::create_dir(&folder).unwrap();
    tree.write(&folder).unwrap();
    let image = scratch.join("image.ufs");
    (scratch, folder, image)
}

fn make(options: &[&str], image: &Path, folder: &Path) {
    let common = ["-t", "ffs", "-s", "96m", "-f", "1000"];
    let paths = [image.to_str().unwrap(), folder.to_str().unwrap()];
    run("makefs", &[&common[..], options, &paths].concat()).unwrap();
}

/// Files with holes take their whole size in an image by makefs.
const FULL: Tree = Tree { sparse: 2 << 20, ..Tree::FULL };
const QUICK: Tree = Tree { sparse: 1 << 20, ..Tree::QUICK };
const FILES: [&str; 3] = ["/boot/vmlinuz", "/many/entry-00089.txt", "/sizes/s131073"];

#[test]
fn both_versions_hold_ten_thousand_files() {
    if !have("makefs") {
        return;
    }
    let (_scratch, folder, image) = prepare("ufs-full", FULL);
    for version in ["version=1", "version=2"] {
        make(&["-o", version], &image, &folder);
        same(&image, open, &folder, 10_000);
        grub_says(&image, open);
        grub_reads(&image, &folder, &FILES);
    }
}

#[test]
fn byte_orders_and_block_sizes() {
    if !have("makefs") {
        return;
    }
    let (_scratch, folder, image) = prepare("ufs-orders", QUICK);
    for (order, version, block, fragment) in [
        ("be", 1, 8192, 1024),
        ("be", 2, 8192, 1024),
        ("le", 1, 4096, 512),
        ("le", 2, 4096, 4096),
        ("le", 2, 32768, 4096),
        ("le", 1, 65536, 8192),
    ] {
        let options = format!("version={version},bsize={block},fsize={fragment}");
        make(&["-B", order, "-o", &options], &image, &folder);
        same(&image, open, &folder, 300);
        // GRUB knows no big-endian UFS2.
        if (order, version) != ("be", 2) {
            grub_says(&image, open);
        }
    }
    let fs = mount(&image, open);
    assert_eq!(fs.kind(), "ufs1");
    assert_eq!(at(&*fs, "links/relative").metadata().unwrap().size, 1 << 20);
}

#[test]
fn damage_does_no_harm() {
    if !have("makefs") {
        return;
    }
    let (_scratch, folder, image) = prepare("ufs-damage", Tree { sparse: 400_000, ..QUICK });
    for version in ["version=1", "version=2"] {
        make(&["-o", version], &image, &folder);
        survives(&image, open, 150);
    }
}

/// Fields of a UFS1 made by hand.
struct Sketch {
    bytes: Vec<u8>,
    big: bool,
}

impl Sketch {
    fn put(&mut self, at: usize, values: &[u32]) {
        for (value, at) in values.iter().zip((at..).step_by(4)) {
            let bytes = if self.big { value.to_be_bytes() } else { value.to_le_bytes() };
            self.bytes[at..at + 4].copy_from_slice(&bytes);
        }
    }

    fn put16(&mut self, at: usize, value: u16) {
        let bytes = if self.big { value.to_be_bytes() } else { value.to_le_bytes() };
        self.bytes[at..at + 2].copy_from_slice(&bytes);
    }

    /// An inode with mode, size, and addresses in its slots.
    fn inode(&mut self, number: usize, mode: u16, size: u64, slots: &[(usize, u32)]) {
        let at = 16 * 1024 + number * 128;
        self.put16(at, mode);
        let size = [size as u32, (size >> 32) as u32];
        self.put(at + 8, &if self.big { [size[1], size[0]] } else { size });
        self.put(at + 104, &[8]);
        for (slot, fragment) in slots {
            self.put(at + 40 + slot * 4, &[*fragment]);
        }
    }

    /// An entry of a directory as it was before 4.4BSD.
    fn entry(&mut self, at: usize, inode: u32, record: u16, name: &str) {
        self.put(at, &[inode]);
        self.put16(at + 4, record);
        self.put16(at + 6, name.len() as u16);
        self.bytes[at + 8..at + 8 + name.len()].copy_from_slice(name.as_bytes());
    }
}

/// Blocks of 4096 and fragments of 1024 bytes; a file that needs each level of indirection.
fn by_hand(big: bool) -> Vec<u8> {
    let mut disk = Sketch { bytes: vec![0; 256 << 10], big };
    let sb = 8192;
    // fs_iblkno, fs_ncg, fs_bsize, fs_fsize, fs_ipg, fs_fpg, fs_maxsymlinklen, fs_old_inodefmt, fs_magic.
    let fields = [
        (16, 16),
        (44, 1),
        (48, 4096),
        (52, 1024),
        (184, 64),
        (188, 256),
        (1320, 0),
        (1324, u32::MAX),
        (1372, 0x11954),
    ];
    for (at, value) in fields {
        disk.put(sb + at, &[value]);
    }
    disk.inode(2, 0o040_755, 512, &[(0, 40)]);
    disk.entry(40 * 1024, 2, 12, ".");
    disk.entry(40 * 1024 + 12, 2, 12, "..");
    disk.entry(40 * 1024 + 24, 3, 16, "huge");
    disk.entry(40 * 1024 + 40, 4, 12, "no");
    disk.entry(40 * 1024 + 52, 5, 460, "link");
    // Data in direct block 1, in the first indirect block, in the second and in the third.
    let size = (12 + 1024 + 1024 * 1024 + 1024 * 1024 * 5 + 7) * 4096 + 100;
    disk.inode(3, 0o100_644, size, &[(1, 44), (12, 48), (13, 52), (14, 60)]);
    disk.bytes[44 * 1024..][..4].copy_from_slice(b"dir1");
    disk.put(48 * 1024 + 4 * 1023, &[68]);
    disk.bytes[68 * 1024..][..4].copy_from_slice(b"ind1");
    disk.put(52 * 1024 + 4, &[56]);
    disk.put(56 * 1024 + 8, &[72]);
    disk.bytes[72 * 1024..][..4].copy_from_slice(b"ind2");
    disk.put(60 * 1024 + 4 * 5, &[64]);
    disk.put(64 * 1024, &[76]);
    disk.put(76 * 1024 + 4 * 7, &[80]);
    disk.bytes[80 * 1024..][..100].copy_from_slice(&[b'3'; 100]);
    disk.inode(4, 0o010_644, 0, &[]);
    // Short links have no blocks.
    disk.inode(5, 0o120_777, 4, &[]);
    let link = 16 * 1024 + 5 * 128;
    disk.put(link + 104, &[0]);
    disk.bytes[link + 40..link + 44].copy_from_slice(b"huge");
    disk.bytes
}

#[test]
fn every_level_of_indirection_and_old_directories() {
    for big in [false, true] {
        let source: SourceRef = Arc::new(Bytes(by_hand(big)));
        let fs = open(&source, &[]).unwrap().unwrap();
        assert_eq!(fs.kind(), if big { "ufs1_be" } else { "ufs1" });
        let huge = at(&*fs, "/link");
        let places: [(u64, &[u8]); 4] = [
            (1, b"dir1"),
            (12 + 1023, b"ind1"),
            (12 + 1024 + 1024 + 2, b"ind2"),
            (12 + 1024 + 1024 * 1024 + 1024 * 1024 * 5 + 7, &[b'3'; 100]),
        ];
        for (block, expected) in places {
            let mut bytes = vec![1; expected.len() + 100];
            let (offset, end) = (block * 4096 - 100, expected.len() + 100);
            huge.read_at(offset, &mut bytes[..end]).unwrap();
            assert_eq!(bytes, [&[0; 100], expected].concat(), "block {block}");
        }
        let mut hole = vec![1; 3 << 20];
        huge.read_at(1 << 32, &mut hole).unwrap();
        assert!(hole.iter().all(|byte| *byte == 0));
        assert!(huge.read_at(huge.metadata().unwrap().size, &mut [0]).is_err());
        assert!(matches!(at(&*fs, "/no").read_at(0, &mut []), Err(Error::NotAFile(_))));
    }
}

#[test]
fn a_directory_in_itself_is_found() {
    let mut bytes = by_hand(false);
    // "no" becomes the root directory.
    bytes[40 * 1024 + 40] = 2;
    let source: SourceRef = Arc::new(Bytes(bytes));
    let fs = open(&source, &[]).unwrap().unwrap();
    let error = fs.root().unwrap().lookup(b"no").err().unwrap();
    assert_eq!(error.to_string(), "ufs1: damaged: directory 2 contains itself");
}
