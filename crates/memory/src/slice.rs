//! A checked, contiguous piece of guest RAM for host I/O without a copy.

use std::os::fd::{AsFd, AsRawFd};
use std::ptr::NonNull;

use crate::GuestMemory;

/// `len` bytes of guest RAM that stay mapped as long as this value lives. The bytes may change at
/// any time under the guest's hands: use it for system calls and copies, never as a reference.
#[derive(Clone)]
pub struct GuestSlice {
    memory: GuestMemory,
    gpa: u64,
    host: NonNull<u8>,
    len: usize,
}

// SAFETY: the slice keeps its mapping alive through `memory`; the pointer is only used for copies
// and system calls that tolerate concurrent access.
unsafe impl Send for GuestSlice {}
// SAFETY: as above.
unsafe impl Sync for GuestSlice {}

impl GuestSlice {
    pub(crate) fn new(memory: GuestMemory, gpa: u64, host: NonNull<u8>, len: usize) -> Self {
        Self { memory, gpa, host, len }
    }

    /// Host address, for iovecs.
    pub fn as_ptr(&self) -> *mut u8 {
        self.host.as_ptr()
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Guest-physical address of the first byte.
    pub fn gpa(&self) -> u64 {
        self.gpa
    }

    /// The part from `offset`, at most `len` bytes; empty past the end.
    #[must_use]
    pub fn sub(&self, offset: usize, len: usize) -> Self {
        let offset = offset.min(self.len);
        let len = len.min(self.len - offset);
        // SAFETY: offset <= self.len, inside or one past the mapping's end.
        let host = unsafe { self.host.add(offset) };
        Self { memory: self.memory.clone(), gpa: self.gpa + offset as u64, host, len }
    }

    /// Fills the whole slice from `file` at `offset`, straight into guest RAM.
    pub fn read_file(&self, file: impl AsFd, offset: u64) -> std::io::Result<()> {
        let fd = file.as_fd();
        let mut done = 0;
        while done < self.len {
            let part = self.sub(done, self.len - done);
            let at = offset.checked_add(done as u64).and_then(|at| libc::off_t::try_from(at).ok());
            let at = at.ok_or(std::io::ErrorKind::InvalidInput)?;
            // SAFETY: the destination is a checked range of guest RAM that `self` keeps mapped.
            let n = unsafe { libc::pread(fd.as_raw_fd(), part.host.as_ptr().cast(), part.len, at) };
            match usize::try_from(n) {
                Ok(0) => return Err(std::io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => done += n,
                Err(_) => {
                    let error = std::io::Error::last_os_error();
                    if error.kind() != std::io::ErrorKind::Interrupted {
                        return Err(error);
                    }
                }
            }
        }
        self.written(self.len);
        Ok(())
    }

    /// To be called after the host has written `len` bytes at the start of the slice behind our
    /// back (a completed read into it), so that translated code there is dropped.
    pub fn written(&self, len: usize) {
        self.memory.note_write(self.gpa, len.min(self.len) as u64);
    }

    /// Copies the start of the slice to `to`, as much as both hold; returns how much.
    pub fn read(&self, to: &mut [u8]) -> usize {
        let len = self.len.min(to.len());
        // SAFETY: both sides hold `len` bytes; the destination is an exclusive host buffer that
        // cannot overlap guest RAM. Racing guest stores can tear the copy, as on hardware.
        unsafe { std::ptr::copy_nonoverlapping(self.host.as_ptr(), to.as_mut_ptr(), len) };
        len
    }

    /// Copies `from` to the start of the slice, as much as both hold; returns how much.
    pub fn write(&self, from: &[u8]) -> usize {
        let len = self.len.min(from.len());
        // SAFETY: as in `read`, with the roles exchanged.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), self.host.as_ptr(), len) };
        self.written(len);
        len
    }
}

#[cfg(test)]
mod tests {
    use crate::{Backing, GuestMemory};
    use std::io::Write;

    #[test]
    fn files_are_read_in_place() {
        let memory = GuestMemory::new(&[(0, 0x2000)], &Backing::Anonymous).unwrap();
        let path = std::env::temp_dir().join(format!("memory-slice-{}", std::process::id()));
        let mut file = std::fs::File::create_new(&path).unwrap();
        file.write_all(b"0123456789").unwrap();
        let file = std::fs::File::open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        memory.slice(0x1ffc, 4).unwrap().read_file(&file, 3).unwrap();
        let mut got = [0; 5];
        memory.read(0x1ffb, &mut got).unwrap();
        assert_eq!(&got, b"\x003456");
        assert!(memory.slice(0, 8).unwrap().read_file(&file, 3).is_err());
    }
}
