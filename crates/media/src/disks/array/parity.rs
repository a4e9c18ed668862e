//! RAID 4, 5 and 6, with up to as many devices missing as there are parities.

use std::cell::Cell;

use super::layout::{Layout, Stripe};
use super::{missing, pieces};
use crate::source::check;
use crate::{Result, Source, SourceRef};

/// Bytes that are worked out at a time.
const STEP: usize = 64 << 10;

thread_local! {
    static RECOVERING: Cell<bool> = const { Cell::new(false) };
}

/// An array with parity.
pub struct Parity {
    legs: Vec<Option<SourceRef>>,
    layout: Layout,
    chunk: u64,
    size: u64,
}

impl Parity {
    /// Whole chunks of `member` bytes of each of `legs`. `None` if that is no array or too many are
    /// missing. Legs that are too short count as missing.
    pub fn new(mut legs: Vec<Option<SourceRef>>, layout: Layout, chunk: u64, member: u64) -> Option<Self> {
        let member = member.checked_div(chunk)?.checked_mul(chunk)?;
        for leg in &mut legs {
            if leg.as_ref().is_some_and(|leg| leg.size() < member) {
                *leg = None;
            }
        }
        let data = legs.len().checked_sub(layout.parities()).filter(|data| *data > 0)?;
        let gone = legs.iter().filter(|leg| leg.is_none()).count();
        let size = member.checked_mul(data as u64)?;
        (gone <= layout.parities() && size > 0).then_some(Self { legs, layout, chunk, size })
    }

    fn leg(&self, device: usize) -> Option<&SourceRef> {
        self.legs.get(device)?.as_ref()
    }

    /// Whether the device could be read.
    fn read(&self, device: usize, at: u64, to: &mut [u8]) -> bool {
        self.leg(device).is_some_and(|leg| leg.read_at(at, to).is_ok())
    }

    /// Works out a part of a data chunk. Never while another array does so: arrays within arrays
    /// would multiply the work with each level.
    fn recover(&self, stripe: &Stripe, wanted: usize, at: u64, to: &mut [u8]) -> Result<()> {
        if RECOVERING.replace(true) {
            return Err(missing("raid"));
        }
        let result = self.work_out(stripe, wanted, at, to);
        RECOVERING.set(false);
        result
    }

    /// Works out the data chunk `wanted` of a stripe from the others.
    fn work_out(&self, stripe: &Stripe, wanted: usize, at: u64, to: &mut [u8]) -> Result<()> {
        let mut other = None;
        let mut p = vec![0; to.len()];
        let mut q = vec![0; to.len()];
        let mut buffer = vec![0; to.len()];
        for (n, device) in stripe.data.iter().enumerate().filter(|(n, _)| *n != wanted) {
            if self.read(*device, at, &mut buffer) {
                add(&mut p, &buffer, 1);
                if stripe.q.is_some() {
                    add(&mut q, &buffer, power(stripe.powers.get(n).copied().unwrap_or(0)));
                }
            } else if other.replace(n).is_some() {
                return Err(missing("raid"));
            }
        }
        let factor = |n: usize| power(stripe.powers.get(n).copied().unwrap_or(0));
        let have_p = self.read(stripe.p, at, &mut buffer);
        if have_p {
            add(&mut p, &buffer, 1);
        }
        if have_p && other.is_none() {
            to.copy_from_slice(&p);
            return Ok(());
        }
        let second = stripe.q.ok_or_else(|| missing("raid"))?;
        if !self.read(second, at, &mut buffer) {
            return Err(missing("raid"));
        }
        add(&mut q, &buffer, 1);
        to.fill(0);
        match other {
            // q is the factor times what is wanted.
            None => add(to, &q, inverse(factor(wanted))),
            // p = wanted + other, q = factor(wanted) * wanted + factor(other) * other.
            Some(other) if have_p => {
                let below = inverse(factor(wanted) ^ factor(other));
                add(to, &q, below);
                add(to, &p, multiply(below, factor(other)));
            }
            Some(_) => return Err(missing("raid")),
        }
        Ok(())
    }
}

impl Source for Parity {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, to: &mut [u8]) -> Result<()> {
        check(self.size, offset, to.len() as u64)?;
        let data = (self.legs.len() - self.layout.parities()) as u64;
        pieces(self.chunk, offset, to, |at, piece| {
            let chunk = at / self.chunk;
            let stripe = self.layout.stripe(self.legs.len(), chunk / data);
            let wanted = (chunk % data) as usize;
            let within = chunk / data * self.chunk + at % self.chunk;
            let device = stripe.data.get(wanted).copied().ok_or_else(|| missing("raid"))?;
            if self.read(device, within, piece) {
                return Ok(());
            }
            let mut here = within;
            for part in piece.chunks_mut(STEP) {
                self.recover(&stripe, wanted, here, part)?;
                here += part.len() as u64;
            }
            Ok(())
        })
    }
}

/// Powers of the generator 2 of GF(256) with the polynomial 0x11d, twice.
const POWERS: [u8; 510] = {
    let mut table = [0; 510];
    let mut value = 1u16;
    let mut n = 0;
    while n < 510 {
        table[n] = value as u8;
        value <<= 1;
        if value & 0x100 != 0 {
            value ^= 0x11d;
        }
        n += 1;
    }
    table
};

/// For each number the power that it is.
const LOGARITHMS: [u8; 256] = {
    let mut table = [0; 256];
    let mut n = 0;
    while n < 255 {
        table[POWERS[n] as usize] = n as u8;
        n += 1;
    }
    table
};

fn power(n: usize) -> u8 {
    POWERS[n % 255]
}

fn multiply(a: u8, b: u8) -> u8 {
    if a == 0 || b == 0 {
        return 0;
    }
    POWERS[usize::from(LOGARITHMS[usize::from(a)]) + usize::from(LOGARITHMS[usize::from(b)])]
}

fn inverse(a: u8) -> u8 {
    POWERS[255 - usize::from(LOGARITHMS[usize::from(a)])]
}

/// Adds `factor` times `bytes` to `sum`.
fn add(sum: &mut [u8], bytes: &[u8], factor: u8) {
    if factor == 1 {
        sum.iter_mut().zip(bytes).for_each(|(s, b)| *s ^= b);
        return;
    }
    let mut table = [0; 256];
    for (n, product) in (0..=255).zip(&mut table) {
        *product = multiply(n, factor);
    }
    sum.iter_mut().zip(bytes).for_each(|(s, b)| *s ^= table[usize::from(*b)]);
}
