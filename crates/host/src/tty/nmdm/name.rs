//! The names of a null-modem pair and its ends.

use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};
use rustix::process::geteuid;

use super::super::TtyError;

/// What the last component of an end begins with.
const PREFIX: &str = "nmdm";

/// A pair: its folder, and the name without the letter of the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    folder: PathBuf,
    name: String,
}

/// One end of a pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// The pair.
    pub pair: Pair,
    letter: char,
}

impl Pair {
    /// The pair in `folder` with this text between `nmdm` and the letter. `None` for a text that
    /// can't be in a file's name.
    pub fn new(folder: &Path, id: &str) -> Option<Self> {
        let good = !id.is_empty() && id.len() <= 64 && !id.contains(['/', '\0']);
        good.then(|| Self { folder: folder.to_owned(), name: format!("{PREFIX}{id}") })
    }

    /// Where this user's pairs are: /dev, or where that can't be written to the runtime folder.
    pub fn folder() -> Result<PathBuf, TtyError> {
        let dev = Path::new("/dev");
        if access(dev, Access::WRITE_OK).is_ok() { Ok(dev.to_owned()) } else { runtime_folder("/dev") }
    }

    /// An end, `'A'` or `'B'`.
    pub fn end(&self, letter: char) -> End {
        End { pair: self.clone(), letter }
    }

    pub(super) fn is_writable(&self) -> bool {
        access(&self.folder, Access::WRITE_OK).is_ok()
    }

    /// The holder's lock.
    pub(super) fn lock_path(&self) -> PathBuf {
        self.folder.join(format!(".{}.lock", self.name))
    }
}

impl End {
    /// `None` if the path's last component is not of the form `nmdmTEXTA` or `nmdmTEXTB`.
    pub fn parse(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_str()?;
        let letter = name.chars().last().filter(|c| matches!(c, 'A' | 'B'))?;
        let id = name.strip_prefix(PREFIX)?.strip_suffix(letter)?;
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        Some(Self { pair: Pair::new(folder, id)?, letter })
    }

    /// Where it is.
    pub fn path(&self) -> PathBuf {
        self.pair.folder.join(format!("{}{}", self.pair.name, self.letter))
    }

    /// Where the other end is.
    pub fn other(&self) -> PathBuf {
        self.pair.end(if self.letter == 'A' { 'B' } else { 'A' }).path()
    }

    /// The end of the same name in the user's runtime folder.
    pub(super) fn in_runtime_folder(self, text: &str) -> Result<Self, TtyError> {
        let pair = Pair { folder: runtime_folder(text)?, ..self.pair };
        Ok(Self { pair, ..self })
    }
}

/// `$XDG_RUNTIME_DIR`, or the folder that a session would have.
fn runtime_folder(text: &str) -> Result<PathBuf, TtyError> {
    if let Some(path) = std::env::var_os("XDG_RUNTIME_DIR").filter(|v| !v.is_empty()) {
        return Ok(path.into());
    }
    let uid = geteuid().as_raw();
    let session = PathBuf::from(format!("/run/user/{uid}"));
    if access(&session, Access::WRITE_OK).is_ok() {
        return Ok(session);
    }
    let why = "only root can make it there, and without XDG_RUNTIME_DIR there is no other place";
    Err(TtyError::system(text)(std::io::Error::new(std::io::ErrorKind::PermissionDenied, why)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_known_by_their_names() {
        let end = End::parse(Path::new("/dev/nmdm-guest.1A")).unwrap();
        assert_eq!(end.other(), Path::new("/dev/nmdm-guest.1B"));
        assert_eq!(end.pair.lock_path(), Path::new("/dev/.nmdm-guest.1.lock"));
        assert_eq!(End::parse(Path::new("nmdm0B")).unwrap().other(), Path::new("./nmdm0A"));
        for other in ["/dev/nmdmA", "/dev/nmdm0", "/dev/nmdm0C", "/dev/ttyS0A", "/dev/pts/3", "/dev/xnmdm0A"]
        {
            assert_eq!(End::parse(Path::new(other)), None, "{other}");
        }
        assert_eq!(Pair::new(Path::new("/dev"), "a/b"), None);
    }
}
