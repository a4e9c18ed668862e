//! What tests here share.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use vm::Directory;

/// A folder of VMs; dropping it removes it.
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new(label: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("machine-test-{}-{number}-{label}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub fn directory(&self) -> Directory {
        Directory::at(&self.0.join("vmm")).unwrap()
    }

    /// All files of all VMs.
    pub fn files(&self) -> Vec<String> {
        ["vmm", "vmm.io"]
            .iter()
            .flat_map(|folder| std::fs::read_dir(self.0.join(folder)).unwrap())
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
