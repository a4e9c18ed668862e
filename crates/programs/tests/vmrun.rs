//! The example script, with programs that only note how they were called.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("vmrun-{name}-{}", std::process::id()));
        fs::create_dir_all(path.join("bin")).unwrap();
        let folder = Self(path);
        for program in ["bhyve", "bhyveload", "bhyvectl"] {
            // Each call takes its exit status off the program's list; an empty list means 1.
            let script = format!(
                "#!/bin/sh\necho \"{program} $*\" >>log\n\
                 s=$(head -n1 {program}.status 2>/dev/null); sed -i 1d {program}.status 2>/dev/null\n\
                 exit ${{s:-1}}\n"
            );
            let path = folder.0.join("bin").join(program);
            fs::write(&path, script).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        folder
    }

    fn statuses(&self, program: &str, list: &[u8]) {
        let words: Vec<String> = list.iter().map(u8::to_string).collect();
        let text = if words.is_empty() { String::new() } else { words.join("\n") + "\n" };
        fs::write(self.0.join(format!("{program}.status")), text).unwrap();
    }

    /// A disk with a boot sector, or an empty one.
    fn disk(&self, name: &str, bootable: bool) {
        let mut image = vec![0; 4096];
        if bootable {
            image[510..512].copy_from_slice(&[0x55, 0xaa]);
            // A partition, without which file(1) sees no boot sector.
            image[446..462].copy_from_slice(&[0x80, 0, 2, 0, 0x83, 0, 8, 0, 1, 0, 0, 0, 7, 0, 0, 0]);
        }
        fs::write(self.0.join(name), image).unwrap();
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/vmrun.sh");
        let path = format!("{}:{}", self.0.join("bin").display(), std::env::var("PATH").unwrap());
        Command::new("sh")
            .arg(script)
            .args(arguments)
            .current_dir(&self.0)
            .env("PATH", path)
            .output()
            .unwrap()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.0.join("log")).unwrap_or_default()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn the_handbooks_installation_loops_until_the_loader_says_reboot() {
    let folder = Folder::new("install");
    fs::write(folder.0.join("release.iso"), "iso").unwrap();
    folder.disk("guest.img", true);
    folder.statuses("bhyveload", &[0, 0, 1]);
    folder.statuses("bhyve", &[0, 0]);
    let output = folder.run(&[
        "-c",
        "1",
        "-m",
        "1024M",
        "-t",
        "tap0",
        "-d",
        "guest.img",
        "-i",
        "-I",
        "release.iso",
        "guestname",
    ]);
    assert_eq!(output.status.code(), Some(1));
    let load = "bhyveload -m 1024M -d release.iso -d guest.img guestname\n";
    let run = "bhyve -c 1 -m 1024M -H -A -P -s 0:0,hostbridge -s 1:0,lpc -s 2:0,virtio-net,tap0 \
               -s 3:0,virtio-blk,guest.img -l com1,stdio -s 31:0,ahci-cd,release.iso guestname\n";
    let destroy = "bhyvectl --vm=guestname --destroy\n";
    assert_eq!(folder.log(), [destroy, load, run, load, run, load, destroy].concat());
}

#[test]
fn a_bootable_disk_is_booted_and_the_status_is_bhyves() {
    for (status, kept) in [(1, false), (2, false), (3, true), (4, true)] {
        let folder = Folder::new(&format!("disk{status}"));
        folder.disk("my disk", true);
        folder.statuses("bhyveload", &[0]);
        folder.statuses("bhyve", &[status]);
        let output =
            folder.run(&["-c", "4", "-A", "-d", "my disk,ro", "-C", "/dev/nmdm0A", "-e", "a=b c", "vm"]);
        assert_eq!(output.status.code(), Some(status.into()));
        let log = folder.log();
        assert!(log.contains("bhyveload -c /dev/nmdm0A -m 512M -d my disk -e a=b c vm\n"), "{log}");
        assert!(log.contains("-s 3:0,ahci-hd,my disk,ro -l com1,/dev/nmdm0A vm\n"), "{log}");
        assert_eq!(log.matches("--destroy").count(), if kept { 1 } else { 2 }, "{log}");
    }
}

#[test]
fn an_empty_disk_means_installation_and_a_missing_one_is_made() {
    let folder = Folder::new("empty");
    let output = folder.run(&["-d", "new.img", "vm"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("./release.iso: no installation image"));
    fs::write(folder.0.join("release.iso"), "iso").unwrap();
    folder.statuses("bhyveload", &[0]);
    folder.statuses("bhyve", &[1]);
    folder.run(&["-d", "new.img", "vm"]);
    assert_eq!(fs::metadata(folder.0.join("new.img")).unwrap().len(), 8 << 30);
    assert!(folder.log().contains("bhyveload -m 512M -d ./release.iso vm\n"), "no disk to be read yet");
}

#[test]
fn firmware_needs_no_loader() {
    let folder = Folder::new("efi");
    folder.disk("d", true);
    fs::write(folder.0.join("fw.fd"), "rom").unwrap();
    folder.statuses("bhyve", &[0, 1]);
    let output = folder.run(&["-E", "-f", "fw.fd", "-d", "d", "-P", "5901", "-v", "-T", "-u", "-w", "vm"]);
    assert_eq!(output.status.code(), Some(1));
    let log = folder.log();
    assert!(!log.contains("bhyveload"), "{log}");
    assert!(log.contains("-s 29:0,fbuf,tcp=127.0.0.1:5901,w=1024,h=768,wait -l bootrom,fw.fd"), "{log}");
    assert!(log.contains("-u -w") && log.contains("-s 30:0,xhci,tablet"), "{log}");
    assert_eq!(log.matches("\nbhyve -c").count(), 2);
}

#[test]
fn a_bad_command_line_runs_nothing() {
    let folder = Folder::new("usage");
    for arguments in [&[][..], &["-x", "vm"], &["a", "b"], &["-h"]] {
        let output = folder.run(arguments);
        assert_eq!(output.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&output.stderr).contains("usage: vmrun.sh"));
    }
    assert_eq!(folder.log(), "");
}
