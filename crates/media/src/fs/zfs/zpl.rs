//! A file system: directories, files and links in an object set.

use std::ops::ControlFlow;
use std::sync::Arc;

use crate::{Entry, Error, Kind, Metadata, Node, NodeRef, Result};

use super::KIND;
use super::dmu::{Object, ObjectSet, kind};
use super::sa::{Attributes, Layouts, attributes};
use super::zap::Zap;

/// The master node's number: MASTER_NODE_OBJ.
const MASTER: u64 = 1;
/// Versions of the file system: ZPL_VERSION_INITIAL to ZPL_VERSION_SA.
const VERSIONS: std::ops::RangeInclusive<u64> = 1..=5;
/// Longest target of a symbolic link: MAXPATHLEN.
const MAX_TARGET: u64 = 4096;
/// The kind in a mode: S_IFMT, S_IFREG, S_IFDIR, S_IFLNK.
const FORMAT: (u64, u64, u64, u64) = (0o170000, 0o100000, 0o040000, 0o120000);

/// A file system.
pub struct Zpl {
    set: ObjectSet,
    layouts: Option<Layouts>,
    root: u64,
    /// Case doesn't matter in lookups: only if the file system is insensitive for everybody.
    folded: bool,
    /// Path of the root in the tree that the links are read in; absolute links get it in front.
    prefix: Vec<u8>,
}

impl Zpl {
    /// Opens the object set as a file system.
    pub fn open(set: ObjectSet, prefix: Vec<u8>) -> Result<Arc<Self>> {
        let bad = |what: &str| Error::corrupt(KIND, format!("a file system without {what}"));
        let (root, layouts, folded);
        {
            let object = set.object(MASTER)?;
            let master = Zap::open(&object)?;
            match master.number("VERSION")? {
                Some(version) if VERSIONS.contains(&version) => {}
                Some(version) => {
                    return Err(Error::unsupported(KIND, format!("file system version {version}")));
                }
                None => return Err(bad("a version")),
            }
            root = master.number("ROOT")?.ok_or_else(|| bad("a root"))?;
            // 0: sensitive; 1: insensitive; 2: mixed, which is sensitive for POSIX (`zfs_case_t`).
            folded = master.number("casesensitivity")? == Some(1);
            layouts = match master.number("SA_ATTRS")? {
                Some(id) if id != 0 => Some(Layouts::read(&set, id)?),
                _ => None,
            };
        }
        Ok(Arc::new(Self { set, layouts, root, folded, prefix }))
    }

    /// Whether case matters in names.
    pub fn case_sensitive(&self) -> bool {
        !self.folded
    }

    /// The root directory.
    pub fn root(self: &Arc<Self>) -> Result<NodeRef> {
        self.node(self.root)
    }

    fn node(self: &Arc<Self>, id: u64) -> Result<NodeRef> {
        let object = self.set.object(id)?;
        let attributes = attributes(&object, self.layouts.as_ref())?;
        let (mask, file, directory, link) = FORMAT;
        let kind = match attributes.mode & mask {
            format if format == file && object.dnode.kind == kind::FILE => Kind::File,
            format if format == directory && object.dnode.kind == kind::DIRECTORY => Kind::Directory,
            format if format == file || format == directory => {
                return Err(Error::corrupt(
                    KIND,
                    format!("object {id} is not of the kind that its mode says"),
                ));
            }
            format if format == link => Kind::Symlink,
            _ => Kind::Other,
        };
        Ok(Arc::new(File { fs: self.clone(), object, attributes, kind }))
    }
}

struct File {
    fs: Arc<Zpl>,
    object: Object,
    attributes: Attributes,
    kind: Kind,
}

impl File {
    fn directory(&self) -> Result<Zap<'_>> {
        match self.kind {
            Kind::Directory => Zap::open(&self.object),
            _ => Err(Error::NotADirectory("a file of ZFS".into())),
        }
    }
}

/// Kinds that are stored with names, as in `d_type`.
fn entry_kind(kind: u64) -> Option<Kind> {
    match kind {
        0 => None,
        4 => Some(Kind::Directory),
        8 => Some(Kind::File),
        10 => Some(Kind::Symlink),
        _ => Some(Kind::Other),
    }
}

impl Node for File {
    fn metadata(&self) -> Result<Metadata> {
        let Attributes { size, modified, .. } = self.attributes;
        Ok(Metadata { kind: self.kind, size, modified: Some(modified) })
    }

    fn read_at(&self, offset: u64, to: &mut [u8]) -> Result<()> {
        match self.kind {
            Kind::File => {}
            Kind::Directory => return Err(Error::IsADirectory("a directory of ZFS".into())),
            _ => return Err(Error::NotAFile("a link or device of ZFS".into())),
        }
        crate::source::check(self.attributes.size, offset, to.len() as u64)?;
        self.object.read_at(offset, to)
    }

    fn entries(&self, visit: &mut dyn FnMut(Entry) -> ControlFlow<()>) -> Result<()> {
        self.directory()?.each(&mut |name, value| {
            // The kind is in the upper four bits of the object's number.
            let kind = entry_kind(value.number().unwrap_or_default() >> 60);
            visit(Entry { name: name.to_vec(), kind })
        })
    }

    fn lookup(&self, name: &[u8]) -> Result<Option<NodeRef>> {
        let directory = self.directory()?;
        let mut value = directory.get(name)?;
        if value.is_none() && self.fs.folded {
            value = directory.find(|other| other.eq_ignore_ascii_case(name))?;
        }
        let Some(value) = value else { return Ok(None) };
        let number = value.number().ok_or_else(|| Error::corrupt(KIND, "an entry of a directory"))?;
        self.fs.node(number & ((1 << 48) - 1)).map(Some)
    }

    fn link(&self) -> Result<Vec<u8>> {
        if self.kind != Kind::Symlink {
            return Err(Error::corrupt(KIND, "a link that is none"));
        }
        let target = match &self.attributes.target {
            Some(target) => target.clone(),
            None if self.attributes.size <= MAX_TARGET => {
                let mut target = vec![0; self.attributes.size as usize];
                self.object.read_at(0, &mut target)?;
                target
            }
            None => return Err(Error::TooLarge("the target of a link".into())),
        };
        if target.first() == Some(&b'/') {
            return Ok([&self.fs.prefix[..], &target].concat());
        }
        Ok(target)
    }
}
