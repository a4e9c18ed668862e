//! FAT12, FAT16 and FAT32 with long names (Microsoft's FAT specification 1.03).

pub(super) mod chain;
pub(super) mod names;
#[cfg(test)]
mod tests;

use std::ops::ControlFlow;
use std::sync::Arc;

use chain::{Chain, Heap, Layout, Space, Width};
use names::{File, Names, Slot, fold};

use super::support::{NameIndex, Note, Trail, boot_sector, usable};
use crate::source::check;
use crate::{Entry, Error, Fields, FileSystem, Kind, Metadata, Node, NodeRef, Result, SourceRef};

const KIND: &str = "fat";
/// Largest directory: 65536 entries (page 23).
const MAX_DIRECTORY: u64 = 65536 * chain::ENTRY as u64;

struct Volume {
    heap: Heap,
    root: Root,
    serial: Option<u32>,
    index: NameIndex,
}

#[derive(Clone, Copy)]
enum Root {
    Fixed { start: u64, len: u64 },
    Cluster(u32),
}

/// Opens the file system, if it is one.
pub fn open(source: &SourceRef, _: &[SourceRef]) -> Result<Option<Arc<dyn FileSystem>>> {
    let Some(boot) = boot_sector(source)? else { return Ok(None) };
    Ok(parse(source, &boot).map(|volume| Arc::new(Mounted(Arc::new(volume))) as Arc<dyn FileSystem>))
}

/// The BIOS parameter block (page 7 and on); `None` if it is none.
fn parse(source: &SourceRef, boot: &[u8]) -> Option<Volume> {
    let sector = u64::from(boot.u16_at(11)?);
    let per_cluster = u64::from(boot.u8_at(13)?);
    let reserved = u64::from(boot.u16_at(14)?);
    let tables = u64::from(boot.u8_at(16)?);
    let root_entries = u64::from(boot.u16_at(17)?);
    let media = boot.u8_at(21)?;
    let either = |short: u64, long: u64| if short == 0 { long } else { short };
    let sectors = either(u64::from(boot.u16_at(19)?), u64::from(boot.u32_at(32)?));
    let old_table = u64::from(boot.u16_at(22)?);
    let table = either(old_table, u64::from(boot.u32_at(36)?));
    let plausible = sector.is_power_of_two()
        && (512..=4096).contains(&sector)
        && per_cluster.is_power_of_two()
        && reserved > 0
        && (1..=4).contains(&tables)
        && (media == 0xf0 || media >= 0xf8)
        && table > 0;
    if !plausible {
        return None;
    }
    let root_start = reserved + tables * table;
    let heap_start = root_start + (root_entries * chain::ENTRY as u64).div_ceil(sector);
    let clusters = sectors.checked_sub(heap_start)? / per_cluster;
    // Page 15: nothing but the number of clusters makes the kind, once it isn't FAT32.
    let (width, extended) = match clusters {
        0 => return None,
        _ if old_table == 0 => (Width::Bits32, 64),
        1..4085 => (Width::Bits12, 36),
        _ => (Width::Bits16, 36),
    };
    let root = if width == Width::Bits32 {
        Root::Cluster(boot.u32_at(44)? & 0x0fff_ffff)
    } else {
        Root::Fixed { start: root_start * sector, len: root_entries * chain::ENTRY as u64 }
    };
    // The table has an entry for each cluster, the first two are not clusters.
    let bits = match width {
        Width::Bits12 => 12,
        Width::Bits16 => 16,
        Width::Bits32 | Width::Ex => 32,
    };
    let clusters = clusters.min((table * sector * 8 / bits).saturating_sub(2));
    // Page 9: FAT32 may use one of its tables alone.
    let flags = if width == Width::Bits32 { u64::from(boot.u16_at(40)?) } else { 0 };
    let active = if flags & 0x80 == 0 { 0 } else { flags & 0xf };
    if active >= tables {
        return None;
    }
    let layout = Layout {
        width,
        table_start: (reserved + active * table) * sector,
        start: heap_start * sector,
        cluster: per_cluster * sector,
        clusters: u32::try_from(clusters).ok()?,
    };
    // 0x28 and 0x29 say that a serial number follows (page 12).
    let signed = matches!(boot.u8_at(extended + 2)?, 0x28 | 0x29);
    let serial = if signed { boot.u32_at(extended + 3) } else { None };
    Some(Volume { heap: Heap::new(KIND, source, &layout), root, serial, index: NameIndex::new() })
}

struct Mounted(Arc<Volume>);

impl Mounted {
    fn root_node(&self) -> FatNode {
        let (space, id) = match self.0.root {
            Root::Fixed { start, len } => (Space::Fixed { start, len }, 0),
            Root::Cluster(first) => (directory(first), u64::from(first)),
        };
        FatNode {
            volume: self.0.clone(),
            content: Content::Directory(space, Trail::root(id), id),
            modified: None,
        }
    }
}

fn directory(first: u32) -> Space {
    Space::Chain { chain: Chain::new(first, false, 1), len: None, max: MAX_DIRECTORY }
}

impl FileSystem for Mounted {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn label(&self) -> Option<String> {
        let root = self.root_node();
        let mut names = Names::default();
        let mut label = None;
        let Content::Directory(space, ..) = &root.content else { return None };
        let searched = space.each(&self.0.heap, 0, &mut |place, entry| {
            Ok(match names.take(place, entry) {
                Slot::End => ControlFlow::Break(()),
                Slot::Label(name) => {
                    label = String::from_utf8(name).ok();
                    ControlFlow::Break(())
                }
                Slot::None | Slot::File(_) => ControlFlow::Continue(()),
            })
        });
        searched.ok()?;
        label
    }

    fn uuid(&self) -> Option<String> {
        self.0.serial.map(serial)
    }

    fn case_sensitive(&self) -> bool {
        false
    }

    fn root(&self) -> Result<NodeRef> {
        Ok(Arc::new(self.root_node()))
    }
}

/// A serial number as GRUB, DOS and Linux spell it.
pub(super) fn serial(serial: u32) -> String {
    format!("{:04X}-{:04X}", serial >> 16, serial & 0xffff)
}

enum Content {
    /// A file and its size.
    File(Chain, u32),
    /// A directory, the way to it and its identity.
    Directory(Space, Arc<Trail>, u64),
}

struct FatNode {
    volume: Arc<Volume>,
    content: Content,
    modified: Option<i64>,
}

impl FatNode {
    fn each(&self, from: u64, visit: &mut dyn FnMut(File) -> ControlFlow<()>) -> Result<()> {
        let Content::Directory(space, ..) = &self.content else {
            return Err(Error::NotADirectory("a file on a FAT volume".into()));
        };
        let mut names = Names::default();
        space.each(&self.volume.heap, from, &mut |place, entry| {
            Ok(match names.take(place, entry) {
                Slot::End => ControlFlow::Break(()),
                Slot::File(file) if usable(&file.name) => visit(file),
                Slot::None | Slot::Label(_) | Slot::File(_) => ControlFlow::Continue(()),
            })
        })
    }

    fn child(&self, trail: &Arc<Trail>, file: &File) -> Result<Self> {
        let heap = &self.volume.heap;
        let cluster =
            if heap.width == Width::Bits32 { file.cluster & 0x0fff_ffff } else { file.cluster & 0xffff };
        let content = if file.directory {
            let id = u64::from(cluster);
            let trail = trail.down(KIND, id)?;
            heap.valid(cluster)?;
            Content::Directory(directory(cluster), trail, id)
        } else {
            Content::File(Chain::new(cluster, false, u64::from(file.size).div_ceil(heap.cluster)), file.size)
        };
        Ok(Self { volume: self.volume.clone(), content, modified: file.modified })
    }
}

impl Node for FatNode {
    fn metadata(&self) -> Result<Metadata> {
        let (kind, size) = match &self.content {
            Content::File(_, size) => (Kind::File, u64::from(*size)),
            Content::Directory(..) => (Kind::Directory, 0),
        };
        Ok(Metadata { kind, size, modified: self.modified })
    }

    fn read_at(&self, offset: u64, to: &mut [u8]) -> Result<()> {
        match &self.content {
            Content::Directory(..) => Err(Error::IsADirectory("a directory on a FAT volume".into())),
            Content::File(chain, size) => {
                check(u64::from(*size), offset, to.len() as u64)?;
                chain.read(&self.volume.heap, offset, to)
            }
        }
    }

    fn entries(&self, visit: &mut dyn FnMut(Entry) -> ControlFlow<()>) -> Result<()> {
        self.each(0, &mut |file| {
            let kind = Some(if file.directory { Kind::Directory } else { Kind::File });
            visit(Entry { name: file.name, kind })
        })
    }

    fn lookup(&self, name: &[u8]) -> Result<Option<NodeRef>> {
        let Content::Directory(_, trail, id) = &self.content else {
            return Err(Error::NotADirectory("a file on a FAT volume".into()));
        };
        let wanted = fold(name);
        let list = |note: &mut Note| {
            self.each(0, &mut |file| {
                note(&fold(&file.name), file.place as u32);
                if let Some(alias) = &file.alias {
                    note(&fold(alias), file.place as u32);
                }
                ControlFlow::Continue(())
            })
        };
        let get = |place: u32| {
            let mut found = None;
            self.each(u64::from(place), &mut |file| {
                let alias = file.alias.as_ref().is_some_and(|alias| fold(alias) == wanted);
                found = (alias || fold(&file.name) == wanted).then_some(file);
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
        Err(Error::NotAFile("FAT has no symbolic links".into()))
    }
}
