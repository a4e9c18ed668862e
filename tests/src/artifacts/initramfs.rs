//! Initramfs images: busybox, kernel modules, and a script as the first process.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Archive, Cache, Kernel, digest, run};
use crate::{MARKER, Result};

/// What the first process does after the file systems are mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Script {
    /// Loads the drivers and gives a shell on the console; its end powers the machine off.
    Shell,
    /// Prints [`MARKER`] and powers off at once, for timing.
    Marker,
    /// Runs these lines and powers off.
    Lines(String),
    /// Loads the drivers, mounts the first disk and hands over to the init on it.
    Disk,
}

/// The drivers that a guest of ours wants: virtio, the power button, the disk's file system.
const MODULES: &[&str] = &[
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "virtio_console",
    "virtio_rng",
    "af_packet",
    "button",
    "evdev",
    "ext4",
    "crc32c_generic",
];

/// Folders that programs expect.
const FOLDERS: &[&str] =
    &["proc", "sys", "dev", "tmp", "root", "mnt", "run", "sbin", "usr/bin", "usr/sbin", "var/log", "var/run"];

/// Describes an initramfs.
pub struct Initramfs<'a> {
    kernel: &'a Kernel,
    script: Script,
    drivers: Vec<&'static str>,
    files: Vec<(String, u32, Vec<u8>)>,
}

impl<'a> Initramfs<'a> {
    /// An initramfs for this kernel.
    pub fn new(kernel: &'a Kernel, script: Script) -> Self {
        Self { kernel, script, drivers: MODULES.to_vec(), files: Vec::new() }
    }

    /// Adds kernel modules to the usual ones.
    #[must_use]
    pub fn drivers(mut self, names: &[&'static str]) -> Self {
        self.drivers.extend(names);
        self
    }

    /// Adds a file.
    #[must_use]
    pub fn file(mut self, path: &str, permissions: u32, content: Vec<u8>) -> Self {
        self.files.push((path.to_owned(), permissions, content));
        self
    }

    /// Adds a program of this host under its own path, with the libraries that it needs.
    pub fn host_program(mut self, program: &Path) -> Result<Self> {
        let program = fs::canonicalize(program)?;
        let listing = run(Command::new("ldd").arg(&program)).unwrap_or_default();
        let mut paths = vec![program];
        paths.extend(libraries(&String::from_utf8_lossy(&listing)));
        for path in paths {
            let name = path.to_string_lossy();
            self.files.push((name.trim_start_matches('/').to_owned(), 0o755, fs::read(&path)?));
        }
        Ok(self)
    }

    /// Gives the image, from the cache if it was made before.
    pub fn build(self, cache: &Cache) -> Result<PathBuf> {
        let busybox = fs::read(busybox(cache)?)?;
        let modules = match self.script {
            Script::Shell | Script::Disk => self.kernel.modules(&self.drivers)?,
            Script::Marker | Script::Lines(_) => Vec::new(),
        };
        let mut archive = Archive::new();
        archive.file("bin/busybox", 0o755, &busybox);
        archive.symlink("bin/sh", "busybox");
        for folder in FOLDERS {
            archive.folder(folder);
        }
        archive.character_device("dev/console", 5, 1);
        archive.file("etc/acpi/PWRF/00000080", 0o755, b"#!/bin/sh\nexec poweroff\n");
        archive.file("etc/inittab", 0o644, INITTAB.as_bytes());
        archive.file("etc/session", 0o755, SESSION.as_bytes());
        let mut load = String::new();
        for (name, content) in &modules {
            archive.file(&format!("lib/modules/{name}.ko"), 0o644, content);
            load.push_str(name);
            load.push('\n');
        }
        archive.file("lib/modules/order", 0o644, load.as_bytes());
        for (path, permissions, content) in &self.files {
            archive.file(path, *permissions, content);
        }
        archive.file("init", 0o755, init(&self.script).as_bytes());
        let bytes = archive.finish();
        let name = format!("initramfs/{}.cpio", digest(&bytes));
        cache.get_or_make(&name, |path| Ok(fs::write(path, &bytes)?))
    }
}

/// The statically linked busybox of the Debian package.
fn busybox(cache: &Cache) -> Result<PathBuf> {
    let folder = cache.package("busybox-static")?;
    ["bin/busybox", "usr/bin/busybox"]
        .iter()
        .map(|path| folder.join(path))
        .find(|path| path.is_file())
        .ok_or_else(|| format!("{}: no busybox", folder.display()).into())
}

/// The absolute paths in what `ldd` prints.
fn libraries(listing: &str) -> Vec<PathBuf> {
    listing
        .lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
        .map(PathBuf::from)
        .collect()
}

/// The text of the first process. Its standard streams are the console from the start.
fn init(script: &Script) -> String {
    // Timing is about the VMM and the kernel: nothing is mounted or started before the marker.
    let marker = format!("#!/bin/busybox sh\necho {MARKER}\n");
    let mounts = "#!/bin/busybox sh\n\
                  /bin/busybox --install -s /bin\n\
                  export PATH=/sbin:/bin:/usr/sbin:/usr/bin HOME=/root TERM=vt102\n\
                  mount -t proc proc /proc\n\
                  mount -t sysfs sys /sys\n\
                  mount -t devtmpfs dev /dev\n";
    let end = "/bin/busybox sync\n/bin/busybox poweroff -f\n";
    match script {
        Script::Marker => format!("{marker}{end}"),
        Script::Lines(lines) => format!("{mounts}{lines}\n{end}"),
        Script::Shell => format!("{mounts}{LOAD}{}{end}", SHELL.replace("MARKER", MARKER)),
        Script::Disk => format!("{mounts}{LOAD}{DISK}{end}"),
    }
}

/// Loads the drivers.
const LOAD: &str = "while read -r module; do insmod /lib/modules/$module.ko; done </lib/modules/order\n";

/// Hands over to the system on the first disk.
const DISK: &str = "mount -t ext4 /dev/vda /mnt && exec switch_root /mnt /sbin/init\n";

/// From mounted file systems to a shell with job control on the first serial port. busybox's init
/// is the first process from there on, for its `poweroff`, `halt` and `reboot` ask that; it starts
/// the shell, as a shell's own background jobs would never see Ctrl-C.
const SHELL: &str = "\
mkdir -p /dev/pts /dev/shm
mount -t devpts pts /dev/pts
hostname guest
ip link set lo up
marker=MARKER
if [ -x /etc/rc ]; then . /etc/rc; fi
echo $marker
exec /bin/busybox init
";

/// What busybox's init does: one shell, whose end is the machine's, and what must come before that.
const INITTAB: &str = "\
::once:/etc/session
::shutdown:/bin/umount -a -r 2>/dev/null
";

/// The shell on the console.
const SESSION: &str = "\
#!/bin/sh
cd /root
setsid cttyhack sh </dev/ttyS0 >/dev/ttyS0 2>&1
exec poweroff
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_the_paths_in_the_listing() {
        let listing = "\tlinux-vdso.so.1 (0x00007ffd)\n\
                       \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
                       \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let expected = ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"];
        assert_eq!(libraries(listing), expected.map(PathBuf::from));
        assert!(libraries("\tnot a dynamic executable\n").is_empty());
    }

    #[test]
    fn every_script_ends_with_power_off() {
        for script in [Script::Shell, Script::Disk, Script::Marker, Script::Lines("true".into())] {
            assert!(init(&script).ends_with("poweroff -f\n"));
        }
    }
}
