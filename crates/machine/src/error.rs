//! Why a VM does not start, in the words of the option that asked for it.

use std::path::PathBuf;

/// An error that ends bhyve; [`Error::exit_code`] is its exit status.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration can't be run.
    #[error(transparent)]
    Config(#[from] config::Error),
    /// The kernel or its RAM disk can't be loaded.
    #[error(transparent)]
    Boot(#[from] boot::Error),
    /// Guest memory can't be had.
    #[error("{at}: {source}")]
    Memory {
        /// The option that asked for it.
        at: config::Origin,
        /// The host's answer.
        source: memory::Error,
    },
    /// The VM's files can't be used.
    #[error(transparent)]
    Vm(#[from] vm::Error),
    /// The firmware tables can't describe the machine.
    #[error(transparent)]
    Firmware(#[from] firmware::Error),
    /// The engine refuses.
    #[error("{at}: {source}")]
    Engine {
        /// The option that chose it.
        at: config::Origin,
        /// Why.
        source: engine::Error,
    },
    /// Two parts of the machine want the same ports or addresses.
    #[error("{what}: {source}")]
    Claim {
        /// Who came second.
        what: String,
        /// The range.
        source: bus::ClaimError,
    },
    /// The host refused something that every VM needs.
    #[error("{what}: {source}")]
    Host {
        /// What was being done.
        what: &'static str,
        /// The host's answer.
        source: std::io::Error,
    },
    /// A file of the host that the machine needs.
    #[error("{}: {source}", path.display())]
    File {
        /// Its name.
        path: PathBuf,
        /// The host's answer.
        source: std::io::Error,
    },
    /// A part of the machine can't be built.
    #[error("{0}")]
    Part(String),
}

impl Error {
    /// The status with which bhyve exits on this error.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Config(error) => error.exit_code(),
            _ => config::EXIT_ERROR,
        }
    }

    /// Turns a host error into one that says what was being done.
    pub(crate) fn host(what: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Host { what, source }
    }
}

/// Result of building or running a machine.
pub type Result<T> = std::result::Result<T, Error>;
