use std::fs;
use std::path::{Path, PathBuf};

use super::open;
use crate::fs::support::judge::{Fuse, at, grub_reads, grub_says, mount, same, survives};
use crate::testing::{Random, Scratch, Tree, cached, have, run};

/// What exFAT can hold.
const FULL: Tree = Tree { symlinks: false, case: false, sparse: 2 << 20, ..Tree::FULL };

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A tree in a folder, and an image that has it too.
fn make(recipe: &str, tree: Tree, size: &str, options: &[&str]) -> Option<(Scratch, PathBuf, PathBuf)> {
    if !have("mkfs.exfat") || !have("mount.exfat-fuse") {
        return None;
    }
    let scratch = Scratch::new("exfat");
    let folder = scratch.join("tree");
    fs::create_dir(&folder).unwrap();
    tree.write(&folder).unwrap();
    let mut filled = true;
    let image = cached(recipe, |image| {
        run("truncate", &["-s", size, text(image)]).unwrap();
        run("mkfs.exfat", &[options, &[text(image)]].concat()).unwrap();
        match Fuse::mount("mount.exfat-fuse", &[], image, true) {
            Some(fuse) => {
                drop(run("cp", &["-r", &format!("{}/.", text(&folder)), text(fuse.path())]).unwrap());
            }
            None => filled = false,
        }
    });
    if !filled {
        fs::remove_file(&image).unwrap();
        return None;
    }
    Some((scratch, folder, image))
}

#[test]
fn ten_thousand_files() {
    let Some((_scratch, folder, image)) = make("exfat-full-1", FULL, "300M", &["-L", "Käse", "-c", "4K"])
    else {
        return;
    };
    same(&image, open, &folder, 10_000);
    grub_says(&image, open);
    grub_reads(&image, &folder, &["/boot/vmlinuz", "/many/entry-02999.txt", "/names/grüße"]);
    let fs = mount(&image, open);
    assert_eq!(fs.label().as_deref(), Some("Käse"));
    for path in ["/BOOT/VMLINUZ", "/many/ENTRY-00001.TXT", "/names/GRÜßE", "/names/ПРИВЕТ"] {
        at(&*fs, path);
    }
}

#[test]
fn files_in_pieces_and_large_clusters() {
    if !have("mkfs.exfat") {
        return;
    }
    let scratch = Scratch::new("exfat-pieces");
    let (image, folder) = (scratch.join("image"), scratch.join("tree"));
    fs::create_dir_all(folder.join("a")).unwrap();
    for (size, cluster) in [("8M", "512"), ("64M", "128K")] {
        let _ = fs::remove_file(&image);
        run("truncate", &["-s", size, text(&image)]).unwrap();
        run("mkfs.exfat", &["-c", cluster, text(&image)]).unwrap();
        let Some(fuse) = Fuse::mount("mount.exfat-fuse", &[], &image, true) else { return };
        let to = fuse.path().join("a");
        fs::create_dir_all(&to).unwrap();
        // Two files grow in turns, so that both have gaps.
        let (one, two) = (Random::new(1).bytes(100_000), Random::new(2).bytes(100_000));
        for end in (0..=100_000).step_by(5_000) {
            fs::write(to.join("one"), &one[..end]).unwrap();
            let name = to.join("two");
            fs::OpenOptions::new().create(true).append(true).open(name).unwrap();
            fs::write(to.join("two"), &two[..end]).unwrap();
        }
        fs::write(folder.join("a/one"), &one).unwrap();
        fs::write(folder.join("a/two"), &two).unwrap();
        drop(fuse);
        same(&image, open, &folder, 2);
        grub_says(&image, open);
    }
}

#[test]
fn damage_does_no_harm() {
    let tree = Tree { files: 300, sparse: 400_000, kernel: 200_000, ..FULL };
    let Some((_scratch, _, image)) = make("exfat-quick-1", tree, "32M", &["-c", "4K"]) else { return };
    survives(&image, open, 200);
}

#[test]
fn impossible_clusters_are_refused() {
    let source: crate::SourceRef = std::sync::Arc::new(crate::Bytes(vec![0; 1 << 16]));
    let mut boot = vec![0; 512];
    (boot[108], boot[92]) = (9, 9);
    for (log, good) in [(16, true), (17, false), (255, false)] {
        boot[109] = log;
        assert_eq!(super::parse(&source, &boot).is_some(), good, "{log}");
    }
}
