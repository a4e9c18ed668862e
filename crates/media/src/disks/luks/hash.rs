//! Hashes by name, keys from passphrases, and the anti-forensic splitter.

use ripemd::Ripemd160;
use sha1::Sha1;
use sha2::digest::Digest;
use sha2::{Sha224, Sha256, Sha384, Sha512};

use super::KIND;
use crate::{Error, Result};

/// Most rounds of PBKDF2: some ten seconds. cryptsetup chooses what takes two on its machine.
const MAX_ROUNDS: u32 = 64 << 20;
/// Most memory for Argon2, in KiB: cryptsetup's own default for its choice is 1 GiB at most. This is
/// more than readers otherwise take, but the format demands it; it is given back at once.
const MAX_MEMORY: u32 = 1 << 20;
/// Most KiB times passes of Argon2: sixteen passes over the most memory.
const MAX_WORK: u64 = 16 << 20;
/// Most lanes of Argon2; cryptsetup uses up to 4.
const MAX_LANES: u32 = 16;

/// A hash function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hash {
    /// SHA-1.
    Sha1,
    /// SHA-224.
    Sha224,
    /// SHA-256.
    Sha256,
    /// SHA-384.
    Sha384,
    /// SHA-512.
    Sha512,
    /// RIPEMD-160.
    Ripemd160,
}

impl Hash {
    /// By the name that headers have.
    pub fn new(name: &str) -> Result<Self> {
        Ok(match name.to_ascii_lowercase().as_str() {
            "sha1" => Self::Sha1,
            "sha224" => Self::Sha224,
            "sha256" => Self::Sha256,
            "sha384" => Self::Sha384,
            "sha512" => Self::Sha512,
            "ripemd160" => Self::Ripemd160,
            _ => return Err(Error::unsupported(KIND, format!("hash {name}"))),
        })
    }

    /// The hash of some parts.
    pub fn digest(self, parts: &[&[u8]]) -> Vec<u8> {
        fn of<D: Digest>(parts: &[&[u8]]) -> Vec<u8> {
            let mut digest = D::new();
            for part in parts {
                digest.update(part);
            }
            digest.finalize().to_vec()
        }
        match self {
            Self::Sha1 => of::<Sha1>(parts),
            Self::Sha224 => of::<Sha224>(parts),
            Self::Sha256 => of::<Sha256>(parts),
            Self::Sha384 => of::<Sha384>(parts),
            Self::Sha512 => of::<Sha512>(parts),
            Self::Ripemd160 => of::<Ripemd160>(parts),
        }
    }

    /// A key of `len` bytes from a secret (RFC 8018).
    pub fn pbkdf2(self, secret: &[u8], salt: &[u8], rounds: u32, len: usize) -> Result<Vec<u8>> {
        use pbkdf2::pbkdf2_hmac;
        if rounds == 0 || rounds > MAX_ROUNDS {
            return Err(Error::unsupported(KIND, format!("a key of {rounds} rounds")));
        }
        let mut key = vec![0; len];
        match self {
            Self::Sha1 => pbkdf2_hmac::<Sha1>(secret, salt, rounds, &mut key),
            Self::Sha224 => pbkdf2_hmac::<Sha224>(secret, salt, rounds, &mut key),
            Self::Sha256 => pbkdf2_hmac::<Sha256>(secret, salt, rounds, &mut key),
            Self::Sha384 => pbkdf2_hmac::<Sha384>(secret, salt, rounds, &mut key),
            Self::Sha512 => pbkdf2_hmac::<Sha512>(secret, salt, rounds, &mut key),
            Self::Ripemd160 => pbkdf2_hmac::<Ripemd160>(secret, salt, rounds, &mut key),
        }
        Ok(key)
    }

    /// Puts a split key together (LUKS On-Disk Format 1.2.3, AFmerge): all parts but the last are
    /// mixed in turn and spread by the hash.
    pub fn merge(self, split: &[u8], len: usize) -> Vec<u8> {
        let mut key = vec![0; len];
        let mut parts = split.chunks_exact(len).peekable();
        while let Some(part) = parts.next() {
            key.iter_mut().zip(part).for_each(|(k, p)| *k ^= p);
            if parts.peek().is_some() {
                key = self.spread(&key);
            }
        }
        key
    }

    fn spread(self, key: &[u8]) -> Vec<u8> {
        let size = self.digest(&[]).len();
        let mut spread = Vec::with_capacity(key.len());
        for (n, part) in (0u32..).zip(key.chunks(size)) {
            let digest = self.digest(&[&n.to_be_bytes(), part]);
            spread.extend(digest.iter().take(part.len()));
        }
        spread
    }
}

/// Argon2's cost.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// `argon2id`, else `argon2i`.
    pub id: bool,
    /// Passes.
    pub time: u32,
    /// KiB.
    pub memory: u32,
    /// Lanes.
    pub lanes: u32,
}

/// A key of `len` bytes from a secret (RFC 9106).
pub fn argon2(cost: Cost, secret: &[u8], salt: &[u8], len: usize) -> Result<Vec<u8>> {
    use ::argon2::{Algorithm, Argon2, Block, Params, Version};
    let Cost { id, time, memory, lanes } = cost;
    let refused = || {
        let name = if id { "argon2id" } else { "argon2i" };
        Error::unsupported(KIND, format!("{name} with {} MiB, {time} passes and {lanes} lanes", memory >> 10))
    };
    if memory > MAX_MEMORY || lanes > MAX_LANES || u64::from(memory) * u64::from(time) > MAX_WORK {
        return Err(refused());
    }
    let params = Params::new(memory, time, lanes, Some(len)).map_err(|_| refused())?;
    let mut blocks: Vec<Block> = Vec::new();
    let count = params.block_count();
    blocks
        .try_reserve_exact(count)
        .map_err(|_| Error::TooLarge(format!("argon2's memory of {} MiB", memory >> 10)))?;
    blocks.resize(count, Block::default());
    let kind = if id { Algorithm::Argon2id } else { Algorithm::Argon2i };
    let mut key = vec![0; len];
    Argon2::new(kind, Version::V0x13, params)
        .hash_password_into_with_memory(secret, salt, &mut key, &mut blocks)
        .map_err(|_| refused())?;
    Ok(key)
}
