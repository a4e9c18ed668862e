//! Reads what boot loaders find on disks: partition maps, logical volumes, software RAID,
//! encrypted volumes, file systems and compressed files. Read-only, and usable without a VM.
//!
//! Everything read here may be damaged or hostile: no reader panics, loops for ever or takes more
//! memory than the limit in its file, whatever the bytes are.
#![forbid(unsafe_code)]

pub mod decompress;
pub mod disks;
mod error;
mod fields;
mod filesystem;
pub mod fs;
mod path;
mod source;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use error::{Error, Result};
pub use fields::Fields;
pub use filesystem::{Entry, FileSystem, Kind, Metadata, Node, NodeRef, read_all};
pub use path::{MAX_LINKS, resolve};
pub use source::{Bytes, FileSource, NodeSource, Source, SourceRef, Window};
