//! What code was translated for: everything that changes the meaning of the same bytes.

use engine::{Segment, seg};

use crate::cpu::{Cpu, control, flag};
use crate::mmu::TlbClass;
use crate::translate::classify::Unit;

/// See the module. Fits 16 bits, so that two modes of one address never share a jump-cache tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Mode(pub u16);

const CLASS_SHIFT: u16 = 2;
const FLAT: u16 = 1 << 4;
const STACK32: u16 = 1 << 5;
const X87: u16 = 1 << 6;
const SSE: u16 = 1 << 7;
const AVX: u16 = 1 << 8;
const STEP: u16 = 1 << 9;
const KERNEL: u16 = 1 << 10;
const TSC: u16 = 1 << 11;

impl Mode {
    /// The mode that `cpu` is in. `step`: one instruction only.
    pub fn of(cpu: &Cpu, step: bool) -> Self {
        let code64 = cpu.code64();
        let mut mode = match cpu.bitness() {
            16 => 0,
            32 => 1,
            _ => 2,
        };
        mode |= (class(cpu) as u16) << CLASS_SHIFT;
        if !code64 {
            if cpu.bitness() == 32 && flat(cpu) {
                mode |= FLAT;
            }
            if cpu.segments[seg::SS].access & Segment::BIG != 0 {
                mode |= STACK32;
            }
        }
        let usable = cpu.cr0 & (control::CR0_EM | control::CR0_TS) == 0;
        if usable {
            mode |= X87;
            if cpu.cr4 & control::CR4_OSFXSR != 0 {
                mode |= SSE;
            }
            let avx = cpu.cr4 & control::CR4_OSXSAVE != 0 && cpu.xcr0 & 6 == 6;
            if avx && cpu.protected() && !cpu.virtual_8086() {
                mode |= AVX;
            }
        }
        if cpu.cpl == 0 {
            mode |= KERNEL;
        }
        if cpu.cpl == 0 || cpu.cr4 & control::CR4_TSD == 0 {
            mode |= TSC;
        }
        if step {
            mode |= STEP;
        }
        Self(mode)
    }

    /// 16, 32 or 64.
    pub fn bitness(self) -> u32 {
        16 << (self.0 & 3)
    }

    /// Whether code runs in 64-bit mode.
    pub fn is64(self) -> bool {
        self.0 & 3 == 2
    }

    /// TLB class of data accesses.
    pub fn class(self) -> TlbClass {
        match self.0 >> CLASS_SHIFT & 3 {
            0 => TlbClass::User,
            1 => TlbClass::Supervisor,
            _ => TlbClass::SupervisorUser,
        }
    }

    /// Whether data accesses can be translated inline: 64-bit mode, or 32-bit with flat segments.
    pub fn inline_memory(self) -> bool {
        self.is64() || self.0 & FLAT != 0
    }

    /// Whether pushes and pops can be native: as above, with a 32- or 64-bit stack.
    pub fn inline_stack(self) -> bool {
        self.is64() || self.0 & (FLAT | STACK32) == FLAT | STACK32
    }

    /// Whether instructions of `unit` may run.
    pub fn allows(self, unit: Unit) -> bool {
        match unit {
            Unit::Integer => true,
            Unit::X87 => self.0 & X87 != 0,
            Unit::Sse => self.0 & SSE != 0,
            Unit::Avx => self.0 & AVX != 0,
        }
    }

    /// Whether code runs in 64-bit mode at CPL 0.
    pub fn kernel64(self) -> bool {
        self.is64() && self.0 & KERNEL != 0
    }

    /// Whether RDTSC is allowed.
    pub fn reads_tsc(self) -> bool {
        self.0 & TSC != 0
    }

    /// Whether blocks are one instruction long.
    pub fn step(self) -> bool {
        self.0 & STEP != 0
    }
}

/// TLB class of the CPU's data accesses.
pub fn class(cpu: &Cpu) -> TlbClass {
    if cpu.cpl == 3 {
        TlbClass::User
    } else if cpu.cr4 & control::CR4_SMAP != 0 && cpu.rflags & flag::AC == 0 {
        TlbClass::Supervisor
    } else {
        TlbClass::SupervisorUser
    }
}

/// CS, SS, DS and ES all cover 4 GiB from 0, and the data segments can be read and written.
fn flat(cpu: &Cpu) -> bool {
    let covers = |s: &Segment| s.base == 0 && s.limit == u32::MAX && s.access & Segment::UNUSABLE == 0;
    // Type: bit 3 code, bit 2 expand-down (data) or conforming, bit 1 writable (data) or readable.
    let data = |n: usize| covers(&cpu.segments[n]) && cpu.segments[n].access & 0xe == 2;
    let code = covers(&cpu.segments[seg::CS]) && cpu.segments[seg::CS].access & 0xa == 0xa;
    cpu.protected() && !cpu.virtual_8086() && code && data(seg::SS) && data(seg::DS) && data(seg::ES)
}
