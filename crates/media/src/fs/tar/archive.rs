//! Archives: an index in memory of what lies one after the other in a source.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use crate::{Entry, Error, FileSystem, Kind, Metadata, Node, NodeRef, Result, SourceRef};

/// Most files and directories.
const MAX_NODES: usize = 300_000;
/// Most bytes of names and targets.
const MAX_NAMES: usize = 64 << 20;
/// Most pieces of files: 24 MiB of them.
const MAX_PIECES: usize = 1_000_000;

/// A piece of a file: what is between pieces is zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where in the file.
    pub at: u64,
    /// Where in the source.
    pub place: u64,
    pub len: u64,
}

/// What a node is.
pub enum Body {
    Directory(BTreeMap<Vec<u8>, usize>),
    File(Vec<Piece>),
    Symlink(Vec<u8>),
    Other,
}

/// A file, directory or symbolic link of an archive.
pub struct Item {
    pub size: u64,
    pub modified: Option<i64>,
    pub body: Body,
}

impl Item {
    fn directory() -> Self {
        Self { size: 0, modified: None, body: Body::Directory(BTreeMap::new()) }
    }

    /// A file of `len` bytes in one piece.
    pub fn file(place: u64, len: u64, modified: Option<i64>) -> Self {
        let pieces = if len > 0 { vec![Piece { at: 0, place, len }] } else { Vec::new() };
        Self { size: len, modified, body: Body::File(pieces) }
    }

    fn kind(&self) -> Kind {
        match self.body {
            Body::Directory(_) => Kind::Directory,
            Body::File(_) => Kind::File,
            Body::Symlink(_) => Kind::Symlink,
            Body::Other => Kind::Other,
        }
    }
}

/// Collects members. The first item is the root.
pub struct Builder {
    kind: &'static str,
    items: Vec<Item>,
    names: usize,
    pieces: usize,
}

/// The parts of a member's path; `None` if it leads out of the archive.
fn parts(path: &[u8]) -> Option<Vec<&[u8]>> {
    let parts: Vec<&[u8]> =
        path.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b".")).collect();
    (!parts.contains(&&b".."[..])).then_some(parts)
}

impl Builder {
    /// An empty archive; `kind` is GRUB's name.
    pub fn new(kind: &'static str) -> Self {
        Self { kind, items: vec![Item::directory()], names: 0, pieces: 0 }
    }

    fn push(&mut self, item: Item) -> Result<usize> {
        self.pieces += if let Body::File(pieces) = &item.body { pieces.len() } else { 0 };
        self.names += if let Body::Symlink(target) = &item.body { target.len() } else { 0 };
        if self.items.len() >= MAX_NODES || self.pieces > MAX_PIECES || self.names > MAX_NAMES {
            return Err(Error::TooLarge(format!("the index of this {}", self.kind)));
        }
        self.items.push(item);
        Ok(self.items.len() - 1)
    }

    fn children(&mut self, directory: usize) -> Option<&mut BTreeMap<Vec<u8>, usize>> {
        match self.items.get_mut(directory).map(|item| &mut item.body) {
            Some(Body::Directory(children)) => Some(children),
            _ => None,
        }
    }

    /// Names `item` in a directory.
    fn name(&mut self, directory: usize, name: &[u8], item: usize) {
        self.names += name.len();
        if let Some(children) = self.children(directory) {
            children.insert(name.to_vec(), item);
        }
    }

    /// The directory `name` in a directory, made if need be; what else had that name is gone.
    fn enter(&mut self, directory: usize, name: &[u8]) -> Result<usize> {
        let known = self.children(directory).and_then(|children| children.get(name).copied());
        if let Some(known) = known.filter(|known| self.children(*known).is_some()) {
            return Ok(known);
        }
        let made = self.push(Item::directory())?;
        self.name(directory, name, made);
        Ok(made)
    }

    /// The directory that a member is in, made if need be, and the member's name. `None` for the
    /// root and for paths that lead out of the archive.
    fn place<'a>(&mut self, path: &'a [u8]) -> Result<Option<(usize, &'a [u8])>> {
        let Some(parts) = parts(path) else { return Ok(None) };
        let Some((name, way)) = parts.split_last() else { return Ok(None) };
        let mut directory = 0;
        for part in way {
            directory = self.enter(directory, part)?;
        }
        Ok(Some((directory, name)))
    }

    /// Adds a member; a later one of the same name replaces an earlier one. Returns its number.
    pub fn add(&mut self, path: &[u8], item: Item) -> Result<Option<usize>> {
        let Some((directory, name)) = self.place(path)? else { return Ok(None) };
        let added = self.push(item)?;
        self.name(directory, name, added);
        Ok(Some(added))
    }

    /// Adds a directory, or learns the time of one.
    pub fn add_directory(&mut self, path: &[u8], modified: Option<i64>) -> Result<()> {
        let directory = match self.place(path)? {
            Some((directory, name)) => self.enter(directory, name)?,
            None => 0,
        };
        if let Some(item) = self.items.get_mut(directory) {
            item.modified = modified;
        }
        Ok(())
    }

    /// One more name for member number `item`.
    pub fn link(&mut self, path: &[u8], item: usize) -> Result<()> {
        if let Some((directory, name)) = self.place(path)? {
            self.name(directory, name, item);
        }
        Ok(())
    }

    /// The member at `path` that isn't a directory.
    pub fn find(&self, path: &[u8]) -> Option<usize> {
        let mut found = 0;
        for part in parts(path)? {
            let Body::Directory(children) = &self.items.get(found)?.body else { return None };
            found = *children.get(part)?;
        }
        self.items.get(found).filter(|item| item.kind() != Kind::Directory).map(|_| found)
    }

    /// Member number `item`.
    pub fn item(&mut self, item: usize) -> Option<&mut Item> {
        self.items.get_mut(item)
    }

    /// The archive as a file system.
    pub fn finish(self, source: &SourceRef, label: Option<String>) -> Arc<dyn FileSystem> {
        let index = Index { kind: self.kind, source: source.clone(), label, items: self.items };
        Arc::new(Archive(Arc::new(index)))
    }
}

struct Index {
    kind: &'static str,
    source: SourceRef,
    label: Option<String>,
    items: Vec<Item>,
}

struct Archive(Arc<Index>);

impl FileSystem for Archive {
    fn kind(&self) -> &'static str {
        self.0.kind
    }

    fn label(&self) -> Option<String> {
        self.0.label.clone()
    }

    fn uuid(&self) -> Option<String> {
        None
    }

    fn root(&self) -> Result<NodeRef> {
        Ok(Arc::new(Member { index: self.0.clone(), number: 0 }))
    }
}

struct Member {
    index: Arc<Index>,
    number: usize,
}

impl Member {
    fn item(&self) -> Result<&Item> {
        let item = self.index.items.get(self.number);
        item.ok_or_else(|| Error::NotFound(format!("member {}", self.number)))
    }

    fn name(&self) -> String {
        format!("member {}", self.number)
    }

    fn children(&self) -> Result<&BTreeMap<Vec<u8>, usize>> {
        match &self.item()?.body {
            Body::Directory(children) => Ok(children),
            _ => Err(Error::NotADirectory(self.name())),
        }
    }
}

impl Node for Member {
    fn metadata(&self) -> Result<Metadata> {
        let item = self.item()?;
        Ok(Metadata { kind: item.kind(), size: item.size, modified: item.modified })
    }

    fn read_at(&self, offset: u64, to: &mut [u8]) -> Result<()> {
        let item = self.item()?;
        let pieces = match &item.body {
            Body::File(pieces) => pieces,
            Body::Directory(_) => return Err(Error::IsADirectory(self.name())),
            _ => return Err(Error::NotAFile(self.name())),
        };
        crate::source::check(item.size, offset, to.len() as u64)?;
        to.fill(0);
        let end = offset + to.len() as u64;
        let first = pieces.partition_point(|piece| piece.at.saturating_add(piece.len) <= offset);
        for piece in pieces.iter().skip(first).take_while(|piece| piece.at < end) {
            let start = piece.at.max(offset);
            let stop = piece.at.saturating_add(piece.len).min(end);
            let part = to.get_mut((start - offset) as usize..(stop - offset) as usize).unwrap_or_default();
            self.index.source.read_at(piece.place.saturating_add(start - piece.at), part)?;
        }
        Ok(())
    }

    fn entries(&self, visit: &mut dyn FnMut(Entry) -> ControlFlow<()>) -> Result<()> {
        let mut children: Vec<(&Vec<u8>, usize)> =
            self.children()?.iter().map(|(name, number)| (name, *number)).collect();
        children.sort_by_key(|(_, number)| *number);
        for (name, number) in children {
            let kind = self.index.items.get(number).map(Item::kind);
            if visit(Entry { name: name.clone(), kind }).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn lookup(&self, name: &[u8]) -> Result<Option<NodeRef>> {
        let found = self.children()?.get(name).copied();
        Ok(found.map(|number| -> NodeRef { Arc::new(Self { index: self.index.clone(), number }) }))
    }

    fn link(&self) -> Result<Vec<u8>> {
        match &self.item()?.body {
            Body::Symlink(target) => Ok(target.clone()),
            _ => Err(Error::NotAFile(format!("{} is no symbolic link", self.name()))),
        }
    }
}
