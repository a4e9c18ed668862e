//! What a guest writes to its disk is there, and stays there.

use std::path::PathBuf;
use std::time::Duration;

use guest_tests::artifacts::{Disk, Flavour, Initramfs, Script, run};
use guest_tests::{Guest, Lab, Machine, Result, Scratch, Vmm};
use md5::{Digest, Md5};
use rustix::process::Signal;

const BOOT: Duration = Duration::from_mins(3);
const END: Duration = Duration::from_mins(1);

/// A disk image with a file system.
fn disk(folder: &Scratch) -> Result<PathBuf> {
    let content = folder.path().join("content");
    std::fs::create_dir(&content)?;
    std::fs::write(content.join("greeting"), "hello from the host\n")?;
    let image = folder.path().join("disk.img");
    Disk::ext4(256 << 20, "data").content(&content).build(&image)?;
    Ok(image)
}

/// Checks the file system on the image and reads a file off it.
fn read_back(image: &std::path::Path, file: &str) -> Result<Vec<u8>> {
    let search = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    // A killed guest leaves a journal: replaying it (-p) is what its next boot would do.
    let mut check = std::process::Command::new("e2fsck");
    let status = check.env("PATH", &search).args(["-p", "-f"]).arg(image).output()?.status;
    assert!(matches!(status.code(), Some(0 | 1)), "e2fsck: {status}");
    let mut dump = std::process::Command::new("debugfs");
    run(dump.env("PATH", &search).args(["-R", &format!("cat {file}")]).arg(image))
}

#[test]
fn files_survive_a_remount_and_reach_the_image() -> Result<()> {
    let Some(lab) = Lab::or_skip() else { return Ok(()) };
    let folder = Scratch::new("disk")?;
    let image = disk(&folder)?;
    let mut guest = Guest::spawn(&lab.machine("disk").disk(&image), &lab.vmm)?;
    guest.wait_shell(BOOT)?;
    assert_eq!(guest.check("cat /sys/block/vda/size")?.trim(), "524288");
    guest.check("mount -t ext4 /dev/vda /mnt")?;
    assert_eq!(guest.check("cat /mnt/greeting")?, "hello from the host\n");
    guest.check("dd if=/dev/urandom of=/tmp/data bs=64k count=640 2>/dev/null")?;
    let written = guest.check("md5sum </tmp/data")?;
    guest.check("cp /tmp/data /mnt/data && sync && umount /mnt")?;
    guest.check("echo 3 >/proc/sys/vm/drop_caches; mount -t ext4 /dev/vda /mnt")?;
    assert_eq!(guest.check("md5sum </mnt/data")?, written, "read back in the guest");
    guest.check("umount /mnt")?;
    guest.type_line("poweroff -f")?;
    guest.wait_exit(END)?;
    let digest = format!("{:x}  -\n", Md5::digest(read_back(&image, "data")?));
    assert_eq!(digest, written, "read back on the host");
    Ok(())
}

#[test]
fn what_was_synced_survives_a_killed_vmm() -> Result<()> {
    let Some(lab) = Lab::or_skip() else { return Ok(()) };
    let folder = Scratch::new("durable")?;
    let image = disk(&folder)?;
    let mut guest = Guest::spawn(&lab.machine("durable").disk(&image), &lab.vmm)?;
    guest.wait_shell(BOOT)?;
    guest.check("mount -t ext4 /dev/vda /mnt && seq 1 100000 >/mnt/numbers && sync")?;
    guest.type_line("while :; do seq 1 100000 >/mnt/unsynced; done")?;
    std::thread::sleep(Duration::from_millis(300));
    guest.process().signal(Signal::KILL)?;
    guest.wait_exit(END)?;
    let numbers = String::from_utf8(read_back(&image, "numbers")?)?;
    assert!(numbers.lines().eq((1..=100_000).map(|number: u32| number.to_string())), "all are there");
    Ok(())
}

#[test]
fn a_read_only_disk_refuses_writes() -> Result<()> {
    let Some(lab) = Lab::or_skip() else { return Ok(()) };
    if !lab.is_bhyve() {
        return Ok(());
    }
    let folder = Scratch::new("ro")?;
    let image = disk(&folder)?;
    let before = std::fs::read(&image)?;
    let device = format!("-s3:0,virtio-blk,{},ro", image.display());
    let mut guest = Guest::spawn(&lab.machine("ro").argument(device), &lab.vmm)?;
    guest.wait_shell(BOOT)?;
    assert_eq!(guest.check("cat /sys/block/vda/ro")?.trim(), "1");
    assert_ne!(guest.run("dd if=/dev/zero of=/dev/vda bs=4k count=1 conv=fsync 2>/dev/null")?.0, 0);
    drop(guest);
    assert!(std::fs::read(&image)? == before, "not a byte changed");
    Ok(())
}

#[test]
fn disks_and_discs_at_an_ahci_controller() -> Result<()> {
    let Some(lab) = Lab::or_skip() else { return Ok(()) };
    let Vmm::Bhyve { .. } = &lab.vmm else { return Ok(()) };
    // The cloud kernel has no driver for it.
    let lab = Lab::with(lab.vmm, Flavour::Generic)?;
    let drivers = ["ahci", "sd_mod", "sr_mod", "isofs"];
    let initrd = Initramfs::new(&lab.kernel, Script::Shell).drivers(&drivers).build(&lab.cache)?;
    let folder = Scratch::new("ahci")?;
    let (image, disc) = (disk(&folder)?, folder.path().join("disc.iso"));
    let content = folder.path().join("iso");
    std::fs::create_dir(&content)?;
    std::fs::write(content.join("release"), "a disc\n")?;
    std::fs::write(content.join("data"), vec![0x5a; 3 << 20])?;
    let mut make = std::process::Command::new("xorriso");
    run(make.args(["-as", "mkisofs", "-quiet", "-R", "-o"]).args([&disc, &content]))?;
    let machine = Machine::new("ahci", &lab.kernel.image, &initrd)
        .cmdline("quiet")
        .argument("-s3:0,ahci,hd:".to_owned() + &format!("{},ser=S-1", image.display()))
        .argument(format!("-s4:0,ahci-cd,{}", disc.display()));
    let mut guest = Guest::spawn(&machine, &lab.vmm)?;
    guest.wait_shell(BOOT)?;
    guest.check("mount -t iso9660 /dev/sr0 /mnt")?;
    assert_eq!(guest.check("cat /mnt/release; wc -c </mnt/data")?, "a disc\n3145728\n");
    let expected = format!("{:x}  -\n", Md5::digest(vec![0x5a; 3 << 20]));
    assert_eq!(guest.check("md5sum </mnt/data")?, expected);
    assert_ne!(guest.run("touch /mnt/x 2>/dev/null")?.0, 0, "a disc is read-only");
    guest.check("umount /mnt")?;
    let queue = guest.check("cat /sys/block/sda/device/queue_depth")?;
    assert_eq!(queue.trim(), "32", "queued commands are in use");
    guest.check("mount -t ext4 -o discard /dev/sda /mnt")?;
    guest.check("dd if=/dev/urandom of=/tmp/data bs=64k count=640 2>/dev/null")?;
    let written = guest.check("md5sum </tmp/data")?;
    guest.check("cp /tmp/data /mnt/data && sync && umount /mnt")?;
    guest.check("echo 3 >/proc/sys/vm/drop_caches; mount -t ext4 -o discard /dev/sda /mnt")?;
    assert_eq!(guest.check("md5sum </mnt/data")?, written, "read back in the guest");
    guest.check("cp /tmp/data /mnt/gone && sync && rm /mnt/gone && sync && fstrim /mnt && umount /mnt")?;
    assert_eq!(guest.run("dmesg | grep -E 'ata[0-9]+.*(exception|failed|error)'")?.1, "");
    guest.type_line("poweroff -f")?;
    guest.wait_exit(END)?;
    assert_eq!(format!("{:x}  -\n", Md5::digest(read_back(&image, "data")?)), written, "read on the host");
    Ok(())
}
