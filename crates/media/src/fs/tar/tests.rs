//! Archives of GNU tar and of libarchive against the folders that they were made of.

use std::fs;
use std::path::Path;

use super::*;
use crate::testing::{Scratch, Tree, compare, have, mutate_and_walk, run};
use crate::{Bytes, FileSource, Kind, read_all, resolve};

fn source(path: &Path) -> SourceRef {
    Arc::new(FileSource::open(path).unwrap())
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn pack(program: &str, tree: &Path, archive: &Path, options: &[&str]) {
    run(program, &[options, &["-cf", text(archive), "-C", text(tree), "."]].concat()).unwrap();
}

fn check(program: &str, tree: &Path, options: &[&str]) -> SourceRef {
    let scratch = Scratch::new("tar");
    let archive = scratch.join("archive");
    pack(program, tree, &archive, options);
    let source: SourceRef = Arc::new(Bytes(fs::read(&archive).unwrap()));
    let fs = open(&source, &[]).unwrap().unwrap();
    let counts = compare(&*fs, "/", tree).unwrap_or_else(|error| panic!("{program} {options:?}: {error}"));
    assert!(counts.files > 100);
    source
}

#[test]
fn every_format() {
    let scratch = Scratch::new("tree");
    let tree = scratch.path();
    Tree::QUICK.write(tree).unwrap();
    fs::hard_link(tree.join("boot/vmlinuz"), tree.join("boot/vmlinuz.old")).unwrap();
    for format in ["--format=gnu", "--format=pax", "--format=oldgnu"] {
        check("tar", tree, &[format]);
        let packed = check("tar", tree, &[format, "--sparse"]);
        assert!(packed.size() < 4 << 20, "{format}: holes are stored");
    }
    for version in ["0.0", "0.1", "1.0"] {
        let option = format!("--sparse-version={version}");
        check("tar", tree, &["--format=pax", "--sparse", &option]);
    }
    if have("bsdtar") {
        check("bsdtar", tree, &["--format=pax"]);
        check("bsdtar", tree, &["--format=gnutar"]);
    }
    // Names and targets that ustar can't store.
    for folder in ["deep", "names", "links"] {
        fs::remove_dir_all(tree.join(folder)).unwrap();
    }
    check("tar", tree, &["--format=ustar"]);
}

#[test]
fn ten_thousand_files() {
    let scratch = Scratch::new("tree");
    let (tree, archive) = (scratch.join("tree"), scratch.join("archive"));
    fs::create_dir(&tree).unwrap();
    Tree::FULL.write(&tree).unwrap();
    pack("tar", &tree, &archive, &["--sparse", "--label=The label"]);
    let fs = open(&source(&archive), &[]).unwrap().unwrap();
    assert_eq!(compare(&*fs, "/", &tree).unwrap().files, 10_000);
    assert_eq!((fs.kind(), fs.label().as_deref()), ("tarfs", Some("The label")));
}

/// A header with its checksum.
fn member(name: &str, kind: u8, size: u64) -> Vec<u8> {
    let mut block = vec![0; 512];
    block[..name.len()].copy_from_slice(name.as_bytes());
    block[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
    block[136..147].copy_from_slice(b"00000001750");
    block[156] = kind;
    block[257..263].copy_from_slice(b"ustar\0");
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    block
}

fn opened(blocks: &[Vec<u8>]) -> Result<Option<Arc<dyn FileSystem>>> {
    open(&(Arc::new(Bytes(blocks.concat())) as SourceRef), &[])
}

fn data(text: &str) -> Vec<u8> {
    let mut block = vec![0; 512];
    block[..text.len()].copy_from_slice(text.as_bytes());
    block
}

#[test]
fn later_members_replace_earlier_ones_and_folders_are_implied() {
    let fs = opened(&[
        member("a/b/file", b'0', 3),
        data("old"),
        member("./a//b/file", b'0', 4),
        data("new!"),
        member("a/plain", b'0', 0),
        member("a/plain/inner", b'0', 1),
        data("i"),
        member("../outside", b'0', 1),
        data("o"),
        member("a", b'5', 0),
        member("device", b'3', 0),
    ]);
    let fs = fs.unwrap().unwrap();
    let read = |path: &str| read_all(&*resolve(&*fs, path.as_bytes()).unwrap(), 10).unwrap();
    assert_eq!(read("/a/b/file"), b"new!");
    assert_eq!(read("/a/plain/inner"), b"i");
    assert_eq!(resolve(&*fs, b"/a").unwrap().metadata().unwrap().modified, Some(1000));
    assert_eq!(resolve(&*fs, b"/device").unwrap().metadata().unwrap().kind, Kind::Other);
    assert!(resolve(&*fs, b"/outside").is_err());
}

#[test]
fn what_is_refused() {
    assert!(opened(&[vec![0; 1024]]).unwrap().is_none());
    let mut wrong = member("file", b'0', 3);
    wrong[3] ^= 1;
    assert!(opened(std::slice::from_ref(&wrong)).unwrap().is_none());
    let message = |blocks: &[Vec<u8>]| opened(blocks).err().unwrap().to_string();
    let second = [member("file", b'0', 0), wrong];
    assert_eq!(message(&second), "tarfs: damaged: checksum of the header at 0x200 differs");
    assert_eq!(message(&[member("file", b'0', 3)]), "tarfs: damaged: a member is cut off");
    assert_eq!(message(&[member("file", b'M', 0)]), "tarfs: an archive in several volumes is not supported");
    let large = message(&[member("name", b'L', 1 << 30)]);
    assert_eq!(large, "a name or a set of records of this tarfs is too large");
}

#[test]
fn damage() {
    let scratch = Scratch::new("damage");
    let (tree, archive) = (scratch.join("tree"), scratch.join("archive"));
    fs::create_dir(&tree).unwrap();
    Tree { files: 150, kernel: 50_000, ..Tree::QUICK }.write(&tree).unwrap();
    for options in [&["--format=gnu", "--sparse"][..], &["--format=pax", "--sparse"]] {
        pack("tar", &tree, &archive, options);
        let sound: SourceRef = Arc::new(Bytes(fs::read(&archive).unwrap()));
        mutate_and_walk(|source| open(&resummed(source), &[]), &sound, 200);
    }
}

/// `source` with the checksums of all blocks that look like headers made right.
fn resummed(source: &SourceRef) -> SourceRef {
    struct Resummed(SourceRef);
    impl crate::Source for Resummed {
        fn size(&self) -> u64 {
            self.0.size()
        }

        fn read_at(&self, offset: u64, to: &mut [u8]) -> Result<()> {
            self.0.read_at(offset, to)?;
            if to.len() == 512 && to[257..262] == *b"ustar" {
                to[148..156].fill(b' ');
                let sum: u32 = to.iter().map(|byte| u32::from(*byte)).sum();
                to[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
            }
            Ok(())
        }
    }
    Arc::new(Resummed(source.clone()))
}
