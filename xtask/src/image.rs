//! A Debian disk image that boots to a login prompt.

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use guest_tests::artifacts::{Cache, Debian, DebianRoot, Disk, Flavour, Kernel, Layout};
use guest_tests::{Result, Vmm};
use lexopt::Parser;

use crate::build::{self, succeed};
use crate::no_arguments;

/// What is in it besides the smallest Debian.
const PACKAGES: &str = "systemd-sysv,udev,kmod,login,dbus,iproute2,iputils-ping,gcc,libc6-dev,python3-minimal,\
                        stress-ng,fio,iperf3";

/// The disk's size.
const SIZE: u64 = 3 << 30;

/// Makes the image and prints its path.
pub fn run(parser: &mut Parser) -> Result<ExitCode> {
    no_arguments(parser)?;
    let cache = Cache::open()?;
    let kernel = Kernel::fetch(&cache, Flavour::Cloud)?;
    println!("{}", debian(&cache, &kernel)?.display());
    Ok(ExitCode::SUCCESS)
}

/// Makes the disks of a system in this layout and prints their paths.
pub fn system(parser: &mut Parser, layout: &str) -> Result<ExitCode> {
    no_arguments(parser)?;
    let layout = Layout::ALL.into_iter().find(|known| known.name() == layout);
    let layout = layout.ok_or("image: debian, ext4, lvm, xfs, btrfs, raid1 or luks")?;
    let vmm = Vmm::Bhyve { binary: build::bhyve()?, engine: "soft".to_owned() };
    for disk in Debian::fetch(&Cache::open()?, &vmm, layout)?.disks {
        println!("{}", disk.display());
    }
    Ok(ExitCode::SUCCESS)
}

/// The image for this kernel, from the cache if it was made before.
pub fn debian(cache: &Cache, kernel: &Kernel) -> Result<PathBuf> {
    cache.get_or_make(&format!("images/debian-{}.img", kernel.release), |image| {
        let root = DebianRoot::unpack(&image.with_extension("tree"), PACKAGES, &suite()?)?;
        configure(root.path(), kernel)?;
        Disk::ext4(SIZE, "root").content(root.path()).build(image)
    })
}

/// The Debian release that this host runs.
fn suite() -> Result<String> {
    let text = std::fs::read_to_string("/etc/os-release")?;
    let name = text.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    name.map(|name| name.trim_matches('"').to_owned())
        .ok_or_else(|| "/etc/os-release has no code name".into())
}

/// The kernel's modules, and which of them are loaded.
fn configure(tree: &std::path::Path, kernel: &Kernel) -> Result<()> {
    let modules = tree.join("usr/lib/modules");
    std::fs::create_dir_all(&modules)?;
    succeed(Command::new("cp").arg("-a").arg(kernel.modules_folder()).arg(&modules))?;
    succeed(Command::new("chroot").arg(tree).args(["depmod", &kernel.release]))?;
    Ok(std::fs::write(tree.join("etc/modules"), "virtio_net\nvirtio_rng\n")?)
}
