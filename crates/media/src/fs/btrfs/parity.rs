//! Lost stripes of RAID 5 and 6.
//!
//! P is the sum of the data stripes, Q that of the data stripes times powers of 2, in the field of
//! 256 elements with the polynomial 0x11d (H. P. Anvin, "The mathematics of RAID-6").

use super::bad;
use crate::Result;

const fn double(value: u8) -> u8 {
    value << 1 ^ if value & 0x80 == 0 { 0 } else { 0x1d }
}

fn multiply(a: u8, b: u8) -> u8 {
    let (mut a, mut sum) = (a, 0);
    for bit in 0..8 {
        if b >> bit & 1 != 0 {
            sum ^= a;
        }
        a = double(a);
    }
    sum
}

fn power(exponent: usize) -> u8 {
    (0..exponent % 255).fold(1, |value, _| double(value))
}

/// 1/a is a to the 254th.
fn inverse(a: u8) -> u8 {
    (0..254).fold(1, |value, _| multiply(value, a))
}

/// `to` times `factor`.
fn scale(to: &mut [u8], factor: u8) {
    let table: Vec<u8> = (0..=255).map(|value| multiply(value, factor)).collect();
    for byte in to {
        *byte = table.get(*byte as usize).copied().unwrap_or_default();
    }
}

fn add(to: &mut [u8], from: &[u8]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to ^= from;
    }
}

/// Makes up for data stripe `lost` out of the others. `read` reads a part of a stripe: first the
/// `data` data stripes, then P, then Q (of `parity` 2). `also` is one that must not be believed.
pub fn rebuild(
    data: usize,
    parity: usize,
    lost: usize,
    also: Option<usize>,
    to: &mut [u8],
    read: &dyn Fn(usize, &mut [u8]) -> Result<()>,
) -> Result<()> {
    let read = |stripe: usize| -> Result<Vec<u8>> {
        if also == Some(stripe) {
            return Err(bad("a stripe is not to be used"));
        }
        let mut bytes = vec![0; to.len()];
        read(stripe, &mut bytes).map(|()| bytes)
    };
    let (mut p, mut q) = (vec![0; to.len()], vec![0; to.len()]);
    let mut second = None;
    let mut factor = 1;
    for stripe in 0..data {
        let found = if stripe == lost { None } else { Some(read(stripe)) };
        match found {
            None => {}
            Some(Ok(mut bytes)) => {
                add(&mut p, &bytes);
                if parity > 1 {
                    scale(&mut bytes, factor);
                    add(&mut q, &bytes);
                }
            }
            Some(Err(_)) if second.is_none() && parity > 1 => second = Some(stripe),
            Some(Err(error)) => return Err(error),
        }
        factor = double(factor);
    }
    let missing_p = match read(data) {
        Ok(bytes) => {
            add(&mut p, &bytes);
            None
        }
        Err(error) => Some(error),
    };
    match (missing_p, second) {
        (None, None) => to.copy_from_slice(&p),
        (Some(error), Some(_)) => return Err(error),
        (Some(error), None) if parity < 2 => return Err(error),
        (Some(_), None) => {
            add(&mut q, &read(data + 1)?);
            scale(&mut q, inverse(power(lost)));
            to.copy_from_slice(&q);
        }
        (None, Some(second)) => {
            // p = x + y; q = gx x + gy y; so x = (q + gy p) / (gx + gy).
            add(&mut q, &read(data + 1)?);
            let (gx, gy) = (power(lost), power(second));
            scale(&mut p, gy);
            add(&mut q, &p);
            scale(&mut q, inverse(gx ^ gy));
            to.copy_from_slice(&q);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;

    #[test]
    fn any_two_stripes_may_be_lost() {
        let mut random = Random::new(6);
        let data = 5;
        let mut stripes: Vec<Vec<u8>> = (0..data).map(|_| random.bytes(100)).collect();
        let (mut p, mut q) = (vec![0; 100], vec![0; 100]);
        for (number, stripe) in stripes.iter().enumerate() {
            add(&mut p, stripe);
            for (q, byte) in q.iter_mut().zip(stripe) {
                *q ^= multiply(*byte, power(number));
            }
        }
        stripes.extend([p, q]);
        for lost in 0..data {
            for other in 0..data + 2 {
                for third in [None, Some((other + 1) % (data + 2))] {
                    let read = |stripe: usize, to: &mut [u8]| {
                        assert_ne!(stripe, lost);
                        if Some(stripe) == third {
                            return Err(bad("gone"));
                        }
                        to.copy_from_slice(&stripes[stripe]);
                        Ok(())
                    };
                    let mut to = vec![0; 100];
                    let result = rebuild(data, 2, lost, Some(other), &mut to, &read);
                    let three = third.is_some_and(|third| third != lost && other != lost);
                    if result.is_ok() {
                        assert_eq!(to, stripes[lost], "{lost} {other} {third:?}");
                    }
                    assert!(result.is_ok() || three || third == Some(lost), "{lost} {other} {third:?}");
                }
            }
        }
        assert!(rebuild(3, 1, 0, Some(1), &mut [0; 4], &|_, _| Ok(())).is_err());
    }
}
