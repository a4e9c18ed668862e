//! Against the host's kernel, mkfs.xfs and GRUB's own reader.

use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::super::support::judge;
use super::*;
use crate::testing::*;
use crate::{Bytes, FileSource, resolve};

fn open_image(path: &Path) -> Arc<dyn FileSystem> {
    let source: SourceRef = Arc::new(FileSource::open(path).unwrap());
    open(&source, &[]).unwrap().expect("an XFS file system")
}

/// An empty image. The variables let mkfs.xfs make smaller ones than 300 MB.
fn make(scratch: &Scratch, size: &str, options: &[&str]) -> PathBuf {
    let image = scratch.join("image");
    let _ = std::fs::remove_file(&image);
    run("truncate", &["-s", size, image.to_str().unwrap()]).unwrap();
    let mut arguments = vec!["TEST_DIR=1", "TEST_DEV=1", "QA_CHECK_FS=1", "mkfs.xfs", "-q", "-f"];
    arguments.extend(options);
    arguments.push(image.to_str().unwrap());
    run("env", &arguments).unwrap();
    image
}

/// What mkfs.xfs makes of a folder: its prototype file.
fn prototype(folder: &Path, out: &mut Vec<u8>) {
    let mut entries: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        let kind = path.symlink_metadata().unwrap().file_type();
        out.extend(path.file_name().unwrap().as_bytes());
        if kind.is_symlink() {
            out.extend(b" l--777 0 0 ");
            out.extend(std::fs::read_link(&path).unwrap().as_os_str().as_bytes());
            out.push(b'\n');
        } else if kind.is_dir() {
            out.extend(b" d--755 0 0\n");
            prototype(&path, out);
            out.extend(b"$\n");
        } else {
            out.extend(b" ---644 0 0 ");
            out.extend(path.as_os_str().as_bytes());
            out.push(b'\n');
        }
    }
}

#[test]
fn every_file_of_a_large_tree_is_read() {
    if !have("mkfs.xfs") {
        return;
    }
    let scratch = Scratch::new("xfs-full");
    let image = make(
        &scratch,
        "512M",
        &["-L", "Full Tree", "-m", "uuid=01234567-89ab-cdef-0123-456789abcdef,rmapbt=1", "-i", "nrext64=1"],
    );
    let fs = open_image(&image);
    assert_eq!(fs.label().as_deref(), Some("Full Tree"));
    assert_eq!(fs.uuid().as_deref(), Some("01234567-89ab-cdef-0123-456789abcdef"));
    let Some(mounted) = Mounted::new(&image, "xfs", "") else { return };
    Tree::FULL.write(mounted.path()).unwrap();
    // Shared blocks.
    let (from, to) = (mounted.path().join("boot/vmlinuz"), mounted.path().join("reflink"));
    run("cp", &["--reflink=always", from.to_str().unwrap(), to.to_str().unwrap()]).unwrap();
    drop(mounted);
    let Some(mounted) = Mounted::new(&image, "xfs", "ro") else { return };
    assert_eq!(compare(&*open_image(&image), "/", mounted.path()).unwrap().files, 10_001);
}

#[test]
fn all_kinds_that_the_kernel_writes() {
    if !have("mkfs.xfs") {
        return;
    }
    let scratch = Scratch::new("xfs-kinds");
    let kinds: &[&[&str]] = &[
        &["-m", "crc=0"],
        &["-m", "crc=0", "-n", "ftype=1", "-b", "size=512", "-n", "size=4096"],
        &["-m", "crc=0", "-b", "size=512", "-i", "size=256", "-d", "agcount=7"],
        &["-m", "crc=0", "-n", "version=ci"],
        &[
            "-m",
            "crc=1,bigtime=0,inobtcount=0,reflink=0,finobt=0",
            "-b",
            "size=1024",
            "-n",
            "size=8192",
            "-i",
            "sparse=0",
        ],
        &["-m", "rmapbt=1", "-b", "size=1024", "-d", "agcount=5", "-i", "nrext64=1"],
        &["-m", "crc=1", "-i", "size=2048", "-s", "size=4096", "-n", "size=65536"],
        &["-b", "size=16384"],
        &["-b", "size=65536", "-i", "nrext64=1"],
    ];
    for options in kinds {
        let image = make(&scratch, "320M", options);
        let Some(mounted) = Mounted::new(&image, "xfs", "") else { continue };
        let any_case = options.contains(&"version=ci");
        Tree { case: !any_case, ..Tree::QUICK }.write(mounted.path()).unwrap();
        // Reserved blocks that were never written read as zeros.
        run("fallocate", &["-l", "200000", mounted.path().join("reserved").to_str().unwrap()]).unwrap();
        for count in [1, 8, 60, 200, 700] {
            // From a directory in its inode to one with an index of many blocks.
            let folder = mounted.path().join(format!("folder{count}"));
            std::fs::create_dir(&folder).unwrap();
            for number in 0..count {
                std::fs::write(folder.join(format!("{number}-{}", "n".repeat(number % 40))), "").unwrap();
            }
            for number in (0..count).filter(|number| number % 3 == 1) {
                std::fs::remove_file(folder.join(format!("{number}-{}", "n".repeat(number % 40)))).unwrap();
            }
        }
        drop(mounted);
        let Some(mounted) = Mounted::new(&image, "xfs", "ro") else { continue };
        let fs = open_image(&image);
        let counts =
            compare(&*fs, "/", mounted.path()).unwrap_or_else(|error| panic!("{options:?}: {error}"));
        assert!(counts.files > 900, "{options:?}: {counts:?}");
        assert_eq!(fs.case_sensitive(), !any_case);
        assert_eq!(resolve(&*fs, b"/BOOT/VMlinuz").is_ok(), any_case);
        let time = std::fs::metadata(mounted.path().join("boot/vmlinuz")).unwrap().modified().unwrap();
        let time = time.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as i64;
        assert_eq!(resolve(&*fs, b"/boot/vmlinuz").unwrap().metadata().unwrap().modified, Some(time));
    }
}

/// An image with `tree`, made without being root, and the folder that it was made of.
fn populated(scratch: &Scratch, tree: &Tree, options: &[&str]) -> (PathBuf, PathBuf) {
    let folder = scratch.join("tree");
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir(&folder).unwrap();
    tree.write(&folder).unwrap();
    // The prototype file can't say this.
    std::fs::remove_file(folder.join("names/with space")).unwrap();
    for len in [400, 1000, 1023] {
        // mkfs.xfs 6.1 writes the blocks of such links without their headers; the kernel can't read them either.
        std::fs::remove_file(folder.join(format!("links/target{len}"))).unwrap();
    }
    let mut text = b"/dev/null\n0 0\nd--755 0 0\n".to_vec();
    prototype(&folder, &mut text);
    text.extend(b"$\n$\n");
    let file = scratch.join("prototype");
    std::fs::write(&file, text).unwrap();
    let mut all = vec!["-p", file.to_str().unwrap()];
    all.extend(options);
    (make(scratch, "64M", &all), folder)
}

#[test]
fn what_mkfs_copies_is_read() {
    if !have("mkfs.xfs") {
        return;
    }
    let scratch = Scratch::new("xfs-proto");
    // Few kernels still mount version 4.
    let kinds: &[(usize, &[&str])] = &[
        (2000, &["-m", "crc=0", "-n", "ftype=1", "-b", "size=512", "-n", "size=4096"]),
        (2000, &["-m", "crc=0", "-b", "size=512", "-i", "size=256"]),
        (300, &["-m", "crc=0", "-n", "version=ci"]),
        (300, &["-m", "crc=0", "-b", "size=4096", "-n", "size=65536", "-s", "size=4096"]),
        (300, &["-m", "crc=1"]),
    ];
    for (files, options) in kinds {
        let any_case = options.contains(&"version=ci");
        let tree = Tree { files: *files, case: !any_case, ..Tree::QUICK };
        let (image, folder) = populated(&scratch, &tree, options);
        let fs = open_image(&image);
        let counts = compare(&*fs, "/", &folder).unwrap_or_else(|error| panic!("{options:?}: {error}"));
        assert_eq!(counts.files, files - 1, "{options:?}");
        assert_eq!(fs.case_sensitive(), !any_case);
        assert_eq!(resolve(&*fs, b"/BOOT/VMlinuz").is_ok(), any_case);
    }
}

#[test]
fn damage_is_survived() {
    if !have("mkfs.xfs") {
        return;
    }
    let scratch = Scratch::new("xfs-damage");
    let tree = Tree { files: 150, kernel: 100 << 10, sparse: 500 << 10, depth: 4, ..Tree::QUICK };
    let kinds: [&[&str]; 2] =
        [&["-m", "crc=1", "-b", "size=1024"], &["-m", "crc=0", "-b", "size=512", "-i", "size=256"]];
    for options in kinds {
        let (image, _) = populated(&scratch, &tree, options);
        let source: SourceRef = Arc::new(Bytes(std::fs::read(image).unwrap()));
        let opened = mutate_and_walk(|source| open(source, &[]), &source, 200);
        assert!(opened > 50, "{options:?}: only {opened} images could be opened");
    }
}

#[test]
fn grub_reads_the_same() {
    if !have("mkfs.xfs") || !have("grub-fstest") {
        return;
    }
    let scratch = Scratch::new("xfs-grub");
    for options in [&["-L", "judge", "-m", "crc=0"], &["-L", "judge", "-m", "crc=1"]] {
        let (image, _) = populated(&scratch, &Tree::QUICK, options);
        let files = [
            "/boot/vmlinuz",
            "/sparse/islands",
            "/sparse/end",
            "/links/chain5",
            "/sizes/s0",
            "/many/entry-00077.txt",
        ];
        judge::grub_agrees(&image, open, &files);
        assert_eq!(open_image(&image).label().as_deref(), Some("judge"));
    }
}

#[test]
fn what_is_not_known_is_refused_by_name() {
    let source = |bytes: &[u8]| -> SourceRef { Arc::new(Bytes(bytes.to_vec())) };
    let mut bytes = vec![0u8; 4096];
    assert!(open(&source(&bytes), &[]).unwrap().is_none());
    assert!(open(&source(&bytes[..511]), &[]).unwrap().is_none());
    bytes[..4].copy_from_slice(b"XFSB");
    let mut refusals = String::new();
    let mut refuse =
        |bytes: &[u8]| writeln!(refusals, "{}", open(&source(bytes), &[]).err().unwrap()).unwrap();
    bytes[100..102].copy_from_slice(&[0x00, 0x03]);
    refuse(&bytes);
    bytes[100..102].copy_from_slice(&[0x00, 0x04]);
    refuse(&bytes);
    bytes[100..102].copy_from_slice(&[0xb4, 0xa5]);
    bytes[218] = 2;
    refuse(&bytes);
    bytes[218] = 0x80;
    refuse(&bytes);
    assert_eq!(
        refusals,
        "xfs: version 3 is not supported\n\
         xfs: version 1 of directories is not supported\n\
         xfs: a zoned realtime device is not supported\n\
         xfs: incompatible feature 0x8000 is not supported\n"
    );
}

#[test]
fn an_external_log_is_refused() {
    if !have("mkfs.xfs") {
        return;
    }
    let scratch = Scratch::new("xfs-log");
    let log = scratch.join("log");
    run("truncate", &["-s", "64M", log.to_str().unwrap()]).unwrap();
    let image = make(&scratch, "320M", &["-l", &format!("logdev={}", log.to_str().unwrap())]);
    let source: SourceRef = Arc::new(FileSource::open(&image).unwrap());
    assert_eq!(open(&source, &[]).err().unwrap().to_string(), "xfs: an external log is not supported");
}

/// Images whose log was not applied, as after a power failure; the kernel applies it to a copy.
#[test]
fn a_log_is_applied() {
    if !have("mkfs.xfs") || !have("xfs_io") {
        return;
    }
    let scratch = Scratch::new("xfs-dirty");
    let kinds: &[&[&str]] = &[
        &["-m", "rmapbt=1", "-i", "nrext64=1"],
        &["-b", "size=1024", "-n", "size=8192", "-m", "bigtime=0,reflink=0", "-l", "su=32k,size=2m"],
        &["-m", "crc=0"],
    ];
    for options in kinds {
        let image = make(&scratch, "320M", options);
        let Some(mounted) = Mounted::new(&image, "xfs", "logbsize=256k") else { continue };
        let at = |name: &str| mounted.path().join(name);
        let sync = || run("sync", &["-f", mounted.path().to_str().unwrap()]).unwrap();
        Tree { kernel: 200 << 10, ..Tree::QUICK }.write(mounted.path()).unwrap();
        sync();
        // In place now: freezing writes everything.
        run("fsfreeze", &["-f", mounted.path().to_str().unwrap()]).unwrap();
        run("fsfreeze", &["-u", mounted.path().to_str().unwrap()]).unwrap();
        // Blocks of directories are freed and used again, new inodes are made, files get trees of extents.
        std::fs::remove_dir_all(at("tree")).unwrap();
        std::fs::remove_dir_all(at("many")).unwrap();
        std::fs::rename(at("boot"), at("moved")).unwrap();
        sync();
        // A small log goes around its end.
        for round in 0..if options.len() > 4 { 60 } else { 0 } {
            for entry in
                std::fs::read_dir(at("names")).unwrap().chain(std::fs::read_dir(at("sizes")).unwrap())
            {
                let permissions = std::fs::Permissions::from_mode(0o600 | (round % 8));
                std::fs::set_permissions(entry.unwrap().path(), permissions).unwrap();
            }
            std::fs::write(at("names/round"), vec![0; 5000 * round as usize]).unwrap();
            sync();
        }
        let tree = Tree { kernel: 2 << 20, files: 600, ..Tree::QUICK };
        std::fs::create_dir(at("again")).unwrap();
        tree.write(&at("again")).unwrap();
        sync();
        run("xfs_io", &["-x", "-c", "shutdown -f", mounted.path().to_str().unwrap()]).unwrap();
        drop(mounted);
        let copy = scratch.join("copy");
        run("cp", &["--sparse=always", image.to_str().unwrap(), copy.to_str().unwrap()]).unwrap();
        let Some(mounted) = Mounted::new(&copy, "xfs", "") else { continue };
        let fs = open_image(&image);
        let counts =
            compare(&*fs, "/", mounted.path()).unwrap_or_else(|error| panic!("{options:?}: {error}"));
        assert!(counts.files > 600, "{options:?}: {counts:?}");
        // Without the log there is less to see.
        let source: SourceRef = Arc::new(FileSource::open(&image).unwrap());
        let mut bytes = [0; 512];
        source.read_at(0, &mut bytes).unwrap();
        let volume = Volume { source, sb: Superblock::parse(&bytes).unwrap().unwrap(), overlay: None };
        let transactions = log::transactions(&volume).unwrap();
        let cycle = transactions.last().expect("the log is empty").lsn >> 32;
        assert_eq!(cycle > 1, options.len() > 4, "{options:?}: cycle {cycle}");
        let in_place = Xfs { volume: Arc::new(volume) };
        assert!(compare(&in_place, "/", mounted.path()).is_err());
        damage_the_log(&image, &in_place.volume);
    }
}

/// Damages an image whose log is applied, after removing checksums from the log, which would hide the damage.
fn damage_the_log(image: &Path, volume: &Volume) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::OpenOptions::new().write(true).open(image).unwrap();
    let start = volume.sb.block(volume.sb.log.0, volume.sb.log.1).unwrap();
    for sector in 0..8192 {
        let at = start + sector * 512;
        let mut magic = [0; 4];
        volume.read(at, &mut magic).unwrap();
        if magic == [0xfe, 0xed, 0xba, 0xbe] {
            file.write_all_at(&[0; 4], at + 32).unwrap();
        }
    }
    let source: SourceRef = Arc::new(FileSource::open(image).unwrap());
    let opened = mutate_and_walk(|source| open(source, &[]), &source, 40);
    assert!(opened > 10, "only {opened} images could be opened");
}
