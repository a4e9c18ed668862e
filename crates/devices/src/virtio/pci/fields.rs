//! Registers of different lengths in one block, accessed by any number of bytes.

/// One register: offset, length in bytes (at most 4), name.
pub(super) type Field<T> = (u64, u64, T);

/// Bytes `first..first + len` of a register are bytes from `at` of an access.
struct Overlap {
    first: u64,
    at: usize,
    len: usize,
}

fn overlap(field_at: u64, field_len: u64, offset: u64, len: usize) -> Option<Overlap> {
    let start = field_at.max(offset);
    let end = (field_at + field_len).min(offset.saturating_add(len as u64));
    (start < end).then(|| Overlap {
        first: start - field_at,
        at: (start - offset) as usize,
        len: (end - start) as usize,
    })
}

/// Reads the registers that an access touches; what lies between them is left as it is.
pub(super) fn read<T: Copy>(map: &[Field<T>], offset: u64, data: &mut [u8], mut get: impl FnMut(T) -> u32) {
    for &(at, len, name) in map {
        let Some(part) = overlap(at, len, offset, data.len()) else { continue };
        let value = get(name).to_le_bytes();
        let from = value.iter().skip(part.first as usize);
        for (to, from) in data.iter_mut().skip(part.at).take(part.len).zip(from) {
            *to = *from;
        }
    }
}

/// Writes the registers that an access touches, in order of their offsets. `current` gives the
/// bytes of those that are written in part.
pub(super) fn write<T: Copy>(
    map: &[Field<T>],
    offset: u64,
    data: &[u8],
    mut current: impl FnMut(T) -> u32,
    mut set: impl FnMut(T, u32),
) {
    for &(at, len, name) in map {
        let Some(part) = overlap(at, len, offset, data.len()) else { continue };
        let whole = part.len as u64 == len;
        let mut value = if whole { 0 } else { current(name) }.to_le_bytes();
        let from = data.iter().skip(part.at).take(part.len);
        for (to, from) in value.iter_mut().skip(part.first as usize).zip(from) {
            *to = *from;
        }
        set(name, u32::from_le_bytes(value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAP: &[Field<usize>] = &[(0, 4, 0), (4, 2, 1), (6, 1, 2), (8, 4, 3)];

    #[test]
    fn accesses_may_cut_registers() {
        let values = [0x4433_2211, 0x6655, 0x77, 0xccbb_aa99];
        let mut data = [0xee; 8];
        read(MAP, 2, &mut data, |name| values[name]);
        assert_eq!(data, [0x33, 0x44, 0x55, 0x66, 0x77, 0xee, 0x99, 0xaa]);
        let mut written = Vec::new();
        write(MAP, 3, &[1, 2, 3, 4, 5, 6], |name| values[name], |name, value| written.push((name, value)));
        assert_eq!(written, [(0, 0x0133_2211), (1, 0x0302), (2, 4), (3, 0xccbb_aa06)]);
    }
}
