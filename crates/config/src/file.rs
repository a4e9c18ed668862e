//! Configuration files: `-k`.

use std::fs::File;
use std::io::Read;

use crate::error::{Error, Origin, Problem};
use crate::tree::Tree;

/// Largest configuration file. A tree of all keys at their longest is far smaller.
const MAX_FILE: u64 = 16 << 20;

impl Tree {
    /// Sets what the file says: `key=value` lines, comments after `#`.
    pub fn read_file(&mut self, path: &str) -> Result<(), Error> {
        let error =
            |message: String| Error::new(&Origin::new(format!("-k {path}")), Problem::Invalid(message));
        let file = File::open(path).map_err(|e| error(format!("can't open it: {e}")))?;
        let mut bytes = Vec::new();
        file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(|e| error(format!("can't read it: {e}")))?;
        if bytes.len() as u64 > MAX_FILE {
            return Err(error(format!("larger than {} MiB", MAX_FILE >> 20)));
        }
        self.read_lines(path, &bytes)
    }

    /// Sets what the lines of `name` say.
    pub fn read_lines(&mut self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        for (index, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
            let origin = Origin::new(format!("{name}:{}", index + 1));
            let error = |message: &str| Error::new(&origin, Problem::Invalid(message.to_owned()));
            let line = std::str::from_utf8(line).map_err(|_| error("not UTF-8 text"))?;
            let line = line.strip_suffix('\r').unwrap_or(line);
            if line.starts_with('#') || line.trim().is_empty() {
                continue;
            }
            let (key, value) = line.split_once('=').ok_or_else(|| error("expected key=value"))?;
            if key.ends_with([' ', '\t']) || value.starts_with([' ', '\t']) {
                return Err(error("blanks beside the = are not allowed"));
            }
            self.set_from(key, value, &origin)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        let mut tree = Tree::new();
        tree.read_lines("f", b"# comment\n\ncpus=2\r\n  \nname=a=b\nkernel.cmdline=\ncpus=3").unwrap();
        assert_eq!(tree.dump(), "cpus=3\nkernel.cmdline=\nname=a=b\n");
        assert_eq!(tree.origin("cpus").as_str(), "f:7");
    }

    #[test]
    fn bad_lines_name_file_and_line() {
        for text in ["x", "=1", "a =1", "a= 1", " a=1", "a..b=1", "a=1\na.b=2", "#\n\u{ff}"] {
            // Latin-1, so that the last one is not UTF-8.
            let bytes: Vec<u8> = text.chars().map(|c| c as u8).collect();
            let error = Tree::new().read_lines("vm.conf", &bytes).unwrap_err();
            let line = text.lines().count();
            assert!(error.to_string().starts_with(&format!("vm.conf:{line}: ")), "{error}");
            assert_eq!(error.exit_code(), 4);
        }
    }

    #[test]
    fn unreadable_files() {
        for path in ["/nonexistent/vm.conf", "/", "/dev/zero", ""] {
            let error = Tree::new().read_file(path).unwrap_err();
            assert!(error.to_string().starts_with(&format!("-k {path}: ")), "{error}");
            assert_eq!(error.exit_code(), 4);
        }
    }
}
