//! The page walker (Intel SDM vol. 3, chapter 4): no paging, 32-bit, PAE and 4-level.

use std::sync::atomic::Ordering;

use memory::PAGE_SIZE;

use crate::cpu::{Cpu, control};
use crate::exception::{Exception, Exec};
use crate::system::features::{Feature, Reg};

/// Page-fault error code bits (Intel SDM vol. 3, 4.7).
mod error {
    pub const PRESENT: u32 = 1;
    pub const WRITE: u32 = 1 << 1;
    pub const USER: u32 = 1 << 2;
    pub const RESERVED: u32 = 1 << 3;
    pub const FETCH: u32 = 1 << 4;
}

/// Bits of paging-structure entries (Intel SDM vol. 3, 4.3–4.5).
mod entry {
    pub const PRESENT: u64 = 1;
    pub const WRITE: u64 = 1 << 1;
    pub const USER: u64 = 1 << 2;
    pub const ACCESSED: u64 = 1 << 5;
    pub const DIRTY: u64 = 1 << 6;
    pub const LARGE: u64 = 1 << 7;
    pub const GLOBAL: u64 = 1 << 8;
    pub const NO_EXECUTE: u64 = 1 << 63;
}

/// CPUID 80000001h EDX bit 26: 1 GiB pages.
const PAGE_1G: Feature = Feature(0x8000_0001, 0, Reg::D, 26);

/// What paging allows for depends on CPUID; looked up once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PagingLimits {
    /// The physical address bits that exist (MAXPHYADDR).
    pub physical_mask: u64,
    /// 1 GiB pages exist.
    pub gigabyte_pages: bool,
}

impl PagingLimits {
    /// As the vCPU's CPUID says.
    pub fn of(cpu: &Cpu) -> Self {
        Self { physical_mask: cpu.physical_mask(), gigabyte_pages: cpu.has(PAGE_1G) }
    }
}

/// An access that is to be translated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// A store.
    pub write: bool,
    /// An instruction fetch.
    pub fetch: bool,
    /// At CPL 3 (and not an implicit access to a system structure).
    pub user: bool,
    /// A supervisor access that may touch user pages in spite of SMAP (explicit, with
    /// RFLAGS.AC set).
    pub smap_override: bool,
}

/// Where an access goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// Guest-physical address.
    pub gpa: u64,
    /// Bytes of the page that maps it.
    pub page_size: u64,
    /// The translation survives a load of CR3.
    pub global: bool,
    /// User accesses are allowed.
    pub user: bool,
    /// The access's privilege may also write.
    pub writable: bool,
    /// The page is marked dirty.
    pub dirty: bool,
}

/// Entry width of the paging mode.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Width {
    Four,
    Eight,
}

/// What a walk has collected.
struct Walk {
    linear: u64,
    access: Access,
    width: Width,
    /// (address, value) of each entry used, leaf last.
    used: [(u64, u64); 4],
    count: usize,
    /// AND of the R/W and U/S bits of all levels, OR of XD.
    rights: u64,
}

/// Translates `linear`, setting accessed and dirty bits. `linear` is canonical, and below 4 GiB
/// outside IA-32e mode: segmentation has checked that.
pub fn translate(cpu: &mut Cpu, linear: u64, access: Access) -> Exec<Translation> {
    if cpu.cr0 & control::CR0_PG == 0 {
        return Ok(Translation {
            gpa: linear & 0xffff_ffff,
            page_size: PAGE_SIZE,
            global: false,
            user: true,
            writable: true,
            dirty: true,
        });
    }
    // Another processor may change an entry between our look and our update: then look again.
    // Every failed exchange is another processor's progress, so this ends.
    loop {
        let mut walk = Walk::new(cpu, linear, access);
        let (gpa, page_size) = walk.run(cpu)?;
        let writable = walk.check_rights(cpu)?;
        if let Some(dirty) = walk.mark(cpu) {
            let leaf = walk.leaf();
            return Ok(Translation {
                gpa,
                page_size,
                global: leaf & entry::GLOBAL != 0 && cpu.cr4 & control::CR4_PGE != 0,
                user: walk.rights & entry::USER != 0,
                writable,
                dirty,
            });
        }
    }
}

/// The page-directory-pointer entries that a load of CR3 (or turning paging on) in PAE mode
/// caches; `None` if one has a reserved bit set, which is a #GP (4.4.1).
pub fn read_pdptes(cpu: &Cpu, cr3: u64) -> Option<[u64; 4]> {
    // Bits 2–1, 8–5 and what MAXPHYADDR does not have.
    let reserved = !cpu.paging.physical_mask | 0x1e6;
    let mut pdptes = [0; 4];
    for (address, pdpte) in (cr3 & 0xffff_ffe0..).step_by(8).zip(&mut pdptes) {
        *pdpte = cpu.shared.services.memory.load_u64(address, Ordering::Acquire).unwrap_or(u64::MAX);
        if *pdpte & entry::PRESENT != 0 && *pdpte & reserved != 0 {
            return None;
        }
    }
    Some(pdptes)
}

impl Walk {
    fn new(cpu: &Cpu, linear: u64, access: Access) -> Self {
        let width = if cpu.cr4 & control::CR4_PAE == 0 { Width::Four } else { Width::Eight };
        Self { linear, access, width, used: [(0, 0); 4], count: 0, rights: entry::WRITE | entry::USER }
    }

    fn fault(&self, cpu: &Cpu, why: u32) -> Exception {
        let Access { write, fetch, user, .. } = self.access;
        let nx = self.width == Width::Eight && cpu.efer & control::EFER_NXE != 0;
        let fetch = fetch && (nx || cpu.cr4 & control::CR4_SMEP != 0);
        let code = why
            | if write { error::WRITE } else { 0 }
            | if user { error::USER } else { 0 }
            | if fetch { error::FETCH } else { 0 };
        Exception::page_fault(self.linear, code)
    }

    /// Reads entry `index` of the table at `table` and checks what all levels have in common.
    /// Where there is no RAM, the bus floats high.
    fn step(&mut self, cpu: &Cpu, table: u64, index: u64, reserved: u64) -> Exec<u64> {
        let memory = &cpu.shared.services.memory;
        let (address, value) = match self.width {
            Width::Four => {
                let address = table + index * 4;
                (address, memory.load_u32(address, Ordering::Acquire).map_or(0xffff_ffff, u64::from))
            }
            Width::Eight => {
                let address = table + index * 8;
                (address, memory.load_u64(address, Ordering::Acquire).unwrap_or(u64::MAX))
            }
        };
        if value & entry::PRESENT == 0 {
            return Err(self.fault(cpu, 0));
        }
        if value & reserved != 0 {
            return Err(self.fault(cpu, error::PRESENT | error::RESERVED));
        }
        if let Some(slot) = self.used.get_mut(self.count) {
            *slot = (address, value);
            self.count += 1;
        }
        self.rights &= value | entry::NO_EXECUTE;
        self.rights |= value & entry::NO_EXECUTE;
        Ok(value)
    }

    fn run(&mut self, cpu: &Cpu) -> Exec<(u64, u64)> {
        match self.width {
            Width::Four => self.two_levels(cpu),
            Width::Eight => self.wide(cpu),
        }
    }

    /// 32-bit paging (4.3).
    fn two_levels(&mut self, cpu: &Cpu) -> Exec<(u64, u64)> {
        let linear = self.linear;
        let large_pages = cpu.cr4 & control::CR4_PSE != 0;
        let directory = self.step(cpu, cpu.cr3 & 0xffff_f000, linear >> 22 & 0x3ff, 0)?;
        if large_pages && directory & entry::LARGE != 0 {
            // PSE-36 (table 4-4): address bits 39–32 in bits 20–13; what MAXPHYADDR does not
            // have, and bit 21, is reserved.
            let high = (directory >> 13 & 0xff) << 32;
            if directory & 1 << 21 != 0 || high & !cpu.paging.physical_mask != 0 {
                return Err(self.fault(cpu, error::PRESENT | error::RESERVED));
            }
            return Ok((high | directory & 0xffc0_0000 | linear & 0x3f_ffff, 1 << 22));
        }
        let page = self.step(cpu, directory & 0xffff_f000, linear >> 12 & 0x3ff, 0)?;
        Ok((page & 0xffff_f000 | linear & 0xfff, PAGE_SIZE))
    }

    /// PAE (4.4) and 4-level (4.5) paging.
    fn wide(&mut self, cpu: &Cpu) -> Exec<(u64, u64)> {
        let (linear, long) = (self.linear, cpu.long_mode());
        let exists = cpu.paging.physical_mask;
        // Bits above MAXPHYADDR: in PAE mode up to 62, in IA-32e mode 62–52 are ignored.
        let top = if long { 51 } else { 62 };
        let mut reserved = !exists & ((1 << (top + 1)) - 1);
        if cpu.efer & control::EFER_NXE == 0 {
            reserved |= entry::NO_EXECUTE;
        }
        let address = exists & 0xf_ffff_ffff_f000;
        let directory = if long {
            let l4 = self.step(cpu, cpu.cr3 & address, linear >> 39 & 0x1ff, reserved | entry::LARGE)?;
            let no_large = if cpu.paging.gigabyte_pages { 0 } else { entry::LARGE };
            let l3 = self.step(cpu, l4 & address, linear >> 30 & 0x1ff, reserved | no_large)?;
            if l3 & entry::LARGE != 0 {
                return self.large(cpu, l3 & address, 1 << 30);
            }
            l3
        } else {
            // Reserved bits of these were checked when CR3 was loaded; they carry no rights.
            let index = (linear >> 30 & 3) as usize;
            let pointer = cpu.pdptes.get(index).copied().unwrap_or(0);
            if pointer & entry::PRESENT == 0 {
                return Err(self.fault(cpu, 0));
            }
            pointer
        };
        let l2 = self.step(cpu, directory & address, linear >> 21 & 0x1ff, reserved)?;
        if l2 & entry::LARGE != 0 {
            return self.large(cpu, l2 & address, 1 << 21);
        }
        let l1 = self.step(cpu, l2 & address, linear >> 12 & 0x1ff, reserved)?;
        Ok((l1 & address | linear & 0xfff, PAGE_SIZE))
    }

    /// A large page: address bits below its size are reserved, but bit 12, which is PAT.
    fn large(&self, cpu: &Cpu, address: u64, size: u64) -> Exec<(u64, u64)> {
        if address & (size - 1) & !(1 << 12) != 0 {
            return Err(self.fault(cpu, error::PRESENT | error::RESERVED));
        }
        Ok((address & !(size - 1) | self.linear & (size - 1), size))
    }

    fn leaf(&self) -> u64 {
        self.used.get(self.count.wrapping_sub(1)).map_or(0, |e| e.1)
    }

    /// Access rights (4.6); whether the access's privilege may write.
    fn check_rights(&self, cpu: &Cpu) -> Exec<bool> {
        let Access { write, fetch, user, smap_override } = self.access;
        let user_page = self.rights & entry::USER != 0;
        let writable = self.rights & entry::WRITE != 0 || !user && cpu.cr0 & control::CR0_WP == 0;
        let allowed = if fetch {
            let smep = !user && user_page && cpu.cr4 & control::CR4_SMEP != 0;
            self.rights & entry::NO_EXECUTE == 0 && !smep
        } else {
            let smap = !user && user_page && !smap_override && cpu.cr4 & control::CR4_SMAP != 0;
            !smap && (!write || writable)
        };
        if allowed && (user_page || !user) { Ok(writable) } else { Err(self.fault(cpu, error::PRESENT)) }
    }

    /// Sets accessed and dirty bits (4.8) where they are clear. `None` if an entry has changed
    /// meanwhile; otherwise whether the page is dirty.
    fn mark(&mut self, cpu: &mut Cpu) -> Option<bool> {
        for i in 0..self.count {
            let leaf = i + 1 == self.count;
            let &(address, old) = self.used.get(i)?;
            let dirty = if leaf && self.access.write { entry::DIRTY } else { 0 };
            let new = old | entry::ACCESSED | dirty;
            if new != old && !exchange(cpu, self.width, address, old, new) {
                return None;
            }
            if leaf {
                return Some(new & entry::DIRTY != 0);
            }
        }
        None
    }
}

/// Replaces an entry if it is still `old`. Entries outside of RAM keep no bits, and that is fine.
fn exchange(cpu: &mut Cpu, width: Width, address: u64, old: u64, new: u64) -> bool {
    let memory = &cpu.shared.services.memory;
    let (done, len) = match width {
        Width::Four => (memory.compare_exchange_u32(address, old as u32, new as u32), 4),
        Width::Eight => (memory.compare_exchange_u64(address, old, new), 8),
    };
    let done = done.unwrap_or(true);
    if done {
        cpu.note_store(address, len);
    }
    done
}
