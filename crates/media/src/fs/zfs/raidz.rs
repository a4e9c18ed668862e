//! RAID-Z: where the pieces of a block are, and how lost ones come back.
//!
//! Parity is over GF(2^8) with the polynomial 0x11d: P is the sum of the data columns, Q the sum of 2^k times
//! the column that has k columns after it, R the same with 4^k.

use crate::{Error, Result};

use super::KIND;
use super::vdev::{Accept, Vdev};

/// Most combinations of columns that are taken for damaged in search of the right ones.
const MAX_TRIES: usize = 4096;
/// Most bytes that are calculated in that search.
const MAX_WORK: usize = 512 << 20;

/// A piece of a block on one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Column {
    child: usize,
    offset: u64,
    len: usize,
}

/// The shape of a RAID-Z device.
pub struct RaidZ {
    /// Devices that may be lost: 1 to 3.
    pub parity: usize,
    /// Sector size as a power of two.
    pub ashift: u32,
    /// The devices.
    pub children: Vec<Vdev>,
}

impl RaidZ {
    /// Reads `len` bytes at `offset`, with the help of parity if `accept` refuses or a device fails.
    pub fn read(&self, offset: u64, len: usize, accept: Accept<'_>) -> Result<Option<Vec<u8>>> {
        let columns = self.columns(offset, len)?;
        let (parity, data) = columns.split_at(self.parity);
        let mut last = Error::NotFound("a device of the pool".into());
        let mut fetch = |column: &Column| -> Option<Vec<u8>> {
            let child = self.children.get(column.child)?;
            match child.read(column.offset, column.len, &mut |_| true) {
                Ok(bytes) => bytes,
                Err(error) => {
                    last = error;
                    None
                }
            }
        };
        let data: Vec<Option<Vec<u8>>> = data.iter().map(&mut fetch).collect();
        let whole = |data: &[Option<Vec<u8>>]| -> Vec<u8> {
            let mut bytes = Vec::with_capacity(len + (1 << self.ashift));
            data.iter().flatten().for_each(|column| bytes.extend_from_slice(column));
            bytes.truncate(len);
            bytes
        };
        let missing = data.iter().filter(|column| column.is_none()).count();
        if missing == 0 {
            let bytes = whole(&data);
            if accept(&bytes) {
                return Ok(Some(bytes));
            }
        }
        let parity: Vec<Option<Vec<u8>>> = parity.iter().map(&mut fetch).collect();
        let present = parity.iter().flatten().count();
        if missing > present {
            return Err(last);
        }
        // Any of the columns that could be read may be wrong as well.
        let total = data.len() + parity.len();
        let sizes: Vec<usize> = columns[self.parity..].iter().map(|column| column.len).collect();
        let mut tries = 0;
        for wrong in 0..=present - missing {
            let mut chosen: Vec<usize> = (0..wrong).collect();
            loop {
                tries += 1;
                if tries > MAX_TRIES || tries * len > MAX_WORK {
                    return Ok(None);
                }
                if let Some(bytes) = attempt(&data, &parity, &sizes, &chosen)
                    && accept(&whole(&bytes))
                {
                    return Ok(Some(whole(&bytes)));
                }
                if !next_combination(&mut chosen, total) {
                    break;
                }
            }
        }
        Ok(None)
    }

    /// The columns of a block, those of parity first (`vdev_raidz_map_alloc`).
    fn columns(&self, offset: u64, len: usize) -> Result<Vec<Column>> {
        let width = self.children.len();
        if width <= self.parity || len == 0 {
            return Err(Error::corrupt(KIND, "a RAID-Z device without data"));
        }
        let unit = 1u64 << self.ashift;
        let sectors = (len as u64).div_ceil(unit);
        let first = offset / unit;
        let per_row = (width - self.parity) as u64;
        let (full, rest) = (sectors / per_row, sectors % per_row);
        let big = if rest == 0 { 0 } else { rest as usize + self.parity };
        let used = if full == 0 { big } else { width };
        let mut columns = Vec::new();
        for index in 0..used {
            let place = (first % width as u64) as usize + index;
            let row = first / width as u64 + u64::from(place >= width);
            let sectors = full + u64::from(index < big);
            columns.push(Column { child: place % width, offset: row * unit, len: (sectors * unit) as usize });
        }
        // So that a single parity isn't always on the same device.
        if self.parity == 1 && offset & (1 << 20) != 0 && columns.len() > 1 {
            let (a, b) = (columns[0], columns[1]);
            columns[0] = Column { len: a.len, ..b };
            columns[1] = Column { len: b.len, ..a };
        }
        Ok(columns)
    }
}

/// The data columns if those numbered in `wrong` (data first, then parity) are taken for lost, too.
fn attempt(
    data: &[Option<Vec<u8>>],
    parity: &[Option<Vec<u8>>],
    sizes: &[usize],
    wrong: &[usize],
) -> Option<Vec<Option<Vec<u8>>>> {
    let lost = |index: usize| wrong.contains(&index);
    let mut known: Vec<Option<Vec<u8>>> = data.to_vec();
    for (index, column) in known.iter_mut().enumerate() {
        if lost(index) {
            // What is lost already can't be lost again: another combination is the same as this.
            column.take()?;
        }
    }
    let missing: Vec<usize> = (0..known.len()).filter(|&index| known[index].is_none()).collect();
    if missing.is_empty() {
        return None;
    }
    let rows: Vec<(usize, &[u8])> = parity
        .iter()
        .enumerate()
        .filter(|(index, _)| !lost(data.len() + index))
        .filter_map(|(index, column)| Some((index, column.as_deref()?)))
        .take(missing.len())
        .collect();
    if rows.len() < missing.len() {
        return None;
    }
    let found = solve(&known, &missing, &rows)?;
    for (&index, mut column) in missing.iter().zip(found) {
        column.truncate(sizes[index]);
        known[index] = Some(column);
    }
    Some(known)
}

/// Solves for the missing columns: as many equations as unknowns, by Gauss and Jordan.
fn solve(known: &[Option<Vec<u8>>], missing: &[usize], rows: &[(usize, &[u8])]) -> Option<Vec<Vec<u8>>> {
    let factor = |row: usize, column: usize| power(row * (known.len() - 1 - column));
    let mut matrix: Vec<Vec<u8>> = Vec::new();
    let mut sums: Vec<Vec<u8>> = Vec::new();
    for &(row, parity) in rows {
        let mut sum = parity.to_vec();
        for (index, column) in known.iter().enumerate() {
            if let Some(column) = column {
                add_times(&mut sum, column, factor(row, index));
            }
        }
        matrix.push(missing.iter().map(|&index| factor(row, index)).collect());
        sums.push(sum);
    }
    for pivot in 0..missing.len() {
        let swap = (pivot..missing.len()).find(|&row| matrix[row][pivot] != 0)?;
        matrix.swap(pivot, swap);
        sums.swap(pivot, swap);
        let inverse = inverse(matrix[pivot][pivot]);
        matrix[pivot].iter_mut().for_each(|value| *value = times(*value, inverse));
        sums[pivot].iter_mut().for_each(|value| *value = times(*value, inverse));
        let (base, base_sum) = (matrix[pivot].clone(), sums[pivot].clone());
        for row in (0..missing.len()).filter(|&row| row != pivot) {
            let factor = matrix[row][pivot];
            add_times(&mut matrix[row], &base, factor);
            add_times(&mut sums[row], &base_sum, factor);
        }
    }
    Some(sums)
}

/// Makes the next combination of numbers below `end` out of `chosen`, which is ascending.
fn next_combination(chosen: &mut [usize], end: usize) -> bool {
    let count = chosen.len();
    for place in (0..count).rev() {
        if chosen[place] < end - count + place {
            let first = chosen[place] + 1;
            for (step, value) in chosen[place..].iter_mut().enumerate() {
                *value = first + step;
            }
            return true;
        }
    }
    false
}

/// Powers of 2 and their logarithms in GF(2^8).
const TABLES: ([u8; 255], [u8; 256]) = {
    let (mut powers, mut logs) = ([0; 255], [0; 256]);
    let mut value = 1u16;
    let mut exponent = 0;
    while exponent < 255 {
        powers[exponent] = value as u8;
        logs[value as usize] = exponent as u8;
        value <<= 1;
        if value > 255 {
            value ^= 0x11d;
        }
        exponent += 1;
    }
    (powers, logs)
};

fn power(exponent: usize) -> u8 {
    TABLES.0[exponent % 255]
}

fn times(a: u8, b: u8) -> u8 {
    if a == 0 || b == 0 {
        return 0;
    }
    power(TABLES.1[a as usize] as usize + TABLES.1[b as usize] as usize)
}

/// The inverse of what isn't 0.
fn inverse(value: u8) -> u8 {
    power(255 - TABLES.1[value as usize] as usize)
}

/// Adds `factor` times `column`, which may be shorter.
fn add_times(sum: &mut [u8], column: &[u8], factor: u8) {
    let mut table = [0; 256];
    for (value, entry) in (0..=255u8).zip(&mut table) {
        *entry = times(value, factor);
    }
    for (to, from) in sum.iter_mut().zip(column) {
        *to ^= table[*from as usize];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(parity: usize, width: usize) -> RaidZ {
        RaidZ { parity, ashift: 9, children: (0..width).map(|_| Vdev::Missing("none".into())).collect() }
    }

    fn column(child: usize, offset: u64, len: usize) -> Column {
        Column { child, offset, len }
    }

    #[test]
    fn columns_go_around_the_devices() {
        // Five sectors over two data columns: rows of 3, 3 (parity), 3, 2.
        let columns = shape(1, 3).columns(512 * 4, 512 * 5).unwrap();
        assert_eq!(columns, [column(1, 512, 1536), column(2, 512, 1536), column(0, 1024, 1024)]);
        // One sector: one column of parity, one of data; exchanged in every other MiB.
        assert_eq!(shape(1, 3).columns(0, 512).unwrap(), [column(0, 0, 512), column(1, 0, 512)]);
        let place = (1 << 20) / 512;
        let swapped = shape(1, 3).columns(1 << 20, 512).unwrap();
        assert_eq!(swapped[0].child, (place + 1) % 3);
        assert_eq!(swapped[1].child, place % 3);
        assert!(shape(3, 3).columns(0, 512).is_err());
    }

    #[test]
    fn any_three_columns_come_back() {
        let sizes = [64, 64, 64, 32, 32];
        let data: Vec<Vec<u8>> = sizes
            .iter()
            .enumerate()
            .map(|(column, &len)| (0..len).map(|byte| (byte * 7 + column * 31) as u8).collect())
            .collect();
        // By Horner's rule, as the definition goes.
        let mut parity = vec![vec![0u8; 64]; 3];
        for column in &data {
            for (row, sum) in parity.iter_mut().enumerate() {
                for value in sum.iter_mut() {
                    *value = times(*value, power(row));
                }
                sum.iter_mut().zip(column).for_each(|(to, from)| *to ^= from);
            }
        }
        let mut chosen = vec![0, 1, 2];
        loop {
            let known: Vec<_> = data.iter().cloned().map(Some).collect();
            let rest: Vec<_> = parity.iter().cloned().map(Some).collect();
            let found = attempt(&known, &rest, &sizes, &chosen);
            if chosen.iter().any(|&index| index < data.len()) {
                let found: Vec<Vec<u8>> = found.unwrap().into_iter().flatten().collect();
                assert_eq!(found, data, "without {chosen:?}");
            }
            if !next_combination(&mut chosen, 8) {
                break;
            }
        }
        assert_eq!(chosen, [5, 6, 7]);
    }

    #[test]
    fn the_field_is_a_field() {
        for value in 1..=255 {
            assert_eq!(times(value, inverse(value)), 1);
        }
        assert_eq!(times(0x80, 2), 0x1d);
    }
}
