//! Character back ends: where a serial line's bytes come from and go to.
//!
//! | argument | back end |
//! |---|---|
//! | `stdio` | this process's standard input and output; one device only |
//! | `/dev/…` (any path with a `/`) | a character device: a terminal, a pty |
//! | `/dev/nmdmXA`, `/dev/nmdmXB` | an end of a null-modem pair, made if it isn't there |
//! | `pty`, `pty=/path/link` | a new pty; its name is printed, or the link points to it |
//! | `unix=/path` | a listening UNIX socket, one client at a time |
//! | `tcp=ip:port` | a listening TCP socket, one client at a time |
//!
//! Without a client, the last 64 KiB of output are kept for the next one.

mod listener;
pub mod nmdm;
mod path;
mod pty;
mod stdio;
mod stream;
mod terminal;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Weak};

use bus::EventLoop;

pub use terminal::{restore as restore_terminal, restore_on_signals};

/// The device side of a serial line.
pub trait CharFrontend: Send + Sync {
    /// How many bytes the device can take now. While it is 0 the back end stops reading, until
    /// [`CharBackend::input_ready`].
    fn can_receive(&self) -> usize;

    /// Takes input, at most what [`CharFrontend::can_receive`] said.
    fn receive(&self, data: &[u8]);

    /// The back end has room again after a short [`CharBackend::write`].
    fn output_ready(&self);
}

/// The host side of a serial line. Nothing here blocks. A back end calls its front end on the
/// event loop's thread and holds no lock while it does, so a device may hold its own lock when it
/// calls a back end.
pub trait CharBackend: Send + Sync {
    /// Sets the device and starts to read. Once.
    fn attach(&self, front: Weak<dyn CharFrontend>);

    /// Takes output; returns how many bytes were taken. If fewer than given,
    /// [`CharFrontend::output_ready`] is called when there is room again.
    fn write(&self, data: &[u8]) -> usize;

    /// The device can receive again.
    fn input_ready(&self);

    /// Waits a little for output that is still on its way; for the end of the program.
    fn flush(&self);
}

/// Why a back end could not be made. Every message names what the user typed.
#[derive(Debug, thiserror::Error)]
pub enum TtyError {
    /// Not in the grammar.
    #[error(
        "\"{0}\" is not a terminal: use stdio, a path such as /dev/pts/3, pty, pty=LINK, unix=PATH or tcp=IP:PORT"
    )]
    Syntax(String),
    /// Two devices want `stdio`.
    #[error("stdio is in use by another device")]
    StdioTaken,
    /// The path is no character device.
    #[error("{0} is not a character device")]
    NotCharacterDevice(String),
    /// Somebody listens on this socket already.
    #[error("{0}: another process listens there")]
    InUse(String),
    /// The path exists and is not a socket (or not a link, for `pty=`).
    #[error("{0} exists and is not ours to replace")]
    Exists(String),
    /// A system call failed.
    #[error("{what}: {source}")]
    System {
        /// What the user typed.
        what: String,
        /// The host's answer.
        source: std::io::Error,
    },
}

impl TtyError {
    fn system(what: &str) -> impl FnOnce(std::io::Error) -> Self + use<> {
        let what = what.to_owned();
        move |source| Self::System { what, source }
    }

    fn errno(what: &str) -> impl FnOnce(rustix::io::Errno) -> Self + use<> {
        let what = what.to_owned();
        move |errno| Self::System { what, source: errno.into() }
    }
}

/// A parsed back-end argument.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TtySpec {
    /// Standard input and output.
    Stdio,
    /// A character device.
    Path(PathBuf),
    /// A new pty, with a symbolic link to it or its name printed on standard error.
    Pty(Option<PathBuf>),
    /// A listening UNIX socket.
    Unix(PathBuf),
    /// A listening TCP socket.
    Tcp(SocketAddr),
}

impl std::str::FromStr for TtySpec {
    type Err = TtyError;

    fn from_str(text: &str) -> Result<Self, TtyError> {
        let syntax = || TtyError::Syntax(text.to_owned());
        let value = |rest: &str| if rest.is_empty() { Err(syntax()) } else { Ok(PathBuf::from(rest)) };
        if text == "stdio" {
            Ok(Self::Stdio)
        } else if text == "pty" {
            Ok(Self::Pty(None))
        } else if let Some(link) = text.strip_prefix("pty=") {
            value(link).map(|p| Self::Pty(Some(p)))
        } else if let Some(path) = text.strip_prefix("unix=").or_else(|| text.strip_prefix("unix:")) {
            value(path).map(Self::Unix)
        } else if let Some(address) = text.strip_prefix("tcp=") {
            address.parse().map(Self::Tcp).map_err(|_| syntax())
        } else if text.contains('/') && !text.contains('=') {
            Ok(Self::Path(text.into()))
        } else {
            Err(syntax())
        }
    }
}

/// Makes the back end that `text` names.
pub fn open(text: &str, events: &Arc<EventLoop>) -> Result<Arc<dyn CharBackend>, TtyError> {
    match text.parse()? {
        TtySpec::Stdio => stdio::open(events),
        TtySpec::Path(path) => path::open(text, &nmdm::resolve(&path)?, events),
        TtySpec::Pty(link) => pty::open(text, link.as_deref(), events),
        TtySpec::Unix(path) => listener::open_unix(text, &path, events),
        TtySpec::Tcp(address) => listener::open_tcp(text, address, events),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grammar() {
        let parse = |text: &str| text.parse::<TtySpec>().ok();
        assert_eq!(parse("stdio"), Some(TtySpec::Stdio));
        assert_eq!(parse("/dev/nmdm0A"), Some(TtySpec::Path("/dev/nmdm0A".into())));
        assert_eq!(parse("pty"), Some(TtySpec::Pty(None)));
        assert_eq!(parse("pty=/tmp/x"), Some(TtySpec::Pty(Some("/tmp/x".into()))));
        assert_eq!(parse("unix=/tmp/s"), Some(TtySpec::Unix("/tmp/s".into())));
        assert_eq!(parse("tcp=127.0.0.1:5000"), Some(TtySpec::Tcp(([127, 0, 0, 1], 5000).into())));
        assert_eq!(parse("tcp=[::1]:5000"), Some(TtySpec::Tcp("[::1]:5000".parse().unwrap())));
        for bad in ["", "stdin", "tcp=5000", "tcp=host:1", "unix=", "pty=", "bogus=/x"] {
            let error = bad.parse::<TtySpec>().unwrap_err().to_string();
            assert!(error.contains(&format!("\"{bad}\"")), "{error}");
        }
    }
}
