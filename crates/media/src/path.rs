//! From a path to a node.

use crate::{Error, FileSystem, Kind, NodeRef, Result};

/// Most symbolic links on the way to a file, as Linux's MAXSYMLINKS.
pub const MAX_LINKS: usize = 40;
/// Longest target of a symbolic link, as Linux's PATH_MAX.
const MAX_TARGET: u64 = 4096;

/// The node at `path`. Symbolic links are followed, the last one too; `..` never leaves the root.
pub fn resolve(fs: &dyn FileSystem, path: &[u8]) -> Result<NodeRef> {
    let shown = || String::from_utf8_lossy(path).into_owned();
    // Directories from the root to where we are, and the names still to go, the next one last.
    let mut way = vec![fs.root()?];
    let mut names: Vec<Vec<u8>> = Vec::new();
    push(&mut names, path);
    let mut links = 0;
    while let Some(name) = names.pop() {
        let Some(here) = way.last().cloned() else { break };
        if here.metadata()?.kind != Kind::Directory {
            return Err(Error::NotADirectory(shown()));
        }
        match name.as_slice() {
            b"." => continue,
            b".." => {
                if way.len() > 1 {
                    way.pop();
                }
                continue;
            }
            _ => {}
        }
        let node = here.lookup(&name)?.ok_or_else(|| Error::NotFound(shown()))?;
        let meta = node.metadata()?;
        if meta.kind != Kind::Symlink {
            way.push(node);
            continue;
        }
        links += 1;
        if links > MAX_LINKS || meta.size > MAX_TARGET {
            return Err(Error::Links(shown()));
        }
        let target = node.link()?;
        if target.first() == Some(&b'/') {
            way.truncate(1);
        }
        push(&mut names, &target);
    }
    way.pop().ok_or_else(|| Error::NotFound(shown()))
}

fn push(names: &mut Vec<Vec<u8>>, path: &[u8]) {
    names.extend(path.split(|b| *b == b'/').rev().filter(|n| !n.is_empty()).map(<[u8]>::to_vec));
}
