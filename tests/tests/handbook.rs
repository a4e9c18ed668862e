//! The handbook's chapter on bhyve, section by section, typed at a shell as it is written there.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use guest_tests::artifacts::{Debian, Layout, PASSPHRASE, run};
use guest_tests::{Lab, Namespace, Result, Shell, is_root};

const BOOT: Duration = Duration::from_mins(5);
const END: Duration = Duration::from_mins(2);
const PROMPT: Duration = Duration::from_secs(20);

/// What a section needs: root, for the tap and the making of images.
fn lab() -> Option<(Lab, Namespace)> {
    if !is_root() {
        eprintln!("skipped: only root can make taps and Debian images");
        return None;
    }
    let lab = Lab::or_skip()?;
    if !lab.is_bhyve() {
        return None;
    }
    Some((lab, Namespace::new().unwrap()))
}

/// Puts the disks of a Debian system into the shell's folder as `linux.img` and so on.
fn debian(lab: &Lab, shell: &Shell, layout: Layout) -> Result<()> {
    Debian::fetch(&lab.cache, &lab.vmm, layout)?.copy(&shell.folder(), "linux").map(drop)
}

fn write(shell: &Shell, name: &str, text: &str) {
    std::fs::write(shell.folder().join(name), text).unwrap();
}

/// Types a line at GRUB's prompt; the answer is what it said before it asked again.
fn grub(shell: &mut Shell, line: &str) -> Result<String> {
    shell.type_line(line)?;
    let said = shell.expect("grub> ", PROMPT)?;
    // Without the line that was typed.
    Ok(said.split_once('\n').map_or(String::new(), |(_, rest)| rest.to_owned()))
}

/// Logs in, and says what the guest's root file system is.
fn log_in(shell: &mut Shell) -> Result<String> {
    shell.expect("login: ", BOOT)?;
    shell.type_line("root")?;
    shell.expect("# ", BOOT)?;
    // A shell without line editing. The quotes keep the echo from being taken for the prompt.
    shell.type_line("exec env TERM=dumb PS1='gue''st> ' sh")?;
    shell.expect("guest> ", END)?;
    guest(shell, "findmnt -no SOURCE /")
}

/// Runs a command in the guest; what it said.
fn guest(shell: &mut Shell, command: &str) -> Result<String> {
    shell.type_line(command)?;
    let said = shell.expect("guest> ", END)?;
    Ok(said.split_once('\n').map_or(String::new(), |(_, rest)| rest.trim().to_owned()))
}

/// Reboots the guest, which ends bhyve with status 0.
fn reboot(shell: &mut Shell) -> Result<()> {
    shell.type_line("reboot")?;
    let (status, said) = shell.finish(END)?;
    assert_eq!(status, 0, "{said}");
    Ok(())
}

fn destroy(shell: &mut Shell, name: &str) -> Result<()> {
    shell.check(&format!("bhyvectl --destroy --vm={name}"))?;
    assert_eq!(std::fs::read_dir(shell.vms())?.count(), 0, "no VM is left");
    Ok(())
}

/// The files of a release in /boot, as a person sees them in `ls`.
fn boot_file<'a>(listing: &'a str, prefix: &str) -> &'a str {
    listing
        .split_whitespace()
        .find(|word| word.starts_with(prefix))
        .unwrap_or_else(|| panic!("{prefix}: {listing}"))
}

const RUN: &str = "bhyve -A -H -P -s 0:0,hostbridge -s 1:0,lpc -s 2:0,virtio-net,tap0 \\\n\
                   -s 3:0,virtio-blk,./linux.img -l com1,stdio -c 4 -m 1024M linuxguest";

/// 23.6.1.
#[test]
fn preparing_the_host() -> Result<()> {
    let Some((_, namespace)) = lab() else { return Ok(()) };
    namespace.run("ip", &["link", "add", "igb0", "type", "veth", "peer", "name", "far0"])?;
    let mut shell = Shell::new("prepare", Some(&namespace))?;
    assert!(shell.check("bhyve-host check")?.contains("engine: "));
    shell.check("bhyve-host tap tap1")?;
    shell.check("bhyve-host bridge bridge0 igb0 tap1")?;
    let state = namespace.run("ip", &["-o", "link", "show", "master", "bridge0"])?;
    assert!(state.contains("igb0") && state.contains("tap1") && state.matches(",UP").count() == 2, "{state}");
    // Once more changes nothing; an address is not taken away from an interface by accident.
    shell.check("bhyve-host tap tap1 && bhyve-host bridge bridge0 igb0 tap1")?;
    namespace.run("ip", &["link", "add", "em0", "type", "veth", "peer", "name", "far1"])?;
    namespace.run("ip", &["addr", "add", "192.0.2.5/24", "dev", "em0"])?;
    namespace.run("ip", &["link", "set", "em0", "up"])?;
    namespace.run("ip", &["route", "add", "default", "via", "192.0.2.1"])?;
    let (status, said) = shell.run("bhyve-host bridge bridge0 em0")?;
    assert!(status == 1 && said.contains("em0 has the address 192.0.2.5/24"), "{said}");
    shell.check("bhyve-host bridge --move-address bridge0 em0")?;
    let routes = namespace.run("ip", &["route"])?;
    assert!(routes.contains("default via 192.0.2.1 dev bridge0"), "{routes}");
    shell.check("bhyve-host bridge --destroy bridge0 && bhyve-host tap --destroy tap1")?;
    let (status, said) = shell.run("bhyve-host bridge bridge1 igb7")?;
    assert!(status == 1 && said.contains("igb7: no such interface"), "{said}");
    Ok(())
}

/// An installation disc as distributions make them: Debian's installer under isolinux, bootable as
/// a disk too.
fn installer(lab: &Lab, iso: &Path) -> Result<()> {
    let files = lab.cache.package("debian-installer-12-netboot-amd64")?;
    let files = files.join("usr/lib/debian-installer/images/12/amd64/text/debian-installer/amd64");
    let isolinux = lab.cache.package("isolinux")?.join("usr/lib/ISOLINUX");
    let tree = iso.with_extension("tree");
    let folder = tree.join("isolinux");
    std::fs::create_dir_all(&folder)?;
    std::fs::copy(files.join("linux"), folder.join("vmlinuz"))?;
    std::fs::copy(files.join("initrd.gz"), folder.join("initrd.img"))?;
    std::fs::copy(isolinux.join("isolinux.bin"), folder.join("isolinux.bin"))?;
    std::fs::write(folder.join("isolinux.cfg"), "default vmlinuz initrd=initrd.img\n")?;
    let mut make = Command::new("xorriso");
    make.args(["-as", "mkisofs", "-quiet", "-R", "-J", "-V", "somelinux"]);
    make.args(["-b", "isolinux/isolinux.bin", "-c", "isolinux/boot.cat", "-no-emul-boot"]);
    make.args(["-boot-load-size", "4", "-boot-info-table", "-isohybrid-mbr"])
        .arg(isolinux.join("isohdpfx.bin"));
    run(make.arg("-o").arg(iso).arg(&tree))?;
    Ok(std::fs::remove_dir_all(&tree)?)
}

/// 23.6.3, the first half: an installer from its disc, kernel and initrd typed.
#[test]
fn a_linux_guest_from_its_installation_disc() -> Result<()> {
    let Some((lab, namespace)) = lab() else { return Ok(()) };
    let mut shell = Shell::new("disc", Some(&namespace))?;
    installer(&lab, &shell.folder().join("somelinux.iso"))?;
    shell.check("truncate -s 16G linux.img")?;
    write(&shell, "device.map", "(hd0) ./linux.img\n(cd0) ./somelinux.iso\n");
    shell.type_line("grub-bhyve -m device.map -r cd0 -M 1024M linuxguest")?;
    shell.expect("grub> ", PROMPT)?;
    let devices = grub(&mut shell, "ls")?;
    let words: Vec<&str> = devices.split_whitespace().collect();
    assert_eq!(words, ["(hd0)", "(cd0)", "(cd0,msdos1)", "(host)"], "{devices}");
    let listing = grub(&mut shell, "ls (cd0)/isolinux")?;
    let words: Vec<&str> = listing.split_whitespace().collect();
    assert_eq!(words, ["boot.cat", "initrd.img", "isolinux.bin", "isolinux.cfg", "vmlinuz"], "{listing}");
    grub(&mut shell, "linux (cd0)/isolinux/vmlinuz")?;
    grub(&mut shell, "initrd (cd0)/isolinux/initrd.img")?;
    shell.type_line("boot")?;
    assert_eq!(shell.finish(PROMPT)?.0, 0);
    shell.type_line(
        "bhyve -A -H -P -s 0:0,hostbridge -s 1:0,lpc -s 2:0,virtio-net,tap0 -s 3:0,virtio-blk,./linux.img \\\n\
         -s 4:0,ahci-cd,./somelinux.iso -l com1,stdio -c 4 -m 1024M linuxguest",
    )?;
    shell.expect("Select a language", BOOT)?;
    shell.expect("<Go Back>", END)?;
    // Back to the installer's menu, and from its last entries to a shell.
    shell.console().send("\t\r")?;
    shell.expect("Choose the next step", END)?;
    shell.expect("Configure the keyboard", END)?;
    // A shell is the last entry but one; there is no key for the end on this terminal.
    shell.console().send(&("\x1b[B".repeat(30) + "\x1b[A"))?;
    shell.expect("Execute a shell", END)?;
    std::thread::sleep(Duration::from_secs(1));
    shell.console().send("\r")?;
    shell.expect("<Continue>", END)?;
    shell.console().send("\r")?;
    shell.expect("~ # ", END)?;
    shell.type_line("nproc; cat /proc/cmdline; reboot -f")?;
    let (status, said) = shell.finish(END)?;
    assert_eq!(status, 0, "{said}");
    assert!(said.contains("console=ttyS0"), "{said}");
    destroy(&mut shell, "linuxguest")
}

/// 23.6.3, the second half: from the disk, kernel and initrd typed.
#[test]
fn a_linux_guest_from_lvm_by_hand() -> Result<()> {
    let Some((lab, namespace)) = lab() else { return Ok(()) };
    let mut shell = Shell::new("lvm", Some(&namespace))?;
    debian(&lab, &shell, Layout::Lvm)?;
    run(Command::new("xorriso")
        .args(["-as", "mkisofs", "-quiet", "-R", "-o"])
        .args([shell.folder().join("somelinux.iso"), Path::new(env!("CARGO_MANIFEST_DIR")).join("src")]))?;
    write(&shell, "device.map", "(hd0) ./linux.img\n(cd0) ./somelinux.iso\n");
    shell.type_line("grub-bhyve -m device.map -r hd0,msdos1 -M 1024M linuxguest")?;
    shell.expect("grub> ", PROMPT)?;
    let devices = grub(&mut shell, "ls")?;
    let words: Vec<&str> = devices.split_whitespace().collect();
    let expected = [
        "(hd0)",
        "(hd0,msdos2)",
        "(hd0,msdos1)",
        "(cd0)",
        "(host)",
        "(lvm/VolGroup-lv_root)",
        "(lvm/VolGroup-lv_swap)",
    ];
    assert_eq!(words, expected, "{devices}");
    let listing = grub(&mut shell, "ls (hd0,msdos1)/")?;
    let (kernel, initrd) = (boot_file(&listing, "vmlinuz-"), boot_file(&listing, "initrd.img-"));
    grub(&mut shell, &format!("linux (hd0,msdos1)/{kernel} root=/dev/mapper/VolGroup-lv_root"))?;
    grub(&mut shell, &format!("initrd (hd0,msdos1)/{initrd}"))?;
    shell.type_line("boot")?;
    assert_eq!(shell.finish(PROMPT)?.0, 0);
    // 23.6.8.
    let listing = shell.check("ls -al $VMM_DIR")?;
    let line = listing.lines().find(|line| line.ends_with(" linuxguest")).unwrap_or_default();
    assert!(line.starts_with("-rw-------"), "{listing}");
    shell.type_line(RUN)?;
    assert_eq!(log_in(&mut shell)?, "/dev/mapper/VolGroup-lv_root");
    assert_eq!(guest(&mut shell, "nproc")?, "4");
    let driver = "readlink /sys/class/net/[!l]*/device/driver";
    assert!(guest(&mut shell, driver)?.ends_with("virtio_net"));
    reboot(&mut shell)?;
    destroy(&mut shell, "linuxguest")
}

/// Boots a layout by the `grub.cfg` on its disk.
fn by_its_own_grub_cfg(layout: Layout, options: &str, before: &[(&str, &str)], root: &str) -> Result<()> {
    let Some((lab, namespace)) = lab() else { return Ok(()) };
    let mut shell = Shell::new(layout.name(), Some(&namespace))?;
    debian(&lab, &shell, layout)?;
    let second = if layout == Layout::Raid1 { "(hd1) ./linux1.img\n" } else { "" };
    write(&shell, "device.map", &format!("(hd0) ./linux.img\n{second}"));
    shell.type_line(&format!("grub-bhyve -m device.map {options} -M 1024M linuxguest"))?;
    for (pattern, line) in before {
        shell.expect(pattern, PROMPT)?;
        shell.type_line(line)?;
    }
    // The menu's own timeout boots.
    let (status, said) = shell.finish(END)?;
    assert_eq!(status, 0, "{said}");
    let more = if layout == Layout::Raid1 { " -s 5:0,virtio-blk,./linux1.img" } else { "" };
    shell.type_line(&RUN.replace(" -l com1", &format!("{more} -l com1")))?;
    if layout == Layout::Luks {
        shell.expect("unlock disk", BOOT)?;
        shell.type_line(PASSPHRASE)?;
    }
    let found = log_in(&mut shell)?;
    assert!(found.contains(root), "{found}");
    reboot(&mut shell)?;
    destroy(&mut shell, "linuxguest")
}

#[test]
fn debians_grub_cfg_on_ext4_and_gpt() -> Result<()> {
    by_its_own_grub_cfg(Layout::Ext4, "-r hd0,gpt2", &[], "/dev/vda2")
}

#[test]
fn debians_grub_cfg_with_lvm() -> Result<()> {
    by_its_own_grub_cfg(Layout::Lvm, "-r hd0,msdos1 -d /grub", &[], "VolGroup-lv_root")
}

#[test]
fn debians_grub_cfg_on_xfs() -> Result<()> {
    by_its_own_grub_cfg(Layout::Xfs, "-r hd0,msdos1", &[], "/dev/vda1")
}

#[test]
fn debians_grub_cfg_on_btrfs() -> Result<()> {
    by_its_own_grub_cfg(Layout::Btrfs, "-r hd0,msdos1 -d /@rootfs/boot/grub", &[], "/dev/vda1[/@rootfs]")
}

#[test]
fn debians_grub_cfg_on_raid() -> Result<()> {
    let typed =
        [("grub> ", "ls"), ("grub> ", "set root=md/0"), ("grub> ", "configfile (md/0)/boot/grub/grub.cfg")];
    by_its_own_grub_cfg(Layout::Raid1, "-r hd0", &typed, "/dev/md")
}

#[test]
fn debians_grub_cfg_in_luks() -> Result<()> {
    let typed = [
        ("grub> ", "cryptomount hd0,msdos1"),
        ("assphrase", PASSPHRASE),
        ("grub> ", "set root=crypto0"),
        ("grub> ", "configfile (crypto0)/boot/grub/grub.cfg"),
    ];
    by_its_own_grub_cfg(Layout::Luks, "-r hd0,msdos1", &typed, "/dev/mapper/root_crypt")
}

/// 23.6.6, with a loop device in the place of the ZFS volume.
#[test]
fn a_block_device_as_disk() -> Result<()> {
    let Some((lab, namespace)) = lab() else { return Ok(()) };
    let mut shell = Shell::new("zvol", Some(&namespace))?;
    debian(&lab, &shell, Layout::Ext4)?;
    let device = shell.check("losetup --find --show linux.img")?;
    let device = device.lines().find(|line| line.starts_with("/dev/loop")).unwrap().trim().to_owned();
    let result = block_device(&mut shell, &device);
    shell.check(&format!("losetup -d {device}"))?;
    result
}

fn block_device(shell: &mut Shell, device: &str) -> Result<()> {
    write(shell, "device.map", &format!("(hd0) {device}\n"));
    shell.type_line("grub-bhyve -m device.map -r hd0,gpt2 -M 1024M linuxguest")?;
    assert_eq!(shell.finish(END)?.0, 0);
    shell.type_line(&format!(
        "bhyve -A -H -P -s 0:0,hostbridge -s 1:0,lpc -s 2:0,virtio-net,tap0 -s3:0,virtio-blk,{device} \\\n\
         -l com1,stdio -c 4 -m 1024M linuxguest"
    ))?;
    assert_eq!(log_in(shell)?, "/dev/vda2");
    reboot(shell)?;
    destroy(shell, "linuxguest")
}

/// 23.6.7, `cu` on a null modem.
#[test]
fn a_console_on_a_null_modem() -> Result<()> {
    let Some((lab, namespace)) = lab() else { return Ok(()) };
    let mut shell = Shell::new("nmdm", Some(&namespace))?;
    debian(&lab, &shell, Layout::Ext4)?;
    write(&shell, "device.map", "(hd0) ./linux.img\n");
    shell.type_line("grub-bhyve -m device.map -r hd0,gpt2 -M 1024M linuxguest")?;
    assert_eq!(shell.finish(END)?.0, 0);
    let folder = shell.folder();
    let background = RUN.replace("com1,stdio", &format!("com1,{}/nmdm0A", folder.display()));
    shell.type_line(&format!("({background}; echo bhyve=$? >ended) 2>log &"))?;
    shell.check(&format!("until [ -e {0}/nmdm0B ]; do sleep 0.1; done", folder.display()))?;
    shell.type_line(&format!("cu -l {}/nmdm0B", folder.display()))?;
    shell.expect("Connected", PROMPT)?;
    log_in(&mut shell)?;
    shell.type_line("reboot")?;
    // The line's end: `cu` is told to let go.
    shell.expect("Restarting system", END)?;
    shell.console().send("\r~.\r")?;
    shell.expect("Disconnected", END)?;
    // Whatever was on the line when it was cut is no command.
    std::thread::sleep(Duration::from_millis(300));
    shell.console().send("\x15\n")?;
    shell.finish(END)?;
    shell.check("until [ -e ended ]; do sleep 0.1; done; grep -q bhyve=0 ended")?;
    shell.check(&format!("until [ ! -e {}/nmdm0A ]; do sleep 0.1; done", folder.display()))?;
    destroy(&mut shell, "linuxguest")
}

/// 23.6.7, `tmux` around the console.
#[test]
fn a_console_in_tmux() -> Result<()> {
    let Some((lab, namespace)) = lab() else { return Ok(()) };
    let mut shell = Shell::new("tmux", Some(&namespace))?;
    debian(&lab, &shell, Layout::Ext4)?;
    write(&shell, "device.map", "(hd0) ./linux.img\n");
    shell.type_line("grub-bhyve -m device.map -r hd0,gpt2 -M 1024M linuxguest")?;
    assert_eq!(shell.finish(END)?.0, 0);
    write(&shell, "run.sh", &format!("{RUN}\necho bhyve=$? >ended\n"));
    shell.check("tmux -S ./socket -f /dev/null new-session -d 'sh run.sh'")?;
    let pane = "tmux -S ./socket capture-pane -p";
    shell.type_line(&format!("until {pane} | grep 'login:'; do sleep 0.5; done"))?;
    assert_eq!(shell.finish(BOOT)?.0, 0);
    shell.check("tmux -S ./socket send-keys root Enter")?;
    shell.type_line(&format!("until {pane} | grep '# *$'; do sleep 0.5; done"))?;
    assert_eq!(shell.finish(END)?.0, 0);
    shell.check("tmux -S ./socket send-keys 'poweroff' Enter")?;
    shell.type_line("until [ -e ended ]; do sleep 0.2; done; grep -q bhyve=1 ended")?;
    assert_eq!(shell.finish(END)?.0, 0);
    destroy(&mut shell, "linuxguest")
}

/// 23.6.9.
#[test]
fn what_happens_at_boot() -> Result<()> {
    let mut shell = Shell::new("persist", None)?;
    write(&shell, "sysctl.conf", "net.link.tap.up_on_open=1\n");
    let rc = "cloned_interfaces=\"bridge0 tap0\"\nifconfig_bridge0=\"addm igb0 addm tap0\"\nkld_list=\"nmdm vmm\"\n";
    write(&shell, "rc.conf", rc);
    let shown = shell.check("bhyve-host persist -n --root ./r -f sysctl.conf -f rc.conf --vm guest")?;
    assert!(shown.contains("50-bridge0.netdev") && !shell.folder().join("r").exists(), "{shown}");
    shell.check("bhyve-host persist --root ./r --bindir /usr/bin -f sysctl.conf -f rc.conf --vm guest")?;
    let unit = shell.folder().join("r/etc/systemd/system/bhyve@.service");
    assert!(std::fs::read_to_string(unit)?.contains("RestartForceExitStatus=0"));
    let link = shell.folder().join("r/etc/systemd/system/multi-user.target.wants/bhyve@guest.service");
    assert_eq!(std::fs::read_link(link)?, Path::new("/etc/systemd/system/bhyve@.service"));
    shell.check("bhyve-host persist --root ./r --bindir /usr/bin -f sysctl.conf -f rc.conf --vm guest")?;
    Ok(())
}
