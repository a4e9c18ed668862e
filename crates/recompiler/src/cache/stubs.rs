//! The fixed code at the start of the region: the way into translated code and out of it.

use std::mem::offset_of;

use super::ExitKind;
use crate::cpu::{Cpu, Jit};
use crate::translate::emit::{Code, Mem, R10, R11, RSP};

/// Size and number of the slots for bounced code.
pub const SCRATCH_SLOT: usize = 128;
/// See [`SCRATCH_SLOT`].
pub const SCRATCH_SLOTS: usize = 64;
/// See [`SCRATCH_SLOT`].
pub const SCRATCH_TOTAL: usize = SCRATCH_SLOT * SCRATCH_SLOTS;

/// Offsets of the fixed code.
pub struct Stubs {
    /// Entry: a function without arguments; goes to `jit.target`.
    pub enter: u32,
    exits: [u32; ExitKind::ALL.len()],
}

impl Stubs {
    /// Where code that leaves with `kind` jumps to.
    pub fn exit(&self, kind: ExitKind) -> u32 {
        self.exits[kind as usize - 1]
    }

    /// A field of `Cpu::jit`.
    pub const fn jit(offset: usize) -> Mem {
        Mem::field(offset_of!(Cpu, jit) + offset)
    }

    /// The home of a guest register in the vCPU structure.
    pub const fn home(register: u8) -> Mem {
        Mem::field(offset_of!(Cpu, gpr) + 8 * register as usize)
    }
}

/// Host registers that a callee must preserve (System V ABI).
const SAVED: [u8; 6] = [3, 5, 12, 13, 14, 15];
const RAX: u8 = 0;
const JNE: u8 = 5;

/// Emits the fixed code. `avx`: the host has AVX, so the guest may have it too.
pub fn emit(avx: bool) -> (Code, Stubs) {
    let mut code = Code::default();
    let enter = code.here() as u32;
    emit_enter(&mut code, avx);
    let mut exits = [0; ExitKind::ALL.len()];
    let mut jumps = Vec::new();
    for (kind, at) in ExitKind::ALL.into_iter().zip(&mut exits) {
        *at = code.here() as u32;
        code.store_imm32(Stubs::jit(offset_of!(Jit, exit_kind)), kind as u32);
        jumps.push(code.jmp());
    }
    let common = code.here();
    for at in jumps {
        code.fix(at, common);
    }
    emit_exit(&mut code, avx);
    (code, Stubs { enter, exits })
}

fn guest_registers() -> impl Iterator<Item = u8> {
    // RAX last on entry and first on exit: it carries the flags in between.
    (1..16).filter(|r| ![R10, R11].contains(r))
}

fn emit_enter(code: &mut Code, avx: bool) {
    for r in SAVED {
        push_pop(code, 0x50, r);
    }
    code.store(Stubs::jit(offset_of!(Jit, host_rsp)), RSP);
    // stmxcsr / ldmxcsr: 0F AE /3 and /2.
    code.rm(None, false, &[0x0f, 0xae], 3, Stubs::jit(offset_of!(Jit, host_mxcsr)));
    code.rm(None, false, &[0x0f, 0xae], 2, Mem::field(offset_of!(Cpu, mxcsr)));
    if avx {
        // With all upper halves 0 only the lower ones are loaded: the CPU then knows that the
        // upper halves are clean, and the guest's SSE code does not have to merge into them.
        // cmp dword upper, 0; jne to the full loads
        code.cmp_mem_imm(Stubs::jit(offset_of!(Jit, upper_used)), 0);
        let used = code.jcc(JNE);
        for n in 0..16 {
            vector(code, false, 0x10, 0x6f, n);
        }
        let done = code.jmp();
        let here = code.here();
        code.fix(used, here);
        for n in 0..16 {
            vector(code, true, 0x10, 0x6f, n);
        }
        let here = code.here();
        code.fix(done, here);
    } else {
        for n in 0..16 {
            vector(code, false, 0x10, 0x6f, n);
        }
    }
    // OF comes back by an addition that overflows if AL is 1, the other flags by SAHF.
    code.load32(RAX, Stubs::jit(offset_of!(Jit, flags)));
    code.raw(&[0x04, 0x7f]);
    code.raw(&[0x9e]);
    for r in guest_registers() {
        code.load(r, Stubs::home(r));
    }
    code.load(RAX, Stubs::home(RAX));
    code.jmp_mem(Stubs::jit(offset_of!(Jit, target)));
}

fn emit_exit(code: &mut Code, avx: bool) {
    code.store(Stubs::jit(offset_of!(Jit, value)), R10);
    code.store(Stubs::home(RAX), RAX);
    // lahf; seto al
    code.raw(&[0x9f, 0x0f, 0x90, 0xc0]);
    code.store_sized(Stubs::jit(offset_of!(Jit, flags)), RAX, 4);
    for r in guest_registers() {
        code.store(Stubs::home(r), r);
    }
    code.load(RSP, Stubs::jit(offset_of!(Jit, host_rsp)));
    for n in 0..16 {
        vector(code, avx, 0x11, 0x7f, n);
    }
    if avx {
        // vorps ymm0, ymm0, ymmN for all N; vextractf128 xmm0, ymm0, 1; vptest xmm0, xmm0
        for n in 1..16u8 {
            code.raw(&[0xc4, 0x01 | ((n >> 3 ^ 1) & 1) << 5 | 0xc0, 0x7c, 0x56, 0xc0 | n & 7]);
        }
        code.raw(&[0xc4, 0xe3, 0x7d, 0x19, 0xc0, 1]);
        code.raw(&[0xc4, 0xe2, 0x79, 0x17, 0xc0]);
        // setne al; movzx eax, al
        code.raw(&[0x0f, 0x95, 0xc0, 0x0f, 0xb6, 0xc0]);
        code.store_sized(Stubs::jit(offset_of!(Jit, upper_used)), RAX, 4);
        // vzeroupper: Rust code must not pay for dirty upper halves.
        code.raw(&[0xc5, 0xf8, 0x77]);
    }
    code.rm(None, false, &[0x0f, 0xae], 3, Mem::field(offset_of!(Cpu, mxcsr)));
    code.rm(None, false, &[0x0f, 0xae], 2, Stubs::jit(offset_of!(Jit, host_mxcsr)));
    for r in SAVED.into_iter().rev() {
        push_pop(code, 0x58, r);
    }
    code.raw(&[0xc3]);
}

fn push_pop(code: &mut Code, opcode: u8, register: u8) {
    if register >= 8 {
        code.raw(&[0x41]);
    }
    code.raw(&[opcode | register & 7]);
}

/// Moves one vector register from or to its home: `vmovdqu` with AVX, `movups` without.
fn vector(code: &mut Code, avx: bool, sse_opcode: u8, avx_opcode: u8, n: u8) {
    let field = offset_of!(Cpu, vectors) + 32 * usize::from(n);
    if avx {
        // VEX.256.F3.0F.WIG 6F/7F, with GS and an absolute disp32.
        code.raw(&[0x65, 0xc5, ((n >> 3 ^ 1) & 1) << 7 | 0x7e, avx_opcode, (n & 7) << 3 | 4, 0x25]);
        code.raw(&(field as u32).to_le_bytes());
    } else {
        code.rm(None, false, &[0x0f, sse_opcode], n, Mem::field(field));
    }
}
