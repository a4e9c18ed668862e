//! The options of a disk, as in bhyve(8).

/// Logical and physical sector size in bytes: powers of two from 512 on, logical not above
/// physical.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SectorSize {
    /// Smallest unit of a request.
    pub logical: u32,
    /// Unit the disk writes at once.
    pub physical: u32,
}

impl SectorSize {
    pub(super) fn is_valid(self) -> bool {
        let valid = |n: u32| n >= 512 && n.is_power_of_two();
        valid(self.logical) && valid(self.physical) && self.logical <= self.physical
    }
}

/// How to open a disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlockOptions {
    /// File or block device.
    pub path: String,
    /// Bypass the host's page cache (`O_DIRECT`).
    pub nocache: bool,
    /// Every write is durable when it completes (`O_SYNC`; keys `sync` and `direct`).
    pub sync: bool,
    /// Never write.
    pub read_only: bool,
    /// Sector sizes to show instead of the host's.
    pub sector_size: Option<SectorSize>,
    /// Offer no discard.
    pub no_delete: bool,
    /// Serial number instead of the one made from the path.
    pub serial: Option<String>,
    /// Place in the firmware's boot order.
    pub boot_index: Option<u32>,
}

impl BlockOptions {
    /// A disk at `path` with default options.
    pub fn new(path: impl Into<String>) -> Self {
        Self { path: path.into(), ..Self::default() }
    }
}
