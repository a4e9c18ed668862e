//! LUKS2 (LUKS2 On-Disk Format Specification 1.1.3).

use std::collections::BTreeMap;

use serde::Deserialize;

use super::cipher::Cipher;
use super::hash::{Cost, Hash, argon2};
use super::{KIND, Opened, key_material};
use crate::{Error, Fields, Result, SourceRef};

/// Size of the binary part, before the text.
const BINARY: usize = 4096;
const SECOND: &[u8; 6] = b"SKUL\xba\xbe";
/// Where the second header may be: as far as the first one is long.
const SIZES: [u64; 9] =
    [0x4000, 0x8000, 0x1_0000, 0x2_0000, 0x4_0000, 0x8_0000, 0x10_0000, 0x20_0000, 0x40_0000];
/// Largest key, and most parts of a split one.
const MAX_KEY: usize = 128;
const MAX_STRIPES: usize = 10_000;

#[derive(Deserialize)]
struct Header {
    keyslots: BTreeMap<u32, Slot>,
    segments: BTreeMap<u32, Segment>,
    digests: BTreeMap<u32, Digest>,
    #[serde(default)]
    config: Config,
}

#[derive(Default, Deserialize)]
struct Config {
    #[serde(default)]
    requirements: Requirements,
}

#[derive(Default, Deserialize)]
struct Requirements {
    #[serde(default)]
    mandatory: Vec<String>,
}

#[derive(Deserialize)]
struct Slot {
    #[serde(rename = "type")]
    kind: String,
    key_size: usize,
    /// 0: only when asked for by number; 2: before others.
    priority: Option<u32>,
    af: Option<Split>,
    area: Option<Area>,
    kdf: Option<Kdf>,
}

#[derive(Deserialize)]
struct Split {
    stripes: usize,
    hash: String,
}

#[derive(Deserialize)]
struct Area {
    offset: String,
    encryption: Option<String>,
    key_size: Option<usize>,
}

#[derive(Deserialize)]
struct Kdf {
    #[serde(rename = "type")]
    kind: String,
    salt: String,
    hash: Option<String>,
    iterations: Option<u32>,
    time: Option<u32>,
    memory: Option<u32>,
    cpus: Option<u32>,
}

#[derive(Deserialize)]
struct Segment {
    #[serde(rename = "type")]
    kind: String,
    offset: String,
    size: String,
    iv_tweak: Option<String>,
    encryption: Option<String>,
    sector_size: Option<u64>,
    integrity: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct Digest {
    #[serde(rename = "type")]
    kind: String,
    keyslots: Vec<String>,
    segments: Vec<String>,
    salt: String,
    #[serde(rename = "digest")]
    wanted: String,
    hash: Option<String>,
    iterations: Option<u32>,
}

fn bad(what: impl Into<String>) -> Error {
    Error::corrupt(KIND, what)
}

/// The newer of the two headers that is sound.
fn header(source: &SourceRef) -> Result<Header> {
    let first = area(source, 0, *super::MAGIC);
    let second = || SIZES.iter().find_map(|at| area(source, *at, *SECOND).ok());
    let text = match first {
        Ok((sequence, text)) => match second() {
            Some((later, other)) if later > sequence => other,
            _ => text,
        },
        Err(error) => second().ok_or(error)?.1,
    };
    let end = text.iter().position(|b| *b == 0).unwrap_or(text.len());
    serde_json::from_slice(text.get(..end).unwrap_or_default())
        .map_err(|error| bad(format!("header: {error}")))
}

/// Sequence number and text of a header, whose checksum covers both parts.
fn area(source: &SourceRef, at: u64, magic: [u8; 6]) -> Result<(u64, Vec<u8>)> {
    let head = source.read_vec(at, BINARY)?;
    let short = || bad("header");
    if !head.starts_with(&magic) || head.u16_be(6) != Some(2) || head.u64_be(256) != Some(at) {
        return Err(short());
    }
    let size = head.u64_be(8).filter(|size| SIZES.contains(size)).ok_or_else(short)?;
    let mut bytes = source.read_vec(at, size as usize)?;
    let hash = Hash::new(&super::text(&head, 72, 32))?;
    bytes.get_mut(448..512).ok_or_else(short)?.fill(0);
    let sum = hash.digest(&[&bytes]);
    if head.get(448..448 + sum.len()) != Some(sum.as_slice()) {
        return Err(bad("checksum of the header"));
    }
    Ok((head.u64_be(16).ok_or_else(short)?, bytes.split_off(BINARY)))
}

/// Opens the volume.
pub fn unlock(source: &SourceRef, passphrase: &[u8]) -> Result<Opened> {
    let header = header(source)?;
    if let Some(feature) = header.config.requirements.mandatory.first() {
        return Err(Error::unsupported(KIND, feature.clone()));
    }
    let mut slots: Vec<_> = header.keyslots.iter().filter(|(_, slot)| slot.priority != Some(0)).collect();
    slots.sort_by_key(|(_, slot)| std::cmp::Reverse(slot.priority.unwrap_or(1)));
    let mut refusal = Error::WrongPassphrase;
    for (number, slot) in slots {
        let name = number.to_string();
        let Some(digest) = header.digests.values().find(|digest| digest.keyslots.contains(&name)) else {
            continue;
        };
        match open(source, slot, digest, passphrase) {
            Ok(key) => return opened(source, &header, digest, &key),
            Err(Error::WrongPassphrase) => {}
            Err(error) => refusal = error,
        }
    }
    Err(refusal)
}

/// The volume's key from a slot.
fn open(source: &SourceRef, slot: &Slot, digest: &Digest, passphrase: &[u8]) -> Result<Vec<u8>> {
    let (Some(split), Some(area), Some(kdf), "luks2") = (&slot.af, &slot.area, &slot.kdf, slot.kind.as_str())
    else {
        return Err(Error::unsupported(KIND, format!("key slot of type {}", slot.kind)));
    };
    let cipher = area.encryption.as_deref().ok_or_else(|| bad("key slot without a cipher"))?;
    let area_key = area.key_size.unwrap_or(0);
    let sound = |size: usize| (1..=MAX_KEY).contains(&size);
    if !sound(slot.key_size) || !sound(area_key) || !(1..=MAX_STRIPES).contains(&split.stripes) {
        return Err(bad("key slot"));
    }
    let key = derive(kdf, passphrase, area_key)?;
    let material = key_material(
        source,
        &Cipher::new(cipher, &key)?,
        number(&area.offset)?,
        slot.key_size * split.stripes,
    )?;
    let key = Hash::new(&split.hash)?.merge(&material, slot.key_size);
    if digest.kind != "pbkdf2" {
        return Err(Error::unsupported(KIND, format!("digest of type {}", digest.kind)));
    }
    let wanted = base64(&digest.wanted)?;
    let hash = Hash::new(digest.hash.as_deref().unwrap_or_default())?;
    let rounds = digest.iterations.unwrap_or(0);
    if wanted.is_empty() || wanted.len() > 64 {
        return Err(bad("digest"));
    }
    let check = hash.pbkdf2(&key, &base64(&digest.salt)?, rounds, wanted.len())?;
    if check == wanted { Ok(key) } else { Err(Error::WrongPassphrase) }
}

fn derive(kdf: &Kdf, passphrase: &[u8], len: usize) -> Result<Vec<u8>> {
    let salt = base64(&kdf.salt)?;
    let missing = || bad("key slot without a cost");
    match kdf.kind.as_str() {
        "pbkdf2" => {
            let hash = Hash::new(kdf.hash.as_deref().unwrap_or_default())?;
            hash.pbkdf2(passphrase, &salt, kdf.iterations.ok_or_else(missing)?, len)
        }
        kind @ ("argon2i" | "argon2id") => {
            let (Some(time), Some(memory), Some(lanes)) = (kdf.time, kdf.memory, kdf.cpus) else {
                return Err(missing());
            };
            argon2(Cost { id: kind == "argon2id", time, memory, lanes }, passphrase, &salt, len)
        }
        kind => Err(Error::unsupported(KIND, format!("key derivation {kind}"))),
    }
}

/// The segment that the key opens.
fn opened(source: &SourceRef, header: &Header, digest: &Digest, key: &[u8]) -> Result<Opened> {
    if header.segments.len() > 1 {
        return Err(Error::unsupported(KIND, "a volume of several segments"));
    }
    let found = header.segments.iter().find(|(number, _)| digest.segments.contains(&number.to_string()));
    let (_, segment) = found.ok_or_else(|| bad("no segment for the key"))?;
    if segment.kind != "crypt" || segment.integrity.is_some() {
        return Err(Error::unsupported(KIND, format!("segment of type {} or with integrity", segment.kind)));
    }
    let cipher = Cipher::new(segment.encryption.as_deref().unwrap_or_default(), key)?;
    let sector = segment.sector_size.filter(|size| matches!(size, 512 | 1024 | 2048 | 4096));
    let sector = sector.ok_or_else(|| bad("sector size"))?;
    let start = number(&segment.offset)?;
    let there = source.size().checked_sub(start).ok_or_else(|| bad("segment out of the disk"))?;
    let size = if segment.size == "dynamic" { there } else { number(&segment.size)?.min(there) };
    let tweak = segment.iv_tweak.as_deref().map_or(Ok(0), number)?;
    Ok(Opened { cipher, start, size: size - size % sector, sector, tweak })
}

/// Numbers of 64 bits are strings.
fn number(text: &str) -> Result<u64> {
    text.parse().map_err(|_| bad(format!("number {text:?}")))
}

/// RFC 4648.
fn base64(text: &str) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let (mut value, mut bits) = (0u32, 0);
    for c in text.trim_end_matches('=').bytes() {
        let digit = match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return Err(bad("base 64")),
        };
        value = value << 6 | u32::from(digit);
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.push((value >> bits) as u8);
            value &= (1 << bits) - 1;
        }
    }
    Ok(bytes)
}
