//! The inline TLB check.

use std::mem::offset_of;

use memory::PAGE_SIZE;

use super::address::Address;
use super::block::{Cold, Translator};
use super::emit::{Mem, R10, R11, RCX};
use crate::cache::{ExitKind, Site, Stubs};
use crate::cpu::{Cpu, Jit};
use crate::mmu::{ENTRIES, Entry, Tlb};

/// What the check may do to the arithmetic flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flags {
    /// They are dead: it may clobber them.
    Dead,
    /// They are live: it must not.
    Live,
    /// [`Translator::save_flags`] has saved them: it may clobber them, but leaving restores them.
    Saved,
}

/// log2 of the size of a TLB entry.
const ENTRY_SHIFT: u8 = 5;
const _: () = assert!(size_of::<Entry>() == 1 << ENTRY_SHIFT);
/// Shift that turns a linear address into the byte offset of its entry (before masking).
const INDEX_SHIFT: u8 = PAGE_SIZE.trailing_zeros() as u8 - ENTRY_SHIFT;
/// Mask for the shifted address.
const INDEX_MASK: u32 = (ENTRIES as u32 - 1) << ENTRY_SHIFT;

/// A TLB member of entry 0 in the vCPU structure.
fn member(class: usize, member: usize) -> usize {
    offset_of!(Cpu, tlb) + Tlb::member_offset(class, member)
}

impl Translator<'_> {
    /// Translates `size` bytes at `address` for a read or write. `start` is where the access
    /// begins anew after a miss: at or before this point, with all guest registers unchanged
    /// since. Leaves the host address as R10 plus the returned displacement; R11 is free.
    pub fn check(&mut self, start: usize, address: &Address, size: u32, write: bool, flags: Flags) -> i32 {
        let class = self.mode.class() as usize;
        let tag = if write { offset_of!(Entry, write) } else { offset_of!(Entry, read) };
        let (tag, host) = (member(class, tag), member(class, offset_of!(Entry, host)));
        let constant = address.constant().filter(|va| va % PAGE_SIZE + u64::from(size) <= PAGE_SIZE);
        let (disp, jumps) = match (constant, flags) {
            (Some(va), _) => self.check_constant(va, tag, host, flags),
            (None, Flags::Live) => (0, self.check_live(address, size, tag, host)),
            (None, _) => (0, self.check_dead(address, size, tag, host)),
        };
        let site = self.numbers.site + self.new.sites.len() as u32;
        self.new.sites.push(Site { retry: self.absolute(start), rip: self.rip, size, write });
        self.cold.push(Cold::Miss { jumps, flags, address: *address, site });
        disp
    }

    fn check_dead(&mut self, address: &Address, size: u32, tag: usize, host: usize) -> Vec<usize> {
        self.address(address);
        self.code.mov(R11, R10);
        // shr r11, INDEX_SHIFT; and r11d, INDEX_MASK
        self.code.raw(&[0x49, 0xc1, 0xeb, INDEX_SHIFT, 0x41, 0x81, 0xe3]);
        self.code.raw(&INDEX_MASK.to_le_bytes());
        self.code.rm(None, true, &[0x2b], R10, Mem::indexed_field(tag, R11, 0));
        self.code.cmp_imm(R10, PAGE_SIZE as i32 - size as i32);
        let miss = self.code.jcc(JA);
        self.code.rm(None, true, &[0x03], R10, Mem::indexed_field(host, R11, 0));
        vec![miss]
    }

    /// The same without touching flags: NOT, LEA, PEXT and JRCXZ do the arithmetic.
    fn check_live(&mut self, address: &Address, size: u32, tag: usize, host: usize) -> Vec<usize> {
        self.address(address);
        self.code.store(Stubs::jit(offset_of!(Jit, saved_rcx)), RCX);
        self.code.pext(R11, R10, offset_of!(Cpu, jit) + offset_of!(Jit, index_mask));
        // Entry offset = index * 32 = (index * 8) * 4.
        self.code.lea(true, R11, Mem { gs: false, base: None, index: Some((R11, 3)), disp: 0 });
        self.code.load(RCX, Mem::indexed_field(tag, R11, 2));
        self.code.not(RCX);
        // r10 = address - tag, for ~tag = -tag - 1.
        self.code.lea(true, R10, Mem { gs: false, base: Some(R10), index: Some((RCX, 0)), disp: 1 });
        self.code.lea(true, RCX, Mem::at(R10, size as i32 - 1));
        self.code.pext(RCX, RCX, offset_of!(Cpu, jit) + offset_of!(Jit, page_mask));
        // The last byte alone decides: the first can't be below the page, because a tag of this
        // index is never the page right after the address's own ([`Entry::invalid`]).
        let hit = self.code.jrcxz();
        let miss = self.code.jmp();
        self.code.fix8(hit);
        self.code.load(RCX, Stubs::jit(offset_of!(Jit, saved_rcx)));
        self.code.load(R11, Mem::indexed_field(host, R11, 2));
        self.code.lea(true, R10, Mem { gs: false, base: Some(R10), index: Some((R11, 0)), disp: 0 });
        vec![miss]
    }

    /// The entry's place is known; only its tag has to be compared.
    fn check_constant(&mut self, va: u64, tag: usize, host: usize, flags: Flags) -> (i32, Vec<usize>) {
        let at = Tlb::index(va) << ENTRY_SHIFT;
        let page = va & !(PAGE_SIZE - 1);
        let jumps = if flags == Flags::Live {
            self.code.store(Stubs::jit(offset_of!(Jit, saved_rcx)), RCX);
            self.code.load(RCX, Mem::field(tag + at));
            self.code.not(RCX);
            self.code.mov_imm(R10, page);
            self.code.lea(true, RCX, Mem { gs: false, base: Some(RCX), index: Some((R10, 0)), disp: 1 });
            let hit = self.code.jrcxz();
            let miss = self.code.jmp();
            self.code.fix8(hit);
            self.code.load(RCX, Stubs::jit(offset_of!(Jit, saved_rcx)));
            vec![miss]
        } else {
            self.code.mov_imm(R10, page);
            self.code.rm(None, true, &[0x3b], R10, Mem::field(tag + at));
            vec![self.code.jcc(JNE)]
        };
        self.code.load(R10, Mem::field(host + at));
        ((va % PAGE_SIZE) as i32, jumps)
    }

    /// The cold side of a check.
    pub fn emit_miss(&mut self, jumps: &[usize], flags: Flags, address: &Address, site: u32) {
        let here = self.code.here();
        for &at in jumps {
            self.code.fix(at, here);
        }
        match flags {
            Flags::Live => self.code.load(RCX, Stubs::jit(offset_of!(Jit, saved_rcx))),
            Flags::Saved => self.restore_flags(),
            Flags::Dead => {}
        }
        self.address(address);
        self.leave(ExitKind::Miss, site);
    }

    /// Saves the arithmetic flags, so that code up to [`Translator::restore_flags`] may clobber
    /// them.
    pub fn save_flags(&mut self) {
        self.code.store(Stubs::jit(offset_of!(Jit, saved_rcx)), RAX);
        // lahf; seto al
        self.code.raw(&[0x9f, 0x0f, 0x90, 0xc0]);
        self.code.store_sized(Stubs::jit(offset_of!(Jit, flags)), RAX, 4);
        self.code.load(RAX, Stubs::jit(offset_of!(Jit, saved_rcx)));
    }

    /// Undoes [`Translator::save_flags`].
    pub fn restore_flags(&mut self) {
        self.code.store(Stubs::jit(offset_of!(Jit, saved_rcx)), RAX);
        self.code.load32(RAX, Stubs::jit(offset_of!(Jit, flags)));
        // add al, 7fh; sahf
        self.code.raw(&[0x04, 0x7f, 0x9e]);
        self.code.load(RAX, Stubs::jit(offset_of!(Jit, saved_rcx)));
    }
}

const RAX: u8 = 0;
/// Conditions as Jcc opcodes number them.
const JNE: u8 = 5;
const JA: u8 = 7;
