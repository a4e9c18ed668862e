//! What the targets share: sound images with damage that the fuzzer chooses.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use media::{FileSource, Result, Source, SourceRef};

/// Where the sound images of a kind are; `cargo xtask fuzz` makes them and sets this.
const FOLDER: &str = "FUZZ_IMAGES";
/// Damage is counted in blocks of this many bytes.
const BLOCK: u64 = 512;
/// Most blocks of an image that damage goes to.
const MAX_BLOCKS: usize = 1 << 16;

/// A sound image and where it has something to damage.
pub struct Image {
    source: SourceRef,
    blocks: Vec<u64>,
}

/// The sound images.
pub fn images() -> &'static [Image] {
    static IMAGES: OnceLock<Vec<Image>> = OnceLock::new();
    IMAGES.get_or_init(|| {
        let folder = PathBuf::from(std::env::var_os(FOLDER).expect("FUZZ_IMAGES: a folder of images"));
        let mut paths: Vec<PathBuf> = std::fs::read_dir(folder)
            .expect("the folder")
            .map(|entry| entry.expect("an entry").path())
            .collect();
        paths.sort();
        paths.iter().map(|path| Image::new(Arc::new(FileSource::open(path).expect("an image")))).collect()
    })
}

impl Image {
    fn new(source: SourceRef) -> Self {
        let mut blocks = Vec::new();
        let mut bytes = [0; BLOCK as usize];
        for at in (0..source.size() / BLOCK).map(|n| n * BLOCK) {
            if source.read_at(at, &mut bytes).is_ok() && bytes.iter().any(|b| *b != 0) {
                blocks.push(at);
                if blocks.len() == MAX_BLOCKS {
                    break;
                }
            }
        }
        Self { source, blocks }
    }
}

/// A sound image with some bytes replaced.
pub struct Damaged {
    source: SourceRef,
    size: u64,
    patches: Vec<(u64, Vec<u8>)>,
}

/// Takes the fuzzer's bytes for a choice of image and damage: a byte for the image, then block
/// (2 bytes), offset (2 bytes), length (1 byte) and content, again and again. A length of 0 cuts
/// the image off there.
pub fn damaged(mut data: &[u8]) -> Option<SourceRef> {
    let images = images();
    let image = &images[usize::from(*data.first()?) % images.len()];
    data = &data[1..];
    let mut damaged =
        Damaged { source: image.source.clone(), size: image.source.size(), patches: Vec::new() };
    while let [b0, b1, o0, o1, len, rest @ ..] = data {
        let block = usize::from(u16::from_le_bytes([*b0, *b1])) % image.blocks.len().max(1);
        let at = image.blocks.get(block)? + u64::from(u16::from_le_bytes([*o0, *o1])) % BLOCK;
        let len = usize::from(*len).min(rest.len());
        if len == 0 {
            damaged.size = damaged.size.min(at);
        } else {
            damaged.patches.push((at, rest[..len].to_vec()));
        }
        data = &rest[len..];
    }
    Some(Arc::new(damaged))
}

impl Source for Damaged {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, to: &mut [u8]) -> Result<()> {
        let past = media::Error::PastEnd { offset, len: to.len() as u64, size: self.size };
        if offset.checked_add(to.len() as u64).is_none_or(|end| end > self.size) {
            return Err(past);
        }
        self.source.read_at(offset, to)?;
        for (at, bytes) in &self.patches {
            for (n, byte) in (*at..).zip(bytes) {
                if let Some(to) = n.checked_sub(offset).and_then(|n| to.get_mut(usize::try_from(n).ok()?)) {
                    *to = *byte;
                }
            }
        }
        Ok(())
    }
}
