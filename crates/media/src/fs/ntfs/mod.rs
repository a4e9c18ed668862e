//! NTFS 1.2 to 3.1, as Windows NT 4 and later write it.

mod index;
mod lznt;
mod record;
mod reparse;
mod stream;
#[cfg(test)]
mod tests;

use std::ops::ControlFlow;
use std::sync::Arc;

use record::Record;
use reparse::Special;
use stream::Stream;

use super::support::{NameIndex, Note, Trail, boot_sector, units, upcase, usable, utf8};
use crate::source::check;
use crate::{Entry, Error, Fields, FileSystem, Kind, Metadata, Node, NodeRef, Result, SourceRef};

const KIND: &str = "ntfs";
/// Numbers of the files that hold the volume together.
const VOLUME: u64 = 3;
const ROOT: u64 = 5;
const UPCASE: u64 = 10;
/// Files below this are the volume's own and aren't listed.
const FIRST_USER: u64 = 16;

/// Kinds of attributes.
mod attribute {
    pub(super) const STANDARD_INFORMATION: u32 = 0x10;
    pub(super) const ATTRIBUTE_LIST: u32 = 0x20;
    pub(super) const VOLUME_NAME: u32 = 0x60;
    pub(super) const DATA: u32 = 0x80;
    pub(super) const INDEX_ROOT: u32 = 0x90;
    pub(super) const INDEX_ALLOCATION: u32 = 0xa0;
    pub(super) const BITMAP: u32 = 0xb0;
    pub(super) const REPARSE_POINT: u32 = 0xc0;
}

struct Volume {
    source: SourceRef,
    cluster: u64,
    /// Bytes of a file record.
    record: usize,
    mft: Stream,
    upcase: Vec<u16>,
    serial: u64,
    label: Option<String>,
    index: NameIndex,
}

/// Opens the file system, if it is one.
pub fn open(source: &SourceRef, _: &[SourceRef]) -> Result<Option<Arc<dyn FileSystem>>> {
    let Some(boot) = boot_sector(source)? else { return Ok(None) };
    if boot.get(3..11) != Some(b"NTFS    ") {
        return Ok(None);
    }
    let layout = Layout::parse(&boot).ok_or_else(|| Error::corrupt(KIND, "boot sector"))?;
    let mut volume = Volume {
        source: source.clone(),
        cluster: layout.cluster,
        record: layout.record,
        mft: Stream::Resident(Vec::new()),
        upcase: Vec::new(),
        serial: layout.serial,
        label: None,
        index: NameIndex::new(),
    };
    let start = layout.mft.checked_mul(layout.cluster).ok_or_else(|| Error::corrupt(KIND, "boot sector"))?;
    let first = Record::parse(0, source.read_vec(start, layout.record)?)?;
    stream::find_mft(&mut volume, &first)?;
    let table = Record::load(&volume, UPCASE, 0)?;
    let table = Stream::find(&volume, &table, attribute::DATA, &[])?
        .ok_or_else(|| Error::corrupt(KIND, "no table of upper-case letters"))?;
    volume.upcase = units(&table.all(&volume, 128 << 10)?).collect();
    let named = Record::load(&volume, VOLUME, 0)?;
    if let Some(name) = Stream::find(&volume, &named, attribute::VOLUME_NAME, &[])? {
        let name = utf8(units(&name.all(&volume, 512)?));
        volume.label = String::from_utf8(name).ok().filter(|label| !label.is_empty());
    }
    Ok(Some(Arc::new(Mounted(Arc::new(volume)))))
}

/// The boot sector.
struct Layout {
    cluster: u64,
    mft: u64,
    record: usize,
    serial: u64,
}

impl Layout {
    fn parse(boot: &[u8]) -> Option<Self> {
        let sector = u64::from(boot.u16_at(11)?);
        let per_cluster = boot.u8_at(13)?;
        // Large clusters are written as the negative logarithm, as record sizes are.
        let cluster = match per_cluster {
            1..=128 => sector * u64::from(per_cluster),
            244..=255 => sector << per_cluster.wrapping_neg(),
            _ => return None,
        };
        let sized = |at| -> Option<u64> {
            match boot.u8_at(at)? as i8 {
                clusters @ 1.. => Some(clusters as u64 * cluster),
                log @ -16..=-9 => Some(1 << -log),
                _ => None,
            }
        };
        let record = sized(64)?;
        let sane = sector.is_power_of_two()
            && (256..=4096).contains(&sector)
            && cluster.is_power_of_two()
            && (512..=2 << 20).contains(&cluster)
            && record.is_power_of_two()
            && (512..=65536).contains(&record);
        let (mft, serial) = (boot.u64_at(48)?, boot.u64_at(72)?);
        sane.then_some(Self { cluster, mft, record: record as usize, serial })
    }
}

impl Volume {
    /// A name in the form in which names are compared.
    fn fold(&self, name: &[u8]) -> Vec<u8> {
        upcase(name, &self.upcase)
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
        Some(format!("{:016X}", self.0.serial))
    }

    fn case_sensitive(&self) -> bool {
        false
    }

    fn root(&self) -> Result<NodeRef> {
        let record = Record::load(&self.0, ROOT, 0)?;
        let node = NtfsNode::new(&self.0, record, || Ok(Trail::root(ROOT)))?;
        match node.content {
            Content::Directory(_) => Ok(Arc::new(node)),
            _ => Err(Error::corrupt(KIND, "the root is not a directory")),
        }
    }
}

enum Content {
    File(Stream),
    /// A file whose content is known to be unreadable for us, and why.
    Refused {
        size: u64,
        why: String,
    },
    Directory(Arc<Trail>),
    Link(Vec<u8>),
    Other,
}

struct NtfsNode {
    volume: Arc<Volume>,
    record: Record,
    content: Content,
    modified: Option<i64>,
}

impl NtfsNode {
    fn new(volume: &Arc<Volume>, record: Record, trail: impl FnOnce() -> Result<Arc<Trail>>) -> Result<Self> {
        let mut modified = None;
        let mut system = false;
        if let Some(info) = Stream::find(volume, &record, attribute::STANDARD_INFORMATION, &[])? {
            let info = info.all(volume, 4096)?;
            modified = info.u64_at(8).map(seconds);
            // FILE_ATTRIBUTE_SYSTEM.
            system = info.u32_at(32).is_some_and(|flags| flags & 4 != 0);
        }
        let special = match Stream::find(volume, &record, attribute::REPARSE_POINT, &[])? {
            // MAXIMUM_REPARSE_DATA_BUFFER_SIZE.
            Some(point) => Some(reparse::parse(&point.all(volume, 16 << 10)?)),
            None => None,
        };
        let content = match special {
            Some(Special::Link(target)) => Content::Link(target),
            Some(Special::Other) => Content::Other,
            Some(Special::Unknown(_)) | None if record.is_directory() => Content::Directory(trail()?),
            special => {
                let stream = Stream::find(volume, &record, attribute::DATA, &[])?;
                let stream = stream.unwrap_or(Stream::Resident(Vec::new()));
                match (special, stream.refusal()) {
                    (Some(Special::Unknown(why)), _) | (None, Some(why)) => {
                        Content::Refused { size: stream.size(), why }
                    }
                    _ if system => Self::system(volume, stream)?,
                    _ => Content::File(stream),
                }
            }
        };
        Ok(Self { volume: volume.clone(), record, content, modified })
    }

    /// A system file may be what Services for Unix and ntfs-3g make of links and devices.
    fn system(volume: &Volume, stream: Stream) -> Result<Content> {
        if !(8..=reparse::MAX_INTERIX).contains(&stream.size()) {
            return Ok(Content::File(stream));
        }
        Ok(match reparse::interix(&stream.all(volume, reparse::MAX_INTERIX)?) {
            Some(Special::Link(target)) => Content::Link(target),
            Some(_) => Content::Other,
            None => Content::File(stream),
        })
    }

    fn shown(&self) -> String {
        format!("file {}", self.record.number)
    }

    fn trail(&self) -> Result<&Arc<Trail>> {
        match &self.content {
            Content::Directory(trail) => Ok(trail),
            _ => Err(Error::NotADirectory(self.shown())),
        }
    }
}

/// Seconds since 1970 from units of 100 ns since 1601.
fn seconds(time: u64) -> i64 {
    (time / 10_000_000) as i64 - 11_644_473_600
}

impl Node for NtfsNode {
    fn metadata(&self) -> Result<Metadata> {
        let (kind, size) = match &self.content {
            Content::File(stream) => (Kind::File, stream.size()),
            Content::Refused { size, .. } => (Kind::File, *size),
            Content::Directory(_) => (Kind::Directory, 0),
            Content::Link(target) => (Kind::Symlink, target.len() as u64),
            Content::Other => (Kind::Other, 0),
        };
        Ok(Metadata { kind, size, modified: self.modified })
    }

    fn read_at(&self, offset: u64, to: &mut [u8]) -> Result<()> {
        match &self.content {
            Content::File(stream) => {
                check(stream.size(), offset, to.len() as u64)?;
                stream.read(&self.volume, offset, to)
            }
            Content::Refused { why, .. } => Err(Error::unsupported(KIND, why.clone())),
            Content::Directory(_) => Err(Error::IsADirectory(self.shown())),
            Content::Link(_) | Content::Other => Err(Error::NotAFile(self.shown())),
        }
    }

    fn entries(&self, visit: &mut dyn FnMut(Entry) -> ControlFlow<()>) -> Result<()> {
        self.trail()?;
        index::each(&self.volume, &self.record, &mut |_, key| {
            if key.is_dos() || key.number() < FIRST_USER || !usable(&key.name) {
                return ControlFlow::Continue(());
            }
            visit(Entry { kind: key.kind(), name: key.name })
        })
    }

    fn lookup(&self, name: &[u8]) -> Result<Option<NodeRef>> {
        let trail = self.trail()?;
        if !usable(name) {
            return Ok(None);
        }
        let wanted = self.volume.fold(name);
        // Names that differ only by case are possible; then the exact one is meant.
        let mut found = None;
        for exact in [true, false] {
            let list = |note: &mut Note| {
                index::each(&self.volume, &self.record, &mut |place, key| {
                    note(&self.volume.fold(&key.name), place);
                    ControlFlow::Continue(())
                })
            };
            let get = |place: u32| {
                let key = index::at(&self.volume, &self.record, place)?;
                Ok(key.filter(
                    |key| if exact { key.name == name } else { self.volume.fold(&key.name) == wanted },
                ))
            };
            found = self.volume.index.find(self.record.number, &wanted, list, get)?;
            if found.is_some() {
                break;
            }
        }
        let Some(key) = found else { return Ok(None) };
        let record = Record::load(&self.volume, key.number(), key.sequence())?;
        let node = Self::new(&self.volume, record, || trail.down(KIND, key.number()))?;
        Ok(Some(Arc::new(node)))
    }

    fn link(&self) -> Result<Vec<u8>> {
        match &self.content {
            Content::Link(target) => Ok(target.clone()),
            _ => Err(Error::NotAFile(self.shown())),
        }
    }
}
