//! FreeBSD's loader.
