//! What `bhyve` says to bad input, and with which status it ends. Nothing here runs a guest.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A folder of its own for each test, removed with everything in it.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("bhyve-cli-{}-{name}", std::process::id()));
        std::fs::create_dir_all(path.join("vmm")).unwrap();
        Self(path)
    }

    fn file(&self, name: &str, content: &[u8]) -> String {
        let path = self.0.join(name);
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// Runs bhyve in the folder; VMs would appear in its `vmm`.
    fn bhyve(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_bhyve"))
            .args(arguments)
            .current_dir(&self.0)
            .env("VMM_DIR", self.0.join("vmm"))
            .output()
            .unwrap()
    }

    /// Runs bhyve, which must refuse with this status and say this, and leave no VM behind.
    fn refuses(&self, arguments: &[&str], status: i32, message: &str) {
        let output = self.bhyve(arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{arguments:?}: {said}");
        assert!(said.starts_with("bhyve: ") && said.contains(message), "{arguments:?}: {said}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
        assert!(is_empty(&self.0.join("vmm")), "{arguments:?} left something behind");
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn is_empty(folder: &Path) -> bool {
    std::fs::read_dir(folder).unwrap().next().is_none()
}

#[test]
fn help() {
    let folder = Folder::new("help");
    let output = folder.bhyve(&["-h"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("Usage: bhyve "));
    let output = folder.bhyve(&["-l", "help"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&output.stdout).lines().any(|line| line == "com1"));
    let output = folder.bhyve(&["-s", "help"]);
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn unreadable_command_lines() {
    let folder = Folder::new("usage");
    folder.refuses(&[], 1, "the VM name is missing");
    folder.refuses(&["-AHP", "-m", "1G"], 1, "the VM name is missing");
    folder.refuses(&["-Z", "vm"], 1, "-Z: unknown option");
    folder.refuses(&["vm", "extra"], 1, "extra: unexpected");
    folder.refuses(&["-m"], 1, "-m: its argument is missing");
    let output = folder.bhyve(&[]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("Usage: bhyve "));
}

#[test]
fn bad_arguments_of_options() {
    let folder = Folder::new("arguments");
    folder.refuses(&["-c", "0", "vm"], 4, "-c 0: cpus=0: expected an integer");
    folder.refuses(&["-c", "2,cores=2,threads=2", "-o", "sockets=1", "vm"], 4, "makes 4 virtual CPUs, not 2");
    folder.refuses(&["-c", "cpu=2", "vm"], 64, "-c cpu=2: \"cpu\" is none of");
    folder.refuses(&["-m", "0", "vm"], 64, "-m 0: memory size");
    folder.refuses(&["-m", "lots", "vm"], 64, "-m lots: memory size");
    folder.refuses(&["-l", "com7,stdio", "vm"], 64, "unknown LPC device \"com7\"");
    folder.refuses(&["-o", "cpus", "vm"], 64, "expected key=value");
    folder.refuses(&["-p", "0", "vm"], 64, "expected vcpu:hostcpu");
    folder.refuses(&["-U", "me", "vm"], 4, "expected a UUID");
    folder.refuses(&["a/b"], 4, "can't be the name of a file");
    folder.refuses(&[&"x".repeat(33)], 4, "longer than 32 characters");
    folder.refuses(&[""], 4, "empty");
}

#[test]
fn bad_slots_and_devices() {
    let folder = Folder::new("slots");
    folder.refuses(
        &["-s", "32,virtio-rnd", "vm"],
        4,
        "-s 32,virtio-rnd: slot 32 is not in the range 0 to 31",
    );
    folder.refuses(&["-s", "x:0,virtio-rnd", "vm"], 4, "invalid slot");
    folder.refuses(&["-s", "3:0", "vm"], 4, "expected slot,device");
    folder.refuses(
        &["-s", "3:0,hostbridge", "-s", "3,lpc", "vm"],
        4,
        "-s 3,lpc: slot 0:3:0 is already occupied by -s 3:0,hostbridge",
    );
    folder.refuses(
        &["-s", "3:0,no-such-device", "vm"],
        4,
        "-s 3:0,no-such-device: unknown device no-such-device",
    );
}

#[test]
fn unknown_keys_name_the_nearest_one() {
    let folder = Folder::new("keys");
    folder.refuses(&["-o", "memory.sise=1G", "vm"], 4, "unknown key memory.sise (did you mean memory.size?)");
    folder.refuses(&["-o", "kernel.cmdlin=x", "vm"], 4, "(did you mean kernel.cmdline?)");
    folder.refuses(&["-o", "engine=kvmm", "vm"], 4, "expected one of auto, kvm, soft");
    folder.refuses(&["-o", "kernel.path=/%(nam)", "vm"], 4, "%(nam): no such key is set");
}

#[test]
fn options_that_are_not_there_yet() {
    let folder = Folder::new("absent");
    folder.refuses(&["-G", "1234", "vm"], 4, "-G 1234: gdb.port");
    folder.refuses(&["-r", "file", "vm"], 4, "-r file: restore.path");
    folder.refuses(&["-K", "us", "vm"], 4, "-K us: keyboard.layout");
    folder.refuses(&["-n", "id=0,size=1G,cpus=0", "vm"], 4, "not supported by this version");
    folder.refuses(&["-f", "opt/x,string=y", "vm"], 4, "not supported by this version");
    folder.refuses(
        &["-s", "4,passthru,1/2/3", "vm"],
        4,
        "-s 4,passthru,1/2/3: device passthru is not implemented yet",
    );
}

#[test]
fn configuration_files() {
    let folder = Folder::new("files");
    folder.refuses(&["-k", "nowhere.conf", "vm"], 4, "-k nowhere.conf: can't open it");
    for (name, content, message) in [
        ("noise", &b"# fine\n\x00\x01\xff\xfe\n"[..], "noise:2: not UTF-8 text"),
        ("words", b"cpus=2\nhello world\n", "words:2: expected key=value"),
        ("blanks", b"cpus = 2\n", "blanks:1: blanks beside the ="),
        ("unknown", b"\n\ncups=2\n", "unknown:3: unknown key cups (did you mean cpus?)"),
        ("value", b"cpus=many\n", "value:1: cpus=many: expected an integer"),
        ("loop", b"kernel.path=%(uuid)\nuuid=%(kernel.path)\n", "refers to itself"),
    ] {
        let file = folder.file(name, content);
        folder.refuses(&["-k", &file, "vm"], 4, message);
    }
}

#[test]
fn the_dump_ends_with_1_and_can_be_read_back() {
    let folder = Folder::new("dump");
    let line = "-AHP -s 0:0,hostbridge -s 1:0,lpc -s3:0,virtio-blk,./disk.img,ro -l com1,stdio -c 4 -m 1024M \
                -o config.dump=true guest";
    let output = folder.bhyve(&line.split_whitespace().collect::<Vec<_>>());
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stderr.is_empty());
    let text = String::from_utf8(output.stdout).unwrap();
    for expected in
        ["cpus=4", "pci.0.3.0.path=./disk.img", "pci.0.3.0.ro=true", "lpc.com1.path=stdio", "name=guest"]
    {
        assert!(text.lines().any(|line| line == expected), "{expected} is not in {text}");
    }
    let file = folder.file("dump", text.as_bytes());
    let again = folder.bhyve(&["-k", &file]);
    assert_eq!(again.status.code(), Some(1));
    assert_eq!(String::from_utf8(again.stdout).unwrap(), text);
}
