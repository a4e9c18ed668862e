//! Tests with pools that OpenZFS made: `cargo xtask image zfs` is the recipe.
#![allow(clippy::panic, reason = "tests fail by panicking")]

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::pool::{Pool, PoolTree};
use crate::decompress::xz;
use crate::testing::{Scratch, have, mutate_and_walk, run};
use crate::{Bytes, Entry, FileSystem, Kind, NodeRef, SourceRef, read_all, resolve};

/// Larger than any of the images.
const MAX_IMAGE: usize = 512 << 20;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/images")
}

fn unpack(name: &str) -> Option<Vec<u8>> {
    let packed = fs::read(folder().join(format!("zfs-{name}.xz"))).ok()?;
    Some(xz(&packed, MAX_IMAGE).unwrap())
}

/// The disks of a pool.
fn disks(pool: &str) -> Vec<SourceRef> {
    let disks: Vec<SourceRef> = (0..9)
        .filter_map(|number| unpack(&format!("{pool}.{number}")))
        .map(|bytes| Arc::new(Bytes(bytes)) as SourceRef)
        .collect();
    assert!(!disks.is_empty(), "no images of {pool}");
    disks
}

fn open(disks: &[SourceRef]) -> Arc<Pool> {
    Pool::open(&disks[0], disks).unwrap().expect("a pool")
}

/// One dataset of a manifest: path to kind, size, and hash or target.
type Files = BTreeMap<Vec<u8>, (char, u64, String)>;

struct Manifest {
    guid: u64,
    bootfs: Option<String>,
    datasets: BTreeMap<String, Files>,
}

fn manifest(pool: &str) -> Manifest {
    let text = unpack(&format!("{pool}.manifest")).expect("a manifest");
    let mut manifest = Manifest { guid: 0, bootfs: None, datasets: BTreeMap::new() };
    let mut current = String::new();
    for line in text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let words: Vec<&[u8]> = line.splitn(4, |byte| *byte == b' ').collect();
        let word = |index: usize| String::from_utf8(words[index].to_vec()).unwrap();
        match (word(0).as_str(), words.len()) {
            ("pool", 3) => manifest.guid = word(2).parse().unwrap(),
            ("bootfs", 2) => manifest.bootfs = Some(word(1)).filter(|name| name != "-"),
            ("dataset", 2) => {
                current = word(1);
                manifest.datasets.entry(current.clone()).or_default();
            }
            (kind, 4) => {
                // The root itself has no name.
                let path = if words[3] == b"." { Vec::new() } else { words[3].to_vec() };
                let kind = kind.chars().next().unwrap();
                let facts = (kind, word(1).parse().unwrap(), word(2));
                manifest.datasets.get_mut(&current).unwrap().insert(path, facts);
            }
            _ => panic!("{}", line.escape_ascii()),
        }
    }
    manifest
}

fn hash(node: &NodeRef, size: u64) -> Result<String, String> {
    let mut state = Sha256::new();
    let mut buffer = vec![0x5a; 200_000];
    let mut offset = 0;
    while offset < size {
        let len = (size - offset).min(buffer.len() as u64) as usize;
        node.read_at(offset, &mut buffer[..len]).map_err(|error| error.to_string())?;
        state.update(&buffer[..len]);
        offset += len as u64;
    }
    Ok(state.finalize().iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}")))
}

/// Everything below a node.
fn walk(node: &NodeRef, path: &[u8], files: &mut Files) -> Result<(), String> {
    let at = |error: crate::Error| format!("{}: {error}", path.escape_ascii());
    let meta = node.metadata().map_err(at)?;
    let facts = match meta.kind {
        Kind::File => (
            'f',
            meta.size,
            hash(node, meta.size).map_err(|error| format!("{}: {error}", path.escape_ascii()))?,
        ),
        Kind::Symlink => ('l', meta.size, String::from_utf8(node.link().map_err(at)?).unwrap()),
        Kind::Directory => ('d', 0, "-".into()),
        Kind::Other => ('o', 0, String::new()),
    };
    assert!(files.insert(path.to_vec(), facts).is_none(), "{} twice", path.escape_ascii());
    if meta.kind != Kind::Directory {
        return Ok(());
    }
    let mut entries: Vec<Entry> = Vec::new();
    node.entries(&mut |entry| {
        entries.push(entry);
        ControlFlow::Continue(())
    })
    .map_err(at)?;
    for Entry { name, kind } in entries {
        let path = if path.is_empty() { name.clone() } else { [path, b"/", &name].concat() };
        let child = node.lookup(&name).map_err(at)?;
        let child = child.ok_or_else(|| format!("{}: listed but not found", path.escape_ascii()))?;
        assert_eq!(kind, Some(child.metadata().map_err(at)?.kind), "{}", path.escape_ascii());
        walk(&child, &path, files)?;
    }
    assert!(node.lookup(b"no such name").map_err(at)?.is_none());
    Ok(())
}

/// Compares everything in the pool with its manifest.
fn compare(name: &str, disks: &[SourceRef]) -> Result<(), String> {
    let manifest = manifest(name);
    let pool = Pool::open(&disks[0], disks).map_err(|error| error.to_string())?.ok_or("no pool")?;
    let tree = PoolTree(pool.clone());
    assert_eq!(tree.uuid(), Some(format!("{:016x}", manifest.guid)));
    assert_eq!(tree.label().as_deref(), Some(name));
    assert_eq!(pool.bootfs().unwrap(), manifest.bootfs);
    for (dataset, expected) in &manifest.datasets {
        let fs = pool.dataset(dataset).map_err(|error| format!("{dataset}: {error}"))?;
        let mut files = Files::new();
        walk(&fs.root().map_err(|error| error.to_string())?, b"", &mut files)?;
        assert!(files.len() > 1);
        for (path, facts) in expected {
            assert_eq!(files.get(path), Some(facts), "{dataset}: {}", path.escape_ascii());
        }
        for path in files.keys() {
            assert!(expected.contains_key(path), "{dataset}: {} is only ours", path.escape_ascii());
        }
    }
    Ok(())
}

macro_rules! pools {
    ($($name:ident)*) => { $(
        #[test]
        fn $name() {
            let name = stringify!($name);
            compare(name, &disks(name)).unwrap();
        }
    )* };
}

mod equal {
    use super::*;
    pools!(codecs tank zroot grub old two rz1 rz2 rz3 stripe removed gang sizes);
}

/// All but the disks with these numbers.
fn without(disks: &[SourceRef], missing: &[usize]) -> Vec<SourceRef> {
    disks
        .iter()
        .enumerate()
        .filter(|(index, _)| !missing.contains(index))
        .map(|(_, disk)| disk.clone())
        .collect()
}

#[test]
fn lost_disks_are_made_up_for() {
    for (name, losses) in [
        ("two", &[&[0][..], &[1]][..]),
        ("rz1", &[&[0], &[1], &[2]]),
        ("rz2", &[&[0, 1], &[1, 3], &[2]]),
        ("rz3", &[&[0, 1, 2], &[1, 2, 4], &[0, 4]]),
    ] {
        let all = disks(name);
        for missing in losses {
            compare(name, &without(&all, missing))
                .unwrap_or_else(|error| panic!("{name} without {missing:?}: {error}"));
        }
    }
    let all = disks("rz1");
    let error = compare("rz1", &all[..1]).unwrap_err();
    assert!(error.contains("not found"), "{error}");
}

#[test]
fn wrong_bytes_are_made_up_for() {
    // All of one disk behind its labels.
    let scramble = |disk: &SourceRef| -> SourceRef {
        let mut bytes = disk.read_vec(0, disk.size() as usize).unwrap();
        let end = bytes.len() - (512 << 10);
        bytes[4 << 20..end].iter_mut().step_by(61).for_each(|byte| *byte ^= 0x55);
        Arc::new(Bytes(bytes))
    };
    for (name, victims) in [("two", &[0][..]), ("rz1", &[2]), ("rz2", &[1, 2]), ("rz3", &[0])] {
        let mut all = disks(name);
        for &victim in victims {
            all[victim] = scramble(&all[victim]);
        }
        compare(name, &all).unwrap_or_else(|error| panic!("{name} with {victims:?} scrambled: {error}"));
    }
    let mut one = disks("tank");
    one[0] = scramble(&one[0]);
    let error = Pool::open(&one[0], &[]).err().expect("nothing to fall back to");
    assert!(error.to_string().contains("checksum"), "{error}");
}

#[test]
fn a_missing_stripe_is_named() {
    let all = disks("stripe");
    let error = compare("stripe", &all[..1]).unwrap_err();
    assert!(error.contains("/pools/stripe.1"), "{error}");
    // The other way around, the peers help whichever disk is asked for.
    let pool = Pool::open(&all[1], &all).unwrap().unwrap();
    assert_eq!(pool.name(), "stripe");
}

#[test]
fn datasets_are_directories() {
    let pool = open(&disks("tank"));
    let tree = PoolTree(pool.clone());
    let names = |path: &str| {
        let mut names = Vec::new();
        resolve(&tree, path.as_bytes())
            .unwrap()
            .entries(&mut |entry| {
                names.push(String::from_utf8(entry.name).unwrap());
                ControlFlow::Continue(())
            })
            .unwrap();
        names.sort();
        names
    };
    assert_eq!(names("/"), ["@", "ROOT"]);
    assert_eq!(names("/ROOT"), ["@", "clone", "default"]);
    assert_eq!(names("/ROOT/default"), ["@", "@first"]);
    let read = |path: &str| {
        let node = resolve(&tree, path.as_bytes()).unwrap_or_else(|error| panic!("{error}"));
        String::from_utf8(read_all(&*node, 1 << 20).unwrap()).unwrap()
    };
    assert_eq!(read("/ROOT/default/@/boot/loader.conf"), "changed\n");
    assert_eq!(read("/ROOT/default/@first/boot/loader.conf"), "zfs_load=\"YES\"\n");
    assert_eq!(read("/ROOT/default@first/boot/loader.conf"), "zfs_load=\"YES\"\n");
    assert_eq!(read("/ROOT/clone@/clone"), "clone\n");
    assert_eq!(read("/@/file"), "root\n");
    // An absolute link stays in its file system, in the tree and in the dataset.
    assert_eq!(read("/ROOT/default@first/links/absolute"), "zfs_load=\"YES\"\n");
    assert_eq!(read("/ROOT/default/@/links/absolute"), "changed\n");
    let dataset = pool.dataset("tank/ROOT/default").unwrap();
    let node = resolve(&*dataset, b"/links/absolute").unwrap();
    assert_eq!(read_all(&*node, 100).unwrap(), b"changed\n");
    for missing in ["/nothing", "/ROOT/@second", "/ROOT/$ORIGIN", "/$MOS"] {
        assert!(matches!(resolve(&tree, missing.as_bytes()), Err(crate::Error::NotFound(_))), "{missing}");
    }
    for missing in ["tank/nothing", "pool", "tank/ROOT@second", "tank/ROOT/default/", ""] {
        assert!(matches!(pool.dataset(missing), Err(crate::Error::NotFound(_))), "{missing}");
    }
}

#[test]
fn what_can_not_be_read_says_why() {
    let disks = disks("codecs");
    let pool = open(&disks);
    let error = pool.dataset("codecs/secret").err().unwrap().to_string();
    assert_eq!(error, "zfs: codecs/secret: an encrypted dataset is not supported");
    let tree = PoolTree(pool.clone());
    let error = resolve(&tree, b"/secret/@").err().unwrap().to_string();
    assert_eq!(error, "zfs: codecs/secret: an encrypted dataset is not supported");
    let error = pool.dataset("codecs/volume").err().unwrap().to_string();
    assert!(error.contains("codecs/volume: a dataset that is not a file system"), "{error}");
    let mut entries = 0;
    resolve(&tree, b"/volume")
        .unwrap()
        .entries(&mut |_| {
            entries += 1;
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(entries, 0);
}

#[test]
fn case_and_form_of_names() {
    let pool = open(&disks("sizes"));
    let folded = pool.dataset("sizes/folded").unwrap();
    assert!(!folded.case_sensitive());
    let node = resolve(&*folded, b"/mixedCASE").unwrap();
    assert_eq!(read_all(&*node, 100).unwrap(), b"Mixed\n");
    assert!(pool.dataset("sizes/many").unwrap().case_sensitive());
}

#[test]
fn a_whole_disk_is_not_its_last_partition() {
    let disk = disks("tank").remove(0);
    let mut bytes = vec![0; 1 << 20];
    bytes.extend(disk.read_vec(0, disk.size() as usize).unwrap());
    let whole: SourceRef = Arc::new(Bytes(bytes));
    assert!(Pool::open(&whole, &[]).unwrap().is_none());
    assert_eq!(Pool::open(&disk, &[whole.clone(), disk.clone()]).unwrap().unwrap().name(), "tank");
    // Damaged labels at the front don't matter.
    let mut bytes = disk.read_vec(0, disk.size() as usize).unwrap();
    bytes[..512 << 10].fill(0);
    let front: SourceRef = Arc::new(Bytes(bytes));
    assert_eq!(Pool::open(&front, &[]).unwrap().unwrap().name(), "tank");
}

#[test]
fn other_disks_are_none_of_ours() {
    for size in [0, 100, 1 << 20, 3 << 20] {
        let empty: SourceRef = Arc::new(Bytes(vec![0; size]));
        assert!(Pool::open(&empty, &[]).unwrap().is_none());
    }
}

#[test]
fn unknown_features_are_refused_by_name() {
    // The names in a label are not compressed: one of them becomes another, and the checksum is made anew.
    let disk = disks("tank").remove(0);
    let mut bytes = disk.read_vec(0, disk.size() as usize).unwrap();
    let (from, to) = (&b"com.delphix:hole_birth"[..], &b"com.example:new_thing!"[..]);
    let size = bytes.len() as u64;
    for start in [0, 256 << 10, size - (512 << 10), size - (256 << 10)] {
        let place = start + (16 << 10);
        let list = &mut bytes[place as usize..][..112 << 10];
        let at = list.windows(from.len()).position(|window| window == from).expect("the feature");
        list[at..at + to.len()].copy_from_slice(to);
        super::checksum::tests::seal(list, place);
    }
    let disk: SourceRef = Arc::new(Bytes(bytes));
    let error = Pool::open(&disk, &[]).err().unwrap().to_string();
    assert_eq!(error, "zfs: the feature com.example:new_thing! is not supported");
}

/// GRUB's own reader on the pools that it can read.
#[test]
fn grub_agrees() {
    if !have("grub-fstest") {
        return;
    }
    let scratch = Scratch::new("zfs-grub");
    for (name, dataset, path) in [("grub", "grub/boot", "/boot/@"), ("old", "old", "/@")] {
        let image = scratch.join(name);
        fs::write(&image, unpack(&format!("{name}.0")).unwrap()).unwrap();
        let image = image.to_str().unwrap();
        let files = manifest(name).datasets.remove(dataset).unwrap();
        // GRUB 2.06 takes holes that OpenZFS describes, with their level, for data.
        let plain = |path: &&Vec<u8>| {
            path.iter().all(u8::is_ascii_graphic) && !matches!(&path[..], b"hole" | b"island")
        };
        let tree = PoolTree(open(&disks(name)));
        let names = files.iter().filter(|(_, facts)| facts.0 == 'f' && facts.1 > 0).map(|(path, _)| path);
        let mut compared = 0;
        for file in names.filter(plain) {
            let file = format!("{path}/{}", std::str::from_utf8(file).unwrap());
            let theirs = run("grub-fstest", &[image, "crc", &format!("(loop0){file}")]).unwrap();
            let node = resolve(&tree, file.as_bytes()).unwrap();
            let ours = crc32(&read_all(&*node, 64 << 20).unwrap());
            assert_eq!(theirs.trim(), format!("{ours:08x}"), "{file}");
            compared += 1;
        }
        assert!(compared > 20);
    }
}

/// The CRC of IEEE 802.3, which `grub-fstest` prints.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(
            crc ^ u32::from(*byte),
            |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 },
        )
    })
}

/// Damage that checksums would hide goes through all parsers.
#[test]
fn damage_does_no_harm() {
    for (name, rounds) in [("sizes", 40), ("tank", 40), ("old", 30), ("rz1", 15), ("removed", 10)] {
        let disks = disks(name);
        for check in [false, true] {
            let rounds = if check { 5 } else { rounds };
            let open = |source: &SourceRef| {
                let peers = &disks[1..];
                let pool = Pool::open_with(source, peers, check)?;
                Ok(pool.map(|pool| Arc::new(PoolTree(pool)) as Arc<dyn FileSystem>))
            };
            let opened = mutate_and_walk(open, &disks[0], rounds);
            eprintln!("{name}: {opened} of {rounds} opened");
        }
    }
}
