//! Links between blocks, and dropping blocks.

use super::CodeCache;
use crate::cpu::{Cpu, JumpCache};

impl CodeCache {
    /// Makes exit `exit` jump straight to block `target`.
    ///
    /// On the same code page a forward jump needs no check: whoever runs here has the page mapped.
    /// All others enter through the check, so that every loop looks for attention.
    pub fn link(&mut self, exit: u32, target: u32) {
        let Exits { patch, from_page, from_rip } = self.exit_source(exit);
        let to = &mut self.blocks[target as usize];
        let free = to.page == from_page && to.rip > from_rip && to.second_page.is_none();
        let destination = if free { to.entry } else { to.checked };
        to.incoming.push(exit);
        self.exits[exit as usize].linked = Some(target);
        self.patch(patch, destination);
    }

    fn exit_source(&self, exit: u32) -> Exits {
        let e = &self.exits[exit as usize];
        let block = &self.blocks[e.block as usize];
        Exits { patch: e.patch, from_page: block.page, from_rip: block.rip }
    }

    /// Points the rel32 at `at` to `destination`.
    fn patch(&mut self, at: u32, destination: u32) {
        let relative = destination.wrapping_sub(at + 4);
        self.region.write(at as usize, &relative.to_le_bytes());
    }

    /// Drops every block with bytes in the guest-physical page at `gpa`.
    pub fn drop_page(&mut self, cpu: &mut Cpu, gpa: u64) {
        for number in self.blocks_on(gpa) {
            self.drop_block(cpu, number);
        }
    }

    fn drop_block(&mut self, cpu: &mut Cpu, number: u32) {
        let block = &mut self.blocks[number as usize];
        if !std::mem::replace(&mut block.valid, false) {
            return;
        }
        let (rip, page, checked) = (block.rip, block.page, block.checked);
        let incoming = std::mem::take(&mut block.incoming);
        let exits = block.exits.clone();
        for exit in incoming {
            let Some(e) = self.exits.get_mut(exit as usize) else { continue };
            if e.linked == Some(number) {
                e.linked = None;
                let (patch, stub) = (e.patch, e.stub);
                self.patch(patch, stub);
            }
        }
        for exit in exits {
            if let Some(target) = self.exits[exit as usize].linked.take() {
                self.blocks[target as usize].incoming.retain(|e| *e != exit);
            }
        }
        if self.pages[page as usize].blocks.get(&rip) == Some(&number) {
            self.pages[page as usize].blocks.remove(&rip);
        }
        let index = rip as usize % JumpCache::SIZE;
        if cpu.jumps.hosts[index] == self.address(checked) {
            cpu.jumps.tags[index] = JumpCache::EMPTY;
            cpu.jumps.hosts[index] = self.address(self.stubs.exit(super::ExitKind::Indirect));
        }
    }
}

struct Exits {
    patch: u32,
    from_page: u32,
    from_rip: u64,
}
