//! The translation look-aside buffer that translated code reads inline.
//!
//! Three classes, because permissions differ: user accesses, supervisor accesses, and supervisor
//! accesses that may touch user pages (SMAP off or RFLAGS.AC set). Code is translated for one
//! class, so the class costs nothing at run time.
//!
//! Translated code computes `offset = linear - tag`; `offset <= 4096 - size` is a hit, and the
//! host address is `host + offset`. So one compare also refuses accesses that leave the page.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use memory::PAGE_SIZE;

/// Entries in a class; direct mapped by the low bits of the page number.
pub const ENTRIES: usize = 4096;

/// Which accesses a translation is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlbClass {
    /// CPL 3.
    User = 0,
    /// CPL 0–2 with SMAP in force.
    Supervisor = 1,
    /// CPL 0–2 without SMAP, or with RFLAGS.AC.
    SupervisorUser = 2,
}

/// The "class" of instruction fetches in `Tlb::filled`.
const EXEC: u8 = 3;

/// One translation. A tag is the linear address of the page, or [`Entry::invalid`].
#[repr(C, align(32))]
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Tag for reads.
    pub read: u64,
    /// Tag for writes. Not set while the page holds translated code, while its dirty bit is clear.
    pub write: u64,
    /// Host address of the page.
    pub host: u64,
    /// Guest-physical address of the page.
    pub gpa: u64,
}

impl Entry {
    /// A tag that no access with this index can match: the page of an index two away, so that
    /// even an access that starts at the very end of a page is a whole page off.
    pub const fn invalid(index: usize) -> u64 {
        ((index ^ 2) as u64) * PAGE_SIZE
    }
}

/// All translations of one vCPU.
#[repr(C)]
pub struct Tlb {
    classes: [[Entry; ENTRIES]; 3],
    /// (class, index) of entries filled since the last flush, by whether the page is global.
    pub(crate) filled: [Vec<(u8, u16)>; 2],
    /// For each linear page that runs code: the number of its code page ([`crate::cache`]), 0: none.
    /// Filled and dropped with the rest, as class [`EXEC`].
    pub(crate) exec: [u32; ENTRIES],
    /// Which pages may have a write tag.
    pub(crate) written: Arc<Written>,
}

/// Guest pages that may have a write tag in one vCPU's TLB, by the low bits of their numbers. Most
/// pages that become code have none: then that vCPU need not be asked.
///
/// The vCPU marks a page here before it looks whether the page holds code; another marks the page
/// as code before it looks here. So one of the two sees the other.
pub struct Written([AtomicU64; WRITTEN_BITS / 64]);

/// Bits in [`Written`].
const WRITTEN_BITS: usize = 1 << 16;

impl Default for Written {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

impl Written {
    /// Word and bit of the page at `gpa`.
    fn place(&self, gpa: u64) -> (&AtomicU64, u64) {
        let bit = (gpa / PAGE_SIZE) as usize % WRITTEN_BITS;
        (&self.0[bit / 64], 1 << (bit % 64))
    }

    /// The page at `gpa` is about to get a write tag.
    pub fn note(&self, gpa: u64) {
        let (word, bit) = self.place(gpa);
        if word.load(Ordering::SeqCst) & bit == 0 {
            word.fetch_or(bit, Ordering::SeqCst);
        }
    }

    /// Whether the page at `gpa` may have a write tag.
    pub fn may_have(&self, gpa: u64) -> bool {
        let (word, bit) = self.place(gpa);
        word.load(Ordering::SeqCst) & bit != 0
    }

    fn clear(&self) {
        for word in &self.0 {
            word.store(0, Ordering::SeqCst);
        }
    }
}

impl Tlb {
    /// An empty TLB in place (it is too large for the stack).
    pub fn init(&mut self) {
        for class in &mut self.classes {
            for (index, entry) in class.iter_mut().enumerate() {
                let invalid = Entry::invalid(index);
                *entry = Entry { read: invalid, write: invalid, host: 0, gpa: 0 };
            }
        }
        self.exec = [0; ENTRIES];
        self.written.clear();
        self.filled = [Vec::new(), Vec::new()];
    }

    /// Offset in this structure of an entry member of entry 0 of a class.
    pub const fn member_offset(class: usize, member: usize) -> usize {
        std::mem::offset_of!(Self, classes) + class * size_of::<[Entry; ENTRIES]>() + member
    }

    /// Offset in this structure of the code page number for `linear`.
    pub const fn exec_offset(linear: u64) -> usize {
        std::mem::offset_of!(Self, exec) + 4 * Self::index(linear)
    }

    /// Index of the entry for `linear`.
    pub const fn index(linear: u64) -> usize {
        (linear / PAGE_SIZE) as usize % ENTRIES
    }

    /// The entry that may hold `linear`.
    pub fn entry(&self, class: TlbClass, linear: u64) -> &Entry {
        &self.classes[class as usize][Self::index(linear)]
    }

    /// Number of the code page that `linear`'s entry names, 0: none.
    pub(crate) fn exec_page(&self, linear: u64) -> u32 {
        self.exec[Self::index(linear)]
    }

    /// Notes that instructions at `linear` come from code page `number`.
    pub(crate) fn fill_exec(&mut self, linear: u64, number: u32, global: bool) {
        self.make_room();
        let index = Self::index(linear);
        self.note_filled(EXEC, index, global);
        self.exec[index] = number;
    }

    /// Empties the TLB if its list of entries is full. A list may name an entry often (a page that
    /// is evicted and comes back). Called before a fill, never between the look at a page's code
    /// and the fill: it forgets what is in `written`.
    pub(crate) fn make_room(&mut self) {
        if self.filled.iter().any(|list| list.len() >= 16 * ENTRIES) {
            self.flush_all();
        }
    }

    fn note_filled(&mut self, class: u8, index: usize, global: bool) {
        self.filled[usize::from(global)].push((class, index as u16));
    }

    /// Puts a translation in. `writable`: stores may go straight to the page.
    pub fn fill(&mut self, class: TlbClass, linear: u64, host: u64, gpa: u64, writable: bool, global: bool) {
        let index = Self::index(linear);
        let page = linear & !(PAGE_SIZE - 1);
        let write = if writable { page } else { Entry::invalid(index) };
        self.note_filled(class as u8, index, global);
        if writable {
            self.written.note(gpa);
        }
        self.classes[class as usize][index] = Entry { read: page, write, host, gpa };
    }

    fn drop_entry(&mut self, class: u8, index: u16) {
        if class == EXEC {
            self.exec[usize::from(index)] = 0;
            return;
        }
        let invalid = Entry::invalid(usize::from(index));
        let entry = &mut self.classes[usize::from(class)][usize::from(index)];
        entry.read = invalid;
        entry.write = invalid;
    }

    fn flush(&mut self, global: bool) {
        let mut list = std::mem::take(&mut self.filled[usize::from(global)]);
        for (class, index) in list.drain(..) {
            self.drop_entry(class, index);
        }
        self.filled[usize::from(global)] = list;
    }

    /// Drops all translations (CR0.PG, CR4.PGE, SMEP and the like change).
    pub fn flush_all(&mut self) {
        self.flush(false);
        self.flush(true);
        self.written.clear();
    }

    /// Drops all but global translations (MOV to CR3).
    pub fn flush_non_global(&mut self) {
        self.flush(false);
    }

    /// Drops the translations of one page (INVLPG).
    pub fn flush_page(&mut self, linear: u64) {
        for class in 0..=EXEC {
            self.drop_entry(class, Self::index(linear) as u16);
        }
    }

    /// Takes the write tags of every translation of the page at `gpa`: it now holds translated
    /// code.
    pub fn protect(&mut self, gpa: u64) {
        if !self.written.may_have(gpa) {
            return;
        }
        for class in &mut self.classes {
            for (index, entry) in class.iter_mut().enumerate() {
                if entry.gpa == gpa {
                    entry.write = Entry::invalid(index);
                }
            }
        }
    }
}
