//! Not there yet.

use std::sync::Arc;

use crate::{FileSystem, Result, SourceRef};

/// Opens the file system, if it is one.
pub fn open(_: &SourceRef, _: &[SourceRef]) -> Result<Option<Arc<dyn FileSystem>>> {
    Ok(None)
}
