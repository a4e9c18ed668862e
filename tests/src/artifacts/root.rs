//! Debian's root file system as a folder, for images.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::run;
use crate::{Result, is_root};

/// An unpacked Debian; dropping it removes the folder.
pub struct DebianRoot {
    path: PathBuf,
}

impl DebianRoot {
    /// Unpacks the smallest Debian of this release and `packages`, with commas between them, into a
    /// new folder: root logs in without a password, and the root file system is all of /dev/vda.
    pub fn unpack(path: &Path, packages: &str, suite: &str) -> Result<Self> {
        if !is_root() {
            return Err("making a root file system takes root, for its owners and devices".into());
        }
        if path.exists() {
            fs::remove_dir_all(path)?;
        }
        eprintln!("unpacking Debian {suite}");
        // What is left of an attempt goes, too.
        let root = Self { path: path.to_path_buf() };
        let quick = run(Command::new("mmdebstrap").arg("--version")).is_ok();
        let mut command = Command::new(if quick { "mmdebstrap" } else { "debootstrap" });
        command.args(["--variant=minbase", "--include", packages, suite]).arg(path);
        run(&mut command)
            .map_err(|error| format!("{error} (mmdebstrap or debootstrap must be installed)"))?;
        run(Command::new("chroot").arg(path).args(["passwd", "-d", "root"]))?;
        fs::write(path.join("etc/hostname"), "guest\n")?;
        fs::write(path.join("etc/fstab"), "/dev/vda / ext4 defaults 0 1\n")?;
        Ok(root)
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for DebianRoot {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}
