//! GRUB's language and commands: the bytes are the grub.cfg of a disk, run to its end.
#![no_main]

use std::sync::Arc;
use std::time::Duration;

use loaders::console::{Console, Input};
use loaders::grub::{Kernel, Session, Settings, Target};
use media::Bytes;
use media::disks::Disks;

/// Nobody is there.
struct Nobody;

impl Console for Nobody {
    fn write(&mut self, _: &str) {}

    fn key(&mut self, _: Option<Duration>) -> Input {
        Input::End
    }

    fn interrupted(&mut self) -> bool {
        false
    }

    fn is_terminal(&self) -> bool {
        false
    }

    fn size(&self) -> (usize, usize) {
        (80, 24)
    }
}

impl Target for Nobody {
    fn boot(&mut self, _: &Kernel) -> Result<(), String> {
        Ok(())
    }
}

/// A cpio archive (newc) of these files.
fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, content) in files.iter().copied().chain([("TRAILER!!!", &b""[..])]) {
        let fields = [1, 0o100644, 0, 0, 1, 0, content.len(), 0, 0, 0, 0, name.len() + 1, 0];
        bytes.extend(b"070701");
        fields.iter().for_each(|field| bytes.extend(format!("{field:08x}").bytes()));
        bytes.extend(name.bytes());
        bytes.push(0);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes.extend(content);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let mut env = b"# GRUB Environment Block\nsaved_entry=0\n".to_vec();
    env.resize(1024, b'#');
    let files =
        [("boot/grub/grub.cfg", data), ("boot/grub/grubenv", &env), ("boot/vmlinuz", b"not a kernel")];
    let disks = Disks::new();
    disks.add_disk("hd0", Arc::new(Bytes(archive(&files)))).unwrap();
    let (mut console, mut target) = (Nobody, Nobody);
    let settings = Settings { serial_console: true, text_screen: true };
    let mut session = Session::new(&mut console, &disks, &mut target, settings);
    session.set_root("hd0", "/boot/grub");
    let _ = session.run("grub.cfg");
});
