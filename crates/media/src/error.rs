//! Why something could not be read.

/// Result of reading.
pub type Result<T> = std::result::Result<T, Error>;

/// Why something could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The host could not read a file or a device.
    #[error("{what}: {source}")]
    Io {
        /// The file, as the user named it.
        what: String,
        /// The host's reason.
        source: std::io::Error,
    },
    /// A structure on the disk makes no sense.
    #[error("{kind}: damaged: {what}")]
    Corrupt {
        /// File system, partition map or volume manager.
        kind: &'static str,
        /// What makes no sense, and where.
        what: String,
    },
    /// The structure is sound but uses something that this reader does not know.
    #[error("{kind}: {what} is not supported")]
    Unsupported {
        /// File system, partition map or volume manager.
        kind: &'static str,
        /// The feature.
        what: String,
    },
    /// Bytes past the end were asked for.
    #[error("read of {len} bytes at {offset} is past the end ({size} bytes)")]
    PastEnd {
        /// First byte.
        offset: u64,
        /// How many.
        len: u64,
        /// Size of what was read.
        size: u64,
    },
    /// No such file, device or volume.
    #[error("{0}: not found")]
    NotFound(String),
    /// A path goes through something that is not a directory.
    #[error("{0}: not a directory")]
    NotADirectory(String),
    /// A directory where a file is needed.
    #[error("{0}: is a directory")]
    IsADirectory(String),
    /// Not a file, directory or symbolic link.
    #[error("{0}: not a regular file")]
    NotAFile(String),
    /// Symbolic links that lead nowhere.
    #[error("{0}: too many symbolic links")]
    Links(String),
    /// No reader knows what is on this device.
    #[error("unknown file system")]
    UnknownFileSystem,
    /// No key of an encrypted volume opens with this passphrase.
    #[error("wrong passphrase")]
    WrongPassphrase,
    /// Something is larger than the reader allows.
    #[error("{0} is too large")]
    TooLarge(String),
}

impl Error {
    /// An [`Error::Corrupt`].
    pub fn corrupt(kind: &'static str, what: impl Into<String>) -> Self {
        Self::Corrupt { kind, what: what.into() }
    }

    /// An [`Error::Unsupported`].
    pub fn unsupported(kind: &'static str, what: impl Into<String>) -> Self {
        Self::Unsupported { kind, what: what.into() }
    }
}
