//! From what a kernel asks for to the registers of the processor that starts it.

use boot::{Entry, Mode};
use engine::{Segment, TableRegister, VcpuState, reg, seg};

/// Control register and EFER bits (Intel SDM vol. 3, 2.5 and 2.2.1).
const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_NE: u64 = 1 << 5;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// RFLAGS bit 1 is always set.
const RFLAGS_FIXED: u64 = 2;

/// Accessed code (execute, read) and data (read, write) segments, present, at privilege level 0.
const CODE: u32 = Segment::NON_SYSTEM | Segment::PRESENT | 0xb;
const DATA: u32 = Segment::NON_SYSTEM | Segment::PRESENT | 0x3;
/// A busy 32-bit task state segment.
const TSS: u32 = Segment::PRESENT | 0xb;
const TSS_LIMIT: u32 = 0x67;

/// IA32_MTRR_DEF_TYPE, as firmware leaves it: MTRRs on, all memory write-back. With MTRRs off Linux
/// does without page attributes.
const MTRR_DEF_TYPE: u32 = 0x2ff;
const MTRR_WRITE_BACK: u64 = 1 << 11 | 6;

/// IA32_TIME_STAMP_COUNTER: writing back what was read would set this vCPU's clock back.
const TSC: u32 = 0x10;

/// Puts the entry state into a vCPU's state after reset.
pub fn apply(entry: &Entry, state: &mut VcpuState) {
    let flat = |access: u32, selector: u16| Segment {
        base: 0,
        limit: u32::MAX,
        access: access | Segment::GRANULAR,
        selector,
    };
    let data = flat(DATA | Segment::BIG, entry.data);
    let code = match entry.mode {
        Mode::Long => flat(CODE | Segment::LONG, entry.code),
        Mode::Protected32 => flat(CODE | Segment::BIG, entry.code),
    };
    state.segments = [data; 8];
    state.segments[seg::CS] = code;
    state.segments[seg::LDTR] = Segment { base: 0, limit: 0, access: Segment::UNUSABLE, selector: 0 };
    state.segments[seg::TR] = Segment { base: 0, limit: TSS_LIMIT, access: TSS, selector: entry.tss };
    state.gdtr = TableRegister { base: entry.gdt_base, limit: entry.gdt_limit };
    state.idtr = TableRegister { base: 0, limit: 0 };
    state.gpr = [0; 16];
    state.gpr[reg::RSI] = entry.rsi;
    state.gpr[reg::RBX] = entry.rbx;
    state.gpr[reg::RAX] = entry.rax;
    state.gpr[reg::RSP] = entry.rsp;
    state.rip = entry.rip;
    state.rflags = RFLAGS_FIXED;
    state.cr0 = CR0_PE | CR0_ET | CR0_NE;
    (state.cr3, state.cr4, state.efer) = (entry.cr3, 0, 0);
    if entry.mode == Mode::Long {
        state.cr0 |= CR0_PG;
        state.cr4 = CR4_PAE;
        state.efer = EFER_LME | EFER_LMA;
    }
    state.msrs.retain(|(index, _)| ![MTRR_DEF_TYPE, TSC].contains(index));
    state.msrs.push((MTRR_DEF_TYPE, MTRR_WRITE_BACK));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(mode: Mode) -> Entry {
        Entry {
            mode,
            rip: 0x100_0200,
            rsi: 0x7000,
            rbx: 0,
            rax: 0,
            rsp: 0,
            cr3: 0x9000,
            gdt_base: 0x1000,
            gdt_limit: 0x27,
            code: 0x10,
            data: 0x18,
            tss: 0x20,
        }
    }

    #[test]
    fn long_mode_and_protected_mode_are_complete() {
        let mut state = VcpuState::reset(0);
        state.msrs = vec![(TSC, 12345)];
        apply(&entry(Mode::Long), &mut state);
        assert_eq!((state.cr0, state.cr4, state.efer, state.cr3), (0x8000_0031, 0x20, 0x500, 0x9000));
        assert_eq!((state.segments[seg::CS].access, state.segments[seg::SS].access), (0xa09b, 0xc093));
        assert_eq!((state.rip, state.gpr[reg::RSI], state.rflags), (0x100_0200, 0x7000, 2));
        apply(&entry(Mode::Protected32), &mut state);
        assert_eq!((state.cr0, state.cr4, state.efer), (0x31, 0, 0));
        assert_eq!((state.segments[seg::CS].access, state.segments[seg::TR].limit), (0xc09b, 0x67));
        assert_eq!(state.msrs, [(0x2ff, 0x806)]);
    }
}
