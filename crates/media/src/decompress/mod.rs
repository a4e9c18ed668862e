//! Compressed files, seen as what they hold.
