//! exFAT (Microsoft's exFAT specification, revision 1.00).

mod entries;
#[cfg(test)]
mod tests;

use std::ops::ControlFlow;
use std::sync::Arc;

use entries::{File, Reader, Slot};

use super::fat::chain::{Chain, Heap, Layout, Space, Width};
use super::support::{NameIndex, Note, Trail, boot_sector, usable};
use crate::source::check;
use crate::{Entry, Error, Fields, FileSystem, Kind, Metadata, Node, NodeRef, Result, SourceRef};

const KIND: &str = "exfat";
/// Largest directory (section 6).
const MAX_DIRECTORY: u64 = 256 << 20;
/// Largest up-case table: all of UTF-16 (7.2.5).
const MAX_UPCASE: u64 = 128 << 10;

struct Volume {
    heap: Heap,
    root: u32,
    serial: u32,
    upcase: Vec<u16>,
    label: Option<String>,
    index: NameIndex,
}

/// Opens the file system, if it is one.
pub fn open(source: &SourceRef, _: &[SourceRef]) -> Result<Option<Arc<dyn FileSystem>>> {
    let Some(boot) = boot_sector(source)? else { return Ok(None) };
    if boot.get(3..11) != Some(b"EXFAT   ") {
        return Ok(None);
    }
    let mut volume = parse(source, &boot).ok_or_else(|| Error::corrupt(KIND, "boot sector"))?;
    volume.learn()?;
    Ok(Some(Arc::new(Mounted(Arc::new(volume)))))
}

/// The boot sector (section 3.1).
fn parse(source: &SourceRef, boot: &[u8]) -> Option<Volume> {
    let sector = boot.u8_at(108).filter(|log| (9..=12).contains(log))?;
    let cluster = boot.u8_at(109).filter(|log| *log <= 25 - sector)?;
    // With two tables (TexFAT), a flag says which one is in use.
    let second = u64::from(boot.u8_at(110)? == 2 && boot.u8_at(106)? & 1 != 0);
    let table = u64::from(boot.u32_at(80)?) + second * u64::from(boot.u32_at(84)?);
    let start = u64::from(boot.u32_at(88)?);
    let layout = Layout {
        width: Width::Ex,
        table_start: table << sector,
        start: start << sector,
        cluster: 1 << (sector + cluster),
        clusters: boot.u32_at(92).filter(|clusters| *clusters <= 0xffff_fff5)?,
    };
    Some(Volume {
        heap: Heap::new(KIND, source, &layout),
        root: boot.u32_at(96)?,
        serial: boot.u32_at(100)?,
        upcase: Vec::new(),
        label: None,
        index: NameIndex::new(),
    })
}

impl Volume {
    fn root_space(&self) -> Space {
        Space::Chain { chain: Chain::new(self.root, false, 1), len: None, max: MAX_DIRECTORY }
    }

    /// Finds label and up-case table in the root directory.
    fn learn(&mut self) -> Result<()> {
        let mut table = None;
        let mut label = None;
        let mut reader = Reader::default();
        self.root_space().each(&self.heap, 0, &mut |place, entry| {
            match reader.take(place, entry) {
                Slot::End => return Ok(ControlFlow::Break(())),
                Slot::Label(name) => label = String::from_utf8(name).ok(),
                Slot::UpCase { cluster, len } if table.is_none() => table = Some((cluster, len)),
                Slot::None | Slot::UpCase { .. } | Slot::File(_) => {}
            }
            Ok(if table.is_some() && label.is_some() {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            })
        })?;
        self.label = label.filter(|label| !label.is_empty());
        let (cluster, len) = table.ok_or_else(|| Error::corrupt(KIND, "no up-case table"))?;
        if len > MAX_UPCASE {
            return Err(Error::corrupt(KIND, format!("an up-case table of {len} bytes")));
        }
        let mut bytes = vec![0; len as usize];
        Chain::new(cluster, false, 1).read(&self.heap, 0, &mut bytes)?;
        self.upcase = entries::upcase_table(&bytes);
        Ok(())
    }

    /// A name in the form in which names are compared.
    fn fold(&self, name: &[u8]) -> Vec<u8> {
        super::support::upcase(name, &self.upcase)
    }
}

struct Mounted(Arc<Volume>);

impl FileSystem for Mounted {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn label(&self) -> Option<String> {
        self.0.label.clone()
    }

    fn uuid(&self) -> Option<String> {
        Some(super::fat::serial(self.0.serial))
    }

    fn case_sensitive(&self) -> bool {
        false
    }

    fn root(&self) -> Result<NodeRef> {
        let id = u64::from(self.0.root);
        let content = Content::Directory(self.0.root_space(), Trail::root(id), id);
        Ok(Arc::new(ExfatNode { volume: self.0.clone(), content, modified: None }))
    }
}

enum Content {
    /// A file, its size, and how much of it was ever written.
    File { chain: Chain, size: u64, valid: u64 },
    /// A directory, the way to it and its identity.
    Directory(Space, Arc<Trail>, u64),
}

struct ExfatNode {
    volume: Arc<Volume>,
    content: Content,
    modified: Option<i64>,
}

impl ExfatNode {
    fn each(&self, from: u64, visit: &mut dyn FnMut(File) -> ControlFlow<()>) -> Result<()> {
        let Content::Directory(space, ..) = &self.content else {
            return Err(Error::NotADirectory("a file on an exFAT volume".into()));
        };
        let mut reader = Reader::default();
        space.each(&self.volume.heap, from, &mut |place, entry| {
            Ok(match reader.take(place, entry) {
                Slot::End => ControlFlow::Break(()),
                Slot::File(file) if usable(&file.name) => visit(file),
                Slot::None | Slot::Label(_) | Slot::UpCase { .. } | Slot::File(_) => {
                    ControlFlow::Continue(())
                }
            })
        })
    }

    fn child(&self, trail: &Arc<Trail>, file: &File) -> Result<Self> {
        let heap = &self.volume.heap;
        let chain = Chain::new(file.cluster, file.contiguous, file.size.div_ceil(heap.cluster));
        let content = if file.directory {
            let id = u64::from(file.cluster);
            let trail = trail.down(KIND, id)?;
            heap.valid(file.cluster)?;
            Content::Directory(Space::Chain { chain, len: Some(file.size), max: MAX_DIRECTORY }, trail, id)
        } else {
            Content::File { chain, size: file.size, valid: file.valid.min(file.size) }
        };
        Ok(Self { volume: self.volume.clone(), content, modified: file.modified })
    }
}

impl Node for ExfatNode {
    fn metadata(&self) -> Result<Metadata> {
        let (kind, size) = match &self.content {
            Content::File { size, .. } => (Kind::File, *size),
            Content::Directory(..) => (Kind::Directory, 0),
        };
        Ok(Metadata { kind, size, modified: self.modified })
    }

    fn read_at(&self, offset: u64, to: &mut [u8]) -> Result<()> {
        let Content::File { chain, size, valid } = &self.content else {
            return Err(Error::IsADirectory("a directory on an exFAT volume".into()));
        };
        check(*size, offset, to.len() as u64)?;
        let written = valid.saturating_sub(offset).min(to.len() as u64) as usize;
        let (data, zeros) = to.split_at_mut(written);
        zeros.fill(0);
        chain.read(&self.volume.heap, offset, data)
    }

    fn entries(&self, visit: &mut dyn FnMut(Entry) -> ControlFlow<()>) -> Result<()> {
        self.each(0, &mut |file| {
            let kind = Some(if file.directory { Kind::Directory } else { Kind::File });
            visit(Entry { name: file.name, kind })
        })
    }

    fn lookup(&self, name: &[u8]) -> Result<Option<NodeRef>> {
        let Content::Directory(_, trail, id) = &self.content else {
            return Err(Error::NotADirectory("a file on an exFAT volume".into()));
        };
        let wanted = self.volume.fold(name);
        let list = |note: &mut Note| {
            self.each(0, &mut |file| {
                note(&self.volume.fold(&file.name), file.place as u32);
                ControlFlow::Continue(())
            })
        };
        let get = |place: u32| {
            let mut found = None;
            self.each(u64::from(place), &mut |file| {
                found = (self.volume.fold(&file.name) == wanted).then_some(file);
                ControlFlow::Break(())
            })?;
            Ok(found)
        };
        match self.volume.index.find(*id, &wanted, list, get)? {
            Some(file) => Ok(Some(Arc::new(self.child(trail, &file)?))),
            None => Ok(None),
        }
    }

    fn link(&self) -> Result<Vec<u8>> {
        Err(Error::NotAFile("exFAT has no symbolic links".into()))
    }
}
