//! Finds devices by what is on them.

use super::{Disks, names};
use crate::resolve;

/// What to look for.
#[derive(Clone, Copy, Debug)]
pub enum Wanted<'a> {
    /// A file or directory with this path.
    File(&'a [u8]),
    /// A file system with this label.
    Label(&'a str),
    /// A file system with this UUID; case doesn't matter.
    Uuid(&'a str),
}

impl Disks {
    /// Whether the device has what is wanted.
    pub fn has(&self, device: &str, wanted: Wanted<'_>) -> bool {
        let Ok(fs) = self.filesystem(device) else { return false };
        match wanted {
            Wanted::File(path) => resolve(fs.as_ref(), path).is_ok(),
            Wanted::Label(label) => fs.label().is_some_and(|l| l == label),
            Wanted::Uuid(uuid) => fs.uuid().is_some_and(|u| u.eq_ignore_ascii_case(uuid)),
        }
    }

    /// The first device that has what is wanted: `hints` are asked first, then all devices in the
    /// order of [`Disks::names`]. `floppies`: whether `fdN` are asked too.
    pub fn find(&self, wanted: Wanted<'_>, hints: &[&str], floppies: bool) -> Option<String> {
        let hinted = hints.iter().find(|hint| self.has(hint, wanted));
        if let Some(hint) = hinted {
            // The name as `ls` shows it, whatever short form the hint has.
            return Some(self.device(hint).map_or_else(|_| names::bare(hint).to_owned(), |d| d.name));
        }
        self.names().into_iter().find(|name| (floppies || !is_floppy(name)) && self.has(name, wanted))
    }

    /// All devices that have what is wanted, in the order of [`Disks::names`].
    pub fn find_all(&self, wanted: Wanted<'_>, floppies: bool) -> Vec<String> {
        let mut names = self.names();
        names.retain(|name| (floppies || !is_floppy(name)) && self.has(name, wanted));
        names
    }
}

fn is_floppy(name: &str) -> bool {
    name.strip_prefix("fd").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
}
