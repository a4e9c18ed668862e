//! LUKS.

use crate::{Error, Result, SourceRef};

/// An opened volume.
pub struct Volume {
    /// Its UUID, digits only.
    pub uuid: String,
    /// What it holds.
    pub source: SourceRef,
}

/// The UUID of an encrypted volume, if it is one.
pub fn uuid(_: &SourceRef) -> Result<Option<String>> {
    Ok(None)
}

/// Opens an encrypted volume.
pub fn unlock(_: &SourceRef, _: &[u8]) -> Result<Volume> {
    Err(Error::unsupported("luks", "this volume"))
}
