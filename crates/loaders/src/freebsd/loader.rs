//! The loader's state: variables, devices, and the files that are loaded.

use std::sync::Arc;

use boot::freebsd::Preload;
use boot::{Image, MapEntry};
use media::{Kind, NodeRef, NodeSource, SourceRef};
use memory::GuestMemory;

use super::conf::Modules;
use super::devices::{Devices, read_text, split};
use super::environment::Environment;
use crate::console::{Console, Pager};

/// How commands nest: `include` in a file that was included, `exec` in loader.conf.
pub const MAX_DEPTH: usize = 16;

/// How the loader ends.
pub enum Outcome {
    /// The kernel is chosen, and all that goes with it.
    Boot(Box<Plan>),
    /// The user wants to reboot: nothing is loaded.
    Reboot,
    /// The user leaves the loader: nothing is loaded.
    Quit,
}

/// What is to be put into guest memory.
pub struct Plan {
    pub(super) preload: Preload,
    pub(super) howto: u32,
    pub(super) environment: Vec<(String, String)>,
}

impl Plan {
    /// Puts kernel, modules and environment into guest memory.
    pub fn load(&self, memory: &GuestMemory, map: &[MapEntry]) -> boot::Result<boot::Entry> {
        let (howto, environment) = (self.howto, self.environment.as_slice());
        self.preload.load(&boot::freebsd::Request { memory, howto, environment, map })
    }
}

/// Why a command does not simply end.
pub enum Stop {
    /// It failed.
    Error(String),
    /// The loader ends.
    End(Outcome),
}

impl From<String> for Stop {
    fn from(text: String) -> Self {
        Self::Error(text)
    }
}

impl From<&str> for Stop {
    fn from(text: &str) -> Self {
        Self::Error(text.into())
    }
}

impl From<boot::Error> for Stop {
    fn from(error: boot::Error) -> Self {
        Self::Error(error.to_string())
    }
}

/// Result of a command.
pub type Done<T = ()> = Result<T, Stop>;

/// The loader.
pub struct Loader<'a> {
    pub console: &'a mut dyn Console,
    pub pager: Pager,
    pub env: Environment,
    pub devices: Devices,
    pub modules: Modules,
    pub preload: Option<Preload>,
    /// Arguments of the kernel.
    pub kernel_args: String,
    /// The kernel that the menu chose.
    pub chosen: Option<String>,
    /// The systems on ZFS that the menu offers: `zfs:pool/ROOT/name` each.
    pub environments: Vec<String>,
    pub depth: usize,
}

impl<'a> Loader<'a> {
    /// A loader with these devices.
    pub fn new(console: &'a mut dyn Console, devices: Devices) -> Self {
        Self {
            console,
            pager: Pager::default(),
            env: Environment::default(),
            devices,
            modules: Modules::default(),
            preload: None,
            kernel_args: String::new(),
            chosen: None,
            environments: Vec::new(),
            depth: 0,
        }
    }

    /// Writes a line.
    pub fn say(&mut self, text: &str) {
        self.pager.write(self.console, text);
        self.pager.write(self.console, "\n");
    }

    /// The full path of a path as the user typed it.
    pub fn full_path(&self, path: &str) -> Result<String, String> {
        if split(path).is_some() {
            return Ok(path.into());
        }
        match self.env.get("currdev") {
            Some(device) if !device.is_empty() => Ok(format!("{device}/{}", path.trim_start_matches('/'))),
            _ => Err(format!("{path}: there is no device to look for it")),
        }
    }

    /// The node at a path as the user typed it.
    pub fn node(&self, path: &str) -> Result<NodeRef, String> {
        self.devices.node(&self.full_path(path)?)
    }

    /// A file's text.
    pub fn text(&self, path: &str) -> Result<String, String> {
        read_text(self.node(path)?.as_ref(), path)
    }

    /// Whether there is a regular file at a path.
    pub fn is_file(&self, path: &str) -> bool {
        self.kind(path) == Some(Kind::File)
    }

    /// Whether there is a directory at a path.
    pub fn is_directory(&self, path: &str) -> bool {
        self.kind(path) == Some(Kind::Directory)
    }

    fn kind(&self, path: &str) -> Option<Kind> {
        self.node(path).ok()?.metadata().ok().map(|meta| meta.kind)
    }

    /// Names in a directory, sorted; texts only.
    pub fn names(&self, path: &str) -> Result<Vec<String>, String> {
        const MAX: usize = 65536;
        let mut names = Vec::new();
        let node = self.node(path)?;
        let visit = &mut |entry: media::Entry| {
            names.extend(String::from_utf8(entry.name));
            if names.len() < MAX {
                std::ops::ControlFlow::Continue(())
            } else {
                std::ops::ControlFlow::Break(())
            }
        };
        node.entries(visit).map_err(|e| format!("{path}: {e}"))?;
        names.sort();
        Ok(names)
    }

    /// A file to load; a compressed one as what it holds if `unpack`.
    pub fn image(&self, path: &str, unpack: bool) -> Result<Image, String> {
        let error = |e: media::Error| format!("{path}: {e}");
        let node = self.node(path)?;
        let source: SourceRef = Arc::new(NodeSource::new(node).map_err(error)?);
        let unpacked = if unpack { media::decompress::open(source.clone()).map_err(error)? } else { None };
        Ok(Image::new(path, unpacked.unwrap_or(source)))
    }

    /// Sets a variable, and does what follows from that.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        if name == "currdev" {
            let device = format!("{}:", value.trim_end_matches(':'));
            self.devices.check(&device)?;
            self.env.set("loaddev", &device)?;
            return self.env.set(name, &device);
        }
        self.env.set(name, value)
    }

    /// What goes into guest memory.
    pub fn plan(&mut self, preload: Preload) -> Plan {
        self.find_root();
        let args = self.kernel_args.clone();
        Plan {
            preload,
            howto: self.env.howto(&args),
            environment: self.env.iter().map(|(n, v)| (n.to_owned(), v.to_owned())).collect(),
        }
    }

    /// Takes the root file system from /etc/fstab of the root device, unless it is set.
    fn find_root(&mut self) {
        if self.env.get("vfs.root.mountfrom").is_some() {
            return;
        }
        let device = self.env.get("rootdev").or(self.env.get("currdev")).unwrap_or_default();
        let device = device.trim_end_matches(':').to_owned();
        let fstab = self.text(&format!("{device}:/etc/fstab")).unwrap_or_default();
        if let Some((from, options)) = root_of(&fstab) {
            // A value from a line of text has no NUL; if there is no room, the kernel asks.
            let _ = self.env.set("vfs.root.mountfrom", &from);
            if self.env.get("vfs.root.mountfrom.options").is_none() {
                let _ = self.env.set("vfs.root.mountfrom.options", &options);
            }
        } else if device.starts_with("zfs:") {
            let _ = self.env.set("vfs.root.mountfrom", &device);
        }
    }
}

/// The root in fstab(5): kind and device, and its options.
fn root_of(fstab: &str) -> Option<(String, String)> {
    fstab.lines().filter(|line| !line.trim_start().starts_with('#')).find_map(|line| {
        let mut fields = line.split_whitespace();
        let (device, place, kind, options) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        (place == "/").then(|| (format!("{kind}:{device}"), options.to_owned()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_is_in_fstab() {
        let fstab =
            "# Device\tMountpoint\n/dev/vtbd0p3 none swap sw 0 0\n/dev/gpt/root\t/\tufs\trw,noatime\t1\t1\n";
        assert_eq!(root_of(fstab), Some(("ufs:/dev/gpt/root".into(), "rw,noatime".into())));
        assert_eq!(root_of("#/dev/ada0 / ufs rw\n/dev/x /usr ufs rw 1 1\nshort /\n"), None);
    }
}
