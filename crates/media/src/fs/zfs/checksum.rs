//! Checksums of blocks, and those that labels and gang headers carry in themselves.

use sha2::{Digest, Sha256, Sha512_256};

use crate::{Error, Fields, Result};

use super::KIND;

/// `zec_magic`, at the start of an embedded checksum.
const EMBEDDED: u64 = 0x0210_da7a_b10c_7a11;
/// Bytes of an embedded checksum: magic and four words.
const EMBEDDED_SIZE: usize = 40;

/// Whether `data` has the checksum `sum`, which is of the kind `kind` (`enum zio_checksum`). Kinds that need
/// the pool's salt are taken as they are: a boot loader gains nothing from them that it could act on but the
/// choice of another copy.
pub fn verify(kind: u8, data: &[u8], sum: &[u8; 32]) -> Result<bool> {
    Ok(match kind {
        // off, noparity
        2 | 10 => true,
        // zilog, fletcher2
        5 | 6 => words(fletcher2(data)) == *sum,
        // on, fletcher4, zilog2
        1 | 7 | 9 => words(fletcher4(data)) == *sum,
        // label, gang header, sha256
        3 | 4 | 8 => sha256(&[data]) == *sum,
        11 => Sha512_256::digest(data)[..] == sum[..],
        // skein, edonr, blake3
        12..=14 => true,
        _ => return Err(Error::unsupported(KIND, format!("checksum {kind}"))),
    })
}

/// Whether the checksum at the end of `data` is right. It covers all of `data`, with `verifier` in its own
/// place.
pub fn verify_embedded(data: &[u8], verifier: [u64; 4]) -> bool {
    let Some(start) = data.len().checked_sub(EMBEDDED_SIZE) else { return false };
    let (body, tail) = data.split_at(start);
    let (magic, sum) = tail.split_at(8);
    magic.u64_at(0) == Some(EMBEDDED) && sha256(&[body, magic, &words(verifier)]) == *sum
}

fn words(words: [u64; 4]) -> [u8; 32] {
    let mut bytes = [0; 32];
    for (to, word) in bytes.chunks_exact_mut(8).zip(words) {
        to.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

/// SHA-256, whose words are stored in our byte order though they are big-endian in the digest.
fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    let mut state = Sha256::new();
    for part in parts {
        state.update(part);
    }
    let mut digest: [u8; 32] = state.finalize().into();
    digest.chunks_exact_mut(8).for_each(<[u8]>::reverse);
    digest
}

fn fletcher2(data: &[u8]) -> [u64; 4] {
    let [mut a0, mut a1, mut b0, mut b1] = [0u64; 4];
    for pair in data.chunks_exact(16) {
        a0 = a0.wrapping_add(pair.u64_at(0).unwrap_or_default());
        a1 = a1.wrapping_add(pair.u64_at(8).unwrap_or_default());
        b0 = b0.wrapping_add(a0);
        b1 = b1.wrapping_add(a1);
    }
    [a0, a1, b0, b1]
}

fn fletcher4(data: &[u8]) -> [u64; 4] {
    let [mut a, mut b, mut c, mut d] = [0u64; 4];
    for word in data.chunks_exact(4) {
        a = a.wrapping_add(word.u32_at(0).unwrap_or_default().into());
        b = b.wrapping_add(a);
        c = c.wrapping_add(b);
        d = d.wrapping_add(c);
    }
    [a, b, c, d]
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// Puts the right embedded checksum at the end of `data`, which stands at `place` of a device.
    pub fn seal(data: &mut [u8], place: u64) {
        let start = data.len() - EMBEDDED_SIZE;
        data[start..start + 8].copy_from_slice(&EMBEDDED.to_le_bytes());
        data[start + 8..].copy_from_slice(&words([place, 0, 0, 0]));
        let sum = sha256(&[data]);
        data[start + 8..].copy_from_slice(&sum);
    }

    #[test]
    fn sums_of_a_few_words() {
        let data: Vec<u8> = [1u32, 2, 3, 4].iter().flat_map(|word| word.to_le_bytes()).collect();
        assert_eq!(fletcher4(&data), [10, 20, 35, 56]);
        let low = 1 | 2 << 32;
        let high = 3 | 4 << 32;
        assert_eq!(fletcher2(&data), [low, high, low, high]);
        assert!(verify(7, &data, &words([10, 20, 35, 56])).unwrap());
        assert!(!verify(7, &data, &words([10, 20, 35, 57])).unwrap());
        assert!(verify(99, &data, &[0; 32]).is_err());
    }

    #[test]
    fn an_embedded_sum_depends_on_the_place() {
        let mut data = vec![7; 512];
        seal(&mut data, 5);
        assert!(verify_embedded(&data, [5, 0, 0, 0]));
        assert!(!verify_embedded(&data, [6, 0, 0, 0]));
        data[0] ^= 1;
        assert!(!verify_embedded(&data, [5, 0, 0, 0]));
        assert!(!verify_embedded(&data[..30], [5, 0, 0, 0]));
    }
}
