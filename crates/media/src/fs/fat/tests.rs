use std::fs;
use std::path::{Path, PathBuf};

use super::open;
use crate::fs::support::judge::{at, grub_reads, grub_says, mount, same, survives};
use crate::testing::{Random, Scratch, Tree, cached, have, run};
use crate::{Error, Fields, read_all, resolve};

/// What FAT can hold.
const FULL: Tree = Tree {
    symlinks: false,
    case: false,
    sparse: 2 << 20,
    longest_name: 200,
    depth: 15,
    kernel: 2 << 20,
    ..Tree::FULL
};
const QUICK: Tree = Tree { files: 300, sparse: 1 << 20, kernel: 1 << 20, ..FULL };

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// An image of `size` with `tree` in it.
fn make(scratch: &Scratch, tree: Tree, size: &str, options: &[&str]) -> Option<(PathBuf, PathBuf)> {
    if !have("mkfs.fat") || !have("mcopy") {
        return None;
    }
    let folder = scratch.join("tree");
    if !folder.exists() {
        fs::create_dir(&folder).unwrap();
        tree.write(&folder).unwrap();
        // mtools writes no characters beyond 16 bits.
        let _ = fs::remove_file(folder.join("names/emoji-🦀"));
    }
    fill(scratch, &folder, size, options).map(|image| (image, folder))
}

/// An image of `size` with what is in `folder`.
fn fill(scratch: &Scratch, folder: &Path, size: &str, options: &[&str]) -> Option<PathBuf> {
    if !have("mkfs.fat") || !have("mcopy") {
        return None;
    }
    let image = scratch.join("image.fat");
    let _ = fs::remove_file(&image);
    run("truncate", &["-s", size, text(&image)]).unwrap();
    run("mkfs.fat", &[options, &[text(&image)]].concat()).unwrap();
    let tops: Vec<String> =
        fs::read_dir(folder).unwrap().map(|entry| text(&entry.unwrap().path()).to_owned()).collect();
    let script = "LC_ALL=C.UTF-8 exec mcopy -s -Q -i \"$0\" \"$@\" ::";
    let mut arguments = vec!["-c", script, text(&image)];
    arguments.extend(tops.iter().map(String::as_str));
    run("sh", &arguments).unwrap();
    Some(image)
}

#[test]
fn fat32_holds_ten_thousand_files() {
    let scratch = Scratch::new("fat-full");
    let options = ["-F", "32", "-s", "8", "-n", "BOOT DISK", "-i", "1234abcd"];
    let folder = scratch.join("tree");
    // mtools takes long to find short names for many similar ones.
    for number in 0..10 {
        let part = folder.join(format!("part{number}"));
        fs::create_dir_all(&part).unwrap();
        Tree { files: 1000, kernel: 1 << 20, ..FULL }.write(&part).unwrap();
        fs::remove_file(part.join("names/emoji-🦀")).unwrap();
    }
    if !have("mkfs.fat") || !have("mcopy") {
        return;
    }
    let image = cached("fat-full-1", |image| {
        let made = fill(&scratch, &folder, "300M", &options).unwrap();
        run("cp", &["--sparse=always", text(&made), text(image)]).unwrap();
    });
    same(&image, open, &folder, 9_990);
    grub_says(&image, open);
    grub_reads(&image, &folder, &["/part0/boot/vmlinuz", "/part4/many/entry-00299.txt"]);
    let fs = mount(&image, open);
    assert_eq!((fs.uuid().as_deref(), fs.label().as_deref()), (Some("1234-ABCD"), Some("BOOT DISK")));
    for path in
        ["/PART0/BOOT/VMLINUZ", "/part1/Boot/vmlinuz", "/part2/many/ENTRY-00001.TXT", "/part3/names/GRÜßE"]
    {
        at(&*fs, path);
    }
    let many = at(&*fs, "/part0/many");
    assert!(many.lookup(b"ENTRY-~1.TXT").unwrap().is_some(), "by its short name");
    assert!(matches!(many.read_at(0, &mut [0]), Err(Error::IsADirectory(_))));
    assert!(matches!(resolve(&*fs, b"/part0/boot/vmlinuz/x"), Err(Error::NotADirectory(_))));
}

#[test]
fn every_width_and_sector_size() {
    let scratch = Scratch::new("fat-widths");
    for (size, options) in [
        ("15M", ["-F", "12", "-s", "8", "-S", "512"]),
        ("60M", ["-F", "16", "-s", "4", "-S", "512"]),
        ("60M", ["-F", "16", "-s", "4", "-S", "2048"]),
        ("320M", ["-F", "32", "-s", "1", "-S", "4096"]),
    ] {
        let Some((image, folder)) = make(&scratch, QUICK, size, &options) else { return };
        same(&image, open, &folder, 299);
        grub_says(&image, open);
    }
}

#[test]
fn files_in_pieces_are_put_together() {
    let scratch = Scratch::new("fat-pieces");
    let options = ["-F", "12", "-s", "1"];
    let folder = scratch.join("tree");
    fs::create_dir_all(folder.join("boot")).unwrap();
    let Some(image) = fill(&scratch, &folder, "250K", &options) else { return };
    // Every other small file goes, and a large one takes the gaps.
    let part = scratch.join("part");
    fs::write(&part, Random::new(3).bytes(512)).unwrap();
    for number in 0..300 {
        run("mcopy", &["-i", text(&image), text(&part), &format!("::boot/p{number}")]).unwrap();
        fs::copy(&part, folder.join(format!("boot/p{number}"))).unwrap();
    }
    for number in (0..300).step_by(2) {
        run("mdel", &["-i", text(&image), &format!("::boot/p{number}")]).unwrap();
        fs::remove_file(folder.join(format!("boot/p{number}"))).unwrap();
    }
    let large = folder.join("boot/large");
    fs::write(&large, Random::new(4).bytes(50_001)).unwrap();
    run("mcopy", &["-i", text(&image), text(&large), "::boot/large"]).unwrap();
    same(&image, open, &folder, 100);
}

#[test]
fn other_disks_are_not_fat() {
    let scratch = Scratch::new("fat-other");
    let image = scratch.join("image");
    for seed in 0..50 {
        fs::write(&image, Random::new(seed).bytes(64 << 10)).unwrap();
        assert!(open(&crate::fs::support::judge::source(&image), &[]).unwrap().is_none());
    }
}

#[test]
fn one_table_may_be_in_use() {
    let scratch = Scratch::new("fat-active");
    let folder = scratch.join("tree");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("file"), Random::new(8).bytes(9000)).unwrap();
    let Some(image) = fill(&scratch, &folder, "64M", &["-F", "32", "-s", "1"]) else { return };
    let mut bytes = fs::read(&image).unwrap();
    let (reserved, table) = (usize::from(bytes[14]), bytes.u32_at(36).unwrap() as usize);
    // The first table is lost, and the boot sector says that the second one counts.
    bytes[reserved * 512..(reserved + table) * 512].fill(0);
    fs::write(&image, &bytes).unwrap();
    assert!(read_all(&*at(&*mount(&image, open), "/file"), 9000).is_err());
    bytes[40] = 0x81;
    fs::write(&image, &bytes).unwrap();
    same(&image, open, &folder, 1);
    bytes[40] = 0x82;
    fs::write(&image, &bytes).unwrap();
    assert!(open(&crate::fs::support::judge::source(&image), &[]).unwrap().is_none());
}

#[test]
fn damage_does_no_harm() {
    let scratch = Scratch::new("fat-damage");
    for (size, options) in [("60M", ["-F", "16", "-s", "4"]), ("60M", ["-F", "32", "-s", "1"])] {
        let Some((image, _)) =
            make(&scratch, Tree { kernel: 200_000, sparse: 400_000, ..QUICK }, size, &options)
        else {
            return;
        };
        survives(&image, open, 150);
    }
}
