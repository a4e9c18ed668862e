//! The folder that lists the VMs.

use std::ffi::OsString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, OFlags, Stat};
use rustix::io::Errno;
use rustix::process::geteuid;

use crate::{Error, Name, Result, State};

/// Where root's VMs are, as on FreeBSD.
const SYSTEM: &str = "/dev/vmm";

/// The folder that lists the VMs, and the one beside it with their companion files.
#[derive(Clone, Debug)]
pub struct Directory(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    io_path: PathBuf,
    dir: OwnedFd,
    io: OwnedFd,
}

impl Directory {
    /// The folder of this user: `$VMM_DIR`, else /dev/vmm for root, else `$XDG_RUNTIME_DIR/vmm`;
    /// a user without a session has /run/user/UID/vmm where that exists, or /tmp/vmm-UID. Makes it
    /// where it isn't there yet.
    pub fn open() -> Result<Self> {
        let env = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let owner = |path: &Path| rustix::fs::stat(path).ok().map(|stat| stat.st_uid);
        Self::at(&place(env, geteuid().as_raw(), owner))
    }

    /// The folder at `path`, made where it isn't there yet.
    pub fn at(path: &Path) -> Result<Self> {
        let path = std::path::absolute(path).map_err(|e| Error::file(path, e))?;
        let Some(last) = path.file_name() else {
            return Err(Error::file(path, "the root folder can't list VMs"));
        };
        let mut beside = last.to_os_string();
        beside.push(".io");
        let io_path = path.with_file_name(beside);
        let root = geteuid().is_root();
        // Whoever may look into /dev sees root's VMs by name there.
        let dir = folder(&path, if root { Mode::from(0o755) } else { Mode::RWXU })?;
        let io = folder(&io_path, Mode::RWXU)?;
        Ok(Self(Arc::new(Inner { path, io_path, dir, io })))
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// The path of the companion files.
    pub(crate) fn io_path(&self) -> &Path {
        &self.0.io_path
    }

    /// The folder itself.
    pub(crate) fn dir(&self) -> BorrowedFd<'_> {
        self.0.dir.as_fd()
    }

    /// The folder of the companion files.
    pub(crate) fn io(&self) -> BorrowedFd<'_> {
        self.0.io.as_fd()
    }

    /// The control socket's name beside the VM.
    pub(crate) fn socket_file(&self, name: &Name) -> String {
        let _ = self;
        format!("{name}.sock")
    }

    /// The control socket's path, for the user's eyes.
    pub fn socket_path(&self, name: &Name) -> PathBuf {
        self.io_path().join(self.socket_file(name))
    }

    /// The control socket's address: a short path, as addresses have room for 108 bytes only.
    pub(crate) fn socket_address(&self, name: &Name) -> PathBuf {
        format!("/proc/self/fd/{}/{}", self.io().as_raw_fd(), self.socket_file(name)).into()
    }

    /// The VMs by name.
    pub fn list(&self) -> Result<Vec<Name>> {
        let fail = |e: Errno| Error::file(self.path(), e);
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(self.dir()).map_err(fail)? {
            let entry = entry.map_err(fail)?;
            let Some(name) = entry.file_name().to_str().ok().and_then(|name| Name::new(name).ok()) else {
                continue;
            };
            if self.exists(&name)? {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    /// Whether there is such a VM.
    pub fn exists(&self, name: &Name) -> Result<bool> {
        match rustix::fs::statat(self.dir(), name.as_str(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile),
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(Error::file(self.path().join(name.as_str()), error)),
        }
    }

    /// Whether a process has the VM now.
    pub fn is_held(&self, name: &Name) -> Result<bool> {
        let path = self.io_path().join(format!("{name}.lock"));
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::open(&path, flags, Mode::empty()) {
            Ok(fd) => match rustix::fs::flock(&fd, FlockOperation::NonBlockingLockShared) {
                Ok(()) => Ok(false),
                Err(Errno::WOULDBLOCK) => Ok(true),
                Err(error) => Err(Error::file(&path, std::io::Error::from(error))),
            },
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(Error::file(&path, std::io::Error::from(error))),
        }
    }

    /// What the VM's file says. While a process runs the VM, only that one knows more.
    pub fn state(&self, name: &Name) -> Result<State> {
        let path = self.path().join(name.as_str());
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        let file = match open_own(self.dir(), Path::new(name.as_str()), &path, flags) {
            Err(Error::File { .. }) if !self.exists(name)? => return Err(Error::NotCreated(name.clone())),
            other => other?,
        };
        let mut bytes = Vec::new();
        let file = std::fs::File::from(file);
        std::io::Read::read_to_end(&mut std::io::Read::take(file, crate::state::MAX_LEN), &mut bytes)
            .map_err(|e| Error::file(&path, e))?;
        State::decode(&bytes).map_err(|why| Error::file(&path, why))
    }
}

/// Where the folder is for user `uid` with this environment; `owner` tells whose a folder is.
fn place(env: impl Fn(&str) -> Option<OsString>, uid: u32, owner: impl Fn(&Path) -> Option<u32>) -> PathBuf {
    if let Some(path) = env("VMM_DIR") {
        return path.into();
    }
    if uid == 0 {
        return SYSTEM.into();
    }
    // Who became another user by su(1) often still has the old one's environment.
    let session = env("XDG_RUNTIME_DIR").map(PathBuf::from);
    let usual = PathBuf::from(format!("/run/user/{uid}"));
    match session.into_iter().chain([usual]).find(|path| owner(path) == Some(uid)) {
        Some(folder) => folder.join("vmm"),
        None => format!("/tmp/vmm-{uid}").into(),
    }
}

/// Opens or makes a folder that only this user can have filled.
fn folder(path: &Path, mode: Mode) -> Result<OwnedFd> {
    let fail = |e: Errno| {
        let why = std::io::Error::from(e);
        Error::file(path, format!("can't keep VMs there: {why} (VMM_DIR can name another folder)"))
    };
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY;
    let fd = match rustix::fs::open(path, flags, Mode::empty()) {
        Err(Errno::NOENT) => {
            match rustix::fs::mkdir(path, mode) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(fail(error)),
            }
            rustix::fs::open(path, flags, Mode::empty()).map_err(fail)?
        }
        other => other.map_err(fail)?,
    };
    let stat = rustix::fs::fstat(&fd).map_err(fail)?;
    check_owner(&stat, path)?;
    if stat.st_mode & 0o022 != 0 {
        return Err(Error::file(path, "can't keep VMs there: others may write to this folder"));
    }
    Ok(fd)
}

fn check_owner(stat: &Stat, path: &Path) -> Result<()> {
    if stat.st_uid == geteuid().as_raw() {
        return Ok(());
    }
    Err(Error::file(path, format!("belongs to another user (uid {})", stat.st_uid)))
}

/// Opens a regular file of this user, and no link to one. `path` is for the user's eyes.
pub(crate) fn open_own(at: BorrowedFd<'_>, name: &Path, path: &Path, flags: OFlags) -> Result<OwnedFd> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fail = |e: Errno| Error::file(path, std::io::Error::from(e));
    let fd = rustix::fs::openat(at, name, flags, Mode::RUSR | Mode::WUSR).map_err(fail)?;
    let stat = rustix::fs::fstat(&fd).map_err(fail)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(Error::file(path, "not a regular file"));
    }
    check_owner(&stat, path)?;
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_user_has_a_place() {
        let place = |variables: &[(&str, &str)], uid, owned: &[(&str, u32)]| {
            let find = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, v)| v.into());
            let owner = |path: &Path| owned.iter().find(|(p, _)| Path::new(p) == path).map(|(_, uid)| *uid);
            place(find, uid, owner).display().to_string()
        };
        let session = [("XDG_RUNTIME_DIR", "/run/x")];
        assert_eq!(place(&session, 0, &[("/run/x", 0)]), "/dev/vmm");
        assert_eq!(place(&[("VMM_DIR", "/v"), session[0]], 1000, &[("/run/x", 1000)]), "/v");
        assert_eq!(place(&session, 1000, &[("/run/x", 1000)]), "/run/x/vmm");
        // Another user's, or one that is gone.
        assert_eq!(place(&session, 1000, &[("/run/x", 0), ("/run/user/1000", 1000)]), "/run/user/1000/vmm");
        assert_eq!(place(&session, 1000, &[]), "/tmp/vmm-1000");
    }
}
