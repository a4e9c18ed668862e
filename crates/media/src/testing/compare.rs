//! Our reader against the host's own view of the same tree.

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::{Entry, FileSystem, Kind, Node, NodeRef, resolve};

/// What was compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Regular files.
    pub files: usize,
    /// Directories, with the first one.
    pub directories: usize,
    /// Symbolic links.
    pub symlinks: usize,
    /// Bytes of regular files.
    pub bytes: u64,
}

/// Compares everything below `root` of `fs` with the folder `host`, both ways: names, kinds, sizes,
/// targets of links, contents. `lost+found` at the top is nobody's. The first difference is the error.
pub fn compare(fs: &dyn FileSystem, root: &str, host: &Path) -> Result<Counts, String> {
    let node = resolve(fs, root.as_bytes()).map_err(|error| format!("{root}: {error}"))?;
    let mut counts = Counts::default();
    directory(&node, host, true, &mut counts)?;
    Ok(counts)
}

fn directory(node: &NodeRef, host: &Path, top: bool, counts: &mut Counts) -> Result<(), String> {
    let at = |what: String| format!("{}: {what}", host.display());
    let error = |error: crate::Error| at(error.to_string());
    counts.directories += 1;
    let mut ours: BTreeMap<Vec<u8>, Option<Kind>> = BTreeMap::new();
    let mut twice = None;
    node.entries(&mut |Entry { name, kind }| {
        if ours.insert(name.clone(), kind).is_some() {
            twice = Some(name);
        }
        ControlFlow::Continue(())
    })
    .map_err(error)?;
    if let Some(name) = twice {
        return Err(at(format!("{} is listed twice", name.escape_ascii())));
    }
    if top {
        ours.remove(&b"lost+found"[..]);
    }
    let listed = fs::read_dir(host).map_err(|error| at(error.to_string()))?;
    for entry in listed {
        let name = entry.map_err(|error| at(error.to_string()))?.file_name().into_vec();
        if top && name == b"lost+found" {
            continue;
        }
        let path = host.join(std::ffi::OsStr::from_bytes(&name));
        let Some(kind) = ours.remove(&name) else {
            return Err(format!("{}: missing in our list", path.display()));
        };
        let Some(node) = node.lookup(&name).map_err(error)? else {
            return Err(format!("{}: listed but not found", path.display()));
        };
        compare_node(&node, kind, &path, counts)?;
    }
    if let Some((name, _)) = ours.into_iter().next() {
        return Err(at(format!("{} exists only for us", name.escape_ascii())));
    }
    match node.lookup(b"no such name").map_err(error)? {
        None => Ok(()),
        Some(_) => Err(at("a name that isn't there was found".into())),
    }
}

fn compare_node(
    node: &NodeRef,
    listed: Option<Kind>,
    path: &Path,
    counts: &mut Counts,
) -> Result<(), String> {
    let at = |what: String| format!("{}: {what}", path.display());
    let meta = node.metadata().map_err(|error| at(error.to_string()))?;
    let theirs = path.symlink_metadata().map_err(|error| at(error.to_string()))?;
    let kind = match theirs.file_type() {
        kind if kind.is_file() => Kind::File,
        kind if kind.is_dir() => Kind::Directory,
        kind if kind.is_symlink() => Kind::Symlink,
        _ => Kind::Other,
    };
    if meta.kind != kind || listed.is_some_and(|listed| listed != kind) {
        return Err(at(format!("is {:?}, listed as {listed:?}, but should be {kind:?}", meta.kind)));
    }
    if matches!(kind, Kind::File | Kind::Symlink) && meta.size != theirs.len() {
        return Err(at(format!("has {} bytes instead of {}", meta.size, theirs.len())));
    }
    match kind {
        Kind::File => {
            counts.files += 1;
            counts.bytes += meta.size;
            content(&**node, path, meta.size).map_err(at)
        }
        Kind::Directory => directory(node, path, false, counts),
        Kind::Symlink => {
            counts.symlinks += 1;
            let target = fs::read_link(path).map_err(|error| at(error.to_string()))?;
            match node.link() {
                Ok(ours) if ours == target.as_os_str().as_bytes() => Ok(()),
                ours => Err(at(format!("leads to {ours:?} instead of {}", target.display()))),
            }
        }
        Kind::Other => Ok(()),
    }
}

/// Large pieces at odd places, then a few small ones.
fn content(node: &dyn Node, path: &Path, size: u64) -> Result<(), String> {
    let file = fs::File::open(path).map_err(|error| error.to_string())?;
    let check = |offset: u64, ours: &mut [u8], theirs: &mut [u8]| -> Result<(), String> {
        node.read_at(offset, ours).map_err(|error| format!("{} bytes at {offset}: {error}", ours.len()))?;
        file.read_exact_at(theirs, offset).map_err(|error| error.to_string())?;
        match ours.iter().zip(&*theirs).position(|(a, b)| a != b) {
            None => Ok(()),
            Some(first) => Err(format!("differs at byte {}", offset + first as u64)),
        }
    };
    let most = (size.min((3 << 20) + 1000)) as usize;
    let (mut ours, mut theirs) = (vec![0x5a; most], vec![0; most]);
    let mut offset = 0;
    while offset < size {
        let len = (size - offset).min(most as u64) as usize;
        check(offset, &mut ours[..len], &mut theirs[..len])?;
        offset += len as u64;
    }
    for offset in [1, 511, 4095, size / 3, size / 2, size.saturating_sub(5000)] {
        let len = size.saturating_sub(offset).min(4999) as usize;
        check(offset.min(size), &mut ours[..len], &mut theirs[..len])?;
    }
    if node.read_at(size, &mut [0]).is_ok() {
        return Err("a byte past the end was read".into());
    }
    Ok(())
}
