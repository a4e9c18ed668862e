//! What goes wrong at the prompt.

use media::Error as Media;

/// Result of a command.
pub type Outcome<T = ()> = Result<T, Error>;

/// Why a command failed: GRUB's number of the error, which `$?` shows, and a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// The number.
    pub code: u32,
    /// What is shown after `error: `; nothing is shown of a test that is not true.
    pub message: String,
}

/// Numbers of errors (GRUB's `grub_err_t`).
pub mod code {
    pub const TEST_FAILURE: u32 = 1;
    pub const OUT_OF_MEMORY: u32 = 3;
    pub const BAD_FILE_TYPE: u32 = 4;
    pub const FILE_NOT_FOUND: u32 = 5;
    pub const FILE_READ_ERROR: u32 = 6;
    pub const BAD_FILENAME: u32 = 7;
    pub const UNKNOWN_FS: u32 = 8;
    pub const BAD_FS: u32 = 9;
    pub const UNKNOWN_DEVICE: u32 = 12;
    pub const WRITE_ERROR: u32 = 15;
    pub const UNKNOWN_COMMAND: u32 = 16;
    pub const BAD_ARGUMENT: u32 = 18;
    pub const BAD_OS: u32 = 21;
    pub const NO_KERNEL: u32 = 22;
    pub const NOT_IMPLEMENTED: u32 = 24;
    pub const SYMLINK_LOOP: u32 = 25;
    pub const TIMEOUT: u32 = 28;
    pub const ACCESS_DENIED: u32 = 30;
}

impl Error {
    /// An error with this number and text.
    pub fn new(code: u32, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// A test that is not true.
    pub fn test_failure() -> Self {
        Self::new(code::TEST_FAILURE, "")
    }

    /// An argument that makes no sense.
    pub fn argument(message: impl Into<String>) -> Self {
        Self::new(code::BAD_ARGUMENT, message)
    }

    /// Too few arguments; `what` is expected.
    pub fn expected(what: &str) -> Self {
        Self::argument(format!("{what} expected"))
    }

    /// An error of a reader, about the file or device that the user called `name`.
    pub fn media(name: &str, error: &Media) -> Self {
        match error {
            Media::NotFound(what) if what.starts_with("device (") => {
                Self::new(code::UNKNOWN_DEVICE, format!("no such device: {name}"))
            }
            Media::NotFound(_) | Media::NotADirectory(_) => Self::file_not_found(name),
            Media::UnknownFileSystem => Self::new(code::UNKNOWN_FS, "unknown filesystem"),
            Media::IsADirectory(_) | Media::NotAFile(_) => {
                Self::new(code::BAD_FILE_TYPE, format!("`{name}' is not a regular file"))
            }
            Media::Links(_) => Self::new(code::SYMLINK_LOOP, format!("too many symbolic links at `{name}'")),
            Media::Io { .. } | Media::PastEnd { .. } => {
                Self::new(code::FILE_READ_ERROR, format!("`{name}': {error}"))
            }
            Media::WrongPassphrase => Self::new(code::ACCESS_DENIED, format!("`{name}': {error}")),
            Media::Corrupt { .. } | Media::Unsupported { .. } | Media::TooLarge(_) => {
                Self::new(code::BAD_FS, format!("`{name}': {error}"))
            }
        }
    }

    /// There is no such file.
    pub fn file_not_found(name: &str) -> Self {
        Self::new(code::FILE_NOT_FOUND, format!("file `{name}' not found"))
    }
}
