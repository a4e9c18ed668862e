//! Disk images.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::run;
use crate::Result;

/// An ext4 image, made without mounting anything, hence by anyone.
#[derive(Clone, Debug)]
pub struct Disk {
    size: u64,
    label: String,
    content: Option<PathBuf>,
}

impl Disk {
    /// An image of this many bytes.
    pub fn ext4(size: u64, label: &str) -> Self {
        Self { size, label: label.to_owned(), content: None }
    }

    /// Copies a folder into the file system.
    #[must_use]
    pub fn content(mut self, folder: &Path) -> Self {
        self.content = Some(folder.to_path_buf());
        self
    }

    /// Writes the image to `path`; what was there is gone.
    pub fn build(&self, path: &Path) -> Result<()> {
        sparse_file(path, self.size)?;
        let mut command = Command::new("mke2fs");
        command.args(["-q", "-F", "-t", "ext4", "-L", &self.label]);
        if let Some(folder) = &self.content {
            command.arg("-d").arg(folder);
        }
        // Debian keeps it where only root looks.
        let search = std::env::var("PATH").unwrap_or_default();
        command.arg(path).env("PATH", format!("{search}:/usr/sbin:/sbin"));
        run(&mut command).map(drop)
    }
}

/// Copies an image, sharing blocks with the original where the file system can.
pub fn copy_image(from: &Path, to: &Path) -> Result<()> {
    run(Command::new("cp").args(["--sparse=always", "--reflink=auto"]).arg(from).arg(to)).map(drop)
}

/// Makes a file of this many bytes, all of it a hole.
pub fn sparse_file(path: &Path, size: u64) -> Result<()> {
    if path.exists() {
        fs::remove_file(path)?;
    }
    let file = File::create(path).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(file.set_len(size)?)
}
