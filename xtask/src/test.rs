//! All tests, on a machine that may be fresh.

use std::process::{Command, ExitCode};

use guest_tests::{Result, is_root};
use lexopt::Parser;

use crate::build::{cargo, succeed};
use crate::{build, no_arguments};

/// What the tests run besides our own programs (or a file that they read), and the package that holds it.
const TOOLS: &[(&str, &str)] = &[
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("mke2fs", "e2fsprogs"),
    ("cpio", "cpio"),
    ("sfdisk", "fdisk"),
    ("sgdisk", "gdisk"),
    ("cryptsetup", "cryptsetup-bin"),
    ("grub-fstest", "grub-common"),
    ("xorriso", "xorriso"),
    ("ip", "iproute2"),
    ("iperf3", "iperf3"),
    ("iasl", "acpica-tools"),
    ("xz", "xz-utils"),
    ("bzip2", "bzip2"),
    ("lz4", "lz4"),
    ("zstd", "zstd"),
    ("lzop", "lzop"),
    ("mksquashfs", "squashfs-tools"),
    ("mkfs.btrfs", "btrfs-progs"),
    ("mkfs.xfs", "xfsprogs"),
    ("genisoimage", "genisoimage"),
    ("makefs", "makefs"),
    ("mkfs.fat", "dosfstools"),
    ("mcopy", "mtools"),
    ("mkfs.exfat", "exfatprogs"),
    ("mount.exfat-fuse", "exfat-fuse"),
    ("ntfs-3g", "ntfs-3g"),
    ("mmdebstrap", "mmdebstrap"),
    ("cu", "cu"),
    ("tmux", "tmux"),
    ("file", "file"),
    ("losetup", "mount"),
    ("tar", "tar"),
    ("/usr/lib/ISOLINUX/isohdpfx.bin", "isolinux"),
];

/// Builds and tests.
pub fn run(parser: &mut Parser) -> Result<ExitCode> {
    no_arguments(parser)?;
    install_tools()?;
    let bhyve = build::bhyve()?;
    let nextest = cargo().args(["nextest", "--version"]).output().is_ok_and(|output| output.status.success());
    let mut command = cargo();
    if nextest {
        command.args(["nextest", "run", "--workspace"]);
    } else {
        eprintln!("cargo-nextest is not installed: cargo test runs the tests");
        // Without nextest's groups, guests would be started by the dozen.
        command.args(["test", "--workspace", "--no-fail-fast", "--", "--test-threads=2"]);
    }
    // What only a lack of preparation would skip must not be skipped now.
    command.env("BHYVE", bhyve).env("GUEST_TESTS", "require");
    succeed(&mut command)?;
    Ok(ExitCode::SUCCESS)
}

/// Installs what is missing, if we may.
fn install_tools() -> Result<()> {
    let missing: Vec<&str> =
        TOOLS.iter().filter(|(program, _)| !installed(program)).map(|&(_, package)| package).collect();
    let downloads = ["busybox-static", "linux-image-cloud-amd64"];
    let known = downloads.iter().all(|package| {
        Command::new("apt-cache").args(["show", package]).output().is_ok_and(|output| output.status.success())
    });
    if missing.is_empty() && known {
        return Ok(());
    }
    if !is_root() {
        if !missing.is_empty() {
            eprintln!("not installed, and only root can: {}", missing.join(" "));
        }
        return Ok(());
    }
    let install = |packages: &[&str]| {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive");
        succeed(command.args(["install", "-qq", "-y", "--no-install-recommends"]).args(packages))
    };
    if known && install(&missing).is_ok() {
        return Ok(());
    }
    succeed(Command::new("apt-get").args(["update", "-qq"]))?;
    if missing.is_empty() { Ok(()) } else { install(&missing) }
}

/// Whether a program is where programs are.
fn installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|folder| folder.join(program).is_file())
}
