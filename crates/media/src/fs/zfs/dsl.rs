//! Datasets: the tree of names, and the heads and snapshots that hang on it.

use std::ops::ControlFlow;
use std::sync::Arc;

use crate::{Entry, Error, Fields, Kind, Metadata, Node, NodeRef, Result};

use super::KIND;
use super::block::{POINTER, Pointer};
use super::dmu::{ObjectSet, kind};
use super::pool::Pool;
use super::zap::Zap;
use super::zpl::Zpl;

/// Deepest dataset: a name has at most 255 bytes.
const MAX_DEPTH: usize = 128;
/// The kind of an object set that holds a file system.
const FILE_SYSTEM: u64 = 2;

/// A place in the tree of datasets (`dsl_dir_phys_t`).
#[derive(Clone, Copy, Debug)]
pub struct Directory {
    /// The dataset itself.
    pub head: u64,
    parent: u64,
    children: u64,
}

impl Directory {
    /// Reads the object `id` of the pool's set.
    pub fn read(mos: &ObjectSet, id: u64) -> Result<Self> {
        let object = mos.object_with(id, kind::DSL_DIR)?;
        let field = |at| object.dnode.bonus().u64_at(at).unwrap_or_default();
        Ok(Self { head: field(8), parent: field(16), children: field(32) })
    }

    /// The names of the datasets below this one. Those that begin with `$` or `%` are ZFS's own.
    fn each_child(
        &self,
        mos: &ObjectSet,
        visit: &mut dyn FnMut(&[u8], u64) -> ControlFlow<()>,
    ) -> Result<()> {
        if self.children == 0 {
            return Ok(());
        }
        let object = mos.object(self.children)?;
        Zap::open(&object)?.each(&mut |name, value| match (name.first(), value.number()) {
            (Some(b'$' | b'%'), _) | (_, None) => ControlFlow::Continue(()),
            (_, Some(id)) => visit(name, id),
        })
    }

    /// The number of the child `name`.
    pub fn child(&self, mos: &ObjectSet, name: &[u8]) -> Result<Option<u64>> {
        if self.children == 0 || matches!(name.first(), Some(b'$' | b'%')) {
            return Ok(None);
        }
        let object = mos.object(self.children)?;
        Ok(Zap::open(&object)?.get(name)?.and_then(|value| value.number()))
    }
}

/// A dataset or a snapshot (`dsl_dataset_phys_t`).
pub struct Dataset {
    /// Its place in the tree.
    pub directory: u64,
    snapshots: u64,
    pointer: Pointer,
}

impl Dataset {
    /// Reads the object `id` of the pool's set.
    pub fn read(mos: &ObjectSet, id: u64) -> Result<Self> {
        let object = mos.object_with(id, kind::DSL_DATASET)?;
        let bonus = object.dnode.bonus();
        let field = |at| bonus.u64_at(at).unwrap_or_default();
        let pointer = Pointer::parse(bonus.get(128..128 + POINTER).unwrap_or_default())?;
        Ok(Self { directory: field(0), snapshots: field(32), pointer })
    }

    /// The object of the snapshot `name`.
    pub fn snapshot(&self, mos: &ObjectSet, name: &[u8]) -> Result<Option<u64>> {
        if self.snapshots == 0 {
            return Ok(None);
        }
        let object = mos.object(self.snapshots)?;
        Ok(Zap::open(&object)?.get(name)?.and_then(|value| value.number()))
    }

    fn each_snapshot(&self, mos: &ObjectSet, visit: &mut dyn FnMut(&[u8]) -> ControlFlow<()>) -> Result<()> {
        if self.snapshots == 0 {
            return Ok(());
        }
        let object = mos.object(self.snapshots)?;
        Zap::open(&object)?.each(&mut |name, _| visit(name))
    }

    /// Opens its objects. `name` is for messages.
    fn open(&self, mos: &ObjectSet, name: &str) -> Result<ObjectSet> {
        // The object set of an encrypted dataset is authenticated with its key.
        if matches!(&self.pointer, Pointer::Block(block) if block.encrypted) {
            return Err(Error::unsupported(KIND, format!("{name}: an encrypted dataset")));
        }
        ObjectSet::open(mos.store(), &self.pointer)
    }

    /// Opens the file system in it. Absolute links get `prefix` in front.
    pub fn file_system(&self, mos: &ObjectSet, name: &str, prefix: Vec<u8>) -> Result<Arc<Zpl>> {
        let set = self.open(mos, name)?;
        if set.kind != FILE_SYSTEM {
            return Err(Error::unsupported(KIND, format!("{name}: a dataset that is not a file system")));
        }
        Zpl::open(set, prefix)
    }
}

/// The full name of the dataset at `directory`, which begins with the pool's.
pub fn name(mos: &ObjectSet, pool: &str, mut directory: u64) -> Result<String> {
    let bad = || Error::corrupt(KIND, "the tree of datasets");
    let mut names = Vec::new();
    loop {
        let parent = Directory::read(mos, directory)?.parent;
        if parent == 0 {
            break;
        }
        let mut found = None;
        Directory::read(mos, parent)?.each_child(mos, &mut |name, id| {
            if id != directory {
                return ControlFlow::Continue(());
            }
            found = Some(String::from_utf8_lossy(name).into_owned());
            ControlFlow::Break(())
        })?;
        names.push(found.ok_or_else(bad)?);
        if names.len() > MAX_DEPTH {
            return Err(bad());
        }
        directory = parent;
    }
    names.push(pool.to_owned());
    names.reverse();
    Ok(names.join("/"))
}

/// A dataset as a directory: the datasets below it; `@`, its file system; `@NAME`, its snapshots.
pub struct Place {
    pub pool: Arc<Pool>,
    pub directory: u64,
    /// From the root of the tree, with a slash before each name.
    pub path: Vec<u8>,
}

impl Place {
    fn here(&self) -> Result<Directory> {
        Directory::read(self.pool.mos(), self.directory)
    }

    /// The file system of the dataset or, if `snapshot` isn't empty, of that snapshot.
    fn content(&self, snapshot: &[u8]) -> Result<Option<NodeRef>> {
        let mos = self.pool.mos();
        let head = self.here()?.head;
        // $ORIGIN and the like have no head.
        if head == 0 {
            return Ok(None);
        }
        let mut dataset = Dataset::read(mos, head)?;
        if !snapshot.is_empty() {
            let Some(id) = dataset.snapshot(mos, snapshot)? else { return Ok(None) };
            dataset = Dataset::read(mos, id)?;
        }
        let prefix = [&self.path[..], b"/@", snapshot].concat();
        let shown =
            String::from_utf8_lossy(&self.path).into_owned() + "@" + &String::from_utf8_lossy(snapshot);
        let shown = self.pool.name().to_owned() + shown.trim_end_matches('@');
        dataset.file_system(mos, &shown, prefix)?.root().map(Some)
    }
}

impl Node for Place {
    fn metadata(&self) -> Result<Metadata> {
        Ok(Metadata { kind: Kind::Directory, size: 0, modified: None })
    }

    fn read_at(&self, _: u64, _: &mut [u8]) -> Result<()> {
        Err(Error::IsADirectory(format!("{}{}", self.pool.name(), String::from_utf8_lossy(&self.path))))
    }

    fn entries(&self, visit: &mut dyn FnMut(Entry) -> ControlFlow<()>) -> Result<()> {
        let mos = self.pool.mos();
        let here = self.here()?;
        let mut visit = |name: Vec<u8>| visit(Entry { name, kind: Some(Kind::Directory) });
        if here.head != 0 {
            let dataset = Dataset::read(mos, here.head)?;
            // What can't be opened is listed, so that opening it tells why. Volumes are not listed.
            let volume = dataset.open(mos, "").is_ok_and(|set| set.kind != FILE_SYSTEM);
            if !volume {
                if visit(b"@".to_vec()).is_break() {
                    return Ok(());
                }
                let mut stopped = false;
                dataset.each_snapshot(mos, &mut |name| {
                    let flow = visit([b"@", name].concat());
                    stopped = flow.is_break();
                    flow
                })?;
                if stopped {
                    return Ok(());
                }
            }
        }
        here.each_child(mos, &mut |name, _| visit(name.to_vec()))
    }

    fn lookup(&self, name: &[u8]) -> Result<Option<NodeRef>> {
        // `NAME@SNAPSHOT` is the same as `NAME/@SNAPSHOT`, as in GRUB.
        let at = name.iter().position(|byte| *byte == b'@');
        let (dataset, snapshot) = name.split_at(at.unwrap_or(name.len()));
        let place = if dataset.is_empty() {
            Self { pool: self.pool.clone(), directory: self.directory, path: self.path.clone() }
        } else {
            let Some(id) = self.here()?.child(self.pool.mos(), dataset)? else { return Ok(None) };
            Self { pool: self.pool.clone(), directory: id, path: [&self.path[..], b"/", dataset].concat() }
        };
        match snapshot.split_first() {
            Some((_, snapshot)) => place.content(snapshot),
            None => Ok(Some(Arc::new(place))),
        }
    }

    fn link(&self) -> Result<Vec<u8>> {
        Err(Error::corrupt(KIND, "a dataset is no link"))
    }
}
