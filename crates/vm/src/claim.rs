//! The exclusive right to a VM.

use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use firmware::MemoryMap;
use memory::{Backing, GuestMemory};
use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use crate::directory::open_own;
use crate::{Directory, Error, Name, Phase, Ram, Result, State, ram};

/// [`Directory::is_held`] has the lock for a moment; who wants it looks so often, and waits between.
const GLANCES: u32 = 5;
const GLANCE: std::time::Duration = std::time::Duration::from_millis(2);

/// The right to change a VM: one process has it, for as long as it loads, runs or changes the VM.
/// The kernel takes it back however that process ends.
#[derive(Debug)]
pub struct Claim {
    directory: Directory,
    name: Name,
    /// Locked as long as it is open.
    lock: std::fs::File,
}

impl Claim {
    /// Claims the VM `name`, which need not exist. Refused while another process has it.
    pub fn new(directory: &Directory, name: &Name) -> Result<Self> {
        let file = format!("{name}.lock");
        let path = directory.io_path().join(&file);
        let mut glances = 0;
        // Whoever destroys a VM removes its lock: then what was locked here is no longer it.
        for _ in 0..100 {
            let flags = OFlags::RDWR | OFlags::CREATE;
            let fd = open_own(directory.io(), Path::new(&file), &path, flags)?;
            match rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) if glances < GLANCES => {
                    glances += 1;
                    std::thread::sleep(GLANCE);
                    continue;
                }
                Err(Errno::WOULDBLOCK) => return Err(busy(directory, name, fd)),
                Err(error) => return Err(Error::file(&path, std::io::Error::from(error))),
            }
            if is_still(directory, &file, &fd) {
                let mut claim = Self { directory: directory.clone(), name: name.clone(), lock: fd.into() };
                claim.sign(&path)?;
                return Ok(claim);
            }
        }
        Err(Error::file(path, "others claim and destroy this VM all the time"))
    }

    /// Writes down who has the VM.
    fn sign(&mut self, path: &Path) -> Result<()> {
        let pid = format!("{}\n", std::process::id());
        let written = self.lock.set_len(0).and_then(|()| self.lock.rewind());
        written.and_then(|()| self.lock.write_all(pid.as_bytes())).map_err(|e| Error::file(path, e))
    }

    /// The VM's name.
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// Where it is listed.
    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    /// What its file says; [`Error::NotCreated`] where there is no such VM.
    pub fn state(&self) -> Result<State> {
        self.directory.state(&self.name)
    }

    /// Writes its file, at once and as a whole; that makes the VM where there was none.
    pub fn save(&self, state: &State) -> Result<()> {
        let path = self.directory.path().join(self.name.as_str());
        let bytes = state.encode().map_err(|what| Error::file(&path, what))?;
        let temporary = format!("{}.new", self.name);
        let fail = |e: std::io::Error| Error::file(&path, e);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(self.directory.io(), &temporary, flags, Mode::RUSR | Mode::WUSR)
            .map_err(|e| fail(e.into()))?;
        std::fs::File::from(fd).write_all(&bytes).map_err(fail)?;
        rustix::fs::renameat(self.directory.io(), &temporary, self.directory.dir(), self.name.as_str())
            .map_err(|e| fail(e.into()))
    }

    /// Makes new memory for the VM, in place of what it has. With `wired` all of it is allocated
    /// now.
    pub fn new_memory(&self, map: &MemoryMap, wired: bool) -> Result<(GuestMemory, Ram)> {
        self.free_memory()?;
        let (fd, path) = ram::create(&self.directory, &self.name, map.size(), wired)?;
        let memory = GuestMemory::new(&map.layout(), &Backing::File(fd))?;
        Ok((memory, Ram { size: map.size(), path: Some(path), wired }))
    }

    /// Maps the memory that the VM has, shared and not copied.
    pub fn open_memory(&self, ram: &Ram) -> Result<GuestMemory> {
        let path = ram.path.clone().unwrap_or_else(|| PathBuf::from("no file"));
        let fd = ram::open(ram, &path)?;
        Ok(GuestMemory::new(&MemoryMap::new(ram.size).layout(), &Backing::File(fd))?)
    }

    /// Gives the VM's memory back to the host.
    pub fn free_memory(&self) -> Result<()> {
        ram::remove(&self.directory, &self.name)
    }

    /// Removes the VM and all of its files.
    pub fn destroy(&self) -> Result<()> {
        self.free_memory()?;
        self.remove_socket()?;
        self.remove_companion(&format!("{}.new", self.name))?;
        remove(self.directory.dir(), self.directory.path(), self.name.as_str())
    }

    /// Removes the control socket.
    pub(crate) fn remove_socket(&self) -> Result<()> {
        self.remove_companion(&self.directory.socket_file(&self.name))
    }

    fn remove_companion(&self, file: &str) -> Result<()> {
        remove(self.directory.io(), self.directory.io_path(), file)
    }
}

impl Drop for Claim {
    /// A VM that does not exist has no lock either.
    fn drop(&mut self) {
        if matches!(self.directory.exists(&self.name), Ok(false)) {
            let _ = self.remove_companion(&format!("{}.lock", self.name));
        }
    }
}

fn remove(dir: BorrowedFd<'_>, path: &Path, file: &str) -> Result<()> {
    match rustix::fs::unlinkat(dir, file, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(Error::file(path.join(file), std::io::Error::from(error))),
    }
}

/// Whether `file` is what `fd` has open.
fn is_still(directory: &Directory, file: &str, fd: &OwnedFd) -> bool {
    let now = rustix::fs::statat(directory.io(), file, AtFlags::SYMLINK_NOFOLLOW);
    let ours = rustix::fs::fstat(fd.as_fd());
    matches!((now, ours), (Ok(a), Ok(b)) if (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino))
}

fn busy(directory: &Directory, name: &Name, lock: OwnedFd) -> Error {
    let mut text = String::new();
    let _ = std::fs::File::from(lock).take(16).read_to_string(&mut text);
    let what = match directory.state(name).map(|state| state.phase) {
        Ok(Phase::Running) => "running already",
        Ok(Phase::Loading) => "being loaded",
        _ => "in use by another process",
    };
    Error::Busy { name: name.clone(), what, pid: text.trim().parse().ok() }
}
