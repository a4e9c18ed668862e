//! The code cache of one vCPU: host code, the blocks in it, and how they hang together.
//!
//! Each vCPU has its own, so nothing here needs a lock. The memory is mapped twice, once writable
//! and once executable. It is filled front to back; when it is full everything is dropped.

mod links;
mod pages;
mod region;
mod stubs;

use std::collections::HashMap;

use iced_x86::Instruction;

pub use pages::{CodePage, PageKey};
pub use region::Region;
pub use stubs::Stubs;

use crate::cpu::{Cpu, JumpCache};
use crate::translate::Mode;

/// Bytes of host code a vCPU may have.
const SIZE: usize = 64 << 20;
/// Room that one block's code never exceeds (32 instructions, each at most some 200 bytes of hot
/// and cold code).
pub const BLOCK_ROOM: usize = 16 << 10;

/// Why translated code came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum ExitKind {
    /// A direct jump without a link; the argument is the [`Exit`].
    Chain = 1,
    /// An indirect jump to `value` that the jump cache does not know.
    Indirect,
    /// An access to linear address `value` that the TLB does not know; the argument is the [`Site`].
    Miss,
    /// A system instruction; the argument is its index.
    System,
    /// An instruction whose memory operand has to go through the bounce buffer; as `System`.
    Bounce,
    /// A block's entry check failed (another page there, or attention); the argument is the block.
    Recheck,
    /// The host raised an exception; the argument is its vector.
    Fault,
    /// The end of bounced code.
    Done,
}

impl ExitKind {
    /// All kinds, in order of their numbers.
    pub const ALL: [Self; 8] = [
        Self::Chain,
        Self::Indirect,
        Self::Miss,
        Self::System,
        Self::Bounce,
        Self::Recheck,
        Self::Fault,
        Self::Done,
    ];

    /// The kind with this number.
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|k| *k as u32 == number)
    }
}

/// A translated block. Offsets are into the code region.
#[derive(Debug)]
pub struct Block {
    /// Offset in CS of the first instruction.
    pub rip: u64,
    /// The code page of the first instruction.
    pub page: u32,
    /// Entry that first checks that the page is still mapped there and that nobody wants
    /// attention.
    pub checked: u32,
    /// Entry without the check.
    pub entry: u32,
    /// The code page on which its only instruction continues; then only `checked` may be used.
    pub second_page: Option<u32>,
    /// Direct exits that are linked to this block.
    incoming: Vec<u32>,
    /// Its own direct exits.
    exits: std::ops::Range<u32>,
    valid: bool,
}

/// A direct exit of a block.
#[derive(Clone, Copy, Debug)]
pub struct Exit {
    /// The block that it leaves.
    pub block: u32,
    /// Where it goes (offset in CS).
    pub target: u64,
    /// Offset of the rel32 to patch.
    pub patch: u32,
    /// Offset of the code that reports the exit.
    pub stub: u32,
    linked: Option<u32>,
}

/// A place in a block that reads or writes memory through the TLB.
#[derive(Clone, Copy, Debug)]
pub struct Site {
    /// Offset at which to try again.
    pub retry: u32,
    /// The instruction's offset in CS.
    pub rip: u64,
    /// Bytes accessed.
    pub size: u32,
    /// Whether it writes.
    pub write: bool,
}

/// Where a host exception belongs.
#[derive(Clone, Copy, Debug)]
pub struct FaultPoint {
    /// Offset of the first host instruction.
    pub host: u32,
    /// The guest instruction's offset in CS.
    pub rip: u64,
    /// The host register whose guest value is in `jit.spill`.
    pub spilled: Option<u8>,
}

/// An instruction that Rust executes.
#[derive(Clone, Copy)]
pub struct SystemSite {
    /// Its offset in CS.
    pub rip: u64,
    /// The instruction.
    pub insn: Instruction,
    /// It is here because its unit (x87, SSE, AVX) may not run.
    pub disabled: bool,
    /// Who executes it, once that is known.
    pub topic: Option<crate::system::Topic>,
}

/// What the translator hands over; offsets are absolute in the region.
#[derive(Default)]
pub struct NewBlock {
    /// Offset in CS of the first instruction.
    pub rip: u64,
    /// The code page.
    pub page: u32,
    /// The next page's code page, where an instruction continues there.
    pub second_page: Option<u32>,
    /// See [`Block::checked`].
    pub checked: u32,
    /// See [`Block::entry`].
    pub entry: u32,
    /// Some arithmetic flags are live at the entry.
    pub flags_live: bool,
    /// (target, offset of the rel32, offset of the stub).
    pub exits: Vec<(u64, u32, u32)>,
    /// Memory accesses.
    pub sites: Vec<Site>,
    /// System and bounced instructions.
    pub system: Vec<SystemSite>,
    /// Where exceptions belong, ascending.
    pub faults: Vec<FaultPoint>,
}

/// Numbers that the next block's parts will get.
#[derive(Clone, Copy)]
pub struct Numbers {
    /// The block.
    pub block: u32,
    /// Its first exit.
    pub exit: u32,
    /// Its first access.
    pub site: u32,
    /// Its first system instruction.
    pub system: u32,
}

/// See the module.
pub struct CodeCache {
    region: Region,
    stubs: Stubs,
    /// Where the next block goes.
    next: usize,
    start: usize,
    blocks: Vec<Block>,
    exits: Vec<Exit>,
    sites: Vec<Site>,
    system: Vec<SystemSite>,
    faults: Vec<FaultPoint>,
    pages: Vec<CodePage>,
    numbers: HashMap<PageKey, u32>,
    by_gpa: HashMap<u64, Vec<u32>>,
    scratch: usize,
}

impl CodeCache {
    /// An empty cache with its entry and exit code.
    pub fn new(avx: bool) -> std::io::Result<Self> {
        let mut region = Region::new(SIZE)?;
        let (code, stubs) = stubs::emit(avx);
        region.write(0, code.bytes());
        let start = code.here().next_multiple_of(64) + stubs::SCRATCH_TOTAL;
        let mut cache = Self {
            region,
            stubs,
            next: start,
            start,
            blocks: Vec::new(),
            exits: Vec::new(),
            sites: Vec::new(),
            system: Vec::new(),
            faults: Vec::new(),
            pages: Vec::new(),
            numbers: HashMap::new(),
            by_gpa: HashMap::new(),
            scratch: 0,
        };
        // Page number 0 means "none".
        cache.pages.push(CodePage::default());
        Ok(cache)
    }

    /// Fixed code: entry and exits.
    pub fn stubs(&self) -> &Stubs {
        &self.stubs
    }

    /// Host address of an offset.
    pub fn address(&self, offset: u32) -> u64 {
        self.region.code_address() + u64::from(offset)
    }

    /// Size of the region in bytes.
    pub const fn len() -> u64 {
        SIZE as u64
    }

    /// Offset of a host address, if it lies in the region.
    pub fn offset(&self, address: u64) -> Option<u32> {
        let offset = address.checked_sub(self.region.code_address())?;
        (offset < SIZE as u64).then_some(offset as u32)
    }

    /// Offset of the next block.
    pub fn next(&self) -> usize {
        self.next
    }

    /// Numbers of the next block's parts.
    pub fn next_numbers(&self) -> Numbers {
        Numbers {
            block: self.blocks.len() as u32,
            exit: self.exits.len() as u32,
            site: self.sites.len() as u32,
            system: self.system.len() as u32,
        }
    }

    /// Whether another block fits.
    pub fn has_room(&self) -> bool {
        self.next + BLOCK_ROOM <= SIZE
    }

    /// The block with this number.
    pub fn block(&self, number: u32) -> &Block {
        &self.blocks[number as usize]
    }

    /// The exit with this number.
    pub fn exit(&self, number: u32) -> Exit {
        self.exits[number as usize]
    }

    /// The access with this number.
    pub fn site(&self, number: u32) -> Site {
        self.sites[number as usize]
    }

    /// The system instruction with this number.
    pub fn system(&self, number: u32) -> SystemSite {
        self.system[number as usize]
    }

    /// Notes who executes a system instruction.
    pub fn set_topic(&mut self, number: u32, topic: crate::system::Topic) {
        if let Some(site) = self.system.get_mut(number as usize) {
            site.topic = Some(topic);
        }
    }

    /// The fault point that covers `offset`.
    pub fn fault(&self, offset: u32) -> Option<FaultPoint> {
        let at = self.faults.partition_point(|f| f.host <= offset);
        at.checked_sub(1).and_then(|i| self.faults.get(i)).copied()
    }

    /// Takes a translated block and its code.
    pub fn insert(&mut self, new: &NewBlock, code: &[u8]) -> u32 {
        self.region.write(self.next, code);
        self.next += code.len().next_multiple_of(16);
        let number = self.blocks.len() as u32;
        let first_exit = self.exits.len() as u32;
        self.exits.extend(new.exits.iter().map(|&(target, patch, stub)| Exit {
            block: number,
            target,
            patch,
            stub,
            linked: None,
        }));
        self.sites.extend_from_slice(&new.sites);
        self.system.extend_from_slice(&new.system);
        self.faults.extend_from_slice(&new.faults);
        self.blocks.push(Block {
            rip: new.rip,
            page: new.page,
            checked: new.checked,
            entry: new.entry,
            second_page: new.second_page,
            incoming: Vec::new(),
            exits: first_exit..self.exits.len() as u32,
            valid: true,
        });
        self.pages[new.page as usize].blocks.insert(new.rip, number);
        if let Some(second) = new.second_page {
            self.pages[second as usize].continued.push(number);
        }
        number
    }

    /// Puts code into the next scratch slot and returns its offset. Slots are reused soon.
    pub fn scratch(&mut self, emit: impl FnOnce(&mut crate::translate::emit::Code, usize)) -> u32 {
        let at = self.start - stubs::SCRATCH_TOTAL + self.scratch * stubs::SCRATCH_SLOT;
        self.scratch = (self.scratch + 1) % stubs::SCRATCH_SLOTS;
        let mut code = crate::translate::emit::Code::default();
        emit(&mut code, at);
        assert!(code.here() <= stubs::SCRATCH_SLOT, "bounced code outgrew its slot");
        self.region.write(at, code.bytes());
        at as u32
    }

    /// Drops everything.
    pub fn clear(&mut self, cpu: &mut Cpu) {
        self.clear_blocks(cpu);
        self.reset_jumps(cpu);
    }

    /// Drops everything but the jump cache, which must not name any block.
    pub fn clear_blocks(&mut self, cpu: &mut Cpu) {
        self.next = self.start;
        self.blocks.clear();
        self.exits.clear();
        self.sites.clear();
        self.system.clear();
        self.faults.clear();
        self.pages.truncate(1);
        self.numbers.clear();
        self.by_gpa.clear();
        cpu.tlb.flush_all();
        cpu.tlb.exec.fill(0);
    }

    /// Empties the jump cache: no tag matches, and what would match by accident leaves.
    pub fn reset_jumps(&self, cpu: &mut Cpu) {
        cpu.jumps.tags.fill(JumpCache::EMPTY);
        cpu.jumps.hosts.fill(self.address(self.stubs.exit(ExitKind::Indirect)));
    }

    /// The block at `rip` on a code page.
    pub fn find(&self, page: u32, rip: u64) -> Option<u32> {
        self.pages[page as usize].blocks.get(&rip).copied()
    }

    /// Makes indirect jumps to the block's start find it.
    pub fn remember_jump(&self, cpu: &mut Cpu, number: u32, mode: Mode) {
        let block = self.block(number);
        let index = block.rip as usize % JumpCache::SIZE;
        cpu.jumps.tags[index] = block.rip.wrapping_add(u64::from(mode.0)).wrapping_neg();
        cpu.jumps.hosts[index] = self.address(block.checked);
    }
}
