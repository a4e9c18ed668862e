//! One contiguous guest-physical range and its host mapping.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;

use crate::{Error, PAGE_SIZE, Result};

/// A contiguous range of guest RAM and where the host mapped it.
#[derive(Debug)]
pub struct Region {
    gpa: u64,
    len: u64,
    host: NonNull<u8>,
}

// SAFETY: the mapping is plain shared memory, owned by this value for its whole life; all access
// goes through atomic or volatile-like copies that tolerate concurrent writers.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    /// Maps `len` bytes for the guest range at `gpa`. With `file`, the mapping is shared with the
    /// file at `offset`; without, it is anonymous and asks for huge pages.
    pub(crate) fn map(gpa: u64, len: u64, file: Option<(BorrowedFd<'_>, u64)>) -> Result<Self> {
        let (fd, offset, flags) = match file {
            Some((fd, offset)) => (fd.as_raw_fd(), offset, libc::MAP_SHARED | libc::MAP_NORESERVE),
            None => (-1, 0, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE),
        };
        let size = usize::try_from(len).map_err(|_| Error::Layout("region larger than the address space"))?;
        // SAFETY: a fresh mapping at an address of the kernel's choice touches no existing memory.
        let host = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                size,
                libc::PROT_READ | libc::PROT_WRITE,
                flags,
                fd,
                offset as libc::off_t,
            )
        };
        if host == libc::MAP_FAILED {
            return Err(Error::Map { len, source: std::io::Error::last_os_error() });
        }
        // SAFETY: advice over the range just mapped; refusal is harmless and ignored.
        unsafe { libc::madvise(host, size, libc::MADV_HUGEPAGE) };
        // SAFETY: as above; without guest_in_core the guest's memory stays out of core dumps.
        unsafe { libc::madvise(host, size, libc::MADV_DONTDUMP) };
        let host = NonNull::new(host.cast()).ok_or(Error::Layout("mapping at address 0"))?;
        Ok(Self { gpa, len, host })
    }

    /// Guest-physical address of the first byte.
    pub fn gpa(&self) -> u64 {
        self.gpa
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Never true: an empty region is refused at construction.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Host address of the first byte. For engines, which map guest RAM as a whole.
    pub fn host(&self) -> NonNull<u8> {
        self.host
    }

    pub(crate) fn include_in_core(&self) -> Result<()> {
        // SAFETY: advice over the range that this value has mapped; it changes no byte.
        let done = unsafe { libc::madvise(self.host.as_ptr().cast(), self.len as usize, libc::MADV_DODUMP) };
        if done == 0 { Ok(()) } else { Err(self.refused("put into core dumps")) }
    }

    pub(crate) fn wire(&self) -> Result<()> {
        // SAFETY: the range is mapped by this value; pages are only faulted in and kept.
        let done = unsafe { libc::mlock(self.host.as_ptr().cast(), self.len as usize) };
        if done == 0 { Ok(()) } else { Err(self.refused("wire")) }
    }

    /// Bytes in the host's RAM; what the host does not tell counts as absent.
    pub(crate) fn resident(&self) -> u64 {
        /// Pages in one question.
        const LOT: u64 = 1 << 16;
        let mut flags = vec![0u8; LOT as usize];
        let (mut pages, mut done) = (0, 0);
        while done < self.len {
            let len = (self.len - done).min(LOT * PAGE_SIZE);
            // SAFETY: the range lies in this value's mapping, and the vector has a byte for each page.
            let answer = unsafe {
                libc::mincore(self.host.as_ptr().add(done as usize).cast(), len as usize, flags.as_mut_ptr())
            };
            if answer == 0 {
                let asked = flags.iter().take((len / PAGE_SIZE) as usize);
                pages += asked.filter(|flag| **flag & 1 != 0).count() as u64;
            }
            done += len;
        }
        pages * PAGE_SIZE
    }

    fn refused(&self, what: &'static str) -> Error {
        Error::Host { what, len: self.len, source: std::io::Error::last_os_error() }
    }

    /// Host address of `gpa` if `len` bytes from there lie in this region.
    pub(crate) fn at(&self, gpa: u64, len: u64) -> Option<NonNull<u8>> {
        let offset = gpa.checked_sub(self.gpa)?;
        let end = offset.checked_add(len)?;
        if end > self.len {
            return None;
        }
        // SAFETY: offset <= len, so the result stays inside (or one past) the mapping.
        Some(unsafe { self.host.add(offset as usize) })
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `map` with this length and nothing else owns it.
        unsafe { libc::munmap(self.host.as_ptr().cast(), self.len as usize) };
    }
}
