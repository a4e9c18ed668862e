//! Integers at an offset; `None` past the end.

/// Reads integers out of bytes.
pub trait Fields {
    /// `N` bytes at `at`.
    fn array<const N: usize>(&self, at: usize) -> Option<[u8; N]>;

    /// A byte.
    fn u8_at(&self, at: usize) -> Option<u8> {
        self.array(at).map(u8::from_le_bytes)
    }

    /// A little-endian 16-bit number.
    fn u16_at(&self, at: usize) -> Option<u16> {
        self.array(at).map(u16::from_le_bytes)
    }

    /// A little-endian 32-bit number.
    fn u32_at(&self, at: usize) -> Option<u32> {
        self.array(at).map(u32::from_le_bytes)
    }

    /// A little-endian 64-bit number.
    fn u64_at(&self, at: usize) -> Option<u64> {
        self.array(at).map(u64::from_le_bytes)
    }

    /// A big-endian 16-bit number.
    fn u16_be(&self, at: usize) -> Option<u16> {
        self.array(at).map(u16::from_be_bytes)
    }

    /// A big-endian 32-bit number.
    fn u32_be(&self, at: usize) -> Option<u32> {
        self.array(at).map(u32::from_be_bytes)
    }

    /// A big-endian 64-bit number.
    fn u64_be(&self, at: usize) -> Option<u64> {
        self.array(at).map(u64::from_be_bytes)
    }
}

impl Fields for [u8] {
    fn array<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        self.get(at..at.checked_add(N)?)?.try_into().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_end_with_the_bytes() {
        let bytes = [1u8, 2, 3, 4, 5];
        assert_eq!((bytes.u16_at(0), bytes.u16_be(0)), (Some(0x201), Some(0x102)));
        assert_eq!((bytes.u32_at(1), bytes.u32_at(2)), (Some(0x0504_0302), None));
        assert_eq!((bytes.u64_at(0), bytes.u8_at(usize::MAX), bytes.u8_at(4)), (None, None, Some(5)));
    }
}
