//! ZFS: pools of OpenZFS (version 5000) and of before feature flags (1 to 28), read-only.
//!
//! The layout is that of the "ZFS On-Disk Specification" (Sun, 2006) and of OpenZFS's headers since then:
//! labels ([`label`]) name the devices ([`vdev`], [`raidz`]) and lead to the pool's object set ([`pool`]);
//! objects ([`dmu`]) are trees of blocks ([`block`], [`store`]); names are in ZAP objects ([`zap`]); datasets
//! form a tree ([`dsl`]), and a file system ([`zpl`], [`sa`]) is in each.
//!
//! In the tree of a pool, a dataset is a directory: `/ROOT/default/@/boot/loader.conf` is in the dataset
//! `POOL/ROOT/default`, `/ROOT/default/@before/` is the root of its snapshot `before`.
//!
//! Memory: 48 MiB of cached blocks, and a few times the largest block (16 MiB) while one is read.

mod block;
mod checksum;
mod dmu;
mod dsl;
mod features;
mod label;
mod nvlist;
mod pool;
mod raidz;
mod sa;
mod store;
#[cfg(test)]
mod tests;
mod vdev;
mod zap;
mod zpl;

use std::sync::Arc;

use crate::{FileSystem, Result, SourceRef};

pub use pool::Pool;

/// Our name in messages.
const KIND: &str = "zfs";

/// Opens the file system, if it is one.
pub fn open(source: &SourceRef, peers: &[SourceRef]) -> Result<Option<Arc<dyn FileSystem>>> {
    Ok(Pool::open(source, peers)?.map(|pool| Arc::new(pool::PoolTree(pool)) as Arc<dyn FileSystem>))
}
