//! The file behind a VM's memory: sparse, on a file system that is memory itself.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, Mode, OFlags};
use rustix::io::Errno;

use crate::directory::open_own;
use crate::{Directory, Error, Name, Ram, Result};

/// File system type of tmpfs and devtmpfs (statfs(2)).
const TMPFS_MAGIC: i64 = 0x0102_1994;
/// Where memory goes that has no room beside the VM: in containers /dev has 64 MiB.
const SHARED: &str = "/dev/shm";

/// A folder that may hold memory files.
struct Place<'a> {
    dir: BorrowedFd<'a>,
    path: &'a Path,
    /// The file's name there.
    file: String,
}

/// Makes the memory file of `name`, wherever there is room. With `wired` all of it is allocated
/// now and not as the guest touches it.
pub fn create(directory: &Directory, name: &Name, size: u64, wired: bool) -> Result<(OwnedFd, PathBuf)> {
    let shared = rustix::fs::open(SHARED, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let beside = Place { dir: directory.io(), path: directory.io_path(), file: format!("{name}.ram") };
    let mut places = vec![beside];
    if let Ok(shared) = &shared {
        places.push(Place {
            dir: shared.as_fd(),
            path: Path::new(SHARED),
            file: shared_name(directory, name)?,
        });
    }
    let mut refusals = Vec::new();
    for place in places {
        match room(place.dir) {
            Some(free) if free >= size => return make(&place, size, wired),
            Some(free) => refusals.push(format!("{} has {} MiB", place.path.display(), free >> 20)),
            None => refusals.push(format!("{} is not on a tmpfs", place.path.display())),
        }
    }
    Err(Error::Room { need: size.div_ceil(1 << 20), places: refusals.join(", ") })
}

/// A name that no other user, folder or VM has: the folder is told by its device and inode.
fn shared_name(directory: &Directory, name: &Name) -> Result<String> {
    let stat = rustix::fs::fstat(directory.io()).map_err(|e| Error::file(directory.io_path(), e))?;
    Ok(format!("vmm-{}-{:x}-{:x}-{name}.ram", stat.st_uid, stat.st_dev, stat.st_ino))
}

/// Free bytes of a tmpfs; `None` on other file systems, whose pages would be written to a disk.
fn room(dir: BorrowedFd<'_>) -> Option<u64> {
    let fs = rustix::fs::fstatfs(dir).ok()?;
    if fs.f_type as i64 != TMPFS_MAGIC {
        return None;
    }
    // A tmpfs without a limit has no size at all.
    if fs.f_blocks == 0 { Some(u64::MAX) } else { fs.f_bavail.checked_mul(fs.f_bsize as u64) }
}

fn make(place: &Place<'_>, size: u64, wired: bool) -> Result<(OwnedFd, PathBuf)> {
    let path = place.path.join(&place.file);
    let fail = |e: Errno| Error::file(&path, std::io::Error::from(e));
    match rustix::fs::unlinkat(place.dir, &place.file, rustix::fs::AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(error) => return Err(fail(error)),
    }
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
    let fd = open_own(place.dir, Path::new(&place.file), &path, flags)?;
    let filled = rustix::fs::ftruncate(&fd, size).and_then(|()| {
        if wired { rustix::fs::fallocate(&fd, FallocateFlags::empty(), 0, size) } else { Ok(()) }
    });
    if let Err(error) = filled {
        let _ = rustix::fs::unlinkat(place.dir, &place.file, rustix::fs::AtFlags::empty());
        return Err(fail(error));
    }
    Ok((fd, path))
}

/// Opens the memory of a VM that someone else made.
pub fn open(ram: &Ram, path: &Path) -> Result<OwnedFd> {
    let fd = open_own(rustix::fs::CWD, path, path, OFlags::RDWR)?;
    let stat = rustix::fs::fstat(&fd).map_err(|e| Error::file(path, e))?;
    if stat.st_size as u64 != ram.size {
        return Err(Error::file(path, format!("{} bytes long, the VM has {}", stat.st_size, ram.size)));
    }
    Ok(fd)
}

/// Gives the memory back. A file that is gone is no error. Removes only what [`create`] makes: a
/// path in a damaged state must not cost another file.
pub fn remove(directory: &Directory, name: &Name) -> Result<()> {
    let beside = directory.io_path().join(format!("{name}.ram"));
    let shared = Path::new(SHARED).join(shared_name(directory, name)?);
    for path in [beside, shared] {
        match rustix::fs::unlink(&path) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(Error::file(&path, std::io::Error::from(error))),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::Scratch;

    #[test]
    fn memory_that_has_no_room_anywhere_is_refused() {
        let scratch = Scratch::new();
        let (directory, name) = (scratch.directory(), Name::new("guest").unwrap());
        let error = create(&directory, &name, 1 << 60, false).unwrap_err().to_string();
        let beside = directory.io_path().display().to_string();
        assert!(error.starts_with("no room for 1099511627776 MiB of guest memory: "), "{error}");
        assert!(error.contains(&beside), "{error}");
        assert_eq!(std::fs::read_dir(directory.io_path()).unwrap().count(), 0);
    }

    #[test]
    fn wired_memory_is_allocated_at_once() {
        use std::os::unix::fs::MetadataExt;
        let scratch = Scratch::new();
        let (directory, name) = (scratch.directory(), Name::new("guest").unwrap());
        let (_, path) = create(&directory, &name, 8 << 20, true).unwrap();
        assert_eq!(path.metadata().unwrap().blocks() * 512, 8 << 20);
        remove(&directory, &name).unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn folders_with_vms_of_one_name_do_not_share_memory() {
        let (one, other) = (Scratch::new(), Scratch::new());
        let name = Name::new("guest").unwrap();
        assert_ne!(
            shared_name(&one.directory(), &name).unwrap(),
            shared_name(&other.directory(), &name).unwrap()
        );
    }
}
