//! A folder of the host as a file system.
