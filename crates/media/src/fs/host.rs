//! A folder of the host as a file system.
//!
//! Whatever is asked for, nothing outside the folder is opened: each step opens one name in a
//! directory that is open already, never through a symbolic link. Links are followed by
//! [`crate::resolve`], for which the folder is the root.

use std::ffi::OsStr;
use std::fs::File;
use std::mem::MaybeUninit;
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, Stat};
use rustix::io::Errno;

use crate::source::check;
use crate::{Entry, Error, FileSystem, Kind, Metadata, Node, NodeRef, Result};

/// Bytes of directory entries that are fetched at a time.
const ENTRIES: usize = 32 << 10;

/// A folder of the host.
pub struct HostFs {
    root: Arc<HostNode>,
}

impl HostFs {
    /// The folder `path`, which may itself be a symbolic link.
    pub fn open(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let error = |error: Errno| Error::Io { what: name.clone(), source: error.into() };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(path, flags, Mode::empty()).map_err(error)?;
        let stat = rustix::fs::fstat(&directory).map_err(error)?;
        let opened = OnceLock::new();
        let _ = opened.set(File::from(directory));
        let root = Found { parent: None, name: Vec::new(), shown: name, stat, opened };
        Ok(Self { root: Arc::new(HostNode(Arc::new(root))) })
    }
}

impl FileSystem for HostFs {
    fn kind(&self) -> &'static str {
        "hostfs"
    }

    fn label(&self) -> Option<String> {
        None
    }

    fn uuid(&self) -> Option<String> {
        None
    }

    fn root(&self) -> Result<NodeRef> {
        Ok(self.root.clone())
    }
}

/// Shared, because what is in a directory needs it.
struct HostNode(Arc<Found>);

/// A name in an open directory.
struct Found {
    /// `None` for the root, which is always open.
    parent: Option<Arc<Found>>,
    name: Vec<u8>,
    /// Path for errors.
    shown: String,
    /// What it was when it was looked up.
    stat: Stat,
    opened: OnceLock<File>,
}

impl Found {
    fn error(&self, source: impl Into<std::io::Error>) -> Error {
        Error::Io { what: self.shown.clone(), source: source.into() }
    }

    fn kind(&self) -> Kind {
        kind(FileType::from_raw_mode(self.stat.st_mode))
    }

    /// The open file or directory: the one that was looked up, or an error.
    fn file(&self) -> Result<&File> {
        if let Some(file) = self.opened.get() {
            return Ok(file);
        }
        let Some(parent) = &self.parent else { return Err(self.error(Errno::BADF)) };
        // What is no longer a file must not be waited for.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let name = OsStr::from_bytes(&self.name);
        let opened =
            rustix::fs::openat(parent.file()?, name, flags, Mode::empty()).map_err(|e| self.error(e))?;
        self.same(&opened)?;
        let _ = self.opened.set(File::from(opened));
        self.opened.get().ok_or_else(|| self.error(Errno::BADF))
    }

    fn same(&self, opened: &OwnedFd) -> Result<()> {
        let stat = rustix::fs::fstat(opened).map_err(|e| self.error(e))?;
        let identity = |stat: &Stat| (stat.st_dev, stat.st_ino, FileType::from_raw_mode(stat.st_mode));
        if identity(&stat) == identity(&self.stat) { Ok(()) } else { Err(self.error(Errno::STALE)) }
    }

    fn directory(&self) -> Result<&File> {
        if self.kind() == Kind::Directory {
            self.file()
        } else {
            Err(Error::NotADirectory(self.shown.clone()))
        }
    }

    fn child(self: &Arc<Self>, name: &[u8]) -> Result<Option<Arc<Self>>> {
        let directory = self.directory()?;
        // One name, never a way out.
        if name.is_empty() || name == b"." || name == b".." || name.contains(&b'/') || name.contains(&0) {
            return Ok(None);
        }
        let name_os = OsStr::from_bytes(name);
        let shown = Path::new(&self.shown).join(name_os).display().to_string();
        match rustix::fs::statat(directory, name_os, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(Arc::new(Self {
                parent: Some(self.clone()),
                name: name.to_vec(),
                shown,
                stat,
                opened: OnceLock::new(),
            }))),
            Err(Errno::NOENT | Errno::NAMETOOLONG) => Ok(None),
            Err(error) => Err(Error::Io { what: shown, source: error.into() }),
        }
    }
}

impl Node for HostNode {
    fn metadata(&self) -> Result<Metadata> {
        let size = if self.0.kind() == Kind::Directory { 0 } else { self.0.stat.st_size };
        Ok(Metadata {
            kind: self.0.kind(),
            size: u64::try_from(size).unwrap_or(0),
            modified: Some(self.0.stat.st_mtime),
        })
    }

    fn read_at(&self, offset: u64, to: &mut [u8]) -> Result<()> {
        match self.0.kind() {
            Kind::File => {}
            Kind::Directory => return Err(Error::IsADirectory(self.0.shown.clone())),
            _ => return Err(Error::NotAFile(self.0.shown.clone())),
        }
        check(u64::try_from(self.0.stat.st_size).unwrap_or(0), offset, to.len() as u64)?;
        self.0.file()?.read_exact_at(to, offset).map_err(|error| self.0.error(error))
    }

    fn entries(&self, visit: &mut dyn FnMut(Entry) -> ControlFlow<()>) -> Result<()> {
        // A file descriptor of its own: the place in the directory belongs to one.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::openat(self.0.directory()?, c".", flags, Mode::empty());
        let directory = directory.map_err(|error| self.0.error(error))?;
        let mut buffer = vec![MaybeUninit::uninit(); ENTRIES];
        let mut raw = RawDir::new(directory, &mut buffer);
        while let Some(entry) = raw.next() {
            let entry = entry.map_err(|error| self.0.error(error))?;
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            let kind = match entry.file_type() {
                FileType::Unknown => None,
                known => Some(kind(known)),
            };
            if visit(Entry { name: name.to_vec(), kind }).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn lookup(&self, name: &[u8]) -> Result<Option<NodeRef>> {
        Ok(self.0.child(name)?.map(|child| Arc::new(HostNode(child)) as NodeRef))
    }

    fn link(&self) -> Result<Vec<u8>> {
        let Some(parent) = self.0.parent.as_ref().filter(|_| self.0.kind() == Kind::Symlink) else {
            return Err(Error::NotAFile(self.0.shown.clone()));
        };
        let target = rustix::fs::readlinkat(parent.file()?, OsStr::from_bytes(&self.0.name), Vec::new());
        Ok(target.map_err(|error| self.0.error(error))?.into_bytes())
    }
}

fn kind(kind: FileType) -> Kind {
    match kind {
        FileType::RegularFile => Kind::File,
        FileType::Directory => Kind::Directory,
        FileType::Symlink => Kind::Symlink,
        _ => Kind::Other,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::testing::{Scratch, Tree, compare};
    use crate::{read_all, resolve};

    fn text(fs: &HostFs, path: &str) -> Result<Vec<u8>> {
        read_all(resolve(fs, path.as_bytes())?.as_ref(), 1 << 20)
    }

    #[test]
    fn nothing_outside_the_folder_is_read() {
        let scratch = Scratch::new("host");
        std::fs::write(scratch.join("secret"), "outside").unwrap();
        let folder = scratch.join("folder");
        std::fs::create_dir_all(folder.join("a/b")).unwrap();
        std::fs::write(folder.join("a/b/file"), "inside").unwrap();
        symlink(scratch.join("secret"), folder.join("absolute")).unwrap();
        symlink("../secret", folder.join("relative")).unwrap();
        symlink("../../../../../../../../../../etc/passwd", folder.join("a/b/up")).unwrap();
        symlink(scratch.path(), folder.join("door")).unwrap();
        symlink("/a/b/file", folder.join("rooted")).unwrap();
        symlink("loop", folder.join("loop")).unwrap();
        let fs = HostFs::open(&folder).unwrap();
        assert_eq!(text(&fs, "/a/b/file").unwrap(), b"inside");
        assert_eq!(text(&fs, "/../../a/../a/b/file").unwrap(), b"inside");
        assert_eq!(text(&fs, "rooted").unwrap(), b"inside");
        for path in ["absolute", "relative", "a/b/up", "door/secret", "../secret", "/nothing"] {
            assert!(matches!(text(&fs, path), Err(Error::NotFound(_))), "{path}");
        }
        assert!(matches!(text(&fs, "loop"), Err(Error::Links(_))));
        assert!(matches!(text(&fs, "a/b/file/x"), Err(Error::NotADirectory(_))));
        let root = fs.root().unwrap();
        for name in ["..", ".", "", "a/b", "../secret"] {
            assert!(root.lookup(name.as_bytes()).unwrap().is_none(), "{name}");
        }
    }

    #[test]
    fn what_was_swapped_is_not_read() {
        let scratch = Scratch::new("swap");
        std::fs::write(scratch.join("secret"), "outside").unwrap();
        let folder = scratch.join("folder");
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("file"), "inside!").unwrap();
        std::fs::write(folder.join("other"), "another").unwrap();
        let fs = HostFs::open(&folder).unwrap();
        let (file, other) = (resolve(&fs, b"file").unwrap(), resolve(&fs, b"other").unwrap());
        std::fs::remove_file(folder.join("file")).unwrap();
        symlink("../secret", folder.join("file")).unwrap();
        assert!(file.read_at(0, &mut [0; 7]).is_err());
        rustix::fs::mknodat(rustix::fs::CWD, folder.join("pipe"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
            .unwrap();
        std::fs::rename(folder.join("pipe"), folder.join("other")).unwrap();
        assert!(other.read_at(0, &mut [0; 7]).is_err(), "a pipe must not be waited for");
        assert!(matches!(text(&fs, "other"), Err(Error::NotAFile(_) | Error::PastEnd { .. }) | Ok(_)));
    }

    #[test]
    fn a_tree_is_as_the_host_sees_it() {
        let scratch = Scratch::new("hosttree");
        Tree::QUICK.write(scratch.path()).unwrap();
        let fs = HostFs::open(scratch.path()).unwrap();
        assert!(compare(&fs, "/", scratch.path()).unwrap().files > 200);
        assert!(matches!(fs.root().unwrap().read_at(0, &mut [0]), Err(Error::IsADirectory(_))));
        assert!(HostFs::open(&scratch.join("nothing")).is_err());
    }
}
