//! Kernels, programs, initramfs and disk images, made of Debian packages and kept in a cache
//! outside the tree.

mod cpio;
mod debian;
mod disk;
mod initramfs;
mod kernel;
mod packages;
mod root;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

pub use cpio::Archive;
pub use debian::{Debian, Layout, PASSPHRASE};
pub use disk::{Disk, copy_image, sparse_file};
pub use initramfs::{Initramfs, Script};
pub use kernel::{Flavour, Kernel};
pub use root::DebianRoot;

use crate::Result;

/// The folder where downloaded and derived files stay: `$XDG_CACHE_HOME/bhyve-linux`, or
/// `~/.cache/bhyve-linux`.
#[derive(Clone, Debug)]
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// Opens the user's cache, making the folder if need be.
    pub fn open() -> Result<Self> {
        let base = match std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from) {
            Some(path) if path.is_absolute() => path,
            _ => PathBuf::from(std::env::var_os("HOME").ok_or("neither XDG_CACHE_HOME nor HOME is set")?)
                .join(".cache"),
        };
        Self::at(&base.join("bhyve-linux"))
    }

    /// Opens a cache in a folder of the caller's choice.
    pub fn at(root: &Path) -> Result<Self> {
        fs::create_dir_all(root).map_err(|error| format!("{}: {error}", root.display()))?;
        Ok(Self { root: root.to_path_buf() })
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Gives `name` in the cache, making it with `make` if it isn't there. `make` gets a name to
    /// write to; only what it finished is ever seen under the final name, and only one process at
    /// a time makes anything.
    pub fn get_or_make(&self, name: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
        let path = self.root.join(name);
        if path.exists() {
            return Ok(path);
        }
        let _lock = self.lock(name)?;
        if path.exists() {
            return Ok(path);
        }
        let parent = path.parent().unwrap_or(&self.root);
        fs::create_dir_all(parent)?;
        let mut partial = path.clone().into_os_string();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        remove(&partial)?;
        if let Err(error) = make(&partial) {
            remove(&partial)?;
            return Err(error);
        }
        fs::rename(&partial, &path)?;
        Ok(path)
    }

    /// Locks the making of `name` against other processes until the result is dropped.
    fn lock(&self, name: &str) -> Result<File> {
        let locks = self.root.join("locks");
        fs::create_dir_all(&locks)?;
        let file = File::create(locks.join(name.replace('/', "_")))?;
        file.lock()?;
        Ok(file)
    }
}

/// Removes a file or a folder with all that's in it; nothing there is fine.
fn remove(path: &Path) -> Result<()> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path)?,
        Ok(_) => fs::remove_file(path)?,
        Err(_) => {}
    }
    Ok(())
}

/// Runs a program to its end; its output is the result, or its complaint the error.
pub fn run(command: &mut Command) -> Result<Vec<u8>> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|error| format!("{name}: {error}"))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    Err(format!("{name} failed ({}): {}", output.status, complaint.trim()).into())
}

/// A short name for some content, the same on every machine (FNV-1a, 64 bits).
fn digest(content: &[u8]) -> String {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for &byte in content {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    }
    format!("{hash:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Scratch;

    #[test]
    fn what_failed_half_way_is_made_again() -> Result<()> {
        let folder = Scratch::new("cache")?;
        let cache = Cache::at(folder.path())?;
        let broken = cache.get_or_make("a/file", |path| {
            fs::write(path, "half")?;
            Err("power cut".into())
        });
        assert_eq!(broken.err().map(|error| error.to_string()).as_deref(), Some("power cut"));
        let path = cache.get_or_make("a/file", |path| Ok(fs::write(path, "whole")?))?;
        assert_eq!(fs::read(&path)?, b"whole");
        cache.get_or_make("a/file", |_| Err("is made only once".into()))?;
        assert_eq!(fs::read_dir(path.parent().expect("a folder"))?.count(), 1, "nothing left over");
        Ok(())
    }

    #[test]
    fn digests_tell_contents_apart() {
        // Test vectors of the FNV specification.
        assert_eq!(digest(b""), "cbf29ce484222325");
        assert_eq!(digest(b"foobar"), "85944171f73967e8");
    }
}
