use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Emulation, SECTOR, boot_images, open};
use crate::fs::support::judge::{at, grub_reads, grub_says, mount, same, source, survives};
use crate::testing::{Random, Scratch, Tree, compare, have, run};
use crate::{Fields, Kind, SourceRef, Window, read_all, resolve};

/// What a CD can hold: files with holes take their whole size on it.
const FULL: Tree = Tree { sparse: 2 << 20, ..Tree::FULL };
const QUICK: Tree = Tree { sparse: 1 << 20, ..Tree::QUICK };

/// A tree in a folder, and the path of an image to be made of it.
fn prepare(name: &str, tree: Tree) -> (Scratch, PathBuf, PathBuf) {
    let scratch = Scratch::new(name);
    let folder = scratch.join("tree");
    fs::create_dir(&folder).unwrap();
    tree.write(&folder).unwrap();
    if tree.symlinks {
        // Rock Ridge has no way to write a slash at the end.
        for len in [60, 156, 1023] {
            fs::remove_file(folder.join(format!("links/target{len}"))).unwrap();
        }
    }
    let image = scratch.join("image.iso");
    (scratch, folder, image)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Makes an image with xorriso or genisoimage; both take the options of mkisofs.
fn make(program: &str, options: &[&str], image: &Path, folder: &Path) {
    let mut arguments = if program == "xorriso" { vec!["-as", "mkisofs"] } else { Vec::new() };
    arguments.extend(["-quiet", "-o", text(image)]);
    arguments.extend(options);
    arguments.push(text(folder));
    run(program, &arguments).unwrap();
}

#[test]
fn rock_ridge_holds_ten_thousand_files() {
    if !have("xorriso") {
        return;
    }
    let (_scratch, folder, image) = prepare("iso-full", FULL);
    make("xorriso", &["-V", "Rock Disc", "-J"], &image, &folder);
    same(&image, open, &folder, 10_000);
    grub_says(&image, open);
    grub_reads(&image, &folder, &["/boot/vmlinuz", "/many/entry-02999.txt", "/links/chain5"]);
}

#[test]
fn deep_directories_are_moved_and_found() {
    if !have("genisoimage") {
        return;
    }
    // genisoimage doesn't end if symbolic links lead in circles.
    let (_scratch, folder, image) = prepare("iso-deep", Tree { symlinks: false, ..QUICK });
    make("genisoimage", &["-R"], &image, &folder);
    let fs = mount(&image, open);
    let mut files = 0;
    // At the top is one more folder, in which the moved ones were.
    for name in ["boot", "many", "sizes", "names", "sparse", "deep", "tree"] {
        files += compare(&*fs, name, &folder.join(name)).unwrap().files;
    }
    assert_eq!(files, 300);
    let mut moved = 0;
    let visit = &mut |_| {
        moved += 1;
        std::ops::ControlFlow::Continue(())
    };
    at(&*fs, "/rr_moved").entries(visit).unwrap();
    assert_eq!(moved, 0);
    grub_says(&image, open);
}

#[test]
fn joliet_is_used_without_rock_ridge() {
    if !have("genisoimage") {
        return;
    }
    let tree = Tree { symlinks: false, longest_name: 64, depth: 5, ..FULL };
    let (_scratch, folder, image) = prepare("iso-joliet", tree);
    // Characters outside UCS-2.
    fs::remove_file(folder.join("names/emoji-🦀")).unwrap();
    make("genisoimage", &["-J", "-input-charset", "utf-8", "-V", "Jolié"], &image, &folder);
    same(&image, open, &folder, 9_900);
    grub_says(&image, open);
    grub_reads(&image, &folder, &["/boot/vmlinuz", "/names/grüße"]);
}

#[test]
fn plain_names_have_neither_version_nor_case() {
    if !have("genisoimage") {
        return;
    }
    let scratch = Scratch::new("iso-plain");
    let folder = scratch.join("tree");
    fs::create_dir_all(folder.join("isolinux")).unwrap();
    fs::write(folder.join("isolinux/vmlinuz"), [7; 5000]).unwrap();
    fs::write(folder.join("isolinux/isolinux.cfg"), "default linux\n").unwrap();
    fs::write(folder.join("a.b"), "").unwrap();
    let image = scratch.join("image.iso");
    make("genisoimage", &["-iso-level", "2", "-V", "PLAIN"], &image, &folder);
    same(&image, open, &folder, 3);
    let fs = mount(&image, open);
    assert!(!fs.case_sensitive());
    for path in ["/ISOLINUX/VMLINUZ", "/isolinux/VmLinuz", "isolinux/vmlinuz"] {
        assert_eq!(at(&*fs, path).metadata().unwrap().size, 5000);
    }
    assert!(resolve(&*fs, b"/isolinux/vmlinuz;1").is_err());
    grub_says(&image, open);
}

#[test]
fn compressed_files_are_unpacked() {
    if !have("xorriso") {
        return;
    }
    let (scratch, folder, image) = prepare("iso-zisofs", QUICK);
    fs::write(folder.join("zeros"), vec![0; 300_000]).unwrap();
    let arguments = ["-outdev", text(&image), "-zisofs", "default", "-map", text(&folder), "/"];
    run("xorriso", &[&arguments[..], &["-set_filter_r", "--zisofs", "/", "--"]].concat()).unwrap();
    let plain = scratch.join("plain.iso");
    make("xorriso", &[], &plain, &folder);
    let len = |path: &Path| fs::metadata(path).unwrap().len();
    assert!(len(&image) + (2 << 20) < len(&plain), "nothing was compressed");
    same(&image, open, &folder, 300);
    survives(&image, open, 60);
}

#[test]
fn boot_images_are_listed() {
    if !have("xorriso") {
        return;
    }
    let scratch = Scratch::new("iso-boot");
    let folder = scratch.join("tree");
    fs::create_dir_all(folder.join("boot")).unwrap();
    fs::write(folder.join("boot/bios.img"), Random::new(1).bytes(4096)).unwrap();
    fs::write(folder.join("boot/efi.img"), Random::new(2).bytes(70_000)).unwrap();
    let image = scratch.join("image.iso");
    let bios = ["-b", "boot/bios.img", "-no-emul-boot", "-boot-load-size", "4"];
    let efi = ["-eltorito-alt-boot", "-e", "boot/efi.img", "-no-emul-boot", "-isohybrid-gpt-basdat"];
    make("xorriso", &[&bios[..], &efi].concat(), &image, &folder);
    let source = source(&image);
    let images = boot_images(&source).unwrap();
    let found: Vec<_> =
        images.iter().map(|image| (image.platform, image.bootable, image.emulation)).collect();
    assert_eq!(found, [(0, true, Emulation::None), (0xef, true, Emulation::None)]);
    assert_eq!((images[0].sectors, images[0].load_segment), (4, 0x7c0));
    for (image, file) in images.iter().zip(["boot/bios.img", "boot/efi.img"]) {
        let start = source.read_vec(image.offset, 4096).unwrap();
        assert_eq!(start, fs::read(folder.join(file)).unwrap()[..4096]);
    }
    // The catalogue is a file too.
    let fs = mount(&image, open);
    assert_eq!(compare(&*fs, "/boot", &folder.join("boot")).unwrap().files, 2);
    assert_eq!(at(&*fs, "/boot.catalog").metadata().unwrap().size, 2048);
}

/// The same tree on the whole disk and in its first partition.
#[test]
fn hybrid_discs_are_discs_and_partitions() {
    if !have("xorriso") {
        return;
    }
    let (_scratch, folder, image) = prepare("iso-hybrid", QUICK);
    make("xorriso", &["-partition_offset", "16", "-partition_cyl_align", "off"], &image, &folder);
    let disk = source(&image);
    let sector = disk.read_vec(0, 512).unwrap();
    let start = u64::from(sector.u32_at(446 + 8).unwrap()) * 512;
    assert_eq!((sector.u16_at(510), start), (Some(0xaa55), 16 * SECTOR));
    same(&image, open, &folder, 300);
    let partition: SourceRef = Arc::new(Window::new(disk.clone(), start, disk.size() - start).unwrap());
    let fs = open(&partition, &[]).unwrap().unwrap();
    assert_eq!(compare(&*fs, "/", &folder).unwrap().files, 300);
}

#[test]
fn a_disc_knows_when_it_was_made() {
    if !have("xorriso") {
        return;
    }
    let scratch = Scratch::new("iso-date");
    let folder = scratch.join("tree");
    fs::create_dir_all(&folder).unwrap();
    let image = scratch.join("image.iso");
    make("xorriso", &["--modification-date=2024010112000000", "-V", "A B"], &image, &folder);
    let fs = mount(&image, open);
    assert_eq!(fs.uuid().as_deref(), Some("2024-01-01-12-00-00-00"));
    assert_eq!(fs.modified(), Some(1_704_110_400));
    assert_eq!(fs.label().as_deref(), Some("A B"));
    assert_eq!(fs.kind(), "iso9660");
}

/// A record of the root directory of [`in_parts`].
fn record(name: &[u8], block: u32, len: u32, flags: u8) -> Vec<u8> {
    let mut record = vec![0; 33];
    record[2..6].copy_from_slice(&block.to_le_bytes());
    record[10..14].copy_from_slice(&len.to_le_bytes());
    record[25] = flags;
    record[32] = name.len() as u8;
    record.extend_from_slice(name);
    record.resize(record.len().next_multiple_of(2), 0);
    record[0] = record.len() as u8;
    record
}

/// A disc with a file in three parts, of which the first is as large as parts can be.
fn in_parts(folder: &Scratch) -> PathBuf {
    use std::os::unix::fs::FileExt;
    const PART: u32 = u32::MAX - 2047;
    let image = folder.join("parts.iso");
    let file = fs::File::create(&image).unwrap();
    file.set_len((100 + u64::from(PART / 2048) + 10) * 2048).unwrap();
    let mut descriptor = vec![0; 2048];
    descriptor[..6].copy_from_slice(b"\x01CD001");
    descriptor[128..130].copy_from_slice(&2048u16.to_le_bytes());
    descriptor[156..190].copy_from_slice(&record(&[0], 20, 2048, 2));
    file.write_all_at(&descriptor, 16 * 2048).unwrap();
    file.write_all_at(b"\xffCD001", 17 * 2048).unwrap();
    let last = 100 + PART / 2048;
    let records = [
        record(&[0], 20, 2048, 2),
        record(&[1], 20, 2048, 2),
        record(b"BIG.;1", 100, PART, 0x80),
        record(b"BIG.;1", last, 4096, 0x80),
        record(b"BIG.;1", last + 5, 10, 0),
        record(b"END.;1", 90, 4, 0),
    ];
    file.write_all_at(&records.concat(), 20 * 2048).unwrap();
    file.write_all_at(b"tail", u64::from(last) * 2048 + 4092).unwrap();
    file.write_all_at(b"0123456789", u64::from(last + 5) * 2048).unwrap();
    file.write_all_at(b"end!", 90 * 2048).unwrap();
    image
}

#[test]
fn a_file_may_be_in_parts() {
    let scratch = Scratch::new("iso-parts");
    let fs = mount(&in_parts(&scratch), open);
    let big = at(&*fs, "/big");
    assert_eq!(big.metadata().unwrap().size, u64::from(u32::MAX - 2047) + 4096 + 10);
    let mut bytes = [0; 10];
    big.read_at(u64::from(u32::MAX - 2047) + 4092, &mut bytes).unwrap();
    assert_eq!(&bytes, b"tail012345");
    assert!(big.read_at(u64::from(u32::MAX - 2047) + 4096 + 1, &mut bytes).is_err());
    assert_eq!(read_all(&*at(&*fs, "/end"), 10).unwrap(), b"end!");
    let mut names = Vec::new();
    let visit = &mut |entry: crate::Entry| {
        names.push((String::from_utf8(entry.name).unwrap(), entry.kind));
        std::ops::ControlFlow::Continue(())
    };
    fs.root().unwrap().entries(visit).unwrap();
    assert_eq!(names, [("big".into(), Some(Kind::File)), ("end".into(), Some(Kind::File))]);
}

#[test]
fn damage_does_no_harm() {
    if !have("xorriso") {
        return;
    }
    let (_scratch, folder, image) = prepare("iso-damage", QUICK);
    make("xorriso", &["-J"], &image, &folder);
    survives(&image, open, 150);
    if have("genisoimage") {
        fs::remove_dir_all(folder.join("links")).unwrap();
        make("genisoimage", &["-R"], &image, &folder);
        survives(&image, open, 150);
    }
}
