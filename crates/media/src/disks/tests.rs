use std::io::Write;
use std::sync::Arc;

use super::*;
use crate::testing::{Scratch, have, is_root, run};
use crate::{Bytes, FileSource};

/// The arrays and volumes of `testdata/volumes.sh`.
pub fn unpacked() -> Option<Scratch> {
    if !have("xz") {
        return None;
    }
    let scratch = Scratch::new("volumes");
    let archive = concat!(env!("CARGO_MANIFEST_DIR"), "/src/disks/testdata/volumes.tar.xz");
    run("tar", &["-xJf", archive, "-C", scratch.path().to_str().unwrap()]).unwrap();
    Some(scratch)
}

/// Lines of 16 bytes that count.
pub fn counted(len: u64, from: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len as usize + 16);
    for n in from.. {
        if bytes.len() as u64 >= len {
            break;
        }
        writeln!(bytes, "{n:015}").unwrap();
    }
    bytes.truncate(len as usize);
    bytes
}

fn memory(bytes: Vec<u8>) -> SourceRef {
    Arc::new(Bytes(bytes))
}

/// A master boot record with Linux partitions: first sector and number of sectors.
fn with_partitions(size: usize, parts: &[(u32, u32)]) -> Vec<u8> {
    let mut bytes = vec![0; size];
    bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
    for (n, (start, len)) in parts.iter().enumerate() {
        let at = 446 + 16 * n;
        bytes[at + 4] = 0x83;
        bytes[at + 8..at + 12].copy_from_slice(&start.to_le_bytes());
        bytes[at + 12..at + 16].copy_from_slice(&len.to_le_bytes());
    }
    bytes
}

#[test]
fn names_are_in_the_order_of_grub() {
    let Some(scratch) = unpacked() else { return };
    let disks = Disks::new();
    disks.add_disk("hd0", memory(with_partitions(1 << 20, &[(100, 10), (200, 20)]))).unwrap();
    disks.add_disk("cd0", memory(with_partitions(1 << 20, &[(64, 100)]))).unwrap();
    for n in 0..5 {
        let pv = FileSource::open(&scratch.join(&format!("pv-{n}"))).unwrap();
        disks.add_disk(&format!("hd{}", n + 1), Arc::new(pv)).unwrap();
    }
    disks.set_host(Arc::new(crate::fs::host::HostFs::open(std::path::Path::new("/")).unwrap()));
    let names = disks.names();
    assert_eq!(names[..4], ["hd0", "hd0,msdos2", "hd0,msdos1", "cd0"]);
    assert_eq!(names[4..6], ["cd0,msdos1", "hd1"]);
    assert_eq!(names[10], "host");
    assert!(names[11..].iter().all(|n| n.starts_with("lvm/Vol--Group-")), "{names:?}");
    assert!(names.contains(&"lvm/Vol--Group-a--b".to_owned()));
}

#[test]
fn short_forms_lead_to_full_names() {
    let disks = Disks::new();
    let mut bytes = with_partitions(1 << 20, &[(100, 10), (200, 20)]);
    bytes[200 * 512] = 42;
    disks.add_disk("(hd0)", memory(bytes)).unwrap();
    for name in ["(hd0,msdos2)", "hd0,msdos2", "(hd0,2)", "hd0,2"] {
        let device = disks.device(name).unwrap();
        assert_eq!((device.name.as_str(), device.disk.as_str()), ("hd0,msdos2", "hd0"));
        assert_eq!(device.source.size(), 20 * 512);
        assert_eq!(device.source.read_vec(0, 1).unwrap(), [42]);
        assert_eq!(disks.partition_map(name).unwrap(), Some(Map::Msdos));
    }
    for name in
        ["(hd1)", "hd0,3", "hd0,gpt2", "hd0,", "hd0,msdos", "hd0,2,1", "", "hd0,msdos99999999999", "lvm/x-y"]
    {
        let error = disks.source(name).err().unwrap().to_string();
        assert!(error.contains(names::bare(name)) && error.ends_with("not found"), "{error}");
    }
    assert!(disks.add_disk("hd0", memory(vec![0; 512])).unwrap_err().to_string().contains("(hd0)"));
}

#[test]
fn a_large_disk_costs_few_reads() {
    let recorder = Arc::new(crate::testing::Recorder::new(Arc::new(super::array::Zeros(1 << 42))));
    let disks = Disks::new();
    disks.add_disk("hd0", recorder.clone()).unwrap();
    assert_eq!(disks.names(), ["hd0"]);
    assert!(
        disks.encrypted().is_empty() && disks.source("lvm/a-b").is_err() && disks.source("md/0").is_err()
    );
    let seen = recorder.seen();
    assert!(seen.len() <= 4, "{seen:?}");
}

#[test]
fn loops_come_and_go() {
    let disks = Disks::new();
    disks.add_loop("my-loop", memory(with_partitions(1 << 20, &[(1, 1)]))).unwrap();
    assert_eq!(disks.names(), ["my-loop", "my-loop,msdos1"]);
    assert!(disks.filesystem("my-loop").is_err());
    disks.remove_loop("(my-loop)").unwrap();
    assert!(disks.names().is_empty() && disks.remove_loop("my-loop").is_err());
    for name in ["", "a,b", "host", "lvm/x", "a(b"] {
        assert!(disks.add_loop(name, memory(vec![0; 512])).is_err(), "{name}");
    }
}

#[test]
fn volumes_by_all_their_names_and_through_arrays() {
    let Some(scratch) = unpacked() else { return };
    let disks = Disks::new();
    for (n, name) in ["one-0", "one-1", "pv-0", "pv-1", "pv-2", "pv-3", "pv-4"].iter().enumerate() {
        disks.add_disk(&format!("hd{n}"), Arc::new(FileSource::open(&scratch.join(name)).unwrap())).unwrap();
    }
    assert_eq!(disks.source("(md/one)").unwrap().read_vec(0, 16).unwrap(), b"000000000000000\n");
    let root = disks.source("(lvm/Vol--Group-lv_root)").unwrap();
    assert_eq!(root.read_vec(16, 16).unwrap(), b"000000000000001\n");
    assert_eq!(disks.device("Vol--Group-lv_root").unwrap().name, "lvm/Vol--Group-lv_root");
    let missing = disks.source("lvm/Vol--Group-thin").err().unwrap().to_string();
    assert!(missing.contains("thin") && missing.contains("not supported"), "{missing}");
}

#[test]
fn an_encrypted_device_is_opened_once() {
    if !have("cryptsetup") {
        return;
    }
    let scratch = Scratch::new("unlock");
    let image = scratch.join("image");
    std::fs::File::create(&image).unwrap().set_len(20 << 20).unwrap();
    std::fs::write(scratch.join("key"), "secret").unwrap();
    let (key, path) = (scratch.join("key"), image.to_str().unwrap());
    let format = ["-q", "luksFormat", "--type", "luks1", "--iter-time", "1", path, key.to_str().unwrap()];
    run("cryptsetup", &format).unwrap();
    let disks = Disks::new();
    disks.add_disk("hd0", Arc::new(FileSource::open(&image).unwrap())).unwrap();
    let encrypted = disks.encrypted();
    assert_eq!((encrypted.len(), encrypted[0].0.as_str(), encrypted[0].1.len()), (1, "hd0", 32));
    assert!(matches!(disks.unlock("(hd0)", b"wrong"), Err(Error::WrongPassphrase)));
    assert_eq!(disks.unlock("(hd0)", b"secret").unwrap(), "crypto0");
    assert_eq!(disks.unlock("hd0", b"anything").unwrap(), "crypto0");
    assert_eq!(disks.unlocked("hd0").as_deref(), Some("crypto0"));
    assert!(disks.source("crypto0").is_ok());
    assert_eq!(disks.device(&format!("cryptouuid/{}", encrypted[0].1)).unwrap().name, "crypto0");
    assert_eq!(disks.names(), ["hd0", "crypto0"]);
}

#[test]
fn search_asks_devices_in_order() {
    if !have("mke2fs") {
        return;
    }
    let scratch = Scratch::new("search");
    let disks = Disks::new();
    for (n, label) in ["first", "second"].iter().enumerate() {
        let image = scratch.join(label);
        std::fs::create_dir(scratch.join("tree")).unwrap();
        std::fs::write(scratch.join("tree/only").with_extension(label), "x").unwrap();
        std::fs::write(scratch.join("tree/both"), "x").unwrap();
        let tree = scratch.join("tree");
        let (tree, path) = (tree.to_str().unwrap(), image.to_str().unwrap());
        run("mke2fs", &["-q", "-t", "ext4", "-L", label, "-d", tree, path, "4M"]).unwrap();
        std::fs::remove_dir_all(tree).unwrap();
        disks.add_disk(&format!("hd{n}"), Arc::new(FileSource::open(&image).unwrap())).unwrap();
    }
    if disks.filesystem("hd0").is_err() {
        eprintln!("skipped: no reader for ext4");
        return;
    }
    assert_eq!(disks.find(Wanted::File(b"/both"), &[], true).as_deref(), Some("hd0"));
    assert_eq!(disks.find(Wanted::File(b"/both"), &["(hd7)", "(hd1)"], true).as_deref(), Some("hd1"));
    assert_eq!(disks.find_all(Wanted::File(b"/both"), true), ["hd0", "hd1"]);
    assert_eq!(disks.find(Wanted::File(b"/only.second"), &["hd0"], true).as_deref(), Some("hd1"));
    assert_eq!(disks.find(Wanted::Label("second"), &[], true).as_deref(), Some("hd1"));
    let uuid = disks.filesystem("hd1").unwrap().uuid().unwrap().to_uppercase();
    assert_eq!(disks.find(Wanted::Uuid(&uuid), &[], true).as_deref(), Some("hd1"));
    assert_eq!(disks.find(Wanted::Label("third"), &[], true), None);
}

/// What our names are worth: GRUB's own list of the same images.
#[test]
fn grub_lists_the_same_devices() {
    let Some(scratch) = unpacked() else { return };
    if !have("grub-fstest") || !is_root() {
        return;
    }
    let images = [
        "pv-0", "pv-1", "pv-2", "pv-3", "pv-4", "five-0", "five-1", "five-2", "five-3", "oldone-0",
        "oldone-1",
    ];
    let disks = Disks::new();
    let mut arguments = vec!["-c".to_owned(), images.len().to_string()];
    for (n, image) in images.iter().enumerate() {
        let path = scratch.join(image);
        disks.add_disk(&format!("loop{n}"), Arc::new(FileSource::open(&path).unwrap())).unwrap();
        arguments.push(path.display().to_string());
    }
    arguments.push("ls".to_owned());
    let listed = run("grub-fstest", &arguments.iter().map(String::as_str).collect::<Vec<_>>()).unwrap();
    let listed = listed.split_whitespace().filter_map(|name| name.strip_prefix('(')?.strip_suffix(')'));
    let volumes: Vec<&str> = listed.filter(|name| name.contains('/')).collect();
    assert!(volumes.len() > 8, "{volumes:?}");
    // Those that this GRUB can't read it doesn't list.
    let mut ours = disks.names();
    ours.retain(|name| volumes.contains(&name.as_str()));
    let (arrays, groups) = (|n: &&String| n.starts_with("md/"), |n: &&String| n.starts_with("lvm/"));
    assert_eq!(ours.len(), volumes.len(), "{ours:?} {volumes:?}");
    let of = |prefix: &str| {
        volumes.iter().filter(|n| n.starts_with(prefix)).map(|n| (*n).to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(ours.iter().filter(groups).cloned().collect::<Vec<_>>(), of("lvm/"));
    assert_eq!(ours.iter().filter(arrays).count(), of("md/").len());
}
