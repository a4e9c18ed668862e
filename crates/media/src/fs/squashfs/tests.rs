//! Against the kernel, on images of mksquashfs.

use std::fs;
use std::path::Path;

use super::*;
use crate::testing::{Mounted, Scratch, Tree, cached, compare, have, mutate_and_walk, run};
use crate::{Bytes, FileSource};

fn source(path: &Path) -> SourceRef {
    Arc::new(FileSource::open(path).unwrap())
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn pack(tree: &Path, image: &Path, options: &[&str]) {
    let arguments = [&[text(tree), text(image), "-noappend", "-quiet", "-no-progress"], options].concat();
    run("mksquashfs", &arguments).unwrap();
}

#[test]
fn every_compression() {
    if !have("mksquashfs") {
        return;
    }
    let scratch = Scratch::new("squashfs");
    let (tree, image) = (scratch.join("tree"), scratch.join("image"));
    fs::create_dir(&tree).unwrap();
    Tree::QUICK.write(&tree).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, tree.join("pipe"), rustix::fs::FileType::Fifo, 0o600.into(), 0)
        .unwrap();
    let options: &[&[&str]] = &[
        &["-comp", "gzip"],
        &["-comp", "xz", "-Xbcj", "x86", "-b", "1M"],
        &["-comp", "zstd", "-b", "4096"],
        &["-comp", "lz4", "-Xhc"],
        &["-comp", "lzo", "-b", "16K"],
        &["-comp", "gzip", "-no-fragments"],
        &["-comp", "zstd", "-always-use-fragments", "-noI", "-noD", "-noF"],
        &["-comp", "gzip", "-no-xattrs", "-no-duplicates", "-nopad"],
    ];
    for options in options {
        pack(&tree, &image, options);
        let fs = open(&source(&image), &[]).unwrap().unwrap();
        let counts = compare(&*fs, "/", &tree).unwrap_or_else(|error| panic!("{options:?}: {error}"));
        assert!(counts.files >= 300);
        let Some(mounted) = Mounted::new(&image, "squashfs", "ro") else { continue };
        assert_eq!(compare(&*fs, "/", mounted.path()), Ok(counts), "{options:?}");
    }
}

#[test]
fn ten_thousand_files() {
    if !have("mksquashfs") {
        return;
    }
    let image = cached("squashfs-full-1.img", |path| {
        let tree = Scratch::new("tree");
        Tree::FULL.write(tree.path()).unwrap();
        pack(tree.path(), path, &["-comp", "zstd", "-mkfs-time", "1700000000"]);
    });
    let fs = open(&source(&image), &[]).unwrap().unwrap();
    assert_eq!((fs.kind(), fs.modified()), ("squash4", Some(1_700_000_000)));
    let Some(mounted) = Mounted::new(&image, "squashfs", "ro") else { return };
    let counts = compare(&*fs, "/", mounted.path()).unwrap();
    assert_eq!(counts.files, 10_000);
}

#[test]
fn a_long_list_of_blocks_is_found_from_waypoints() {
    if !have("mksquashfs") {
        return;
    }
    let scratch = Scratch::new("blocks");
    let (tree, image) = (scratch.join("tree"), scratch.join("image"));
    fs::create_dir(&tree).unwrap();
    let file = fs::File::create(tree.join("file")).unwrap();
    // 10,000 blocks of 4 KiB, some of them holes.
    for number in 0..5000u64 {
        let write = std::os::unix::fs::FileExt::write_all_at;
        write(&file, &number.to_le_bytes(), number * 8192 + 100).unwrap();
    }
    file.set_len(10_000 * 4096).unwrap();
    pack(&tree, &image, &["-b", "4096", "-comp", "lz4"]);
    let fs = open(&source(&image), &[]).unwrap().unwrap();
    let node = fs.root().unwrap().lookup(b"file").unwrap().unwrap();
    for number in [4999u64, 0, 2500, 2499, 2501, 1024, 4998, 512, 513, 1, 4000] {
        let mut bytes = [1; 8];
        node.read_at(number * 8192 + 100, &mut bytes).unwrap();
        assert_eq!(u64::from_le_bytes(bytes), number);
        node.read_at(number * 8192 + 4096, &mut bytes).unwrap();
        assert_eq!(bytes, [0; 8]);
    }
}

#[test]
fn what_is_refused() {
    let mut block = vec![0; 96];
    let open = |block: &[u8]| open(&(Arc::new(Bytes(block.to_vec())) as SourceRef), &[]);
    assert!(open(&block).unwrap().is_none());
    block[..4].copy_from_slice(b"hsqs");
    block[12..16].copy_from_slice(&131072u32.to_le_bytes());
    let message = |block: &[u8]| open(block).err().unwrap().to_string();
    assert_eq!(message(&block), "squash4: version 0.0 is not supported");
    block[28] = 4;
    block[20] = 2;
    assert_eq!(message(&block), "squash4: lzma compression is not supported");
    block[20] = 1;
    assert!(open(&block).unwrap().unwrap().root().is_err());
    block[..4].copy_from_slice(b"sqsh");
    assert_eq!(message(&block), "squash4: a version before 4 is not supported");
}

#[test]
fn damage() {
    if !have("mksquashfs") {
        return;
    }
    let scratch = Scratch::new("damage");
    let tree = scratch.join("tree");
    fs::create_dir(&tree).unwrap();
    Tree { files: 400, kernel: 200_000, ..Tree::QUICK }.write(&tree).unwrap();
    // Metadata that isn't packed takes damage further in.
    for options in [&["-comp", "zstd"][..], &["-noI", "-noF", "-comp", "xz"], &["-noI", "-comp", "lzo"]] {
        let image = scratch.join("image");
        pack(&tree, &image, options);
        let opened = mutate_and_walk(|source| open(source, &[]), &source(&image), 150);
        assert!(opened > 20, "{opened}");
    }
}
