//! From the instruction pointer to host code.

use engine::seg;
use memory::PAGE_SIZE;

use super::SoftVcpu;
use crate::cache::PageKey;
use crate::cpu::JumpCache;
use crate::exception::{Exception, Exec};
use crate::mmu::{self, Access};
use crate::system::features::canonical;
use crate::translate::{self, Input, Mode};

/// Bytes that a block may be made of.
const WINDOW: usize = 192;

impl SoftVcpu {
    /// Host address of the block at CS:RIP, if the jump cache knows it. Its entry check decides.
    pub(super) fn quick(&self, mode: Mode) -> Option<u64> {
        if !mode.inline_memory() || mode.step() {
            return None;
        }
        let rip = self.cpu.rip;
        let index = rip as usize % JumpCache::SIZE;
        let hit = self.cpu.jumps.tags[index] == rip.wrapping_add(u64::from(mode.0)).wrapping_neg();
        hit.then(|| self.cpu.jumps.hosts[index])
    }

    /// The block at CS:RIP, translated if need be.
    pub(super) fn find_block(&mut self, mode: Mode) -> Exec<u32> {
        if !self.cache.has_room() {
            self.clear_cache();
        }
        let rip = self.cpu.rip;
        let linear = self.code_address(rip)?;
        let page = self.code_page(linear, mode)?;
        let number = match self.cache.find(page, rip) {
            Some(number) if self.second_page_holds(number, linear, mode)? => number,
            _ => self.translate(rip, linear, page, mode)?,
        };
        if mode.inline_memory() && !mode.step() {
            self.cache.remember_jump(&mut self.cpu, number, mode);
        }
        Ok(number)
    }

    /// Whether a block that continues on the next page still finds the same page there; the TLB
    /// then knows that page, too.
    fn second_page_holds(&mut self, number: u32, linear: u64, mode: Mode) -> Exec<bool> {
        let Some(second) = self.cache.block(number).second_page else { return Ok(true) };
        let next = self.next_page(linear);
        Ok(self.code_page(next, mode)? == second)
    }

    /// Linear address of the page after the one of `linear`.
    fn next_page(&self, linear: u64) -> u64 {
        let next = (linear & !(PAGE_SIZE - 1)).wrapping_add(PAGE_SIZE);
        if self.cpu.code64() { next } else { next & 0xffff_ffff }
    }

    /// Linear address of offset `rip` in CS, after the checks that segmentation makes.
    fn code_address(&self, rip: u64) -> Exec<u64> {
        if self.cpu.code64() {
            return Ok(rip);
        }
        let cs = &self.cpu.segments[seg::CS];
        if rip > u64::from(cs.limit) {
            return Err(Exception::gp(0));
        }
        Ok(cs.base.wrapping_add(rip) & 0xffff_ffff)
    }

    /// The code page that `linear` is on, which the TLB then knows.
    fn code_page(&mut self, linear: u64, mode: Mode) -> Exec<u32> {
        let cs_base = if self.cpu.code64() { 0 } else { self.cpu.segments[seg::CS].base };
        let address = linear & !(PAGE_SIZE - 1);
        let known = self.cpu.tlb.exec_page(linear);
        if known != 0 {
            let key = self.cache.page_key(known);
            if key.linear == address && key.mode == mode && key.cs_base == cs_base {
                return Ok(known);
            }
        }
        if self.cpu.code64() && !canonical(linear) {
            return Err(Exception::gp(0));
        }
        let access = Access { fetch: true, user: self.cpu.cpl == 3, ..Access::default() };
        let found = mmu::translate(&mut self.cpu, linear, access)?;
        let gpa = found.gpa & !(PAGE_SIZE - 1);
        let number = self.cache.page(PageKey { linear: address, gpa, mode, cs_base });
        self.cpu.tlb.fill_exec(linear, number, found.global);
        Ok(number)
    }

    fn translate(&mut self, rip: u64, linear: u64, page: u32, mode: Mode) -> Exec<u32> {
        let offset = linear % PAGE_SIZE;
        let length = WINDOW.min((PAGE_SIZE - offset) as usize);
        let mut bytes = [0; WINDOW + 16];
        self.read_code(page, offset, &mut bytes[..length]);
        let mut input = Input { rip, linear, page, bytes: &bytes[..length], second_page: None, mode };
        if let Some(number) = translate::translate(&mut self.cache, &mut self.tools, &input) {
            return Ok(number);
        }
        // The instruction goes on on the next page.
        let next = self.next_page(linear);
        let second = self.code_page(next, mode)?;
        let mut both = [0; WINDOW + 16];
        both[..length].copy_from_slice(&bytes[..length]);
        self.read_code(second, 0, &mut both[length..length + 16]);
        // Reading may have let another vCPU's request in that dropped the first page's code; the
        // bytes are then old, but so was the moment at which they were read.
        input = Input { bytes: &both[..length + 16], second_page: Some((next, second)), ..input };
        let number = translate::translate(&mut self.cache, &mut self.tools, &input);
        number.ok_or(Exception::ud())
    }

    /// Reads bytes to be translated, after marking them as code.
    fn read_code(&mut self, page: u32, offset: u64, to: &mut [u8]) {
        let gpa = self.cache.page_key(page).gpa + offset;
        let fabric = self.cpu.shared.fabric.clone();
        fabric.mark_code(self.cpu.id, gpa, to.len() as u64, |protect| match protect {
            Some(page) => self.cpu.tlb.protect(page),
            None => self.serve(),
        });
        self.cpu.load_physical(gpa, to);
    }
}
