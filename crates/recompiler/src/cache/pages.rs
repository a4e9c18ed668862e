//! Code pages: a page of guest code as seen at one linear address in one mode.

use std::collections::HashMap;

use super::CodeCache;
use crate::translate::Mode;

/// What makes two code pages the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct PageKey {
    /// Linear address of the page.
    pub linear: u64,
    /// Guest-physical address of the page.
    pub gpa: u64,
    /// Mode that code was translated for.
    pub mode: Mode,
    /// CS base, which makes a linear address into an instruction pointer.
    pub cs_base: u64,
}

/// See the module. Numbers start at 1 and are not reused until the cache is cleared.
#[derive(Debug, Default)]
pub struct CodePage {
    /// What page it is.
    pub key: PageKey,
    /// Blocks that start here, by offset in CS.
    pub blocks: HashMap<u64, u32>,
    /// Blocks that start on the page before and continue here.
    pub continued: Vec<u32>,
}

impl CodeCache {
    /// The number of the code page `key`.
    pub fn page(&mut self, key: PageKey) -> u32 {
        if let Some(&number) = self.numbers.get(&key) {
            return number;
        }
        let number = self.pages.len() as u32;
        self.pages.push(CodePage { key, ..CodePage::default() });
        self.numbers.insert(key, number);
        self.by_gpa.entry(key.gpa).or_default().push(number);
        number
    }

    /// The code page with this number.
    pub fn page_key(&self, number: u32) -> &PageKey {
        &self.pages[number as usize].key
    }

    /// All blocks that have bytes in the guest-physical page at `gpa`.
    pub(super) fn blocks_on(&mut self, gpa: u64) -> Vec<u32> {
        let mut found = Vec::new();
        for &number in self.by_gpa.get(&gpa).map_or(&[][..], Vec::as_slice) {
            let page = &mut self.pages[number as usize];
            found.extend(page.blocks.drain().map(|(_, block)| block));
            found.append(&mut page.continued);
        }
        found
    }
}
