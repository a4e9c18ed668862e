//! Debian as an installer leaves it: root file systems on partitions, LVM, RAID and LUKS, with the
//! `grub.cfg` that Debian's own tools have written.
//!
//! The tree is unpacked once, on the host. A guest of ours then copies it onto each kind of disk,
//! with its own kernel's drivers and its own tools, so the host needs none of them.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Cache, DebianRoot, Disk, copy_image, digest, sparse_file};
use crate::{Guest, Machine, Result, Scratch, Vmm};

/// What is installed besides the smallest Debian.
const PACKAGES: &str = "systemd-sysv,udev,kmod,login,passwd,iproute2,iputils-ping,e2fsprogs,fdisk,xfsprogs,\
                        btrfs-progs,lvm2,mdadm,cryptsetup-initramfs,initramfs-tools,zstd,linux-image-cloud-amd64,\
                        grub-pc-bin,grub2-common";
/// The release, whatever the host runs.
const SUITE: &str = "bookworm";
/// Sizes of the first system's disk and of those that it fills.
const BASE: u64 = 2 << 30;
const TARGET: u64 = 2 << 30;
/// The passphrase of encrypted disks.
pub const PASSPHRASE: &str = "correct horse";
/// From the start to the login prompt; for a copy of the system.
const BOOT: Duration = Duration::from_mins(5);
const COPY: Duration = Duration::from_mins(10);

/// How the system lies on its disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// GPT with a BIOS boot partition; root on ext4.
    Ext4,
    /// The handbook's: MBR, /boot on ext4, root and swap in the volume group `VolGroup`.
    Lvm,
    /// MBR with one XFS file system.
    Xfs,
    /// MBR with one btrfs file system, root in a subvolume.
    Btrfs,
    /// Two disks; /boot and root on a RAID 1 of their partitions.
    Raid1,
    /// MBR; everything, /boot too, on ext4 in a LUKS 1 volume.
    Luks,
}

impl Layout {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::Ext4, Self::Lvm, Self::Xfs, Self::Btrfs, Self::Raid1, Self::Luks];

    /// A word for file names.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Lvm => "lvm",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
            Self::Raid1 => "raid1",
            Self::Luks => "luks",
        }
    }

    fn disks(self) -> usize {
        if self == Self::Raid1 { 2 } else { 1 }
    }

    /// Partitions and mounts the new root at /target.
    fn prepare(self) -> String {
        match self {
            Self::Ext4 => "printf 'label: gpt\\nsize=1MiB, type=21686148-6449-6E6F-744E-656564454649\\n\
                 type=linux\\n' | sfdisk -q /dev/vdb\n\
                 mkfs.ext4 -qF -L rootfs /dev/vdb2\nmount /dev/vdb2 /target\n\
                 uuid=$(blkid -s UUID -o value /dev/vdb2)\necho \"UUID=$uuid / ext4 defaults 0 1\" >/tmp/fstab\n"
                .into(),
            Self::Lvm => "printf 'label: dos\\nsize=300MiB, type=83, bootable\\ntype=8e\\n' | sfdisk -q /dev/vdb\n\
                 mkfs.ext4 -qF -L boot /dev/vdb1\npvcreate -q /dev/vdb2\nvgcreate -q VolGroup /dev/vdb2\n\
                 lvcreate -qy -L 128M -n lv_swap VolGroup\nlvcreate -qy -l 100%FREE -n lv_root VolGroup\n\
                 mkswap -q /dev/VolGroup/lv_swap\nmkfs.ext4 -qF /dev/VolGroup/lv_root\n\
                 mount /dev/VolGroup/lv_root /target\nmkdir /target/boot\nmount /dev/vdb1 /target/boot\n\
                 printf '%s\\n' '/dev/mapper/VolGroup-lv_root / ext4 defaults 0 1' \
                 \"UUID=$(blkid -s UUID -o value /dev/vdb1) /boot ext4 defaults 0 2\" \
                 '/dev/mapper/VolGroup-lv_swap none swap sw 0 0' >/tmp/fstab\n"
                .into(),
            Self::Xfs => "printf 'label: dos\\ntype=83, bootable\\n' | sfdisk -q /dev/vdb\n\
                 mkfs.xfs -qf -L rootfs /dev/vdb1\nmount /dev/vdb1 /target\n\
                 echo \"UUID=$(blkid -s UUID -o value /dev/vdb1) / xfs defaults 0 0\" >/tmp/fstab\n"
                .into(),
            Self::Btrfs => "printf 'label: dos\\ntype=83, bootable\\n' | sfdisk -q /dev/vdb\n\
                 mkfs.btrfs -qf -L rootfs /dev/vdb1\nmount /dev/vdb1 /target\n\
                 btrfs -q subvolume create /target/@rootfs\numount /target\n\
                 mount -o subvol=@rootfs,compress=zstd /dev/vdb1 /target\n\
                 echo \"UUID=$(blkid -s UUID -o value /dev/vdb1) / btrfs subvol=@rootfs,compress=zstd 0 0\" \
                 >/tmp/fstab\n"
                .into(),
            Self::Raid1 => "for d in vdb vdc; do printf 'label: dos\\ntype=fd, bootable\\n' | sfdisk -q /dev/$d; done\n\
                 mdadm --create /dev/md0 --run --level=1 --raid-devices=2 --metadata=1.2 --assume-clean \
                 --homehost=guest /dev/vdb1 /dev/vdc1 2>/dev/null\n\
                 mkfs.ext4 -qF -L rootfs /dev/md0\nmount /dev/md0 /target\n\
                 echo \"UUID=$(blkid -s UUID -o value /dev/md0) / ext4 defaults 0 1\" >/tmp/fstab\n\
                 mdadm --detail --scan >/tmp/mdadm.conf\n"
                .into(),
            Self::Luks => format!(
                "printf 'label: dos\\ntype=83, bootable\\n' | sfdisk -q /dev/vdb\n\
                 printf '{PASSPHRASE}' | cryptsetup -q luksFormat --type luks1 --pbkdf-force-iterations 1000 \
                 /dev/vdb1 -\n\
                 printf '{PASSPHRASE}' | cryptsetup open --key-file=- /dev/vdb1 root_crypt\n\
                 mkfs.ext4 -qF -L rootfs /dev/mapper/root_crypt\nmount /dev/mapper/root_crypt /target\n\
                 echo '/dev/mapper/root_crypt / ext4 defaults 0 1' >/tmp/fstab\n\
                 echo \"root_crypt UUID=$(blkid -s UUID -o value /dev/vdb1) none luks,initramfs\" >/tmp/crypttab\n"
            ),
        }
    }
}

/// What happens to every system once its root is mounted: Debian's tools make initramfs and grub.cfg.
const INSTALL: &str = "\
for d in bin boot etc home lib lib64 media opt root sbin srv usr var; do\n\
  [ ! -e /$d ] || cp -ax /$d /target/\n\
done\n\
mkdir -p /target/dev /target/proc /target/sys /target/run /target/tmp /target/mnt\n\
cp /tmp/fstab /target/etc/fstab\n\
[ ! -e /tmp/crypttab ] || cp /tmp/crypttab /target/etc/crypttab\n\
[ ! -e /tmp/mdadm.conf ] || cp /tmp/mdadm.conf /target/etc/mdadm/mdadm.conf\n\
for d in dev proc sys run; do mount --bind /$d /target/$d; done\n\
[ ! -e /tmp/crypttab ] || echo GRUB_ENABLE_CRYPTODISK=y >>/target/etc/default/grub\n\
if [ -e /tmp/crypttab ] || [ -e /tmp/mdadm.conf ]; then\n\
  printf 'COMPRESS=zstd\\nCOMPRESSLEVEL=1\\n' >/target/etc/initramfs-tools/conf.d/fast\n\
  chroot /target update-initramfs -u 2>&1\n\
fi\n\
mkdir -p /target/boot/grub\n\
chroot /target grub-mkconfig -o /boot/grub/grub.cfg 2>&1\n\
sync\n\
umount -R /target\n";

/// A Debian system.
pub struct Debian {
    /// Its disks.
    pub disks: Vec<PathBuf>,
}

impl Debian {
    /// The system in this layout, from the cache if it was made before. The images are the cache's:
    /// whoever runs one takes a copy ([`Debian::copy`]).
    pub fn fetch(cache: &Cache, vmm: &Vmm, layout: Layout) -> Result<Self> {
        let recipe = [layout.prepare().as_str(), INSTALL, PACKAGES, SUITE].concat();
        let name = format!("images/debian-{}-{}", layout.name(), digest(recipe.as_bytes()));
        let folder = cache.get_or_make(&name, |folder| {
            let base = base(cache)?;
            fs::create_dir(folder)?;
            install(vmm, &base, layout, folder)
        })?;
        let disks = (0..layout.disks()).map(|n| folder.join(format!("disk{n}.img"))).collect();
        Ok(Self { disks })
    }

    /// Copies the disks into a folder, as `NAME.img`, `NAME1.img`, ….
    pub fn copy(&self, folder: &Path, name: &str) -> Result<Vec<PathBuf>> {
        let copy = |(n, disk): (usize, &PathBuf)| {
            let number = if n == 0 { String::new() } else { n.to_string() };
            let to = folder.join(format!("{name}{number}.img"));
            copy_image(disk, &to)?;
            Ok(to)
        };
        self.disks.iter().enumerate().map(copy).collect()
    }
}

/// The first system: a folder with `disk.img` (ext4 without partitions), `vmlinuz` and `initrd.img`.
fn base(cache: &Cache) -> Result<PathBuf> {
    let name = format!("images/debian-base-{}", digest([PACKAGES, SUITE].concat().as_bytes()));
    cache.get_or_make(&name, |folder| {
        fs::create_dir(folder)?;
        let root = DebianRoot::unpack(&folder.join("tree"), PACKAGES, SUITE)?;
        let grub = "GRUB_DEFAULT=0\nGRUB_TIMEOUT=1\nGRUB_DISTRIBUTOR=Debian\n\
                    GRUB_CMDLINE_LINUX_DEFAULT=quiet\nGRUB_CMDLINE_LINUX=console=ttyS0\n";
        fs::write(root.path().join("etc/default/grub"), grub)?;
        Disk::ext4(BASE, "base").content(root.path()).build(&folder.join("disk.img"))?;
        boot_files(root.path(), folder)
    })
}

/// Copies the kernel and the initramfs out of the tree.
fn boot_files(tree: &Path, folder: &Path) -> Result<()> {
    for (prefix, to) in [("vmlinuz-", "vmlinuz"), ("initrd.img-", "initrd.img")] {
        let found = fs::read_dir(tree.join("boot"))?
            .flatten()
            .find(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
            .ok_or_else(|| format!("the packages have no {prefix}"))?;
        fs::copy(found.path(), folder.join(to))?;
    }
    Ok(())
}

/// Boots the first system beside empty disks and lets it copy itself onto them.
fn install(vmm: &Vmm, base: &Path, layout: Layout, folder: &Path) -> Result<()> {
    let scratch = Scratch::new("install")?;
    let system = scratch.path().join("base.img");
    copy_image(&base.join("disk.img"), &system)?;
    let mut machine = Machine::new("install", &base.join("vmlinuz"), &base.join("initrd.img"))
        .cpus(2)
        .memory("1G")
        .cmdline("quiet root=/dev/vda rw")
        .disk(&system);
    for n in 0..layout.disks() {
        let disk = folder.join(format!("disk{n}.img"));
        sparse_file(&disk, TARGET)?;
        machine = machine.disk(&disk);
    }
    let mut guest = Guest::spawn(&machine, vmm)?;
    guest.log_in(BOOT)?;
    let script = [
        "set -e\nmkdir -p /target\nmodprobe -a ext4 xfs btrfs dm-mod raid1 2>/dev/null || :\n",
        &layout.prepare(),
        INSTALL,
    ]
    .concat();
    guest.check(&format!("cat >/tmp/install <<'END-OF-SCRIPT'\n{script}END-OF-SCRIPT"))?;
    let (status, said) = guest.run_for("sh /tmp/install", COPY)?;
    if status != 0 {
        return Err(format!("installing Debian on {} ended with {status}:\n{said}", layout.name()).into());
    }
    guest.type_line("poweroff")?;
    guest.wait_exit(Duration::from_mins(3)).map(drop)
}
