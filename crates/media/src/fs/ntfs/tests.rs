use std::fs;
use std::path::{Path, PathBuf};

use super::open;
use crate::fs::support::judge::{Fuse, at, grub_reads, grub_says, mount, same, survives};
use crate::testing::{Random, Scratch, Tree, cached, have, run};
use crate::{Error, Fields, Kind, read_all};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A tree in a folder, and an image that has it too.
fn make(recipe: &str, tree: Tree, size: &str, options: &[&str]) -> Option<(Scratch, PathBuf, PathBuf)> {
    if !have("mkntfs") || !have("ntfs-3g") {
        return None;
    }
    let scratch = Scratch::new("ntfs");
    let folder = scratch.join("tree");
    fs::create_dir(&folder).unwrap();
    tree.write(&folder).unwrap();
    let mut filled = true;
    let image = cached(recipe, |image| {
        format(image, size, options);
        match Fuse::mount("ntfs-3g", &[], image, false) {
            Some(fuse) => copy(&folder, fuse.path()),
            None => filled = false,
        }
    });
    if !filled {
        fs::remove_file(&image).unwrap();
        return None;
    }
    Some((scratch, folder, image))
}

fn format(image: &Path, size: &str, options: &[&str]) {
    run("truncate", &["-s", size, text(image)]).unwrap();
    run("mkntfs", &[&["-F", "-Q", "-q"], options, &[text(image)]].concat()).unwrap();
}

fn copy(from: &Path, to: &Path) {
    run("cp", &["-r", "--preserve=timestamps", "--sparse=always", &format!("{}/.", text(from)), text(to)])
        .unwrap();
}

#[test]
fn ten_thousand_files() {
    let tree = Tree { sparse: 20 << 20, ..Tree::FULL };
    let Some((_scratch, folder, image)) = make("ntfs-full-1", tree, "200M", &["-L", "Käse"]) else { return };
    same(&image, open, &folder, 10_000);
    grub_says(&image, open);
    grub_reads(&image, &folder, &["/boot/vmlinuz", "/many/entry-02999.txt", "/names/grüße"]);
    let fs = mount(&image, open);
    for path in ["/BOOT/VMLINUZ", "/many/ENTRY-00001.TXT", "/names/GRÜßE", "/$MFT", "/$Extend"] {
        at(&*fs, path);
    }
}

#[test]
fn other_clusters_and_records() {
    for (recipe, options) in [
        ("ntfs-512-1", ["-c", "512", "-s", "512"]),
        ("ntfs-64k-1", ["-c", "65536", "-s", "512"]),
        ("ntfs-4kn-1", ["-c", "4096", "-s", "4096"]),
    ] {
        let Some((_scratch, folder, image)) = make(recipe, Tree::QUICK, "64M", &options) else { return };
        same(&image, open, &folder, 300);
        grub_says(&image, open);
    }
}

#[test]
fn compressed_files_are_unpacked() {
    if !have("mkntfs") {
        return;
    }
    let scratch = Scratch::new("ntfs-compressed");
    let (image, folder) = (scratch.join("image"), scratch.join("tree"));
    fs::create_dir_all(folder.join("packed")).unwrap();
    let text_file = "a line of text that comes again and again\n".repeat(20_000);
    fs::write(folder.join("packed/text"), &text_file).unwrap();
    fs::write(folder.join("packed/random"), Random::new(5).bytes(300_000)).unwrap();
    fs::write(folder.join("packed/zeros"), vec![0; 200_000]).unwrap();
    let mixed = [Random::new(6).bytes(70_000), vec![0; 200_000], text_file.into_bytes()].concat();
    fs::write(folder.join("packed/mixed"), mixed).unwrap();
    fs::write(folder.join("packed/small"), "small").unwrap();
    format(&image, "32M", &[]);
    {
        let Some(fuse) = Fuse::mount("ntfs-3g", &["-o", "compression"], &image, false) else { return };
        let to = fuse.path().join("packed");
        fs::create_dir(&to).unwrap();
        // FILE_ATTRIBUTE_COMPRESSED: files made in this folder are compressed.
        let flags = 0x0810u32.to_be_bytes();
        rustix::fs::setxattr(&to, "system.ntfs_attrib_be", &flags, rustix::fs::XattrFlags::empty()).unwrap();
        for entry in fs::read_dir(folder.join("packed")).unwrap() {
            let path = entry.unwrap().path();
            fs::write(to.join(path.file_name().unwrap()), fs::read(&path).unwrap()).unwrap();
        }
    }
    let info = run("ntfsinfo", &["-f", "-F", "/packed/text", text(&image)]).unwrap();
    assert!(info.contains("COMPRESSED"), "{info}");
    same(&image, open, &folder, 5);
    grub_reads(&image, &folder, &["/packed/text", "/packed/mixed"]);
    survives(&image, open, 100);
}

/// A file with so many pieces that its map needs several records.
#[test]
fn maps_may_be_in_several_records() {
    if !have("mkntfs") {
        return;
    }
    let scratch = Scratch::new("ntfs-pieces");
    let (image, folder) = (scratch.join("image"), scratch.join("tree"));
    fs::create_dir_all(&folder).unwrap();
    format(&image, "64M", &["-c", "4096"]);
    {
        use std::os::unix::fs::FileExt;
        let Some(fuse) = Fuse::mount("ntfs-3g", &[], &image, false) else { return };
        for folder in [&folder, fuse.path()] {
            let file = fs::File::create(folder.join("holes")).unwrap();
            let bytes = Random::new(7).bytes(4096);
            for piece in 0..3000 {
                file.write_all_at(&bytes[..4000], piece * 3 * 4096).unwrap();
            }
        }
    }
    let info = run("ntfsinfo", &["-f", "-F", "/holes", text(&image)]).unwrap();
    assert!(info.contains("ATTRIBUTE_LIST"), "{info}");
    same(&image, open, &folder, 1);
}

#[test]
fn links_and_short_names() {
    if !have("mkntfs") {
        return;
    }
    let scratch = Scratch::new("ntfs-links");
    let image = scratch.join("image");
    format(&image, "16M", &[]);
    {
        let Some(fuse) = Fuse::mount("ntfs-3g", &["-o", "special_files=wsl"], &image, false) else { return };
        let to = fuse.path();
        fs::write(to.join("A long name.text"), "long").unwrap();
        let none = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(to.join("A long name.text"), "system.ntfs_dos_name", b"ALONGN~1.TEX", none)
            .unwrap();
        std::os::unix::fs::symlink("A long name.text", to.join("link")).unwrap();
        run("mkfifo", &[text(&to.join("fifo"))]).unwrap();
        fs::write(to.join("Case"), "1").unwrap();
        fs::write(to.join("cASE"), "2").unwrap();
    }
    let fs = mount(&image, open);
    assert_eq!(read_all(&*at(&*fs, "/link"), 10).unwrap(), b"long");
    assert_eq!(read_all(&*at(&*fs, "/alongn~1.tex"), 10).unwrap(), b"long");
    assert_eq!(read_all(&*at(&*fs, "/Case"), 10).unwrap(), b"1");
    assert_eq!(read_all(&*at(&*fs, "/cASE"), 10).unwrap(), b"2");
    let fifo = at(&*fs, "/fifo");
    assert_eq!(fifo.metadata().unwrap().kind, Kind::Other);
    assert!(matches!(fifo.read_at(0, &mut []), Err(Error::NotAFile(_))));
    let mut names = Vec::new();
    let visit = &mut |entry: crate::Entry| {
        names.push(String::from_utf8(entry.name).unwrap());
        std::ops::ControlFlow::Continue(())
    };
    fs.root().unwrap().entries(visit).unwrap();
    names.sort();
    assert_eq!(names, ["A long name.text", "Case", "cASE", "fifo", "link"]);
}

#[test]
fn encrypted_files_are_refused() {
    if !have("mkntfs") || !have("ntfscp") {
        return;
    }
    let scratch = Scratch::new("ntfs-encrypted");
    let (image, file) = (scratch.join("image"), scratch.join("file"));
    format(&image, "16M", &[]);
    fs::write(&file, Random::new(9).bytes(9000)).unwrap();
    run("ntfscp", &["-q", text(&image), text(&file), "/secret"]).unwrap();
    assert_eq!(read_all(&*at(&*mount(&image, open), "/secret"), 9000).unwrap(), fs::read(&file).unwrap());
    // The record of the file is the one with its name; its content gets the flag.
    let mut bytes = fs::read(&image).unwrap();
    let name: Vec<u8> = "secret".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let named = |record: &[u8]| record.starts_with(b"FILE") && record.windows(12).any(|part| part == name);
    let record = bytes.chunks(1024).position(named).unwrap() * 1024;
    let mut at_attribute = record + usize::from(bytes.u16_at(record + 20).unwrap());
    while bytes.u32_at(at_attribute) != Some(0x80) {
        at_attribute += bytes.u32_at(at_attribute + 4).unwrap() as usize;
    }
    bytes[at_attribute + 13] |= 0x40;
    fs::write(&image, bytes).unwrap();
    let secret = at(&*mount(&image, open), "/secret");
    assert_eq!(secret.metadata().unwrap().size, 9000);
    let error = secret.read_at(0, &mut [0]).unwrap_err();
    assert_eq!(error.to_string(), "ntfs: an encrypted file is not supported");
}

#[test]
fn damage_does_no_harm() {
    let tree = Tree { sparse: 400_000, kernel: 200_000, ..Tree::QUICK };
    let Some((_scratch, _, image)) = make("ntfs-quick-1", tree, "32M", &[]) else { return };
    survives(&image, open, 200);
}
