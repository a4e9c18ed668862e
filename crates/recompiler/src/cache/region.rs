//! Memory for host code, mapped twice: writable here, executable there, never both.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;

/// See the module.
pub struct Region {
    write: NonNull<u8>,
    code: NonNull<u8>,
    size: usize,
}

// SAFETY: the mappings belong to this value alone and move with it.
unsafe impl Send for Region {}

impl Region {
    /// Maps `size` bytes of zeros.
    pub fn new(size: usize) -> std::io::Result<Self> {
        // SAFETY: a plain system call with a constant name.
        let fd = unsafe { libc::memfd_create(c"recompiler code".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(std::io::Error::last_os_error());
        }
        // SAFETY: `fd` was just made and is owned by nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: a plain system call on our descriptor.
        if unsafe { libc::ftruncate(fd.as_raw_fd(), size as libc::off_t) } != 0 {
            return Err(std::io::Error::last_os_error());
        }
        let map = |protection| {
            // SAFETY: a fresh mapping at an address of the kernel's choice.
            let at = unsafe {
                libc::mmap(std::ptr::null_mut(), size, protection, libc::MAP_SHARED, fd.as_raw_fd(), 0)
            };
            match NonNull::new(at.cast::<u8>()) {
                Some(at) if at.as_ptr().cast() != libc::MAP_FAILED => Ok(at),
                _ => Err(std::io::Error::last_os_error()),
            }
        };
        let write = map(libc::PROT_READ | libc::PROT_WRITE)?;
        let code = map(libc::PROT_READ | libc::PROT_EXEC).inspect_err(|_| {
            // SAFETY: undoes the mapping just made.
            unsafe { libc::munmap(write.as_ptr().cast(), size) };
        })?;
        Ok(Self { write, code, size })
    }

    /// Host address of the executable view.
    pub fn code_address(&self) -> u64 {
        self.code.as_ptr() as u64
    }

    /// Writes code at `offset`.
    pub fn write(&mut self, offset: usize, bytes: &[u8]) {
        assert!(offset.checked_add(bytes.len()).is_some_and(|end| end <= self.size), "code cache overflow");
        // SAFETY: the range was just checked; the executable view is only run by the thread that
        // holds `&mut self`, which is here now.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.write.as_ptr().add(offset), bytes.len());
        };
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: both mappings were made by `new` with this size.
        unsafe {
            libc::munmap(self.write.as_ptr().cast(), self.size);
            libc::munmap(self.code.as_ptr().cast(), self.size);
        }
    }
}
