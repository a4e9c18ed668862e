//! The device map: which image is which disk.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Disks;
use crate::{Error, FileSource, Result};

/// Most disks in a map.
const MAX_ENTRIES: usize = 256;
/// Largest map file.
const MAX_FILE: u64 = 1 << 20;

/// A disk of the map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapEntry {
    /// Line number, from 1.
    pub line: usize,
    /// Name without parentheses.
    pub name: String,
    /// Image, as the user wrote it.
    pub path: PathBuf,
}

/// Something in the map that is left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapWarning {
    /// Line number, from 1.
    pub line: usize,
    /// Why.
    pub reason: String,
}

impl fmt::Display for MapWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.reason)
    }
}

/// A device map: lines of `(hd0) path`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceMap {
    /// The disks in the order of the file.
    pub entries: Vec<MapEntry>,
    /// What was left out.
    pub warnings: Vec<MapWarning>,
}

impl DeviceMap {
    /// Reads a map file.
    pub fn read(path: &Path) -> Result<Self> {
        let what = path.display().to_string();
        let error = |source| Error::Io { what: what.clone(), source };
        let size = std::fs::metadata(path).map_err(error)?.len();
        if size > MAX_FILE {
            return Err(Error::TooLarge(what));
        }
        let text = std::fs::read_to_string(path).map_err(error)?;
        Self::parse(&text, &what)
    }

    /// Understands the text of a map; `file` is its name for errors.
    pub fn parse(text: &str, file: &str) -> Result<Self> {
        let mut map = Self::default();
        for (index, line) in text.lines().enumerate() {
            let number = index + 1;
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let bad = |why: &str| Error::Corrupt {
                kind: "device map",
                what: format!("{file}:{number}: {why}: {line}"),
            };
            let rest = line.strip_prefix('(').ok_or_else(|| bad("no opening parenthesis"))?;
            let (name, path) = rest.split_once(')').ok_or_else(|| bad("no closing parenthesis"))?;
            let path = path.trim_start();
            if let Some((disk, _)) = name.split_once(',')
                && is_disk(disk)
            {
                map.warn(number, format!("({name}) is a partition; only whole disks can be mapped"));
                continue;
            }
            if !is_disk(name) {
                return Err(bad("a disk is named fd, hd or cd and a number"));
            }
            if path.is_empty() {
                return Err(bad("no file name"));
            }
            if map.entries.iter().any(|e| e.name == name) {
                map.warn(number, format!("({name}) is mapped already"));
                continue;
            }
            if map.entries.len() == MAX_ENTRIES {
                return Err(bad("more than 256 disks"));
            }
            map.entries.push(MapEntry { line: number, name: name.to_owned(), path: path.into() });
        }
        Ok(map)
    }

    /// Opens the images. Those that can't be opened are left out with a warning.
    pub fn open(&mut self) -> Result<Disks> {
        let disks = Disks::new();
        let mut missing = Vec::new();
        for entry in &self.entries {
            match FileSource::open(&entry.path) {
                Ok(source) => disks.add_disk(&entry.name, Arc::new(source))?,
                Err(error) => missing.push((entry.line, error.to_string())),
            }
        }
        for (line, reason) in missing {
            self.entries.retain(|e| e.line != line);
            self.warn(line, reason);
        }
        Ok(disks)
    }

    fn warn(&mut self, line: usize, reason: String) {
        self.warnings.push(MapWarning { line, reason });
    }
}

fn is_disk(name: &str) -> bool {
    ["hd", "cd", "fd"].iter().any(|kind| {
        name.strip_prefix(kind)
            .is_some_and(|n| !n.is_empty() && n.len() < 4 && n.bytes().all(|b| b.is_ascii_digit()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_keeps_order_and_paths() {
        let text = "# disks\n\n  (hd0) ./disk one.img\n(cd0)\t/iso/a.iso  \n(hd0,1) /x\n(hd0) twice\n(fd1)x";
        let map = DeviceMap::parse(text, "m").unwrap();
        let got: Vec<_> =
            map.entries.iter().map(|e| (e.line, e.name.as_str(), e.path.to_str().unwrap())).collect();
        assert_eq!(got, [(3, "hd0", "./disk one.img"), (4, "cd0", "/iso/a.iso"), (7, "fd1", "x")]);
        assert_eq!(map.warnings.iter().map(|w| w.line).collect::<Vec<_>>(), [5, 6]);
        assert!(map.warnings[0].to_string().starts_with("line 5: (hd0,1) is a partition"));
    }

    #[test]
    fn a_bad_line_is_named() {
        for (text, why) in [
            ("hd0 x", "no opening"),
            ("(hd0 x", "no closing"),
            ("(hd0)", "no file name"),
            ("(sda) x", "named fd, hd or cd"),
            ("(hd) x", "named fd, hd or cd"),
        ] {
            let error = DeviceMap::parse(&format!("\n{text}"), "my.map").unwrap_err().to_string();
            assert!(error.contains("my.map:2:") && error.contains(why), "{error}");
        }
        let many: Vec<String> = (0..257).map(|n| format!("(hd{n}) x")).collect();
        assert!(
            DeviceMap::parse(&many.join("\n"), "m").unwrap_err().to_string().contains("m:257: more than 256")
        );
        assert!(DeviceMap::read(Path::new("/nowhere/device.map")).is_err());
    }

    #[test]
    fn an_image_that_is_not_there_is_left_out() {
        let here = std::env::current_exe().unwrap();
        let text = format!("(hd0) /nowhere/a.img\n(hd1) {}\n", here.display());
        let mut map = DeviceMap::parse(&text, "m").unwrap();
        let disks = map.open().unwrap();
        assert_eq!(
            map.warnings[0].to_string(),
            "line 1: /nowhere/a.img: No such file or directory (os error 2)"
        );
        assert!(disks.source("hd0").is_err());
        assert!(disks.source("(hd1)").is_ok());
    }
}
