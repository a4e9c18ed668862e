//! Makes images with the tools of the host, and mounts them where that is allowed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// A temporary folder that goes when it is dropped.
pub struct Scratch(PathBuf);

impl Scratch {
    /// A new empty folder.
    pub fn new(name: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("media-{name}-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// A path in it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Whether we are root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Where a program is. If it is nowhere, says that the test is skipped.
pub fn have(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|folder| folder.join(program).is_file());
    if !found {
        eprintln!("skipped: {program} is not installed");
    }
    found
}

/// Runs a program; its output is the error if it fails.
pub fn run(program: &str, arguments: &[&str]) -> Result<String, String> {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let output = Command::new("timeout")
        .args(["-k", "5", "120", program])
        .args(arguments)
        .env("PATH", path)
        // Names are UTF-8 whatever the user speaks; some tools leave files where they are started.
        .env("LC_ALL", "C.UTF-8")
        .current_dir(std::env::temp_dir())
        .output();
    let output = output.map_err(|error| format!("{program}: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(text);
    }
    Err(format!(
        "{program} {arguments:?}: {}: {text}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    ))
}

/// The file made by `make`, kept for the next test. `recipe` changes whenever `make` does.
pub fn cached(recipe: &str, make: impl FnOnce(&Path)) -> PathBuf {
    let home = std::env::var_os("HOME").map_or_else(std::env::temp_dir, PathBuf::from);
    let folder = home.join(".cache/bhyve-linux/images");
    fs::create_dir_all(&folder).unwrap();
    let path = folder.join(recipe);
    if !path.exists() {
        let partial = folder.join(format!("{recipe}.{}", std::process::id()));
        make(&partial);
        fs::rename(&partial, &path).unwrap();
    }
    path
}

/// An image that the host's kernel has mounted, until it is dropped.
pub struct Mounted(Scratch);

impl Mounted {
    /// Mounts `image` with `options` (as `-o` takes them, may be empty). `None` with a message if we
    /// may not or the kernel can't.
    pub fn new(image: &Path, kind: &str, options: &str) -> Option<Self> {
        if !is_root() {
            eprintln!("skipped: only root can mount {}", image.display());
            return None;
        }
        let folder = Scratch::new("mount");
        let options = if options.is_empty() { "loop".to_string() } else { format!("loop,{options}") };
        let arguments =
            ["-t", kind, "-o", &options, image.to_str().unwrap(), folder.path().to_str().unwrap()];
        match run("mount", &arguments) {
            Ok(_) => Some(Self(folder)),
            Err(error) => {
                eprintln!("skipped: {error}");
                None
            }
        }
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(error) = run("umount", &[self.0.path().to_str().unwrap()]) {
            eprintln!("{error}");
            // Never remove what is still mounted.
            let _ = run("umount", &["-l", self.0.path().to_str().unwrap()]);
        }
    }
}
