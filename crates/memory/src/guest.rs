//! The guest's physical memory as a whole.

use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use crate::{CodeMap, Error, GuestSlice, PAGE_SIZE, Region, Result};

/// Guest-physical RAM ranges as (gpa, length in bytes), in ascending order.
pub type Layout = Vec<(u64, u64)>;

/// What is behind guest RAM.
pub enum Backing {
    /// Private anonymous memory with huge pages where the host has them.
    Anonymous,
    /// A file, mapped shared: the ranges follow each other in it, in order, from offset 0.
    File(OwnedFd),
}

struct Inner {
    regions: Vec<Region>,
    code: CodeMap,
}

/// Guest RAM. Cloning is cheap and shares the same memory.
#[derive(Clone)]
pub struct GuestMemory {
    inner: Arc<Inner>,
}

impl std::fmt::Debug for GuestMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.regions()).finish()
    }
}

impl GuestMemory {
    /// Maps the ranges of `layout`.
    pub fn new(layout: &[(u64, u64)], backing: &Backing) -> Result<Self> {
        if layout.is_empty() {
            return Err(Error::Layout("no range"));
        }
        let mut regions = Vec::with_capacity(layout.len());
        let (mut last_end, mut offset) = (0, 0);
        for &(gpa, len) in layout {
            if len == 0 || gpa % PAGE_SIZE != 0 || len % PAGE_SIZE != 0 {
                return Err(Error::Layout("a range is empty or not page aligned"));
            }
            if gpa < last_end {
                return Err(Error::Layout("ranges overlap or are not in ascending order"));
            }
            last_end = gpa.checked_add(len).ok_or(Error::Layout("a range overflows"))?;
            let file = match backing {
                Backing::Anonymous => None,
                Backing::File(fd) => Some((fd.as_fd(), offset)),
            };
            regions.push(Region::map(gpa, len, file)?);
            offset += len;
        }
        let code = CodeMap::new(layout.iter().copied());
        Ok(Self { inner: Arc::new(Inner { regions, code }) })
    }

    /// The RAM ranges, ascending.
    pub fn regions(&self) -> &[Region] {
        &self.inner.regions
    }

    /// Total RAM in bytes.
    pub fn size(&self) -> u64 {
        self.inner.regions.iter().map(Region::len).sum()
    }

    /// The map of translated code.
    pub fn code(&self) -> &CodeMap {
        &self.inner.code
    }

    /// Host address of `len` bytes at `gpa`, or `None` if they are not all in one range. For
    /// engines; devices use [`GuestMemory::slice`].
    pub fn host(&self, gpa: u64, len: u64) -> Option<NonNull<u8>> {
        self.inner.regions.iter().find_map(|r| r.at(gpa, len))
    }

    fn checked(&self, gpa: u64, len: u64) -> Result<NonNull<u8>> {
        self.host(gpa, len).ok_or(Error::OutOfRange { gpa, len })
    }

    /// Whether `len` bytes at `gpa` are RAM.
    pub fn contains(&self, gpa: u64, len: u64) -> bool {
        self.host(gpa, len).is_some()
    }

    /// A piece of RAM for host I/O.
    pub fn slice(&self, gpa: u64, len: u64) -> Result<GuestSlice> {
        let host = self.checked(gpa, len)?;
        Ok(GuestSlice::new(self.clone(), gpa, host, len as usize))
    }

    /// Copies from guest RAM.
    pub fn read(&self, gpa: u64, to: &mut [u8]) -> Result<()> {
        let host = self.checked(gpa, to.len() as u64)?;
        // SAFETY: `checked` proved the source; the destination is an exclusive host buffer that
        // cannot overlap guest RAM. Racing guest stores can tear the copy, which is the guest's
        // own doing and as on hardware.
        unsafe { std::ptr::copy_nonoverlapping(host.as_ptr(), to.as_mut_ptr(), to.len()) };
        Ok(())
    }

    /// Copies into guest RAM.
    pub fn write(&self, gpa: u64, from: &[u8]) -> Result<()> {
        let host = self.checked(gpa, from.len() as u64)?;
        // SAFETY: as in `read`, with the roles exchanged.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), host.as_ptr(), from.len()) };
        self.note_write(gpa, from.len() as u64);
        Ok(())
    }

    /// Fills guest RAM with `value`.
    pub fn fill(&self, gpa: u64, value: u8, len: u64) -> Result<()> {
        let host = self.checked(gpa, len)?;
        // SAFETY: `checked` proved the destination.
        unsafe { std::ptr::write_bytes(host.as_ptr(), value, len as usize) };
        self.note_write(gpa, len);
        Ok(())
    }

    /// From now on core dumps of this process hold the memory.
    pub fn include_in_core(&self) -> Result<()> {
        self.inner.regions.iter().try_for_each(Region::include_in_core)
    }

    /// Faults all pages in and keeps them in RAM.
    pub fn wire(&self) -> Result<()> {
        self.inner.regions.iter().try_for_each(Region::wire)
    }

    /// Bytes that are in the host's RAM now.
    pub fn resident(&self) -> u64 {
        self.inner.regions.iter().map(Region::resident).sum()
    }

    /// To be called after `len` bytes at `gpa` were changed by other means than this type.
    pub fn note_write(&self, gpa: u64, len: u64) {
        self.inner.code.note_write(gpa, len);
    }
}

macro_rules! scalar {
    ($load:ident, $store:ident, $type:ty, $atomic:ty) => {
        impl GuestMemory {
            #[doc = concat!("Loads a little-endian `", stringify!($type), "`, in one access where it is aligned.")]
            pub fn $load(&self, gpa: u64, order: Ordering) -> Result<$type> {
                let host = self.checked(gpa, size_of::<$type>() as u64)?.cast::<$type>();
                let raw = if host.is_aligned() {
                    // SAFETY: checked, aligned, and guest RAM is only ever accessed as shared memory.
                    unsafe { <$atomic>::from_ptr(host.as_ptr()) }.load(order)
                } else {
                    // SAFETY: checked; unaligned reads may tear, as on hardware across lines.
                    unsafe { host.as_ptr().read_unaligned() }
                };
                Ok(<$type>::from_le(raw))
            }

            #[doc = concat!("Stores a little-endian `", stringify!($type), "`, in one access where it is aligned.")]
            pub fn $store(&self, gpa: u64, value: $type, order: Ordering) -> Result<()> {
                let host = self.checked(gpa, size_of::<$type>() as u64)?.cast::<$type>();
                if host.is_aligned() {
                    // SAFETY: as for the load.
                    unsafe { <$atomic>::from_ptr(host.as_ptr()) }.store(value.to_le(), order);
                } else {
                    // SAFETY: as for the load.
                    unsafe { host.as_ptr().write_unaligned(value.to_le()) };
                }
                self.note_write(gpa, size_of::<$type>() as u64);
                Ok(())
            }
        }
    };
}

macro_rules! exchange {
    ($name:ident, $type:ty, $atomic:ty) => {
        impl GuestMemory {
            #[doc = concat!("Atomically replaces the little-endian `", stringify!($type), "` at `gpa` by `new` if it is `old`; whether it was. It must be aligned. Does not tell the code watcher: for engines.")]
            pub fn $name(&self, gpa: u64, old: $type, new: $type) -> Result<bool> {
                let len = size_of::<$type>() as u64;
                let host = self.checked(gpa, len)?.cast::<$type>();
                if !host.is_aligned() {
                    return Err(Error::OutOfRange { gpa, len });
                }
                // SAFETY: checked, aligned, and guest RAM is only ever accessed as shared memory.
                let place = unsafe { <$atomic>::from_ptr(host.as_ptr()) };
                Ok(place.compare_exchange(old.to_le(), new.to_le(), Ordering::SeqCst, Ordering::SeqCst).is_ok())
            }
        }
    };
}

exchange!(compare_exchange_u32, u32, AtomicU32);
exchange!(compare_exchange_u64, u64, AtomicU64);

scalar!(load_u8, store_u8, u8, AtomicU8);
scalar!(load_u16, store_u16, u16, AtomicU16);
scalar!(load_u32, store_u32, u32, AtomicU32);
scalar!(load_u64, store_u64, u64, AtomicU64);

#[cfg(test)]
mod tests {
    use super::*;

    fn two_ranges() -> GuestMemory {
        GuestMemory::new(&[(0, 0x3000), (0x10000, 0x1000)], &Backing::Anonymous).unwrap()
    }

    #[test]
    fn access_must_lie_inside_one_range() {
        let m = two_ranges();
        assert!(m.write(0x2fff, &[1]).is_ok());
        assert!(m.write(0x2fff, &[1, 2]).is_err());
        assert!(m.read(0x10000, &mut [0; 4096]).is_ok());
        assert!(m.read(0x10000, &mut [0; 4097]).is_err());
        assert!(m.read(u64::MAX, &mut [0; 2]).is_err());
        assert!(m.slice(0x3000, 1).is_err());
    }

    #[test]
    fn scalars_round_trip_aligned_or_not() {
        let m = two_ranges();
        for gpa in [0x100, 0x101, 0x10ff7] {
            m.store_u64(gpa, 0x1122_3344_5566_7788, Ordering::Release).unwrap();
            assert_eq!(m.load_u64(gpa, Ordering::Acquire).unwrap(), 0x1122_3344_5566_7788);
            assert_eq!(m.load_u16(gpa, Ordering::Acquire).unwrap(), 0x7788);
        }
        assert!(m.load_u64(0x10ff9, Ordering::Acquire).is_err());
    }

    #[test]
    fn an_exchange_needs_the_old_value_and_alignment() {
        let m = two_ranges();
        assert!(m.compare_exchange_u32(8, 0, 5).unwrap());
        assert!(!m.compare_exchange_u32(8, 0, 6).unwrap());
        assert!(m.compare_exchange_u64(8, 5, u64::MAX).unwrap());
        assert_eq!(m.load_u64(8, Ordering::Acquire).unwrap(), u64::MAX);
        assert!(m.compare_exchange_u64(12, 0, 1).is_err());
        assert!(m.compare_exchange_u64(0x3000, 0, 1).is_err());
    }

    #[test]
    fn only_touched_pages_are_resident() {
        let m = GuestMemory::new(&[(0, 64 << 20)], &Backing::Anonymous).unwrap();
        assert_eq!(m.resident(), 0);
        m.fill(0, 1, 3 * PAGE_SIZE).unwrap();
        // A huge page may be behind it.
        assert!((3 * PAGE_SIZE..=4 << 20).contains(&m.resident()));
    }

    #[test]
    fn bad_layouts_are_refused() {
        for layout in [&[][..], &[(0, 0)], &[(0, 100)], &[(0, 0x2000), (0x1000, 0x1000)]] {
            assert!(GuestMemory::new(layout, &Backing::Anonymous).is_err());
        }
    }
}
