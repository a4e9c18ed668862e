//! A pool: from the labels of its devices to its object set.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use crate::{Error, Fields, FileSystem, NodeRef, Result, SourceRef};

use super::KIND;
use super::block::Dva;
use super::dmu::{ObjectSet, kind};
use super::dsl::{self, Dataset, Directory, Place};
use super::features::known;
use super::label::{Labels, State, Uberblock, other_byte_order};
use super::nvlist::Nvlist;
use super::store::Store;
use super::vdev::{Moved, Vdev, Vdevs};
use super::zap::Zap;
use super::zpl::Zpl;

/// The pool's directory of objects: DMU_POOL_DIRECTORY_OBJECT.
const DIRECTORY: u64 = 1;
/// Versions: 1 to 28, and the one that has feature flags.
const VERSIONS: (std::ops::RangeInclusive<u64>, u64) = (1..=28, 5000);
/// How many transactions back we go if the newest is damaged.
const MAX_BACK: usize = 4;
/// Largest configuration that we read.
const MAX_CONFIG: u64 = 4 << 20;
/// Most parts of all removed devices.
const MAX_MOVED: u64 = 2 << 20;
/// Bytes of the description of a part.
const MOVED: u64 = 24;

/// An open pool.
pub struct Pool {
    name: String,
    guid: u64,
    time: u64,
    mos: ObjectSet,
    root: u64,
}

impl Pool {
    /// Opens the pool that `source` belongs to, with its other devices among `peers`. `Ok(None)`: it is in
    /// none.
    pub fn open(source: &SourceRef, peers: &[SourceRef]) -> Result<Option<Arc<Self>>> {
        Self::open_with(source, peers, true)
    }

    /// As [`Pool::open`]; without `check` checksums of blocks don't matter.
    pub(super) fn open_with(
        source: &SourceRef,
        peers: &[SourceRef],
        check: bool,
    ) -> Result<Option<Arc<Self>>> {
        let Some(own) = Labels::read(source)? else { return Ok(None) };
        match own.state()? {
            State::Member => {}
            State::Destroyed => return Ok(None),
            State::Spare => return Err(Error::unsupported(KIND, "a spare device")),
            State::Cache => return Err(Error::unsupported(KIND, "a cache device")),
        }
        let front = own.front;
        let opened = Self::from_labels(own, source, peers, check);
        match opened {
            Ok(pool) => Ok(Some(Arc::new(pool))),
            // Labels at the end alone are those of the last partition, or what is left of an old pool.
            Err(_) if !front => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn from_labels(own: Labels, source: &SourceRef, peers: &[SourceRef], check: bool) -> Result<Self> {
        let list = &own.list;
        let version = list.number("version").unwrap_or_default();
        if !VERSIONS.0.contains(&version) && version != VERSIONS.1 {
            return Err(Error::unsupported(KIND, format!("pool version {version}")));
        }
        if let Some(features) = list.list("features_for_read") {
            features.names().try_for_each(check_feature)?;
        }
        let (pool, guid) = (own.pool, own.guid);
        let name = list.text("name").unwrap_or_default().to_owned();
        // The device that was asked for comes first, whatever else has its guid.
        let mut members = BTreeMap::from([(guid, own)]);
        for peer in peers.iter().filter(|peer| !Arc::ptr_eq(peer, source)) {
            if let Ok(Some(labels)) = Labels::read(peer)
                && labels.pool == pool
                && labels.state().is_ok_and(|state| state == State::Member)
                && members.get(&labels.guid).is_none_or(|other| labels.front && !other.front)
            {
                members.insert(labels.guid, labels);
            }
        }
        let (store, uberblock) = Self::newest(&members, check)?;
        let mos = complete(&store, &uberblock, &members, check)?;
        let mut this = Self { name, guid: pool, time: uberblock.time, mos, root: 0 };
        this.check()?;
        Ok(this)
    }

    /// The devices as the labels describe them, and the newest uberblock that leads to an object set.
    fn newest(members: &BTreeMap<u64, Labels>, check: bool) -> Result<(Arc<Store>, Uberblock)> {
        let mut trees: BTreeMap<u64, (&Nvlist, u64)> = BTreeMap::new();
        for labels in members.values() {
            let Some(tree) = labels.list.list("vdev_tree") else { continue };
            let id = tree.number("id").unwrap_or_default();
            if trees.get(&id).is_none_or(|(_, txg)| *txg < labels.txg) {
                trees.insert(id, (tree, labels.txg));
            }
        }
        let store = Arc::new(Store::new(build(trees.values().map(|(tree, _)| *tree), members)?, check));
        let mut uberblocks: Vec<Uberblock> = members.values().flat_map(Labels::uberblocks).collect();
        if uberblocks.is_empty() && members.values().any(other_byte_order) {
            return Err(Error::unsupported(KIND, "a pool in big-endian byte order"));
        }
        uberblocks.sort_by_key(|uberblock| std::cmp::Reverse((uberblock.txg, uberblock.time)));
        uberblocks.dedup_by_key(|uberblock| uberblock.txg);
        let mut failure = Error::corrupt(KIND, "no uberblock is sound");
        for (index, uberblock) in uberblocks.into_iter().take(MAX_BACK).enumerate() {
            match ObjectSet::open(&store, &uberblock.root).and_then(|mos| mos.object(DIRECTORY)) {
                Ok(_) => return Ok((store, uberblock)),
                Err(error) if index == 0 => failure = error,
                Err(_) => {}
            }
        }
        Err(failure)
    }

    /// Checks the features and finds the root of the datasets.
    fn check(&mut self) -> Result<()> {
        let object = self.mos.object(DIRECTORY)?;
        let directory = Zap::open(&object)?;
        if let Some(id) = directory.number("features_for_read")? {
            let object = self.mos.object(id)?;
            let mut refusal = Ok(());
            Zap::open(&object)?.each(&mut |name, value| {
                // The value is how much uses the feature.
                if value.number() != Some(0) {
                    refusal = check_feature(&String::from_utf8_lossy(name));
                }
                if refusal.is_err() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })?;
            refusal?;
        }
        let root = directory.number("root_dataset")?;
        self.root = root.ok_or_else(|| Error::corrupt(KIND, "a pool without datasets"))?;
        Directory::read(&self.mos, self.root)?;
        Ok(())
    }

    /// The pool's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The pool's guid.
    pub fn guid(&self) -> u64 {
        self.guid
    }

    /// The pool's own objects.
    pub(super) fn mos(&self) -> &ObjectSet {
        &self.mos
    }

    /// The name of the dataset to boot from (the pool's property `bootfs`), if there is one.
    pub fn bootfs(&self) -> Result<Option<String>> {
        let object = self.mos.object(DIRECTORY)?;
        let Some(id) = Zap::open(&object)?.number("pool_props")? else { return Ok(None) };
        let object = self.mos.object(id)?;
        match Zap::open(&object)?.number("bootfs")? {
            None | Some(0) => Ok(None),
            Some(id) => {
                let dataset = Dataset::read(&self.mos, id)?;
                dsl::name(&self.mos, &self.name, dataset.directory).map(Some)
            }
        }
    }

    /// The file system in the dataset or snapshot `name`: `POOL/DATASET@SNAPSHOT`. Its root is its own, so
    /// absolute links lead where they should.
    pub fn dataset(self: &Arc<Self>, name: &str) -> Result<Arc<dyn FileSystem>> {
        let missing = || Error::NotFound(format!("dataset {name}"));
        let (path, snapshot) = match name.split_once('@') {
            Some((path, snapshot)) => (path, Some(snapshot)),
            None => (name, None),
        };
        let mut names = path.split('/');
        if names.next() != Some(&self.name) {
            return Err(missing());
        }
        let mut directory = Directory::read(&self.mos, self.root)?;
        for name in names {
            let id = directory.child(&self.mos, name.as_bytes())?.ok_or_else(missing)?;
            directory = Directory::read(&self.mos, id)?;
        }
        let mut dataset = Dataset::read(&self.mos, directory.head)?;
        if let Some(snapshot) = snapshot {
            let id = dataset.snapshot(&self.mos, snapshot.as_bytes())?.ok_or_else(missing)?;
            dataset = Dataset::read(&self.mos, id)?;
        }
        let content = dataset.file_system(&self.mos, name, Vec::new())?;
        Ok(Arc::new(Mounted { pool: self.clone(), name: name.to_owned(), content }))
    }

    /// The root of the tree of datasets.
    pub fn tree(self: &Arc<Self>) -> NodeRef {
        Arc::new(Place { pool: self.clone(), directory: self.root, path: Vec::new() })
    }
}

fn check_feature(name: &str) -> Result<()> {
    if known(name) { Ok(()) } else { Err(Error::unsupported(KIND, format!("the feature {name}"))) }
}

/// The top-level devices of these lists.
fn build<'a>(trees: impl Iterator<Item = &'a Nvlist>, members: &BTreeMap<u64, Labels>) -> Result<Vdevs> {
    let find = |guid| members.get(&guid).map(|labels| labels.source.clone());
    let mut vdevs = Vdevs::new();
    for tree in trees {
        vdevs.insert(tree.number("id").unwrap_or_default(), Vdev::build(tree, &find)?)?;
    }
    Ok(vdevs)
}

/// The pool's object set, read from all devices: those whose labels nobody found and those that were removed
/// are only in the configuration that the pool itself keeps.
fn complete(
    store: &Arc<Store>,
    uberblock: &Uberblock,
    members: &BTreeMap<u64, Labels>,
    check: bool,
) -> Result<ObjectSet> {
    let mos = ObjectSet::open(store, &uberblock.root)?;
    let Some(config) = config(&mos)? else { return Ok(mos) };
    let children = config.list("vdev_tree").map(|tree| tree.lists("children")).unwrap_or_default();
    let mut vdevs = build(children.iter(), members)?;
    let mut left = MAX_MOVED;
    for child in children.iter().filter(|child| child.text("type") == Some("indirect")) {
        // What was removed before it had any content has no mapping.
        if let Some(id) = child.number("com.delphix:indirect_object") {
            let parts = moved(&mos, id, &mut left)?;
            vdevs.insert(child.number("id").unwrap_or_default(), Vdev::Removed(parts))?;
        }
    }
    ObjectSet::open(&Arc::new(Store::new(vdevs, check)), &uberblock.root)
}

/// The configuration in the pool; pools of before version 6 may have none.
fn config(mos: &ObjectSet) -> Result<Option<Nvlist>> {
    let object = mos.object(DIRECTORY)?;
    let Some(id) = Zap::open(&object)?.number("config")? else { return Ok(None) };
    let object = mos.object(id)?;
    // The bonus buffer holds the size.
    let size = object.dnode.bonus().u64_at(0).unwrap_or_default();
    if object.dnode.kind != kind::PACKED_NVLIST || size > MAX_CONFIG {
        return Err(Error::corrupt(KIND, "the pool's configuration"));
    }
    let mut bytes = vec![0; size as usize];
    object.read_at(0, &mut bytes)?;
    Nvlist::parse(&bytes).map(Some)
}

/// Adds where the parts of a removed device are (`vdev_indirect_mapping_entry_phys_t`), in the order of where
/// they were. Not more than `left`, which goes down.
fn moved(mos: &ObjectSet, id: u64, left: &mut u64) -> Result<Vec<Moved>> {
    let bad = || Error::corrupt(KIND, "the mapping of a removed device");
    let object = mos.object(id)?;
    // Number of entries: after the largest offset and the sum of bytes.
    let count = object.dnode.bonus().u64_at(16).ok_or_else(bad)?;
    *left =
        left.checked_sub(count).ok_or_else(|| Error::TooLarge("the mapping of removed devices".into()))?;
    let mut parts: Vec<Moved> = Vec::new();
    let mut entry = [0; MOVED as usize];
    for index in 0..count {
        object.read_at(index * MOVED, &mut entry)?;
        let to = Dva::parse(&entry[8..]).ok_or_else(bad)?;
        let from = (entry.u64_at(0).unwrap_or_default() & !(1 << 63)).checked_mul(512).ok_or_else(bad)?;
        if parts.last().is_some_and(|last| last.from >= from) {
            return Err(bad());
        }
        parts.push(Moved { from, len: to.allocated, vdev: to.vdev, to: to.offset });
    }
    Ok(parts)
}

/// GRUB's name of a pool is its guid.
fn uuid(pool: &Pool) -> String {
    format!("{:016x}", pool.guid)
}

/// A pool as the file system that GRUB shows: datasets are directories, `@` in each is its content.
pub struct PoolTree(pub Arc<Pool>);

impl FileSystem for PoolTree {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn label(&self) -> Option<String> {
        Some(self.0.name.clone())
    }

    fn uuid(&self) -> Option<String> {
        Some(uuid(&self.0))
    }

    fn modified(&self) -> Option<i64> {
        i64::try_from(self.0.time).ok()
    }

    fn root(&self) -> Result<NodeRef> {
        Ok(self.0.tree())
    }
}

/// One dataset as a file system.
struct Mounted {
    pool: Arc<Pool>,
    name: String,
    content: Arc<Zpl>,
}

impl FileSystem for Mounted {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn label(&self) -> Option<String> {
        Some(self.name.clone())
    }

    fn uuid(&self) -> Option<String> {
        Some(uuid(&self.pool))
    }

    fn modified(&self) -> Option<i64> {
        i64::try_from(self.pool.time).ok()
    }

    fn case_sensitive(&self) -> bool {
        self.content.case_sensitive()
    }

    fn root(&self) -> Result<NodeRef> {
        self.content.root()
    }
}
