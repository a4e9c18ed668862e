//! Why something can't be done with a VM, each in one line.

use std::path::PathBuf;

use crate::{Name, SizeError};

/// Result of an operation on a VM.
pub type Result<T> = std::result::Result<T, Error>;

/// Why something can't be done with a VM.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No VM can be called so.
    #[error("VM name {name:?} {why}")]
    Name {
        /// What was asked for.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// There is no such VM; the words are bhyvectl's.
    #[error("VM:{0} is not created.")]
    NotCreated(Name),
    /// There is such a VM already.
    #[error("VM {0} exists already")]
    Exists(Name),
    /// Another process holds the VM.
    #[error("VM {name} is {what}{}", in_brackets(*pid))]
    Busy {
        /// The VM.
        name: Name,
        /// `running already` or `being loaded`.
        what: &'static str,
        /// The process, where it is known.
        pid: Option<u32>,
    },
    /// A running VM does not do what it is asked.
    #[error("VM {name}: {why}")]
    Refused {
        /// The VM.
        name: Name,
        /// In its words.
        why: String,
    },
    /// A file or folder can't be used.
    #[error("{}: {what}", path.display())]
    File {
        /// Which one.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// No file system can hold the memory.
    #[error("no room for {need} MiB of guest memory: {places}")]
    Room {
        /// What was asked for.
        need: u64,
        /// Where it was looked for, and what there is.
        places: String,
    },
    /// A size of memory that no guest can have.
    #[error(transparent)]
    Size(#[from] SizeError),
    /// The memory can't be mapped.
    #[error(transparent)]
    Memory(#[from] memory::Error),
}

fn in_brackets(pid: Option<u32>) -> String {
    pid.map_or_else(String::new, |pid| format!(" (pid {pid})"))
}

impl Error {
    /// An error about a file.
    #[allow(clippy::needless_pass_by_value, reason = "errors are passed on as they come")]
    pub(crate) fn file(path: impl Into<PathBuf>, what: impl ToString) -> Self {
        Self::File { path: path.into(), what: what.to_string() }
    }
}
