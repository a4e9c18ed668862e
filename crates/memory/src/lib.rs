//! Guest RAM: host mappings of guest-physical ranges, bounds-checked access, and the map of
//! pages that hold translated code.
//!
//! Guest memory is shared with running vCPUs, so no Rust reference to it is ever handed out.
//! Every access is a copy or an atomic through raw pointers, checked against the region table.

mod code_map;
mod guest;
mod region;
mod slice;

pub use code_map::{CodeMap, CodeWatcher};
pub use guest::{Backing, GuestMemory, Layout};
pub use region::Region;
pub use slice::GuestSlice;

/// Size of a guest page in bytes (Intel SDM vol. 3, 4.1: the smallest page of every paging mode).
pub const PAGE_SIZE: u64 = 4096;

/// What can go wrong with guest memory.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An access that does not lie wholly inside one RAM region.
    #[error("guest-physical range {gpa:#x}+{len:#x} is not RAM")]
    OutOfRange {
        /// Guest-physical address of the first byte.
        gpa: u64,
        /// Length in bytes.
        len: u64,
    },
    /// The host refused the mapping.
    #[error("cannot map {len} bytes of guest memory: {source}")]
    Map {
        /// Length in bytes.
        len: u64,
        /// The host's answer.
        source: std::io::Error,
    },
    /// The host refused something else.
    #[error("cannot {what} {len} bytes of guest memory: {source}")]
    Host {
        /// What was asked for.
        what: &'static str,
        /// Length in bytes.
        len: u64,
        /// The host's answer.
        source: std::io::Error,
    },
    /// The requested layout overlaps, is empty, unaligned or overflows.
    #[error("guest memory layout is not valid: {0}")]
    Layout(&'static str),
}

/// Result of a guest memory operation.
pub type Result<T> = std::result::Result<T, Error>;
