//! Sessions with a user made of text and file systems in memory.

mod commands;
mod configs;
mod language;
mod memory;
mod menu;
mod robustness;

use std::sync::Arc;

use media::disks::Disks;

use super::{Kernel, Session, Settings, Stop, Target};
use crate::console::testing::Script;
use memory::Tree;

/// Notes what is booted.
#[derive(Default)]
struct Notes {
    booted: Vec<String>,
    /// Why the next kernels are refused.
    refuse: Option<&'static str>,
}

impl Target for Notes {
    fn boot(&mut self, kernel: &Kernel) -> Result<(), String> {
        if let Some(why) = self.refuse {
            return Err(why.into());
        }
        self.booted.push(match kernel {
            Kernel::Linux { cmdline, initrds, .. } => {
                let names: Vec<&str> = initrds.iter().map(boot::Image::name).collect();
                format!("linux {cmdline} [{}]", names.join(" "))
            }
            Kernel::Multiboot { cmdline, modules, .. } => format!("multiboot {cmdline} [{}]", modules.len()),
            Kernel::FreeBsd { howto, environment, .. } => format!("freebsd {howto:#x} {environment:?}"),
            Kernel::OpenBsd { howto, root, .. } => format!("openbsd {howto:#x} {root:#x}"),
            Kernel::NetBsd { howto, path, .. } => format!("netbsd {howto:#x} {path}"),
        });
        Ok(())
    }
}

/// A session's surroundings.
pub struct Rig {
    disks: Disks,
    console: Script,
    target: Notes,
}

/// What came of it.
struct Ended {
    output: String,
    screen: Vec<String>,
    booted: Vec<String>,
    stop: Stop,
}

impl Rig {
    /// A session with these files on `(host)`, and this input from a pipe.
    fn new(files: &[(&str, &[u8])], input: &str) -> Self {
        let disks = Disks::new();
        disks.set_host(Arc::new(Tree::new(files)));
        Self { disks, console: Script::pipe(input), target: Notes::default() }
    }

    /// The same with a terminal of 80 by 24 on which `keys` are typed.
    fn terminal(files: &[(&str, &[u8])], keys: &str) -> Self {
        Self { console: Script::terminal(80, 24, keys), ..Self::new(files, "") }
    }

    fn with<T>(&mut self, work: impl FnOnce(&mut Session) -> T) -> T {
        let settings = Settings { serial_console: true, text_screen: true };
        let mut session = Session::new(&mut self.console, &self.disks, &mut self.target, settings);
        session.set_root("host", "/boot/grub");
        work(&mut session)
    }

    /// Runs grub.cfg, then whatever is typed.
    fn run(&mut self) -> Ended {
        let stop = self.with(|session| session.run("grub.cfg"));
        Ended {
            screen: self.console.screen(),
            output: std::mem::take(&mut self.console.output),
            booted: std::mem::take(&mut self.target.booted),
            stop,
        }
    }

    /// Runs a text; gives what it printed.
    fn text(&mut self, text: &str) -> String {
        self.with(|session| {
            session.refill();
            session.run_text(text, None);
        });
        std::mem::take(&mut self.console.output)
    }
}

/// Runs a text with the usual files; gives what it printed.
fn run(text: &str) -> String {
    Rig::new(FILES, "").text(text)
}

/// The least that is taken for a bzImage (boot protocol, "The Real-Mode Kernel Header").
pub fn bzimage() -> Vec<u8> {
    let mut image = vec![0; 4096];
    image[0x1f1] = 1;
    image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x20c_u16.to_le_bytes());
    image[0x211] = 1;
    image[0x214..0x218].copy_from_slice(&0x10_0000_u32.to_le_bytes());
    image[0x22c..0x230].copy_from_slice(&0x7fff_ffff_u32.to_le_bytes());
    image[0x230..0x234].copy_from_slice(&0x20_0000_u32.to_le_bytes());
    image[0x234] = 1;
    image[0x238..0x23c].copy_from_slice(&2047_u32.to_le_bytes());
    image[0x258..0x260].copy_from_slice(&0x10_0000_u64.to_le_bytes());
    image[0x260..0x264].copy_from_slice(&0x10_0000_u32.to_le_bytes());
    image
}

const FILES: &[(&str, &[u8])] = &[
    ("/a.txt", b"hello\nworld\n"),
    ("/b.txt", b"hello\nWorld\n"),
    ("/boot/vmlinuz-1", b"x"),
    ("/boot/vmlinuz-2", b"x"),
    ("/boot/initrd", b"x"),
    ("/boot/.hidden", b"x"),
    ("/lib.cfg", b"set from_lib=yes\nfunction lib { echo lib $1; }\n"),
    ("/args.cfg", b"echo $# $1 $2\nreturn 3\necho never\n"),
    ("/empty", b""),
];
