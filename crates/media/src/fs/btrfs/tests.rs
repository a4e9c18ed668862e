//! Against the kernel, on images that mkfs.btrfs and the kernel write.

use std::fs;
use std::path::{Path, PathBuf};

use super::*;
use crate::testing::{Counts, Mounted, Scratch, Tree, cached, compare, have, is_root, mutate_and_walk, run};
use crate::{FileSource, Kind, Source, resolve};

fn source(path: &Path) -> SourceRef {
    Arc::new(FileSource::open(path).unwrap())
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Image files as loop devices, with a mount of them if there is one, until this is dropped.
struct Rig {
    scratch: Scratch,
    files: Vec<PathBuf>,
    loops: Vec<String>,
    mounted: bool,
}

impl Rig {
    /// `count` devices with a new file system. `None` with a reason where that can't be.
    fn new(name: &str, count: usize, mkfs: &[&str]) -> Option<Self> {
        if !have("mkfs.btrfs") {
            return None;
        }
        if !is_root() {
            eprintln!("skipped: only root can have loop devices");
            return None;
        }
        let mut rig =
            Self { scratch: Scratch::new(name), files: Vec::new(), loops: Vec::new(), mounted: false };
        fs::create_dir(rig.mount_point()).unwrap();
        for number in 0..count {
            let file = rig.scratch.join(&format!("disk{number}"));
            fs::File::create(&file).unwrap().set_len(300 << 20).unwrap();
            match run("losetup", &["-f", "--show", text(&file)]) {
                Ok(name) => rig.loops.push(name.trim().into()),
                Err(error) => {
                    eprintln!("skipped: {error}");
                    return None;
                }
            }
            rig.files.push(file);
        }
        let devices = rig.loops.iter().map(String::as_str);
        run(
            "mkfs.btrfs",
            &["-q", "-f"].into_iter().chain(mkfs.iter().copied()).chain(devices).collect::<Vec<_>>(),
        )
        .unwrap();
        Some(rig)
    }

    fn mount_point(&self) -> PathBuf {
        self.scratch.join("mount")
    }

    fn mount(&mut self, options: &str) -> bool {
        let devices: Vec<String> = self.loops.iter().map(|name| format!("device={name}")).collect();
        let options = [&[options.to_string()], &devices[..]].concat().join(",");
        let folder = self.mount_point();
        let arguments = ["-t", "btrfs", "-o", &options, &self.loops[0], text(&folder)];
        if let Err(error) = run("mount", &arguments) {
            eprintln!("skipped: {error}");
            return false;
        }
        self.mounted = true;
        true
    }

    fn unmount(&mut self) {
        run("umount", &[text(&self.mount_point())]).unwrap();
        self.mounted = false;
    }

    fn sources(&self) -> Vec<SourceRef> {
        self.files.iter().map(|file| source(file)).collect()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if self.mounted {
            self.unmount();
        }
        for name in &self.loops {
            let _ = run("losetup", &["-d", name]);
        }
    }
}

fn same(sources: &[SourceRef], host: &Path) -> std::result::Result<Counts, String> {
    let (first, peers) = sources.split_first().unwrap();
    let fs = open(first, peers).map_err(|error| error.to_string())?.ok_or("not recognized")?;
    compare(&*fs, "/", host)
}

/// A device whose bytes are wrong, but for its superblocks.
struct Wrong(SourceRef);

impl Source for Wrong {
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn read_at(&self, offset: u64, to: &mut [u8]) -> Result<()> {
        self.0.read_at(offset, to)?;
        if offset >= 1 << 20 && offset != 64 << 20 {
            to.iter_mut().step_by(3).for_each(|byte| *byte ^= 0x55);
        }
        Ok(())
    }
}

/// Writes a tree, compares it, then again with `lost` devices left out, and with as many wrong.
fn profile(name: &str, devices: usize, lost: usize, mkfs: &[&str], options: &str) {
    let Some(mut rig) = Rig::new(name, devices, mkfs) else { return };
    if !rig.mount(options) {
        return;
    }
    Tree { kernel: 3 << 20, ..Tree::QUICK }.write(&rig.mount_point()).unwrap();
    // The kernel writes out on unmounting only.
    rig.unmount();
    assert!(rig.mount("ro"));
    let host = rig.mount_point();
    let all = rig.sources();
    let counts = same(&all, &host).unwrap();
    assert!(counts.files >= 300);
    for first in 0..devices {
        if lost == 0 {
            break;
        }
        let gone: Vec<usize> = (first..first + lost).map(|number| number % devices).collect();
        let rest = || all.iter().enumerate().filter(|(number, _)| !gone.contains(number));
        let left: Vec<SourceRef> = rest().map(|(_, source)| source.clone()).collect();
        assert_eq!(same(&left, &host), Ok(counts), "without {gone:?}");
        let wrong = |(number, source): (usize, &SourceRef)| -> SourceRef {
            if gone.contains(&number) { Arc::new(Wrong(source.clone())) } else { source.clone() }
        };
        let wrong: Vec<SourceRef> = all.iter().enumerate().map(wrong).collect();
        assert_eq!(same(&wrong, &host), Ok(counts), "with {gone:?} wrong");
    }
    // One more than may be lost.
    if devices > lost + 1 {
        let error = same(&all[lost + 1..], &host).unwrap_err();
        assert!(error.contains("of this btrfs: not found"), "{error}");
    }
}

#[test]
fn raid0() {
    profile("raid0", 3, 0, &["-draid0", "-mraid0"], "compress-force=zlib");
}

#[test]
fn raid1() {
    profile("raid1", 2, 1, &["-draid1", "-mraid1"], "");
}

#[test]
fn raid1_of_three_and_four() {
    profile("raid1c3", 3, 2, &["-draid1c3", "-mraid1c3", "--csum", "xxhash"], "");
    profile("raid1c4", 4, 3, &["-draid1c4", "-mraid1c4"], "compress=zstd");
}

#[test]
fn raid10() {
    profile("raid10", 4, 1, &["-draid10", "-mraid10", "--csum", "sha256"], "compress=lzo");
}

#[test]
fn raid5() {
    profile("raid5", 3, 1, &["-draid5", "-mraid5", "--csum", "blake2"], "");
}

#[test]
fn raid6() {
    profile("raid6", 5, 2, &["-draid6", "-mraid6"], "compress=zstd");
}

#[test]
fn duplicates_and_mixed_groups() {
    profile("dup", 1, 0, &["-ddup", "-mdup", "-n65536"], "");
    profile("mixed", 1, 0, &["-M", "-n4096", "-s4096"], "compress-force=lzo");
}

#[test]
fn compressions() {
    for compression in ["zlib:9", "lzo", "zstd:15"] {
        let option = format!("compress-force={compression}");
        profile("compressed", 1, 0, &["-n32768"], &option);
    }
}

#[test]
fn ten_thousand_files() {
    if !have("mkfs.btrfs") {
        return;
    }
    let image = cached("btrfs-full-1.img", |path| {
        let tree = Scratch::new("tree");
        Tree::FULL.write(tree.path()).unwrap();
        fs::File::create(path).unwrap().set_len(1 << 30).unwrap();
        run("mkfs.btrfs", &["-q", "-L", "Größe", "-r", text(tree.path()), text(path)]).unwrap();
    });
    let fs = open(&source(&image), &[]).unwrap().unwrap();
    assert_eq!(fs.label().as_deref(), Some("Größe"));
    if have("btrfs") {
        let dump = run("btrfs", &["inspect-internal", "dump-super", text(&image)]).unwrap();
        assert!(dump.contains(&fs.uuid().unwrap()));
    }
    let Some(mounted) = Mounted::new(&image, "btrfs", "ro") else { return };
    let counts = compare(&*fs, "/", mounted.path()).unwrap();
    assert_eq!(counts.files, 10_000);
}

#[test]
fn ten_thousand_files_that_the_kernel_wrote() {
    let Some(mut rig) = Rig::new("full", 1, &[]) else { return };
    if !rig.mount("compress=zstd") {
        return;
    }
    Tree::FULL.write(&rig.mount_point()).unwrap();
    // In place, so that extents are split.
    let fragmented = rig.mount_point().join("boot/vmlinuz");
    let file = fs::OpenOptions::new().write(true).open(&fragmented).unwrap();
    for step in 0..100u64 {
        std::os::unix::fs::FileExt::write_all_at(&file, &[step as u8; 5000], step * 77_777).unwrap();
        if step % 20 == 0 {
            file.sync_all().unwrap();
        }
    }
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 12 << 20, 1 << 20).unwrap();
    drop(file);
    rig.unmount();
    assert!(rig.mount("ro"));
    assert_eq!(same(&rig.sources(), &rig.mount_point()).unwrap().files, 10_000);
}

#[test]
fn subvolumes() {
    let Some(mut rig) = Rig::new("subvolumes", 1, &[]) else { return };
    if !rig.mount("") || !have("btrfs") {
        return;
    }
    let at = |name: &str| text(&rig.mount_point().join(name)).to_string();
    let btrfs = |arguments: &[&str]| run("btrfs", arguments).unwrap();
    btrfs(&["subvolume", "create", &at("@")]);
    fs::write(at("@/file"), "old").unwrap();
    fs::create_dir(at("@/snapshots")).unwrap();
    btrfs(&["subvolume", "snapshot", "-r", &at("@"), &at("@/snapshots/1")]);
    fs::write(at("@/file"), "new").unwrap();
    btrfs(&["subvolume", "create", &at("@/nested")]);
    fs::write(at("@/nested/inner"), "inner").unwrap();
    btrfs(&["subvolume", "snapshot", &at("@"), &at("later")]);
    rig.unmount();
    let read = |fs: &Btrfs, path: &str| -> String {
        let node = resolve(fs, path.as_bytes()).unwrap_or_else(|error| panic!("{path}: {error}"));
        String::from_utf8(crate::read_all(&*node, 100).unwrap()).unwrap()
    };
    let open = |rig: &Rig| open_volume(&rig.sources()[0], &[]).unwrap().unwrap();
    let fs = open(&rig);
    assert_eq!(read(&fs, "/@/file"), "new");
    assert_eq!(read(&fs, "/@/snapshots/1/file"), "old");
    assert_eq!(read(&fs, "/later/nested/inner"), "inner");
    // The default subvolume is the root; the others can still be had.
    assert!(rig.mount(""));
    let id = run("btrfs", &["inspect-internal", "rootid", text(&rig.mount_point().join("@"))]).unwrap();
    run("btrfs", &["subvolume", "set-default", id.trim(), text(&rig.mount_point())]).unwrap();
    run("btrfs", &["subvolume", "delete", text(&rig.mount_point().join("@/nested"))]).unwrap();
    rig.unmount();
    let fs = open(&rig);
    assert_eq!(read(&fs, "/file"), "new");
    assert_eq!(read(&fs, "/snapshots/1/file"), "old");
    assert_eq!(resolve(&fs, b"/nested").err().unwrap().to_string(), "/nested: not found");
    let top = fs.top_level().unwrap();
    let later = top.lookup(b"later").unwrap().unwrap();
    assert!(top.lookup(b"@").unwrap().is_some() && later.lookup(b"file").unwrap().is_some());
    let gone = later.lookup(b"nested").unwrap().unwrap();
    assert_eq!(gone.metadata().unwrap().kind, Kind::Directory);
    assert!(fs.subvolume(id.trim().parse().unwrap()).unwrap().lookup(b"file").unwrap().is_some());
    assert_eq!(fs.subvolume(999).err().unwrap().to_string(), "subvolume 999: not found");
}

#[test]
fn superblocks_and_what_is_refused() {
    if !have("mkfs.btrfs") {
        return;
    }
    let scratch = Scratch::new("superblock");
    let image = scratch.join("image");
    fs::File::create(&image).unwrap().set_len(200 << 20).unwrap();
    run("mkfs.btrfs", &["-q", text(&image)]).unwrap();
    let image = source(&image);
    let opened = |change: &dyn Fn(&mut [u8], u64)| {
        let blocks = [64 << 10, 64 << 20].map(|place| {
            let mut block = image.read_vec(place, 4096).unwrap();
            change(&mut block, place);
            (place, block)
        });
        let source: SourceRef = Arc::new(Changed(image.clone(), blocks));
        open(&source, &[])
    };
    // A wrong first superblock with a sound copy; without its magic number there is nothing.
    let first = |block: &mut [u8], place: u64, at: usize| block[at] ^= u8::from(place == 64 << 10);
    assert!(opened(&|block, place| first(block, place, 0x50)).unwrap().is_some());
    assert!(opened(&|block, place| first(block, place, 0x40)).unwrap().is_none());
    let error = opened(&|block, _| block[0x50] ^= 1);
    assert_eq!(error.err().unwrap().to_string(), "btrfs: damaged: checksum of the superblock differs");
    for (flag, message) in
        [(14, "the RAID stripe tree"), (12, "zoned mode"), (40, "feature flags 0x10000000000")]
    {
        let error = opened(&|block, _| {
            block[0xbc + flag / 8] |= 1 << (flag % 8);
            let sum = crc32c::crc32c(&block[32..]);
            block[..4].copy_from_slice(&sum.to_le_bytes());
        });
        assert_eq!(error.err().unwrap().to_string(), format!("btrfs: {message} is not supported"));
    }
}

/// A device with other superblocks.
struct Changed(SourceRef, [(u64, Vec<u8>); 2]);

impl Source for Changed {
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn read_at(&self, offset: u64, to: &mut [u8]) -> Result<()> {
        match self.1.iter().find(|(place, _)| *place == offset) {
            Some((_, block)) => to.copy_from_slice(block),
            None => self.0.read_at(offset, to)?,
        }
        Ok(())
    }
}

#[test]
fn a_device_that_missed_writes_is_not_believed() {
    let Some(mut rig) = Rig::new("stale", 2, &["-draid1", "-mraid1"]) else { return };
    if !rig.mount("") || !have("btrfs") {
        return;
    }
    let file = rig.mount_point().join("file");
    fs::write(&file, "old").unwrap();
    fs::write(rig.mount_point().join("large"), vec![1; 1 << 20]).unwrap();
    rig.unmount();
    let gone = rig.loops.pop().unwrap();
    run("btrfs", &["device", "scan", "--forget", &gone]).unwrap();
    run("losetup", &["-d", &gone]).unwrap();
    assert!(rig.mount("degraded"));
    fs::write(&file, "new").unwrap();
    fs::write(rig.mount_point().join("large"), vec![2; 1 << 20]).unwrap();
    rig.unmount();
    assert!(rig.mount("degraded,ro"));
    let mut sources = rig.sources();
    same(&sources, &rig.mount_point()).unwrap();
    sources.reverse();
    same(&sources, &rig.mount_point()).unwrap();
}

#[test]
fn a_seed_and_files_without_checksums() {
    let Some(mut rig) = Rig::new("seed", 2, &[]) else { return };
    // Two file systems were not meant: the first alone is made again, as a seed.
    run("mkfs.btrfs", &["-q", "-f", &rig.loops[0]]).unwrap();
    let second = rig.loops.pop().unwrap();
    if !have("btrfstune") || !rig.mount("nodatasum") {
        return;
    }
    fs::write(rig.mount_point().join("seed"), vec![3; 200_000]).unwrap();
    rig.unmount();
    run("btrfstune", &["-S", "1", text(&rig.files[0])]).unwrap();
    let mounted = rig.mount("ro");
    rig.loops.push(second);
    assert!(mounted);
    let folder = rig.mount_point();
    run("btrfs", &["device", "add", "-f", &rig.loops[1], text(&folder)]).unwrap();
    run("mount", &["-o", "remount,rw", text(&folder)]).unwrap();
    fs::write(folder.join("sprout"), vec![4; 300_000]).unwrap();
    rig.unmount();
    rig.loops.reverse();
    assert!(rig.mount("ro"));
    let mut sources = rig.sources();
    // From the seed alone there is the old tree.
    let seed = open(&sources[0], &[]).unwrap().unwrap();
    assert!(resolve(&*seed, b"/seed").is_ok() && resolve(&*seed, b"/sprout").is_err());
    sources.reverse();
    assert_eq!(same(&sources, &rig.mount_point()).unwrap().bytes, 500_000);
}

#[test]
fn damage() {
    if !have("mkfs.btrfs") {
        return;
    }
    let scratch = Scratch::new("damage");
    let (tree, image) = (scratch.join("tree"), scratch.join("image"));
    fs::create_dir(&tree).unwrap();
    Tree { files: 120, sparse: 0, kernel: 100_000, ..Tree::QUICK }.write(&tree).unwrap();
    fs::File::create(&image).unwrap().set_len(150 << 20).unwrap();
    run("mkfs.btrfs", &["-q", "-dsingle", "-msingle", "-r", text(&tree), text(&image)]).unwrap();
    // Checksums would keep the readers of items from ever seeing the damage.
    let opened = mutate_and_walk(|source| open(&unchecked(source), &[]), &source(&image), 400);
    assert!(opened > 20, "{opened}");
}

/// `source` with the checksums of all blocks that look like metadata made right.
fn unchecked(source: &SourceRef) -> SourceRef {
    Arc::new(Resummed(source.clone()))
}

struct Resummed(SourceRef);

impl Source for Resummed {
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn read_at(&self, offset: u64, to: &mut [u8]) -> Result<()> {
        self.0.read_at(offset, to)?;
        if matches!(to.len(), 4096 | 16384) {
            let sum = crc32c::crc32c(&to[32..]);
            to[..4].copy_from_slice(&sum.to_le_bytes());
        }
        Ok(())
    }
}
