//! Against the host's kernel, the folder that an image was made of, and GRUB's own reader.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::super::support::judge;
use super::*;
use crate::Source;
use crate::testing::*;
use crate::{Bytes, FileSource, resolve};

fn open_image(path: &Path) -> Arc<dyn FileSystem> {
    let source: SourceRef = Arc::new(FileSource::open(path).unwrap());
    open(&source, &[]).unwrap().expect("an ext file system")
}

/// An image of `tree`, made without being root.
fn make(scratch: &Scratch, tree: &Path, size: &str, options: &[&str]) -> PathBuf {
    let image = scratch.join("image");
    let _ = std::fs::remove_file(&image);
    let (image_text, tree) = (image.to_str().unwrap(), tree.to_str().unwrap());
    let mut arguments = vec!["-q", "-F", "-E", "root_owner=0:0", "-d", tree];
    arguments.extend(options);
    arguments.extend([image_text, size]);
    run("mke2fs", &arguments).unwrap();
    image
}

#[test]
fn every_file_of_a_large_tree_is_read() {
    if !have("mke2fs") {
        return;
    }
    let scratch = Scratch::new("ext-full");
    let tree = scratch.join("tree");
    std::fs::create_dir(&tree).unwrap();
    Tree::FULL.write(&tree).unwrap();
    let image = make(
        &scratch,
        &tree,
        "256M",
        &["-t", "ext4", "-L", "Full Tree", "-U", "01234567-89ab-cdef-0123-456789abcdef"],
    );
    let fs = open_image(&image);
    assert_eq!(fs.label().as_deref(), Some("Full Tree"));
    assert_eq!(fs.uuid().as_deref(), Some("01234567-89ab-cdef-0123-456789abcdef"));
    assert_eq!(compare(&*fs, "/", &tree).unwrap().files, 10_000);
    // Entries in the order and with the indices that the kernel writes are not those of mke2fs.
    let empty = scratch.join("empty");
    std::fs::create_dir(&empty).unwrap();
    let image = make(&scratch, &empty, "256M", &["-t", "ext4"]);
    if let Some(mounted) = Mounted::new(&image, "ext4", "") {
        run("cp", &["-a", tree.to_str().unwrap(), mounted.path().to_str().unwrap()]).unwrap();
        run("sync", &["-f", mounted.path().to_str().unwrap()]).unwrap();
        drop(mounted);
        let Some(mounted) = Mounted::new(&image, "ext4", "ro") else { return };
        assert_eq!(compare(&*open_image(&image), "/", mounted.path()).unwrap().files, 10_000);
    }
}

#[test]
fn all_kinds_that_mke2fs_makes() {
    if !have("mke2fs") {
        return;
    }
    let scratch = Scratch::new("ext-kinds");
    let tree = scratch.join("tree");
    std::fs::create_dir(&tree).unwrap();
    Tree::QUICK.write(&tree).unwrap();
    // With inline_data, mke2fs 1.47 forgets holes at the end of files.
    let whole = scratch.join("whole");
    std::fs::create_dir(&whole).unwrap();
    Tree { sparse: 0, ..Tree::QUICK }.write(&whole).unwrap();
    let kinds: &[&[&str]] = &[
        &["-t", "ext2", "-b", "1024"],
        &["-t", "ext2", "-b", "4096", "-O", "^filetype,^sparse_super,^resize_inode"],
        &["-t", "ext2", "-r", "0", "-O", "none"],
        &["-t", "ext3", "-b", "2048", "-I", "128"],
        &["-t", "ext4", "-b", "1024", "-O", "metadata_csum_seed,orphan_file"],
        &["-t", "ext4", "-b", "1024", "-O", "meta_bg,^resize_inode,^64bit"],
        &[
            "-t",
            "ext4",
            "-b",
            "1024",
            "-O",
            "meta_bg,^resize_inode,^sparse_super,sparse_super2",
            "-g",
            "2048",
        ],
        &[
            "-t",
            "ext4",
            "-b",
            "4096",
            "-O",
            "inline_data,large_dir,ea_inode,casefold,encrypt,huge_file,verity",
        ],
        &["-t", "ext4", "-b", "4096", "-I", "1024", "-O", "inline_data"],
        &["-t", "ext4", "-b", "4096", "-O", "bigalloc", "-C", "65536"],
        &["-t", "ext4", "-b", "1024", "-O", "bigalloc", "-C", "4096"],
        &["-t", "ext4", "-b", "4096", "-O", "^extents,^64bit,^flex_bg,mmp"],
        &["-t", "ext4", "-b", "16384"],
        &["-t", "ext4", "-b", "65536", "-O", "inline_data"],
    ];
    for options in kinds {
        let tree = if options.iter().any(|option| option.contains("inline_data")) { &whole } else { &tree };
        let image = make(&scratch, tree, "64M", options);
        let counts =
            compare(&*open_image(&image), "/", tree).unwrap_or_else(|error| panic!("{options:?}: {error}"));
        assert_eq!(counts.files, 300, "{options:?}");
    }
}

#[test]
fn what_the_kernel_writes_is_read() {
    if !have("mke2fs") || !is_root() {
        eprintln!("skipped: only root can mount");
        return;
    }
    let scratch = Scratch::new("ext-kernel");
    let empty = scratch.join("empty");
    std::fs::create_dir(&empty).unwrap();
    let kinds: &[&[&str]] = &[
        &["-t", "ext2", "-b", "1024"],
        &["-t", "ext3", "-b", "4096"],
        &["-t", "ext4", "-b", "1024", "-O", "metadata_csum_seed"],
        &["-t", "ext4", "-b", "4096", "-O", "inline_data,large_dir,ea_inode,casefold", "-I", "512"],
        &["-t", "ext4", "-b", "4096", "-O", "bigalloc", "-C", "16384"],
    ];
    for options in kinds {
        let image = make(&scratch, &empty, "64M", options);
        let kind = options[1];
        let Some(mounted) = Mounted::new(&image, kind, "") else { continue };
        Tree::QUICK.write(mounted.path()).unwrap();
        // Reserved blocks that were never written read as zeros.
        run("fallocate", &["-l", "200000", mounted.path().join("reserved").to_str().unwrap()]).ok();
        drop(mounted);
        let Some(mounted) = Mounted::new(&image, kind, "ro") else { continue };
        let counts = compare(&*open_image(&image), "/", mounted.path());
        assert!(counts.unwrap_or_else(|error| panic!("{options:?}: {error}")).files >= 300);
    }
}

/// Copies the image while it is mounted and its journal is full, then compares with what the kernel makes of the copy.
fn dirty(options: &[&str], mount: &str, rounds: usize) {
    if !have("mke2fs") || !is_root() {
        eprintln!("skipped: only root can mount");
        return;
    }
    let scratch = Scratch::new("ext-dirty");
    let empty = scratch.join("empty");
    std::fs::create_dir(&empty).unwrap();
    let image = make(&scratch, &empty, "64M", options);
    let Some(mounted) = Mounted::new(&image, options[1], mount) else { return };
    let tree = Tree { kernel: 200 << 10, ..Tree::QUICK };
    tree.write(mounted.path()).unwrap();
    run("sync", &["-f", mounted.path().to_str().unwrap()]).unwrap();
    // The journal goes around its end.
    for _ in 0..rounds {
        let again = mounted.path().join("again");
        std::fs::create_dir(&again).unwrap();
        tree.write(&again).unwrap();
        run("sync", &["-f", mounted.path().to_str().unwrap()]).unwrap();
        std::fs::remove_dir_all(&again).unwrap();
    }
    // Blocks of directories become blocks of files: revoked.
    std::fs::remove_dir_all(mounted.path().join("tree")).unwrap();
    std::fs::remove_dir_all(mounted.path().join("many")).unwrap();
    for number in 0..50 {
        // The journal's magic number at the start of a block has to be escaped when data is journalled.
        let mut content = 0xc03b_3998u32.to_be_bytes().to_vec();
        content.extend(Random::new(number).bytes(20_000));
        std::fs::write(mounted.path().join(format!("new{number}")), content).unwrap();
    }
    run("sync", &["-f", mounted.path().to_str().unwrap()]).unwrap();
    let copy = scratch.join("copy");
    run("cp", &["--sparse=always", image.to_str().unwrap(), copy.to_str().unwrap()]).unwrap();
    drop(mounted);
    let mut flags = [0; 4];
    FileSource::open(&copy).unwrap().read_at(SUPERBLOCK + 0x60, &mut flags).unwrap();
    assert_ne!(u32::from_le_bytes(flags) & RECOVER, 0, "the copy needs no recovery");
    let ours = scratch.join("ours");
    std::fs::copy(&copy, &ours).unwrap();
    // The kernel replays its copy, we ours.
    let Some(mounted) = Mounted::new(&copy, options[1], "") else { return };
    let fs = open_image(&ours);
    let counts = compare(&*fs, "/", mounted.path()).unwrap_or_else(|error| panic!("{options:?}: {error}"));
    assert!(counts.files > 50);
}

#[test]
fn a_journal_is_applied() {
    dirty(&["-t", "ext4", "-b", "1024"], "commit=100", 8);
}

#[test]
fn a_journal_without_checksums_is_applied() {
    dirty(&["-t", "ext3", "-b", "4096"], "commit=100", 8);
}

#[test]
fn a_journal_of_data_is_applied() {
    dirty(&["-t", "ext4", "-b", "4096", "-O", "^64bit"], "commit=100,data=journal", 3);
}

#[test]
fn a_journal_is_found_on_another_device() {
    if !have("mke2fs") {
        return;
    }
    let scratch = Scratch::new("ext-external");
    let (journal, image) = (scratch.join("journal"), scratch.join("image"));
    let uuid = "11111111-2222-3333-4444-555555555555";
    let text = |path: &Path| path.to_str().unwrap().to_string();
    run("mke2fs", &["-q", "-F", "-b", "4096", "-U", uuid, "-O", "journal_dev", &text(&journal), "8M"])
        .unwrap();
    run("mke2fs", &["-q", "-F", "-t", "ext4", "-b", "4096", "-O", "^has_journal", &text(&image), "16M"])
        .unwrap();
    let mut bytes = std::fs::read(&image).unwrap();
    let mut log = std::fs::read(&journal).unwrap();
    // As after a crash: feature has_journal, needs_recovery, the journal's UUID; and a log with one transaction,
    // which changes the label in block 0.
    bytes[1024 + 0x5c] |= 4;
    bytes[1024 + 0x60] |= RECOVER as u8;
    let uuid: [u8; 16] = log[1024 + 0x68..][..16].try_into().unwrap();
    bytes[1024 + 0xd0..][..16].copy_from_slice(&uuid);
    let mut copy = bytes[..4096].to_vec();
    copy[1024 + 0x78..][..5].copy_from_slice(b"newer");
    let mut put = |block: usize, at: usize, value: u32| {
        log[block * 4096 + at..][..4].copy_from_slice(&value.to_be_bytes());
    };
    put(1, 0x18, 7);
    put(1, 0x1c, 2);
    put(1, 0x28, 0);
    for (block, kind) in [(2, DESCRIPTOR), (4, COMMIT)] {
        put(block, 0, 0xc03b_3998);
        put(block, 4, kind);
        put(block, 8, 7);
    }
    put(2, 12, 0);
    // SAME_UUID | LAST
    put(2, 16, 2 | 8);
    log[3 * 4096..4 * 4096].copy_from_slice(&copy);
    let source = |bytes: Vec<u8>| -> SourceRef { Arc::new(Bytes(bytes)) };
    let (image, journal) = (source(bytes), source(log));
    let alone = open(&image, &[]).unwrap().unwrap();
    assert_eq!(alone.label(), None);
    let both = open(&image, &[image.clone(), journal.clone()]).unwrap().unwrap();
    assert_eq!(both.label().as_deref(), Some("newer"));
    assert!(open(&journal, &[]).err().unwrap().to_string().contains("holds only a journal"));
}

const DESCRIPTOR: u32 = 1;
const COMMIT: u32 = 2;

#[test]
fn what_is_not_known_is_refused_by_name() {
    let mut bytes = vec![0u8; 4096];
    let source = |bytes: &[u8]| -> SourceRef { Arc::new(Bytes(bytes.to_vec())) };
    assert!(open(&source(&bytes), &[]).unwrap().is_none());
    assert!(open(&source(&bytes[..1024]), &[]).unwrap().is_none());
    bytes[1024 + 0x38..][..2].copy_from_slice(&[0x53, 0xef]);
    assert!(open(&source(&bytes), &[]).is_err());
    bytes[1024 + 0x4c] = 1;
    bytes[1024 + 0x63] = 0x40;
    let error = open(&source(&bytes), &[]).err().unwrap().to_string();
    assert_eq!(error, "ext2: incompatible feature 0x40000000 is not supported");
}

#[test]
fn names_are_found_whatever_their_case_where_the_directory_says_so() {
    if !have("mke2fs") || !is_root() {
        return;
    }
    let scratch = Scratch::new("ext-casefold");
    let empty = scratch.join("empty");
    std::fs::create_dir(&empty).unwrap();
    let image = make(&scratch, &empty, "16M", &["-t", "ext4", "-O", "casefold"]);
    let Some(mounted) = Mounted::new(&image, "ext4", "") else { return };
    std::fs::create_dir(mounted.path().join("folded")).unwrap();
    run("chattr", &["+F", mounted.path().join("folded").to_str().unwrap()]).unwrap();
    std::fs::write(mounted.path().join("folded/Grüße"), "x").unwrap();
    std::fs::write(mounted.path().join("Exact"), "x").unwrap();
    drop(mounted);
    let fs = open_image(&image);
    assert!(resolve(&*fs, "/folded/gRÜSSE".as_bytes()).is_err());
    assert!(resolve(&*fs, "/folded/gRÜßE".as_bytes()).is_ok());
    assert!(resolve(&*fs, b"/exact").is_err());
}

#[test]
fn what_is_encrypted_is_refused_by_name() {
    if !have("mke2fs") || !have("debugfs") {
        return;
    }
    let scratch = Scratch::new("ext-encrypted");
    let tree = scratch.join("tree");
    std::fs::create_dir(&tree).unwrap();
    Tree { files: 150, ..Tree::QUICK }.write(&tree).unwrap();
    let image = make(&scratch, &tree, "32M", &["-t", "ext4", "-O", "encrypt"]);
    for file in ["boot", "sizes/s1", "links/target400"] {
        // EXTENTS and ENCRYPT
        run(
            "debugfs",
            &["-w", "-R", &format!("set_inode_field /{file} flags 0x80800"), image.to_str().unwrap()],
        )
        .unwrap();
    }
    let fs = open_image(&image);
    let node = |path: &str| fs.root().unwrap().lookup(path.as_bytes()).unwrap().unwrap();
    let directory = node("boot");
    let refused = |error: Option<Error>, what: &str| {
        assert_eq!(error.unwrap().to_string(), format!("ext2: an encrypted {what} is not supported"));
    };
    refused(directory.entries(&mut |_| ControlFlow::Continue(())).err(), "directory");
    refused(directory.lookup(b"vmlinuz").err(), "directory");
    refused(resolve(&*fs, b"/sizes/s1").unwrap().read_at(0, &mut [0]).err(), "file");
    refused(node("links").lookup(b"target400").unwrap().unwrap().link().err(), "symbolic link");
    assert!(resolve(&*fs, b"/sizes/s31").unwrap().read_at(0, &mut [0; 31]).is_ok());
}

#[test]
fn damage_is_survived() {
    if !have("mke2fs") {
        return;
    }
    let scratch = Scratch::new("ext-damage");
    let tree = scratch.join("tree");
    std::fs::create_dir(&tree).unwrap();
    Tree { files: 150, kernel: 100 << 10, sparse: 500 << 10, depth: 4, ..Tree::QUICK }.write(&tree).unwrap();
    let kinds: [&[&str]; 3] = [
        &["-t", "ext4", "-b", "1024", "-O", "inline_data"],
        &["-t", "ext3", "-b", "1024"],
        &["-t", "ext4", "-b", "65536", "-O", "^extents,^64bit"],
    ];
    for options in kinds {
        let image = make(&scratch, &tree, "24M", options);
        let source: SourceRef = Arc::new(Bytes(std::fs::read(image).unwrap()));
        let opened = mutate_and_walk(|source| open(source, &[]), &source, 150);
        assert!(opened > 50, "{options:?}: only {opened} images could be opened");
    }
}

#[test]
fn grub_reads_the_same() {
    if !have("mke2fs") || !have("grub-fstest") {
        return;
    }
    let scratch = Scratch::new("ext-grub");
    let tree = scratch.join("tree");
    std::fs::create_dir(&tree).unwrap();
    Tree::QUICK.write(&tree).unwrap();
    // GRUB 2.06 doesn't know metadata_csum_seed.
    for options in
        [&["-t", "ext4", "-b", "4096", "-L", "judge"], &["-t", "ext2", "-b", "1024", "-L", "judge"]]
    {
        let image = make(&scratch, &tree, "32M", options);
        let files = [
            "/boot/vmlinuz",
            "/boot/grub.cfg",
            // Not the files that start with a hole: GRUB fails on those.
            "/sparse/end",
            "/sparse/fragmented",
            "/links/chain5",
            "/sizes/s0",
        ];
        judge::grub_agrees(&image, open, &files);
        assert_eq!(open_image(&image).label().as_deref(), Some("judge"));
    }
}
