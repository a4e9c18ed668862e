//! A Debian disk image that boots to a login prompt.

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use guest_tests::artifacts::{Cache, Debian, Disk, Flavour, Kernel, Layout, run as output};
use guest_tests::{Result, Vmm, is_root};
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
        if !is_root() {
            return Err("making a root file system takes root, for its owners and devices".into());
        }
        let tree = image.with_extension("tree");
        let made = bootstrap(&tree)
            .and_then(|()| configure(&tree, kernel))
            .and_then(|()| Disk::ext4(SIZE, "root").content(&tree).build(image));
        // What is left of an attempt goes, whether it failed or not.
        let removed = std::fs::remove_dir_all(&tree);
        made.and(removed.map_err(Into::into))
    })
}

/// Unpacks and configures the packages in a folder.
fn bootstrap(tree: &std::path::Path) -> Result<()> {
    if tree.exists() {
        std::fs::remove_dir_all(tree)?;
    }
    let suite = suite()?;
    if output(Command::new("mmdebstrap").arg("--version")).is_ok() {
        let mut command = Command::new("mmdebstrap");
        command.args(["--variant=minbase", "--include", PACKAGES, &suite]).arg(tree);
        return succeed(&mut command);
    }
    let mut command = Command::new("debootstrap");
    command.args(["--variant=minbase", "--include", PACKAGES, &suite]).arg(tree);
    succeed(&mut command).map_err(|error| format!("{error} (install mmdebstrap or debootstrap)").into())
}

/// The Debian release that this host runs.
fn suite() -> Result<String> {
    let text = std::fs::read_to_string("/etc/os-release")?;
    let name = text.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    name.map(|name| name.trim_matches('"').to_owned())
        .ok_or_else(|| "/etc/os-release has no code name".into())
}

/// Everything that a boot to a login without a password needs.
fn configure(tree: &std::path::Path, kernel: &Kernel) -> Result<()> {
    let modules = tree.join("usr/lib/modules");
    std::fs::create_dir_all(&modules)?;
    succeed(Command::new("cp").arg("-a").arg(kernel.modules_folder()).arg(&modules))?;
    succeed(Command::new("chroot").arg(tree).args(["depmod", &kernel.release]))?;
    succeed(Command::new("chroot").arg(tree).args(["passwd", "-d", "root"]))?;
    std::fs::write(tree.join("etc/hostname"), "guest\n")?;
    std::fs::write(tree.join("etc/fstab"), "/dev/vda / ext4 defaults 0 1\n")?;
    std::fs::write(tree.join("etc/modules"), "virtio_net\nvirtio_rng\n")?;
    Ok(())
}
