//! What can be wrong with a configuration, and the exit status that bhyve uses for it.

use std::fmt;
use std::sync::Arc;

/// Exit status of bhyve for a command line that it can't read at all.
pub const EXIT_USAGE: u8 = 1;
/// Exit status of bhyve for a configuration that it can't run.
pub const EXIT_ERROR: u8 = 4;
/// `EX_USAGE` of sysexits(3): what bhyve exits with when the argument of an option is malformed.
pub const EXIT_OPTION: u8 = 64;

/// Where a value came from, as the user wrote it: `-s 3:0,virtio-blk,./disk.img` or `vm.conf:12`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin(Arc<str>);

impl Origin {
    /// Names a source of values.
    pub fn new(text: impl AsRef<str>) -> Self {
        Self(Arc::from(text.as_ref()))
    }

    /// The source as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A configuration that is refused: where the user wrote it, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{at}: {problem}")]
pub struct Error {
    /// The option or file line at fault, as typed.
    pub at: Origin,
    /// What is wrong with it.
    pub problem: Problem,
}

impl Error {
    /// An error at `at`.
    pub fn new(at: &Origin, problem: Problem) -> Self {
        Self { at: at.clone(), problem }
    }

    /// The status with which bhyve exits on such an error.
    pub fn exit_code(&self) -> u8 {
        match self.problem {
            Problem::Usage(_) => EXIT_USAGE,
            Problem::Argument(_) => EXIT_OPTION,
            _ => EXIT_ERROR,
        }
    }
}

/// Why a configuration is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// The command line as a whole can't be read: unknown option, missing argument or VM name.
    #[error("{0}")]
    Usage(String),
    /// The argument of `-c`, `-f`, `-l`, `-m`, `-n`, `-o` or `-p` is malformed.
    #[error("{0}")]
    Argument(String),
    /// A slot, a device option or a line of a file that can't be what the user meant.
    #[error("{0}")]
    Invalid(String),
    /// Nothing reads this key.
    #[error("unknown key {key}{}", suggestion(nearest.as_deref()))]
    UnknownKey {
        /// The key as it stands in the tree.
        key: String,
        /// The known key that looks most like it.
        nearest: Option<String>,
    },
    /// No device has this name.
    #[error("unknown device {device}{}", suggestion(nearest.as_deref()))]
    UnknownDevice {
        /// The name that was asked for.
        device: String,
        /// The known device that looks most like it.
        nearest: Option<String>,
    },
    /// bhyve has this, we don't.
    #[error("{0} is not supported by this version")]
    Unsupported(String),
    /// A value that its key does not take.
    #[error("{key}={value}: {expected}")]
    Value {
        /// The key as it stands in the tree.
        key: String,
        /// The value after expansion.
        value: String,
        /// What the key takes instead.
        expected: String,
    },
}

fn suggestion(nearest: Option<&str>) -> String {
    nearest.map_or_else(String::new, |name| format!(" (did you mean {name}?)"))
}
