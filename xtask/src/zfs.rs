//! The ZFS pools that `media`'s tests read: made by OpenZFS itself, whose kernel module a guest loads, as no
//! stock Debian kernel has it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use guest_tests::artifacts::{Cache, Flavour, Initramfs, Kernel, Script, run as output, sparse_file};
use guest_tests::{Machine, Result, Vmm};
use lexopt::Parser;

use crate::build::{self, succeed};
use crate::no_arguments;

/// What happens in the guest.
const SCRIPT: &str = include_str!("zfs.sh");
/// OpenZFS, from Debian's contrib section.
const PACKAGES: [&str; 6] =
    ["zfs-dkms", "zfsutils-linux", "libzfs6linux", "libzpool6linux", "libnvpair3linux", "libuutil3linux"];
/// The suite with a release that knows the newest features.
const SUITE: &str = "bookworm-backports";
/// The disk on which the guest hands over the pools.
const SIZE: u64 = 256 << 20;

/// Makes all pools and stores them, compressed, with their manifests.
pub fn run(parser: &mut Parser) -> Result<ExitCode> {
    no_arguments(parser)?;
    let images = build::root().join("crates/media/tests/images");
    fs::create_dir_all(&images)?;
    let cache = Cache::open()?;
    let kernel = Kernel::fetch(&cache, Flavour::Cloud)?;
    let packages = packages(&cache)?;
    let modules = modules(&cache, &packages, &kernel)?;
    let initrd = initrd(&cache, &packages, &modules, &kernel)?;
    let folder = cache.root().join("zfs/pools");
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    fs::create_dir_all(&folder)?;
    let disk = folder.join("disk.img");
    sparse_file(&disk, SIZE)?;
    let machine = Machine::new("zfs", &kernel.image, &initrd).memory("2560M").disk(&disk);
    let vmm = Vmm::Bhyve { binary: build::bhyve()?, engine: "auto".to_owned() };
    let status = machine.command(&vmm).stdin(Stdio::null()).status()?;
    if status.code() != Some(1) {
        return Err(format!("the guest did not do it: {status}").into());
    }
    succeed(Command::new("tar").arg("xzSf").arg(&disk).arg("--ignore-zeros").arg("-C").arg(&folder))?;
    fs::remove_file(&disk)?;
    store(&folder, &images)?;
    fs::remove_dir_all(&folder)?;
    Ok(ExitCode::SUCCESS)
}

/// The folder with the unpacked packages. They need a section that few have among their sources, so apt gets
/// its own lists.
fn packages(cache: &Cache) -> Result<PathBuf> {
    cache.get_or_make(&format!("zfs/{SUITE}"), |folder| {
        let apt = folder.with_extension("apt");
        for name in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(apt.join(name))?;
        }
        let key = "/usr/share/keyrings/debian-archive-keyring.gpg";
        let source = format!("deb [signed-by={key}] http://deb.debian.org/debian {SUITE} main contrib\n");
        fs::write(apt.join("sources"), source)?;
        let apt_get = || {
            let mut command = Command::new("apt-get");
            command.args(["-q", "-o", "APT::Sandbox::User=root", "-o", "Dir::Etc::sourceparts=/dev/null"]);
            for (key, name) in
                [("Dir::Etc::sourcelist", "sources"), ("Dir::State::lists", "lists"), ("Dir::Cache", "cache")]
            {
                command.arg("-o").arg(format!("{key}={}", apt.join(name).display()));
            }
            command.current_dir(&apt);
            command
        };
        succeed(apt_get().arg("update"))?;
        succeed(apt_get().arg("download").args(PACKAGES))?;
        fs::create_dir(folder)?;
        for entry in fs::read_dir(&apt)? {
            let path = entry?.path();
            if path.extension().is_some_and(|end| end == "deb") {
                succeed(Command::new("dpkg").arg("-x").arg(path).arg(folder))?;
            }
        }
        Ok(fs::remove_dir_all(&apt)?)
    })
}

/// The folder with `spl.ko` and `zfs.ko` for this kernel.
fn modules(cache: &Cache, packages: &Path, kernel: &Kernel) -> Result<PathBuf> {
    let release = &kernel.release;
    cache.get_or_make(&format!("zfs/{SUITE}-{release}"), |folder| {
        let headers = PathBuf::from(format!("/usr/src/linux-headers-{release}"));
        let common =
            PathBuf::from(format!("/usr/src/linux-headers-{}", release.replace("-cloud-amd64", "-common")));
        if !headers.is_dir() || !common.is_dir() {
            return Err(format!("install linux-headers-{release}").into());
        }
        let sources = packages.join("usr/src");
        let source = fs::read_dir(&sources)?.next().ok_or("zfs-dkms has no source")??.path();
        fs::create_dir(folder)?;
        let tree = folder.join("tree");
        succeed(Command::new("cp").arg("-a").arg(source).arg(&tree))?;
        let mut configure = Command::new("./configure");
        configure.args(["--quiet", "--with-config=kernel", "--disable-dependency-tracking"]);
        configure.arg(format!("--with-linux={}", common.display()));
        configure.arg(format!("--with-linux-obj={}", headers.display()));
        succeed(configure.current_dir(&tree))?;
        let jobs = std::thread::available_parallelism()?.to_string();
        succeed(Command::new("nice").args(["make", "-s", "-j", &jobs]).current_dir(tree.join("module")))?;
        for name in ["spl.ko", "zfs.ko"] {
            succeed(
                Command::new("strip")
                    .arg("-g")
                    .arg("-o")
                    .arg(folder.join(name))
                    .arg(tree.join("module").join(name)),
            )?;
        }
        Ok(fs::remove_dir_all(tree)?)
    })
}

/// The initramfs with the modules, the tools and the script.
fn initrd(cache: &Cache, packages: &Path, modules: &Path, kernel: &Kernel) -> Result<PathBuf> {
    let rc = "sh /etc/pools 2>&1 && poweroff -f\nreboot -f\n";
    let mut initramfs = Initramfs::new(kernel, Script::Shell).file("etc/rc", 0o755, rc.into()).file(
        "etc/pools",
        0o755,
        SCRIPT.into(),
    );
    for name in ["spl.ko", "zfs.ko"] {
        initramfs = initramfs.file(&format!("lib/modules/{name}"), 0o644, fs::read(modules.join(name))?);
    }
    let attr = cache.package("attr")?;
    for (program, path) in [
        ("zpool", packages.join("sbin/zpool")),
        ("zfs", packages.join("sbin/zfs")),
        ("setfattr", attr.join("usr/bin/setfattr")),
    ] {
        initramfs = initramfs.file(&format!("usr/sbin/{program}"), 0o755, fs::read(&path)?);
        for library in libraries(packages, &path)? {
            let name = library.to_string_lossy();
            let name =
                name.trim_start_matches(&*packages.to_string_lossy()).trim_start_matches('/').to_owned();
            initramfs = initramfs.file(&name, 0o755, fs::read(&library)?);
        }
    }
    let features = packages.join("usr/share/zfs/compatibility.d");
    for name in ["freebsd-13.2", "grub2-2.06"] {
        let content = fs::read(features.join(name))?;
        initramfs = initramfs.file(&format!("usr/share/zfs/compatibility.d/{name}"), 0o644, content);
    }
    initramfs.build(cache)
}

/// The libraries that a program needs: those of the packages, else the host's.
fn libraries(packages: &Path, program: &Path) -> Result<Vec<PathBuf>> {
    let own: Vec<PathBuf> =
        ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"].map(|name| packages.join(name)).into();
    let path = std::env::join_paths(own)?;
    let listing = output(Command::new("ldd").arg(program).env("LD_LIBRARY_PATH", path))?;
    let listing = String::from_utf8_lossy(&listing).into_owned();
    if let Some(line) = listing.lines().find(|line| line.contains("not found")) {
        return Err(format!("{}: {}", program.display(), line.trim()).into());
    }
    let paths = listing.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    Ok(paths.map(PathBuf::from).collect())
}

/// Compresses what came out of the guest into the tree.
fn store(from: &Path, to: &Path) -> Result<()> {
    for entry in fs::read_dir(from)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let packed = output(Command::new("xz").args(["-9", "--stdout", "--check=crc32"]).arg(&path))?;
        println!("zfs-{name}.xz {}", packed.len());
        fs::write(to.join(format!("zfs-{name}.xz")), packed)?;
    }
    Ok(())
}
