//! Ciphers of sectors: AES, Serpent and Twofish in CBC and XTS.

use aes::cipher::{Array, BlockCipherDecrypt, BlockCipherEncrypt, BlockSizeUser, KeyInit, consts::U16};

use super::KIND;
use super::hash::Hash;
use crate::{Error, Result};

/// Bytes of a block of all three ciphers.
const BLOCK: usize = 16;
type Block = [u8; BLOCK];

/// A block cipher with a key.
trait Blocks: Send + Sync {
    fn decrypt(&self, blocks: &mut [Block]);
    fn encrypt(&self, block: &mut Block);
}

impl<C> Blocks for C
where
    C: BlockCipherDecrypt + BlockCipherEncrypt + BlockSizeUser<BlockSize = U16> + Send + Sync,
{
    fn decrypt(&self, blocks: &mut [Block]) {
        self.decrypt_blocks(Array::cast_slice_from_core_mut(blocks));
    }

    fn encrypt(&self, block: &mut Block) {
        let mut array = Array(*block);
        self.encrypt_block(&mut array);
        *block = array.0;
    }
}

/// How the number of a sector becomes the first vector.
enum Vector {
    /// Zero.
    Null,
    /// The low 32 bits.
    Plain,
    /// All bits.
    Plain64,
    /// All bits, the highest first.
    Plain64Be,
    /// Encrypted with the hash of the key.
    Essiv(Box<dyn Blocks>),
}

enum Mode {
    Cbc,
    /// With the second key.
    Xts(Box<dyn Blocks>),
}

/// Decrypts sectors.
pub struct Cipher {
    blocks: Box<dyn Blocks>,
    mode: Mode,
    vector: Vector,
}

impl Cipher {
    /// From a name as device mapper has it: `aes-xts-plain64`, `aes-cbc-essiv:sha256`.
    pub fn new(name: &str, key: &[u8]) -> Result<Self> {
        let refused = || Error::unsupported(KIND, format!("cipher {name} with {} bits", key.len() * 8));
        let mut parts = name.splitn(3, '-');
        let (Some(cipher), Some(mode)) = (parts.next(), parts.next()) else { return Err(refused()) };
        let vector = parts.next().unwrap_or("plain");
        let (first, second) = if mode == "xts" { key.split_at(key.len() / 2) } else { (key, &[][..]) };
        let make = |key: &[u8]| blocks(cipher, key).ok_or_else(refused);
        let vector = match vector.split_once(':') {
            Some(("essiv", hash)) => {
                let hash = Hash::new(hash)?;
                Vector::Essiv(make(&hash.digest(&[key]))?)
            }
            None if vector == "plain" => Vector::Plain,
            None if vector == "plain64" => Vector::Plain64,
            None if vector == "plain64be" => Vector::Plain64Be,
            None if vector == "null" => Vector::Null,
            _ => return Err(refused()),
        };
        let mode = match mode {
            "cbc" => Mode::Cbc,
            "xts" if first.len() == second.len() => Mode::Xts(make(second)?),
            _ => return Err(refused()),
        };
        Ok(Self { blocks: make(first)?, mode, vector })
    }

    /// Decrypts a sector, whole blocks, in place.
    pub fn decrypt(&self, sector: u64, bytes: &mut [u8]) {
        let (blocks, _) = bytes.as_chunks_mut::<BLOCK>();
        let mut vector = [0; BLOCK];
        match &self.vector {
            Vector::Null => {}
            Vector::Plain => vector[..4].copy_from_slice(&(sector as u32).to_le_bytes()),
            Vector::Plain64 | Vector::Essiv(_) => vector[..8].copy_from_slice(&sector.to_le_bytes()),
            Vector::Plain64Be => vector[8..].copy_from_slice(&sector.to_be_bytes()),
        }
        if let Vector::Essiv(hashed) = &self.vector {
            hashed.encrypt(&mut vector);
        }
        match &self.mode {
            Mode::Cbc => {
                let before: Vec<Block> = std::iter::once(vector).chain(blocks.iter().copied()).collect();
                self.blocks.decrypt(blocks);
                blocks.iter_mut().zip(&before).for_each(|(block, before)| xor(block, before));
            }
            Mode::Xts(tweak) => {
                tweak.encrypt(&mut vector);
                let mut value = u128::from_le_bytes(vector);
                let tweaks: Vec<Block> = blocks
                    .iter()
                    .map(|_| {
                        let tweak = value.to_le_bytes();
                        // Times x in GF(2^128), IEEE 1619.
                        value = (value << 1) ^ if value >> 127 != 0 { 0x87 } else { 0 };
                        tweak
                    })
                    .collect();
                blocks.iter_mut().zip(&tweaks).for_each(|(block, tweak)| xor(block, tweak));
                self.blocks.decrypt(blocks);
                blocks.iter_mut().zip(&tweaks).for_each(|(block, tweak)| xor(block, tweak));
            }
        }
    }
}

fn blocks(cipher: &str, key: &[u8]) -> Option<Box<dyn Blocks>> {
    Some(match (cipher, key.len()) {
        ("aes", 16) => Box::new(aes::Aes128::new_from_slice(key).ok()?),
        ("aes", 24) => Box::new(aes::Aes192::new_from_slice(key).ok()?),
        ("aes", 32) => Box::new(aes::Aes256::new_from_slice(key).ok()?),
        ("serpent", 16..=32) => Box::new(serpent::Serpent::new_from_slice(key).ok()?),
        ("twofish", 16..=32) => Box::new(twofish::Twofish::new_from_slice(key).ok()?),
        _ => return None,
    })
}

fn xor(to: &mut Block, with: &Block) {
    to.iter_mut().zip(with).for_each(|(a, b)| *a ^= b);
}
