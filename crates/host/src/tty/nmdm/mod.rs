//! Null-modem pairs as FreeBSD's nmdm(4): `/dev/nmdm0A` and `/dev/nmdm0B`, any text for the `0`.
//!
//! A pair is two ptys and a process that carries bytes between them, the holder. It appears when
//! one of our programs opens either end, or when `bhyve-host nmdm` makes it, and goes when both
//! ends are closed; so it outlives a `bhyve` that restarts while the other end is open.

mod hold;
mod name;

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use rustix::io::Errno;

pub use hold::{Life, hold};
pub use name::{End, Pair};

use super::TtyError;

/// The program that becomes the holder.
const HOLDER: &str = "bhyve-host";
/// What the holder prints once both ends are there.
pub const READY: &str = "ready";

/// The terminal to open for `path`: where it names an end of a null-modem pair, the pair is made
/// if it isn't there, and a user who can't write to /dev gets it in the runtime folder. Other
/// paths are returned as they are.
pub fn resolve(path: &Path) -> Result<PathBuf, TtyError> {
    let Some(mut end) = End::parse(path) else { return Ok(path.to_owned()) };
    let text = path.display().to_string();
    if end.pair.is_held() != Ok(true) {
        if !end.pair.is_writable() {
            end = end.in_runtime_folder(&text)?;
        }
        if end.pair.is_held() != Ok(true) {
            start_holder(&end.pair, false, &text)?;
        }
    }
    let found = end.path();
    if found != path {
        eprintln!("{text} is {}, its other end {}", found.display(), end.other().display());
    }
    Ok(found)
}

/// Makes the pair and leaves its holder running. It ends when both ends have been closed, or never.
pub fn start(pair: &Pair, keep: bool) -> Result<(), TtyError> {
    start_holder(pair, keep, &pair.end('A').path().display().to_string())
}

/// Starts the holder, and waits until the pair is there. `text` is what the user calls it.
fn start_holder(pair: &Pair, keep: bool, text: &str) -> Result<(), TtyError> {
    let program = holder().ok_or_else(|| {
        let why =
            format!("{HOLDER}, which holds null-modem pairs, is neither beside this program nor in PATH");
        TtyError::system(text)(std::io::Error::new(std::io::ErrorKind::NotFound, why))
    })?;
    let mut command = Command::new(program);
    command.arg("nmdm").arg("--hold").arg(pair.end('A').path());
    if keep {
        command.arg("--keep");
    }
    command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(TtyError::system(text))?;
    let mut line = String::new();
    if let Some(out) = child.stdout.take() {
        let _ = BufReader::new(out).read_line(&mut line);
    }
    if line.trim_end() == READY {
        return Ok(());
    }
    let output = child.wait_with_output().map_err(TtyError::system(text))?;
    let said = String::from_utf8_lossy(&output.stderr);
    let why = said.trim().rsplit(": ").next().unwrap_or_default().to_owned();
    let why = if why.is_empty() { format!("{HOLDER} ended with {}", output.status) } else { why };
    Err(TtyError::system(text)(std::io::Error::other(why)))
}

/// The holder's program: beside this one, or else in PATH.
fn holder() -> Option<PathBuf> {
    let beside = std::env::current_exe().ok().and_then(|own| {
        // Tests lie one folder deeper.
        own.ancestors().skip(1).take(2).map(|folder| folder.join(HOLDER)).find(|path| path.is_file())
    });
    let search = || {
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path).map(|folder| folder.join(HOLDER)).find(|path| path.is_file())
    };
    beside.or_else(search)
}

impl Pair {
    /// Whether a holder has the pair. An error: there is no way to know.
    fn is_held(&self) -> Result<bool, Errno> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let lock = match rustix::fs::open(self.lock_path(), flags, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(false),
            other => other?,
        };
        match flock(&lock, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(false),
            Err(Errno::WOULDBLOCK) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Takes the holder's lock; `None` if another holder has it.
    fn lock(&self) -> Result<Option<File>, Errno> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        // Whoever may use the pair may ask whether it is held.
        let file = rustix::fs::open(self.lock_path(), flags, Mode::from(0o644))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Ok(None),
            Err(error) => return Err(error),
        }
        // A holder that ended meanwhile has removed the file that we locked.
        let named = rustix::fs::stat(self.lock_path());
        let own = rustix::fs::fstat(&file)?;
        match named {
            Ok(named) if (named.st_dev, named.st_ino) == (own.st_dev, own.st_ino) => Ok(Some(file.into())),
            _ => self.lock(),
        }
    }
}
