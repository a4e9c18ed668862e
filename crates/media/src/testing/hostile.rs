//! Damage: nothing may panic, hang or take much memory.

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::Random;
use crate::{FileSystem, Kind, NodeRef, Result, Source, SourceRef};

/// Most entries that a walk visits.
const MAX_ENTRIES: usize = 100_000;
/// Most bytes that a walk reads from files.
const MAX_BYTES: u64 = 64 << 20;
/// Deepest directory.
const MAX_DEPTH: usize = 64;
/// A walk ends when this is over. A single call that takes longer shows in the driver.
const MAX_TIME: Duration = Duration::from_secs(5);
/// Longest time for one damaged image.
const ROUND: Duration = Duration::from_secs(10);

/// What a walk met.
#[derive(Clone, Copy, Debug, Default)]
pub struct Walked {
    /// Entries of directories.
    pub entries: usize,
    /// Bytes read from files.
    pub bytes: u64,
    /// Calls that failed.
    pub errors: usize,
}

/// Lists, looks up and reads everything, within bounds, whatever fails.
pub fn walk_hostile(fs: &dyn FileSystem) -> Walked {
    walk(fs, true)
}

fn walk(fs: &dyn FileSystem, contents: bool) -> Walked {
    let start = Instant::now();
    let mut walked = Walked::default();
    let _ = (fs.kind(), fs.label(), fs.uuid(), fs.modified(), fs.case_sensitive());
    let mut stack: Vec<(NodeRef, usize)> = Vec::new();
    match fs.root() {
        Ok(root) => stack.push((root, 0)),
        Err(_) => walked.errors += 1,
    }
    while let Some((node, depth)) = stack.pop() {
        if start.elapsed() > MAX_TIME || walked.entries > MAX_ENTRIES {
            break;
        }
        visit(&node, depth, contents, &mut stack, &mut walked);
    }
    walked
}

fn visit(
    node: &NodeRef,
    depth: usize,
    contents: bool,
    stack: &mut Vec<(NodeRef, usize)>,
    walked: &mut Walked,
) {
    let Ok(meta) = node.metadata() else {
        walked.errors += 1;
        return;
    };
    match meta.kind {
        Kind::Directory if depth < MAX_DEPTH => {
            let mut names = Vec::new();
            let listed = node.entries(&mut |entry| {
                names.push(entry.name);
                if names.len() + walked.entries > MAX_ENTRIES {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            });
            walked.errors += usize::from(listed.is_err());
            walked.entries += names.len();
            for (index, name) in names.into_iter().enumerate() {
                // Looking up all of a large directory would take quadratic time.
                if index > 300 && index % 37 != 0 {
                    continue;
                }
                match node.lookup(&name) {
                    Ok(Some(found)) => stack.push((found, depth + 1)),
                    Ok(None) | Err(_) => walked.errors += 1,
                }
            }
            let _ = node.lookup(b"not there");
        }
        Kind::File if contents => {
            let mut buffer = vec![0; meta.size.min(256 << 10) as usize];
            let len = buffer.len() as u64;
            for offset in [0, meta.size / 2, meta.size.saturating_sub(len)] {
                let len = len.min(meta.size - offset);
                if walked.bytes + len > MAX_BYTES {
                    return;
                }
                walked.bytes += len;
                walked.errors += usize::from(node.read_at(offset, &mut buffer[..len as usize]).is_err());
            }
            let _ = node.read_at(meta.size, &mut [0]);
            let _ = node.read_at(u64::MAX, &mut [0]);
        }
        Kind::Symlink => walked.errors += usize::from(node.link().is_err()),
        _ => {}
    }
}

/// Remembers what was read.
pub struct Recorder {
    source: SourceRef,
    seen: Mutex<Vec<(u64, usize)>>,
}

impl Recorder {
    /// Records reads of `source`.
    pub fn new(source: SourceRef) -> Self {
        Self { source, seen: Mutex::new(Vec::new()) }
    }

    /// Offset and length of every read so far.
    pub fn seen(&self) -> Vec<(u64, usize)> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Source for Recorder {
    fn size(&self) -> u64 {
        self.source.size()
    }

    fn read_at(&self, offset: u64, to: &mut [u8]) -> Result<()> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).push((offset, to.len()));
        self.source.read_at(offset, to)
    }
}

/// A source with some bytes changed.
pub struct Damaged {
    source: SourceRef,
    /// Size, if it was cut.
    size: u64,
    /// What stands where instead.
    pub patches: Vec<(u64, Vec<u8>)>,
}

impl Source for Damaged {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, to: &mut [u8]) -> Result<()> {
        crate::source::check(self.size, offset, to.len() as u64)?;
        self.source.read_at(offset, to)?;
        let end = offset + to.len() as u64;
        for (at, bytes) in &self.patches {
            for (place, byte) in (*at..).zip(bytes) {
                if (offset..end).contains(&place) {
                    to[(place - offset) as usize] = *byte;
                }
            }
        }
        Ok(())
    }
}

/// One damaged image of `source` for a seed. `metadata` are the ranges that are hit in most cases.
pub fn mutations(source: &SourceRef, metadata: &[(u64, usize)], seed: u64) -> Damaged {
    let mut random = Random::new(seed.wrapping_add(77));
    let size = source.size();
    let mut damaged = Damaged { source: source.clone(), size, patches: Vec::new() };
    if size == 0 {
        return damaged;
    }
    let place = |random: &mut Random| -> u64 {
        if metadata.is_empty() || random.below(8) == 0 {
            return random.below(size);
        }
        // The first reads are those of the superblock: a quarter of the hits.
        let among = if random.below(4) == 0 { metadata.len().min(8) } else { metadata.len() };
        let (start, len) = metadata[random.below(among as u64) as usize];
        (start + random.below(len.max(1) as u64)).min(size - 1)
    };
    for _ in 0..=random.below(6) {
        let at = place(&mut random);
        let width = 1usize << random.below(4);
        // Fields are aligned more often than not.
        let at = if random.below(4) == 0 { at } else { at - at % width as u64 };
        let bytes = match random.below(8) {
            0 => vec![1 << random.below(8)],
            1 => vec![0xff; width],
            2 => vec![0; width],
            3 => random.bytes(width),
            4 => random.below(1 << 16).to_be_bytes()[8 - width..].to_vec(),
            5 => random.below(1 << 16).to_le_bytes()[..width].to_vec(),
            6 => random.bytes(64),
            // Another structure, or another part of this one.
            _ => {
                let from = place(&mut random);
                let mut copy = vec![0; 256.min(size - from) as usize];
                if source.read_at(from, &mut copy).is_err() { vec![0xaa] } else { copy }
            }
        };
        damaged.patches.push((at, bytes));
    }
    if random.below(30) == 0 {
        damaged.size = random.below(size);
    }
    damaged
}

/// Opens and walks `rounds` damaged images, times `DAMAGE_ROUNDS` of the environment for a longer hunt. Fails if one takes longer than ten seconds; a panic is the test's.
/// Returns how many images could still be opened.
pub fn mutate_and_walk(
    open: impl Fn(&SourceRef) -> Result<Option<Arc<dyn FileSystem>>>,
    image: &SourceRef,
    rounds: u64,
) -> u64 {
    let recorder = Arc::new(Recorder::new(image.clone()));
    let source: SourceRef = recorder.clone();
    let sound = open(&source).unwrap().expect("the undamaged image must open");
    let walked = walk(&*sound, false);
    assert_eq!(walked.errors, 0, "the undamaged image must be readable");
    drop(sound);
    let metadata = recorder.seen();
    let times = std::env::var("DAMAGE_ROUNDS").ok().and_then(|times| times.parse().ok()).unwrap_or(1);
    let mut opened = 0;
    for seed in 0..rounds * times {
        let damaged: SourceRef = Arc::new(mutations(image, &metadata, seed));
        let start = Instant::now();
        if let Ok(Some(fs)) = open(&damaged) {
            opened += 1;
            walk(&*fs, true);
        }
        let took = start.elapsed();
        assert!(took < ROUND, "seed {seed} took {took:?}");
    }
    opened
}
