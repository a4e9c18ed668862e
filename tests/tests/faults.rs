//! What goes wrong on the host or in the guest while a VM runs costs the guest an error; the VM
//! lives on.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use guest_tests::artifacts::sparse_file;
use guest_tests::{Guest, Lab, Machine, Result, Scratch, Vmm, is_root};
use rustix::process::{Pid, Resource, Rlimit, prlimit};

const BOOT: Duration = Duration::from_mins(3);
const END: Duration = Duration::from_mins(1);

/// The usual lab, where the VMM is ours.
fn lab() -> Option<Lab> {
    Lab::or_skip().filter(Lab::is_bhyve)
}

/// The VMM behind a script whose last act is to become it.
fn wrapped(lab: &Lab, folder: &Path, script: &str) -> Result<Vmm> {
    let Vmm::Bhyve { binary, engine } = &lab.vmm else { return Err("only bhyve has this".into()) };
    let path = folder.join("wrapper");
    let script = script.replace("BHYVE", &format!("{} \"$@\"", binary.display()));
    std::fs::write(&path, format!("#!/bin/sh -e\n{script}\n"))?;
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755))?;
    Ok(Vmm::Bhyve { binary: path, engine: engine.clone() })
}

/// The guest still works, and ends as it should.
fn lives_on(mut guest: Guest) -> Result<()> {
    assert_eq!(guest.check("seq 1 1000 | md5sum")?, "53d025127ae99ab79e8502aae2d9bea6  -\n");
    guest.type_line("poweroff -f")?;
    guest.expect_exit(1, END)?;
    Ok(())
}

/// Writes the disk from 32 MiB on; the guest must learn that it failed, but for what fits.
fn write_fails(guest: &mut Guest) -> Result<()> {
    guest.check("dd if=/dev/zero of=/dev/vda bs=64k count=4 conv=notrunc,fsync 2>/dev/null")?;
    let write = "dd if=/dev/urandom of=/dev/vda bs=64k seek=512 count=320 conv=notrunc,fsync";
    let (status, said) = guest.run(&format!("{write} 2>&1"))?;
    assert_ne!(status, 0, "{said}");
    assert_eq!(guest.run("dmesg | grep -qE 'I/O error, dev vda'")?.0, 0, "the kernel was told");
    Ok(())
}

#[test]
fn a_disk_cut_short_gives_errors_past_its_end() -> Result<()> {
    let Some(lab) = lab() else { return Ok(()) };
    let folder = Scratch::new("cut")?;
    let image = folder.path().join("disk.img");
    sparse_file(&image, 64 << 20)?;
    let mut guest = Guest::spawn(&lab.machine("cut").disk(&image), &lab.vmm)?;
    guest.wait_shell(BOOT)?;
    let read = |megabyte: u32| format!("dd if=/dev/vda of=/dev/null bs=4k count=1 skip={}", megabyte * 256);
    guest.check(&read(32))?;
    std::fs::OpenOptions::new().write(true).open(&image)?.set_len(1 << 20)?;
    guest.check("echo 3 >/proc/sys/vm/drop_caches")?;
    assert_ne!(guest.run(&read(32))?.0, 0);
    assert_ne!(guest.run(&read(63))?.0, 0);
    assert_eq!(guest.run("dmesg | grep -qE 'I/O error, dev vda'")?.0, 0, "the kernel was told");
    guest.check(&read(0))?;
    lives_on(guest)
}

#[test]
fn a_full_host_gives_errors() -> Result<()> {
    let Some(lab) = lab() else { return Ok(()) };
    if !is_root() {
        eprintln!("skipped: only root can mount a small file system");
        return Ok(());
    }
    let folder = Scratch::new("full")?;
    let small = folder.path().join("small");
    std::fs::create_dir(&small)?;
    // A namespace of its own, so that the mount goes when the VM does.
    let vmm = wrapped(
        &lab,
        folder.path(),
        &format!(
            "exec unshare -m sh -ec 'mount -t tmpfs -o size=8m small {0}; truncate -s 64M {0}/disk.img; \
             exec BHYVE' sh \"$@\"",
            small.display()
        ),
    )?;
    let mut guest = Guest::spawn(&lab.machine("full").disk(&small.join("disk.img")), &vmm)?;
    guest.wait_shell(BOOT)?;
    write_fails(&mut guest)?;
    lives_on(guest)
}

#[test]
fn a_limit_on_file_sizes_gives_errors() -> Result<()> {
    let Some(lab) = lab() else { return Ok(()) };
    let folder = Scratch::new("limit")?;
    let image = folder.path().join("disk.img");
    sparse_file(&image, 64 << 20)?;
    let mut guest = Guest::spawn(&lab.machine("limit").disk(&image), &lab.vmm)?;
    guest.wait_shell(BOOT)?;
    // Not from the start: the limit is for the software engine's code cache as well.
    let limit = Rlimit { current: Some(8 << 20), maximum: Some(8 << 20) };
    let pid = i32::try_from(guest.process().id())?;
    prlimit(Pid::from_raw(pid), Resource::Fsize, limit)?;
    write_fails(&mut guest)?;
    lives_on(guest)
}

/// Copies a file to where anyone can read it.
fn publish(file: &Path, folder: &Path, name: &str) -> Result<PathBuf> {
    let copy = folder.join(name);
    std::fs::copy(file, &copy)?;
    std::fs::set_permissions(&copy, PermissionsExt::from_mode(0o755))?;
    Ok(copy)
}

#[test]
fn a_user_without_privileges_runs_a_guest() -> Result<()> {
    let Some(mut lab) = lab() else { return Ok(()) };
    let folder = Scratch::new("user")?;
    std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755))?;
    let kernel = publish(&lab.kernel.image, folder.path(), "kernel")?;
    let initrd = publish(&lab.initrd, folder.path(), "initrd")?;
    let image = folder.path().join("disk.img");
    sparse_file(&image, 16 << 20)?;
    let vms = folder.path().join("vms");
    std::fs::create_dir(&vms)?;
    let Vmm::Bhyve { binary, .. } = &lab.vmm else { return Ok(()) };
    let binary = publish(binary, folder.path(), "bhyve")?;
    lab.vmm = Vmm::Bhyve { binary, engine: "auto".into() };
    if is_root() {
        for path in [&image, &vms] {
            std::os::unix::fs::chown(path, Some(65534), Some(65534))?;
        }
        let drop = "--reuid=65534 --regid=65534 --clear-groups --no-new-privs --pdeathsig KILL";
        lab.vmm = wrapped(&lab, folder.path(), &format!("exec setpriv {drop} BHYVE"))?;
    }
    let machine = Machine::new("user", &kernel, &initrd).cmdline("quiet").disk(&image);
    let mut guest = Guest::spawn_in(&machine, &lab.vmm, &vms.join("vmm"))?;
    guest.wait_shell(BOOT)?;
    let complaints = guest.complaints();
    assert!(complaints.starts_with("bhyve: engine: "), "{complaints}");
    guest.check("echo mine | dd of=/dev/vda bs=512 count=1 conv=sync,fsync 2>/dev/null")?;
    lives_on(guest)?;
    assert!(std::fs::read(&image)?.starts_with(b"mine\n"));
    Ok(())
}

#[test]
fn a_hostile_queue_stops_the_device_alone() -> Result<()> {
    let Some(lab) = lab() else { return Ok(()) };
    let mut guest = Guest::spawn(&lab.machine("hostile"), &lab.vmm)?;
    guest.wait_shell(BOOT)?;
    // The legacy registers (VIRTIO 1.2, 4.1.4.10) of virtio-rnd, whose queue is put where no RAM is.
    guest.check("cd /sys/bus/pci/devices/0000:00:02.0 && echo 0000:00:02.0 >driver/unbind")?;
    guest.check("echo 1 >enable")?;
    guest.check("put() { printf \"$3\" | dd of=$4 bs=$1 seek=$2 count=1 conv=notrunc 2>/dev/null; }")?;
    guest
        .check("status() { dd if=resource0 bs=1 skip=18 count=1 2>/dev/null | hexdump -e '1/1 \"%d\"'; }")?;
    // Memory, ports and bus mastering on.
    guest.check("put 2 2 '\\007\\000' config")?;
    guest.check("put 1 18 '\\003' resource0; put 2 7 '\\000\\000' resource0")?;
    guest.check("put 4 2 '\\377\\377\\017\\000' resource0; put 1 18 '\\007' resource0")?;
    guest.check("put 2 8 '\\000\\000' resource0; sleep 1")?;
    assert_eq!(guest.check("status")?, "71", "NEEDS_RESET beside what the driver set");
    // After a reset it is as good as new.
    guest.check("put 1 18 '\\000' resource0")?;
    assert_eq!(guest.check("status")?, "0");
    guest.check("cd /; echo 0000:00:02.0 >/sys/bus/pci/drivers/virtio-pci/bind; sleep 1")?;
    guest.check("dd if=/dev/hwrng of=/dev/null bs=64 count=1 2>/dev/null")?;
    lives_on(guest)
}

#[test]
fn a_terminal_is_given_back_when_a_later_part_fails() -> Result<()> {
    let Some(lab) = lab() else { return Ok(()) };
    // The first serial port has made the terminal raw when the second one is refused.
    let machine = lab.machine("later").argument("-lcom2,/dev/no-such-terminal");
    let (mut guest, terminal) = Guest::spawn_on_terminal(&machine, &lab.vmm)?;
    guest.expect_exit(4, END)?;
    assert!(guest.complaints().contains("/dev/no-such-terminal"), "{}", guest.complaints());
    let after = rustix::termios::tcgetattr(&terminal)?;
    let modes = rustix::termios::LocalModes::ICANON | rustix::termios::LocalModes::ECHO;
    assert!(after.local_modes.contains(modes), "as a shell wants it");
    Ok(())
}
