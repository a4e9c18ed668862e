//! What the host lacks or refuses, found while the machine is built: the words, the status, and
//! that nothing is made or lost. Nothing here runs a guest.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A folder of its own for each test, which anyone may enter; removed with everything in it.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("bhyve-refusals-{}-{name}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o777)).unwrap();
        Self(path)
    }

    fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    /// All files in the folder and in the one of its VMs: names and content.
    fn content(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let folders = ["", "vmm", "vmm.io"].map(|name| self.0.join(name));
        let entries = folders.iter().filter_map(|folder| std::fs::read_dir(folder).ok()).flatten();
        let entries = entries.map(|entry| entry.unwrap().path()).filter(|path| !path.is_dir());
        let mut all: Vec<_> = entries.map(|path| (path.clone(), std::fs::read(path).unwrap())).collect();
        all.sort();
        all
    }

    /// Runs a command in the folder.
    fn run(&self, mut command: Command, arguments: &[&str]) -> Output {
        command.args(["-s", "0,hostbridge", "-s", "31,lpc", "-l", "com1,stdio"]);
        command.args(arguments).arg("vm");
        // VMs of one user are nothing for another.
        let vms = if command.get_program() == "setpriv" { "vmm-of-nobody" } else { "vmm" };
        command.current_dir(&self.0).env("VMM_DIR", self.0.join(vms)).output().unwrap()
    }

    /// Runs bhyve, which must refuse with status 4 in exactly this line and change no file.
    fn refuses(&self, arguments: &[&str], line: &str) {
        let before = self.content();
        let output = self.run(Command::new(env!("CARGO_BIN_EXE_bhyve")), arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(4), "{arguments:?}: {said}");
        assert_eq!(said.lines().last(), Some(&*format!("bhyve: {line}")), "{arguments:?}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
        assert!(self.content() == before, "{arguments:?} changed a file");
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

const SOFT: [&str; 4] = ["-o", "engine=soft", "-o", "kernel.path=kernel"];

fn with<'a>(more: &[&'a str]) -> Vec<&'a str> {
    SOFT.iter().chain(more).copied().collect()
}

/// Whether this test is run by root.
fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    Path::new("/proc/self").metadata().is_ok_and(|own| own.uid() == 0)
}

/// bhyve as a user without privileges: by giving them up, or as we are.
fn unprivileged(folder: &Folder) -> Command {
    if !is_root() {
        return Command::new(env!("CARGO_BIN_EXE_bhyve"));
    }
    // Where the build is may be out of reach for others.
    let copy = folder.0.join("bhyve");
    std::fs::copy(env!("CARGO_BIN_EXE_bhyve"), &copy).unwrap();
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(copy);
    command
}

#[test]
fn disks_that_are_no_disks() {
    let folder = Folder::new("disks");
    folder.refuses(
        &with(&["-s", "3:0,virtio-blk,disk.img"]),
        "-s 3:0,virtio-blk,disk.img: cannot open disk.img: No such file or directory",
    );
    folder.refuses(
        &with(&["-s", "3:0,virtio-blk,/"]),
        "-s 3:0,virtio-blk,/: cannot open /: it is a directory; a disk must be a regular file or a block device",
    );
    folder.refuses(
        &with(&["-s", "3:0,virtio-blk,/dev/null"]),
        "-s 3:0,virtio-blk,/dev/null: cannot open /dev/null: it is a character device; \
         a disk must be a regular file or a block device",
    );
}

#[test]
fn options_that_would_do_nothing() {
    let folder = Folder::new("nothing");
    folder.refuses(
        &with(&["-s", "3:0,virtio-blk,disk.img,bootindex=1"]),
        "-s 3:0,virtio-blk,disk.img,bootindex=1: pci.0.3.0.bootindex (place in the firmware's boot order) \
         is not supported by this version",
    );
}

#[test]
fn kernels_that_are_no_kernels() {
    let folder = Folder::new("kernels");
    folder.refuses(&SOFT, "-o kernel.path=kernel: cannot open kernel: No such file or directory");
    let output = {
        folder.file("kernel", b"#!/bin/sh\necho not a kernel\n");
        folder.run(Command::new(env!("CARGO_BIN_EXE_bhyve")), &SOFT)
    };
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{said}");
    assert!(said.starts_with("bhyve: -o kernel.path=kernel: "), "{said}");
}

#[test]
fn a_kernel_that_may_not_be_read() {
    let folder = Folder::new("unreadable");
    let kernel = folder.file("kernel", b"x");
    std::fs::set_permissions(kernel, PermissionsExt::from_mode(0o0)).unwrap();
    let output = folder.run(unprivileged(&folder), &SOFT);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{said}");
    assert!(
        said.starts_with("bhyve: -o kernel.path=kernel: cannot open kernel: Permission denied"),
        "{said}"
    );
}

#[test]
fn an_image_survives_a_vm_that_does_not_start() {
    let folder = Folder::new("image");
    folder.file("disk.img", &vec![0xa5; 1 << 20]);
    folder.refuses(
        &with(&["-s", "3:0,virtio-blk,disk.img"]),
        "-o kernel.path=kernel: cannot open kernel: No such file or directory",
    );
    folder.refuses(
        &with(&["-s", "3:0,virtio-blk,disk.img", "-s", "4:0,virtio-blk,disk.img"]),
        "-s 4:0,virtio-blk,disk.img: cannot open disk.img: it is in use by another virtual machine or program",
    );
}

#[test]
fn more_memory_than_the_host_has() {
    let folder = Folder::new("memory");
    let output = folder.run(Command::new(env!("CARGO_BIN_EXE_bhyve")), &with(&["-m", "1000T"]));
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{said}");
    assert!(said.starts_with("bhyve: -m 1000T: ") && said.contains("more than this host's RAM"), "{said}");
}

#[test]
fn a_tap_that_is_missing_or_not_ours() {
    let folder = Folder::new("tap");
    let output = folder.run(unprivileged(&folder), &with(&["-s", "2:0,virtio-net,tapnosuch7"]));
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{said}");
    assert!(said.starts_with("bhyve: -s 2:0,virtio-net,tapnosuch7: cannot open tapnosuch7: "), "{said}");
    assert!(!Path::new("/sys/class/net/tapnosuch7").exists());
    folder.refuses(
        &with(&["-s", "2:0,virtio-net,tap/b"]),
        "-s 2:0,virtio-net,tap/b: \"tap/b\" is not an interface name",
    );
    folder.refuses(
        &with(&["-s", "2:0,virtio-net,lo"]),
        "-s 2:0,virtio-net,lo: unknown network back end lo; use a tap interface, such as tap0",
    );
}

#[test]
fn kvm_without_permission() {
    let folder = Folder::new("kvm");
    let mode = Path::new("/dev/kvm").metadata().map(|kvm| kvm.permissions().mode());
    if !is_root() || mode.is_ok_and(|mode| mode & 0o006 == 0o006) {
        eprintln!("skipped: needs root, and a /dev/kvm that is not for everyone");
        return;
    }
    let run = |engine: &str| {
        let output = folder.run(unprivileged(&folder), &["-o", engine, "-o", "kernel.path=kernel"]);
        assert_eq!(output.status.code(), Some(4));
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let (missing, why) = ("No such file or directory", "Permission denied");
    let why = if Path::new("/dev/kvm").exists() { why } else { missing };
    assert_eq!(run("engine=kvm"), format!("bhyve: -o engine=kvm: engine=kvm: /dev/kvm: {why}\n"));
    let hardware = std::fs::read_to_string("/proc/cpuinfo")
        .is_ok_and(|text| text.split_whitespace().any(|word| word == "vmx" || word == "svm"));
    let why =
        if hardware { format!("/dev/kvm: {why}") } else { "this host's CPU offers no vmx or svm".into() };
    let said = run("engine=auto");
    assert!(said.starts_with(&format!("bhyve: engine: soft ({why})\n")), "{said}");
}
