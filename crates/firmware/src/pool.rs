//! Hands out room in the F segment.

use crate::Error;

/// Room that is left.
pub struct Pool {
    next: u64,
    end: u64,
}

impl Pool {
    pub fn new(start: u64, end: u64) -> Self {
        Self { next: start, end }
    }

    /// Bytes left behind an alignment to 64.
    pub fn left(&self) -> u64 {
        self.end.saturating_sub(self.next.next_multiple_of(64))
    }

    /// Takes `len` bytes on a 64-byte boundary (what a FACS needs, ACPI 6.4, 5.2.10).
    pub fn take(&mut self, what: &'static str, len: u64) -> Result<u64, Error> {
        let at = self.next.next_multiple_of(64);
        let end = at.checked_add(len).filter(|end| *end <= self.end).ok_or(Error::Full { what, len })?;
        self.next = end;
        Ok(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_aligned_and_end_with_the_room() {
        let mut pool = Pool::new(0x1000, 0x1100);
        assert_eq!(pool.take("a", 36).unwrap(), 0x1000);
        assert_eq!(pool.left(), 0xc0);
        assert_eq!(pool.take("b", 0xc0).unwrap(), 0x1040);
        assert!(pool.take("c", 1).is_err());
        assert_eq!(pool.left(), 0);
    }
}
