//! What several readers share: an index of names, a cache of blocks, paths without cycles, dates.

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, PoisonError};

use crate::{Error, Result, SourceRef};

/// Most names in the indexes of one file system together: 32 MiB.
const MAX_NAMES: usize = 4 << 20;
/// Most directories with an index.
const MAX_INDEXES: usize = 32;
/// Deepest directory. Linux's PATH_MAX allows no more than half of 4096 names in a path.
const MAX_DEPTH: u32 = 2048;

/// The first sector of a source; `None` if it is shorter.
pub(super) fn boot_sector(source: &SourceRef) -> Result<Option<Vec<u8>>> {
    const LEN: usize = 512;
    if source.size() < LEN as u64 { Ok(None) } else { source.read_vec(0, LEN).map(Some) }
}

/// Where the names of the directories last used are, so that not each lookup reads a whole directory.
pub(super) struct NameIndex {
    hasher: RandomState,
    recent: Mutex<VecDeque<(u64, Arc<Places>)>>,
}

/// Hash of a name and its place, sorted by the hash.
type Places = Vec<(u32, u32)>;

/// Takes a name, in the form in which names are compared, and its place in the directory.
pub(super) type Note<'a> = dyn FnMut(&[u8], u32) + 'a;

impl NameIndex {
    pub(super) fn new() -> Self {
        Self { hasher: RandomState::new(), recent: Mutex::new(VecDeque::new()) }
    }

    /// Looks for `name` in `directory`: `list` reports all names of the directory, which happens
    /// only if it has no index, and `get` what is at a place if that is the name looked for.
    pub(super) fn find<T>(
        &self,
        directory: u64,
        name: &[u8],
        list: impl FnOnce(&mut Note) -> Result<()>,
        mut get: impl FnMut(u32) -> Result<Option<T>>,
    ) -> Result<Option<T>> {
        let places = match self.known(directory) {
            Some(places) => places,
            None => self.learn(directory, list)?,
        };
        let hash = self.hash(name);
        let first = places.partition_point(|(other, _)| *other < hash);
        for (_, place) in places.iter().skip(first).take_while(|(other, _)| *other == hash) {
            if let Some(found) = get(*place)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    fn hash(&self, name: &[u8]) -> u32 {
        self.hasher.hash_one(name) as u32
    }

    fn known(&self, directory: u64) -> Option<Arc<Places>> {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let at = recent.iter().position(|(id, _)| *id == directory)?;
        let found = recent.remove(at)?;
        let places = found.1.clone();
        recent.push_front(found);
        Some(places)
    }

    fn learn(&self, directory: u64, list: impl FnOnce(&mut Note) -> Result<()>) -> Result<Arc<Places>> {
        let mut places = Places::new();
        let mut full = false;
        list(&mut |name, place| {
            full |= places.len() >= MAX_NAMES;
            if !full {
                places.push((self.hash(name), place));
            }
        })?;
        if full {
            return Err(Error::TooLarge(format!("a directory of more than {MAX_NAMES} names")));
        }
        places.sort_unstable();
        places.shrink_to_fit();
        let places = Arc::new(places);
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.push_front((directory, places.clone()));
        recent.truncate(MAX_INDEXES);
        let mut total = 0;
        recent.retain(|(_, places)| {
            total += places.len();
            total <= MAX_NAMES
        });
        Ok(places)
    }
}

/// Blocks last used. Blocks are counted from the start of the source; the last one may be short.
pub(super) struct BlockCache {
    source: SourceRef,
    block: usize,
    capacity: usize,
    recent: Mutex<VecDeque<(u64, Arc<Vec<u8>>)>>,
}

impl BlockCache {
    /// Keeps `capacity` blocks of `block` bytes.
    pub(super) fn new(source: SourceRef, block: usize, capacity: usize) -> Self {
        Self { source, block: block.max(1), capacity, recent: Mutex::new(VecDeque::new()) }
    }

    /// Block `number`; shorter if the source ends in it.
    pub(super) fn get(&self, number: u64) -> Result<Arc<Vec<u8>>> {
        {
            let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(at) = recent.iter().position(|(other, _)| *other == number) {
                if at > 0 {
                    recent.swap(0, at);
                }
                if let Some((_, block)) = recent.front() {
                    return Ok(block.clone());
                }
            }
        }
        let start = number.saturating_mul(self.block as u64);
        let len = self.source.size().saturating_sub(start).min(self.block as u64);
        let block = Arc::new(self.source.read_vec(start, len as usize)?);
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.push_front((number, block.clone()));
        recent.truncate(self.capacity);
        Ok(block)
    }

    /// The `N` bytes at `offset` of the source.
    pub(super) fn array<const N: usize>(&self, offset: u64) -> Result<[u8; N]> {
        let within = (offset % self.block as u64) as usize;
        let block = self.get(offset / self.block as u64)?;
        if let Some(found) = crate::Fields::array(block.as_slice(), within) {
            return Ok(found);
        }
        let mut bytes = [0; N];
        self.source.read_at(offset, &mut bytes)?;
        Ok(bytes)
    }
}

/// The directories from the root to a directory.
pub(super) struct Trail {
    id: u64,
    depth: u32,
    up: Option<Arc<Trail>>,
}

impl Trail {
    /// The root's.
    pub(super) fn root(id: u64) -> Arc<Self> {
        Arc::new(Self { id, depth: 0, up: None })
    }

    /// The way to directory `id` in this one; an error if that leads back to where it came from.
    pub(super) fn down(self: &Arc<Self>, kind: &'static str, id: u64) -> Result<Arc<Self>> {
        if self.depth >= MAX_DEPTH {
            return Err(Error::TooLarge(format!("a path of more than {MAX_DEPTH} directories")));
        }
        let mut above = Some(self);
        while let Some(trail) = above {
            if trail.id == id {
                return Err(Error::corrupt(kind, format!("directory {id} contains itself")));
            }
            above = trail.up.as_ref();
        }
        Ok(Arc::new(Self { id, depth: self.depth + 1, up: Some(self.clone()) }))
    }
}

/// A date of the Gregorian calendar.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Date {
    pub(super) year: u32,
    /// From 1.
    pub(super) month: u32,
    /// From 1.
    pub(super) day: u32,
    pub(super) hour: u32,
    pub(super) minute: u32,
    pub(super) second: u32,
}

impl Date {
    /// Seconds since 1970 in UTC; `None` for what is no date.
    pub(super) fn seconds(&self) -> Option<i64> {
        /// Days of a common year before each month.
        const BEFORE: [i64; 12] = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];
        let &Self { year, month, day, hour, minute, second } = self;
        let sane = (1..=9999).contains(&year)
            && (1..=12).contains(&month)
            && (1..=31).contains(&day)
            && hour < 24
            && minute < 60
            && second <= 60;
        if !sane {
            return None;
        }
        let past = i64::from(year) - 1;
        let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
        let days = past * 365 + past / 4 - past / 100 + past / 400 - 719_162
            + BEFORE.get(month as usize - 1)?
            + i64::from(leap && month > 2)
            + i64::from(day - 1);
        Some(days * 86400 + i64::from(hour * 3600 + minute * 60 + second))
    }
}

/// UTF-8 of UTF-16; what is no character becomes U+FFFD.
pub(super) fn utf8(units: impl IntoIterator<Item = u16>) -> Vec<u8> {
    let mut text = String::new();
    text.extend(char::decode_utf16(units).map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER)));
    text.into_bytes()
}

/// The 16-bit numbers in bytes, little-endian. A last odd byte is left out.
pub(super) fn units(bytes: &[u8]) -> impl Iterator<Item = u16> + '_ {
    bytes.as_chunks::<2>().0.iter().map(|pair| u16::from_le_bytes(*pair))
}

/// A UTF-8 name in the form in which a file system with a table of upper-case letters compares names.
pub(super) fn upcase(name: &[u8], table: &[u16]) -> Vec<u8> {
    let upper = |unit: u16| table.get(usize::from(unit)).copied().unwrap_or(unit);
    String::from_utf8_lossy(name).encode_utf16().flat_map(|unit| upper(unit).to_le_bytes()).collect()
}

/// Whether a name can be a name in a path.
pub(super) fn usable(name: &[u8]) -> bool {
    !name.is_empty() && name != b"." && name != b".." && !name.contains(&b'/') && !name.contains(&0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Bytes;

    #[test]
    fn dates_are_counted_from_1970() {
        let at = |year, month, day, hour| Date { year, month, day, hour, ..Date::default() }.seconds();
        assert_eq!(at(1970, 1, 1, 0), Some(0));
        assert_eq!(at(2000, 2, 29, 0), Some(951_782_400));
        assert_eq!(at(2024, 3, 1, 12), Some(1_709_294_400));
        assert_eq!(at(1969, 12, 31, 23), Some(-3600));
        assert_eq!((at(2000, 13, 1, 0), at(2000, 0, 1, 0), at(0, 1, 1, 0)), (None, None, None));
    }

    #[test]
    fn a_directory_is_listed_once() {
        let index = NameIndex::new();
        let names = [b"a".as_slice(), b"b", b"c"];
        let mut listed = 0;
        for round in 0..3 {
            for (place, name) in names.iter().enumerate() {
                let list = |note: &mut Note| {
                    listed += 1;
                    names.iter().zip(0..).for_each(|(name, place)| note(name, place));
                    Ok(())
                };
                let get = |at: u32| Ok((names.get(at as usize) == Some(name)).then_some(at));
                assert_eq!(index.find(7, name, list, get).unwrap(), Some(place as u32), "round {round}");
            }
        }
        assert_eq!(listed, 1);
        assert_eq!(index.find(7, b"d", |_| Ok(()), |_| Ok(Some(()))).unwrap(), None);
    }

    #[test]
    fn a_path_does_not_lead_back() {
        let root = Trail::root(1);
        let below = root.down("test", 2).unwrap();
        assert!(below.down("test", 1).is_err());
        assert!(below.down("test", 2).is_err());
        let mut deep = below.down("test", 3).unwrap();
        for id in 4..=u64::from(MAX_DEPTH) + 1 {
            deep = deep.down("test", id).unwrap();
        }
        assert!(matches!(deep.down("test", 1 << 40), Err(Error::TooLarge(_))));
    }

    #[test]
    fn cached_blocks_end_with_the_source() {
        let source: SourceRef = Arc::new(Bytes((0..100).collect()));
        let cache = BlockCache::new(source, 16, 2);
        assert_eq!(cache.get(6).unwrap().as_slice(), [96, 97, 98, 99]);
        assert_eq!(cache.array::<4>(14).unwrap(), [14, 15, 16, 17]);
        assert!(cache.array::<4>(98).is_err());
        assert!(cache.array::<1>(1000).is_err());
    }
}

/// What the tests of several readers share.
#[cfg(test)]
pub(super) mod judge {
    use std::path::Path;
    use std::sync::Arc;

    use crate::fs::Open;
    use crate::testing::{Scratch, compare, have, is_root, mutate_and_walk, run};
    use crate::{FileSource, FileSystem, NodeRef, SourceRef, resolve};

    /// An image as a source.
    pub(crate) fn source(image: &Path) -> SourceRef {
        Arc::new(FileSource::open(image).unwrap())
    }

    /// The file system in an image, which must be this reader's.
    pub(crate) fn mount(image: &Path, open: Open) -> Arc<dyn FileSystem> {
        let source = source(image);
        let fs = open(&source, &[]).unwrap().expect("the image is of this kind");
        // No other reader takes it for its own.
        assert_eq!(crate::fs::probe(&source, &[]).unwrap().kind(), fs.kind());
        fs
    }

    /// Whether all of a tree is there: at least so many files.
    pub(crate) fn same(image: &Path, open: Open, tree: &Path, files: usize) {
        let counts = compare(&*mount(image, open), "/", tree).unwrap();
        assert!(counts.files >= files, "{counts:?}");
    }

    /// GRUB's own code lists kind, label and UUID; they must be ours.
    pub(crate) fn grub_says(image: &Path, open: Open) {
        if !have("grub-fstest") {
            return;
        }
        let fs = mount(image, open);
        let said = run("grub-fstest", &[image.to_str().unwrap(), "ls", "--", "-l"]).unwrap();
        let line = said.lines().find(|line| line.contains("loop0")).unwrap();
        let words: Vec<&str> = line.split([' ', ',']).collect();
        // In this listing the ext2 family has a name of its own.
        let kind = if fs.kind() == "ext2" { "ext*" } else { fs.kind() };
        assert!(words.windows(2).any(|pair| pair == ["type", kind]), "{line}");
        let label = line.split_once("Label `").map(|(_, rest)| rest.split_once('\'').unwrap().0.to_owned());
        assert_eq!(fs.label(), label, "{line}");
        let uuid = line.split_once("UUID ").map(|(_, rest)| rest.split(' ').next().unwrap().to_owned());
        assert_eq!(fs.uuid(), uuid, "{line}");
    }

    /// GRUB's own code reads the same from some files.
    pub(crate) fn grub_reads(image: &Path, tree: &Path, files: &[&str]) {
        if !have("grub-fstest") {
            return;
        }
        for file in files {
            let host = tree.join(file.trim_start_matches('/'));
            run("grub-fstest", &[image.to_str().unwrap(), "cmp", file, host.to_str().unwrap()]).unwrap();
        }
    }

    /// GRUB's own code reads from some files what we read, and says the same of the whole.
    pub(crate) fn grub_agrees(image: &Path, open: Open, files: &[&str]) {
        if !have("grub-fstest") {
            return;
        }
        let (fs, scratch) = (mount(image, open), Scratch::new("judge"));
        let ours = scratch.join("ours");
        for file in files {
            let node = resolve(&*fs, file.as_bytes()).unwrap();
            std::fs::write(&ours, crate::read_all(&*node, 64 << 20).unwrap()).unwrap();
            let file = format!("(loop0){file}");
            run("grub-fstest", &[image.to_str().unwrap(), "cmp", &file, ours.to_str().unwrap()]).unwrap();
        }
        grub_says(image, open);
    }

    /// Damaged copies of an image must not do harm, and most of them can be opened.
    pub(crate) fn survives(image: &Path, open: Open, rounds: u64) {
        let opened = mutate_and_walk(|source| open(source, &[]), &source(image), rounds);
        assert!(opened > rounds / 4, "{opened} of {rounds} images could be opened");
    }

    /// A file system in user space, until it is dropped.
    pub(crate) struct Fuse {
        folder: Scratch,
        device: Option<String>,
    }

    impl Fuse {
        /// Mounts an image with `program`. `None` with a message if that isn't possible here.
        /// Some programs want a block device.
        pub(crate) fn mount(program: &str, options: &[&str], image: &Path, device: bool) -> Option<Self> {
            if !is_root() || !Path::new("/dev/fuse").exists() || !have(program) {
                eprintln!("skipped: {program} needs root and /dev/fuse");
                return None;
            }
            let mut name = image.to_str().unwrap().to_owned();
            let mut fuse = Self { folder: Scratch::new("fuse"), device: None };
            if device {
                match run("losetup", &["-f", "--show", &name]) {
                    Ok(found) => found.trim().clone_into(&mut name),
                    Err(error) => {
                        eprintln!("skipped: {error}");
                        return None;
                    }
                }
                fuse.device = Some(name.clone());
            }
            let folder = fuse.folder.path().to_str().unwrap().to_owned();
            match run(program, &[options, &[&name, &folder]].concat()) {
                Ok(_) => Some(fuse),
                Err(error) => {
                    eprintln!("skipped: {error}");
                    None
                }
            }
        }

        pub(crate) fn path(&self) -> &Path {
            self.folder.path()
        }
    }

    impl Drop for Fuse {
        fn drop(&mut self) {
            // A program may not have ended yet when its file system is gone.
            let _ = run("umount", &[self.folder.path().to_str().unwrap()]);
            if let Some(device) = &self.device {
                for _ in 0..50 {
                    if run("losetup", &["-d", device]).is_ok() {
                        break;
                    }
                    std::thread::sleep(std::time::Duration::from_millis(100));
                }
            }
        }
    }

    /// The node at a path.
    pub(crate) fn at(fs: &dyn FileSystem, path: &str) -> NodeRef {
        resolve(fs, path.as_bytes()).unwrap_or_else(|error| panic!("{path}: {error}"))
    }
}
