//! Disk controllers that hardware has, too.

pub mod ahci;
