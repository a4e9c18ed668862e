//! The list of instructions that may be re-encoded, and what happens to each.
//!
//! Only what is known to be safe and to mean the same at our privilege is on it. Everything else
//! is a Rust function of the system side or #UD.

use iced_x86::{CpuidFeature, Instruction, Mnemonic, OpKind, Register};

/// Which unit an instruction needs; CR0, CR4 and XCR0 decide whether it may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// General registers only.
    Integer,
    /// x87 and MMX.
    X87,
    /// Legacy-encoded SSE.
    Sse,
    /// VEX-encoded.
    Avx,
}

/// What the translator does with an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Re-encoded, with its memory operand rewritten.
    Native(Unit),
    /// `lea`.
    Lea,
    /// Does nothing (nop, prefetch, endbr, pause).
    Nop,
    /// Near push or pop of a register, memory or immediate; `leave`.
    Stack,
    /// Near jump, conditional jump, call or return.
    Branch,
    /// Bit test with a memory operand and a register bit offset.
    BitString,
    /// CLD and STD: DF lives in the vCPU structure.
    Direction,
    /// A system instruction with a form of its own ([`super::inline`]).
    Inline,
    /// Exits to the system side.
    System,
}

/// Classifies one decoded instruction.
pub fn classify(insn: &Instruction) -> Class {
    use Mnemonic as M;
    if insn.is_invalid() || uses_system_operand(insn) {
        return Class::System;
    }
    match insn.mnemonic() {
        M::Lea => Class::Lea,
        M::Nop
        | M::Pause
        | M::Prefetchnta
        | M::Prefetcht0
        | M::Prefetcht1
        | M::Prefetcht2
        | M::Prefetchw
        | M::Prefetch
        | M::Reservednop
        | M::Endbr32
        | M::Endbr64
        | M::Cldemote => Class::Nop,
        M::Push | M::Pop | M::Leave => stack(insn),
        M::Jmp | M::Call | M::Ret => branch(insn),
        M::Cld | M::Std => Class::Direction,
        M::Bt | M::Bts | M::Btr | M::Btc if bit_string(insn) => Class::BitString,
        _ if insn.is_jcc_short_or_near() => Class::Branch,
        _ if integer(insn.mnemonic()) => Class::Native(Unit::Integer),
        _ => vector(insn),
    }
}

/// Segment, control, debug registers and far or implicit memory operands.
fn uses_system_operand(insn: &Instruction) -> bool {
    (0..insn.op_count()).any(|i| match insn.op_kind(i) {
        OpKind::Register => {
            let r = insn.op_register(i);
            r.is_segment_register()
                || r.is_cr()
                || r.is_dr()
                || r.is_tr()
                || r.is_k()
                || r.is_zmm()
                || r.is_bnd()
                || r.is_tmm()
                || (r.is_vector_register() && r.number() > 15)
        }
        OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64 | OpKind::Memory => false,
        OpKind::Immediate8
        | OpKind::Immediate8_2nd
        | OpKind::Immediate16
        | OpKind::Immediate32
        | OpKind::Immediate64
        | OpKind::Immediate8to16
        | OpKind::Immediate8to32
        | OpKind::Immediate8to64
        | OpKind::Immediate32to64 => false,
        _ => true,
    })
}

fn stack(insn: &Instruction) -> Class {
    // 16-bit pushes in 64-bit mode and the like are rare: only the full-width ones are native.
    let segment = insn.op_count() == 1
        && insn.op_kind(0) == OpKind::Register
        && insn.op0_register().is_segment_register();
    if segment { Class::System } else { Class::Stack }
}

fn branch(insn: &Instruction) -> Class {
    if insn.is_jmp_short_or_near()
        || insn.is_call_near()
        || insn.is_jmp_near_indirect()
        || insn.is_call_near_indirect()
    {
        return Class::Branch;
    }
    if insn.mnemonic() == Mnemonic::Ret { Class::Branch } else { Class::System }
}

fn bit_string(insn: &Instruction) -> bool {
    insn.op0_kind() == OpKind::Memory && insn.op1_kind() == OpKind::Register
}

/// General-register instructions.
fn integer(mnemonic: Mnemonic) -> bool {
    basic(mnemonic) || conditional(mnemonic) || extended(mnemonic)
}

/// What the 64-bit architecture began with.
fn basic(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Add
            | M::Or
            | M::Adc
            | M::Sbb
            | M::And
            | M::Sub
            | M::Xor
            | M::Cmp
            | M::Test
            | M::Mov
            | M::Movzx
            | M::Movsx
            | M::Movsxd
            | M::Inc
            | M::Dec
            | M::Neg
            | M::Not
            | M::Mul
            | M::Imul
            | M::Div
            | M::Idiv
            | M::Shl
            | M::Sal
            | M::Shr
            | M::Sar
            | M::Rol
            | M::Ror
            | M::Rcl
            | M::Rcr
            | M::Shld
            | M::Shrd
            | M::Bt
            | M::Bts
            | M::Btr
            | M::Btc
            | M::Bsf
            | M::Bsr
            | M::Bswap
            | M::Xchg
            | M::Xadd
            | M::Cmpxchg
            | M::Cmpxchg8b
            | M::Cmpxchg16b
            | M::Cbw
            | M::Cwde
            | M::Cdqe
            | M::Cwd
            | M::Cdq
            | M::Cqo
            | M::Lahf
            | M::Sahf
            | M::Clc
            | M::Stc
            | M::Cmc
    )
}

/// Conditional moves and sets.
fn conditional(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Cmovo
            | M::Cmovno
            | M::Cmovb
            | M::Cmovae
            | M::Cmove
            | M::Cmovne
            | M::Cmovbe
            | M::Cmova
            | M::Cmovs
            | M::Cmovns
            | M::Cmovp
            | M::Cmovnp
            | M::Cmovl
            | M::Cmovge
            | M::Cmovle
            | M::Cmovg
            | M::Seto
            | M::Setno
            | M::Setb
            | M::Setae
            | M::Sete
            | M::Setne
            | M::Setbe
            | M::Seta
            | M::Sets
            | M::Setns
            | M::Setp
            | M::Setnp
            | M::Setl
            | M::Setge
            | M::Setle
            | M::Setg
    )
}

/// What later processors added, and fences.
fn extended(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Movbe
            | M::Popcnt
            | M::Lzcnt
            | M::Tzcnt
            | M::Crc32
            | M::Andn
            | M::Bextr
            | M::Blsi
            | M::Blsmsk
            | M::Blsr
            | M::Bzhi
            | M::Mulx
            | M::Pdep
            | M::Pext
            | M::Rorx
            | M::Sarx
            | M::Shlx
            | M::Shrx
            | M::Adcx
            | M::Adox
            | M::Rdrand
            | M::Rdseed
            | M::Movnti
            | M::Lfence
            | M::Mfence
            | M::Sfence
    )
}

/// x87, MMX, SSE and AVX by CPUID feature, less what is not a plain load, store or operation.
fn vector(insn: &Instruction) -> Class {
    use CpuidFeature as F;
    use Mnemonic as M;
    let special = matches!(
        insn.mnemonic(),
        // State images hold host addresses or need checks.
        M::Fxsave | M::Fxsave64 | M::Fxrstor | M::Fxrstor64 | M::Fnsave | M::Fsave | M::Frstor | M::Fnstenv
            | M::Fstenv | M::Fldenv | M::Ldmxcsr | M::Vldmxcsr
            // Implicit, masked or gathered memory operands.
            | M::Maskmovq | M::Maskmovdqu | M::Vmaskmovdqu
            | M::Vmaskmovps | M::Vmaskmovpd | M::Vpmaskmovd | M::Vpmaskmovq
            | M::Vgatherdps | M::Vgatherdpd | M::Vgatherqps | M::Vgatherqpd
            | M::Vpgatherdd | M::Vpgatherdq | M::Vpgatherqd | M::Vpgatherqq
            | M::Movdir64b | M::Enqcmd
    ) || insn.memory_base().is_vector_register()
        || insn.memory_index().is_vector_register();
    if special || insn.memory_size().size() == 0 && insn.op_kinds().any(|k| k == OpKind::Memory) {
        return Class::System;
    }
    let features = insn.cpuid_features();
    let all = |allowed: fn(&F) -> bool| features.iter().all(allowed);
    let vex = matches!(insn.encoding(), iced_x86::EncodingKind::VEX);
    let evex = !matches!(insn.encoding(), iced_x86::EncodingKind::Legacy | iced_x86::EncodingKind::VEX);
    let rest = |f: &F| {
        matches!(
            f,
            F::SSE
                | F::SSE2
                | F::SSE3
                | F::SSSE3
                | F::SSE4_1
                | F::SSE4_2
                | F::AES
                | F::PCLMULQDQ
                | F::SHA
                | F::GFNI
                | F::AVX
                | F::AVX2
                | F::FMA
                | F::F16C
                | F::VAES
                | F::VPCLMULQDQ
        )
    };
    let x87 = |f: &F| matches!(f, F::FPU | F::FPU287 | F::FPU387 | F::MMX | F::CMOV | F::INTEL8086);
    if features.is_empty() || evex {
        Class::System
    } else if vex && all(rest) {
        Class::Native(Unit::Avx)
    } else if !vex && all(x87) && is_x87_or_mmx(insn) {
        Class::Native(Unit::X87)
    } else if !vex && features.iter().all(|f| rest(f) || *f == F::MMX) {
        if uses_mmx(insn) { Class::Native(Unit::X87) } else { Class::Native(Unit::Sse) }
    } else if !vex && insn.mnemonic() == M::Fisttp {
        Class::Native(Unit::X87)
    } else {
        Class::System
    }
}

fn uses_mmx(insn: &Instruction) -> bool {
    (0..insn.op_count()).any(|i| insn.op_kind(i) == OpKind::Register && insn.op_register(i).is_mm())
}

fn is_x87_or_mmx(insn: &Instruction) -> bool {
    use CpuidFeature as F;
    let features = insn.cpuid_features();
    uses_mmx(insn)
        || features.contains(&F::MMX)
        || features.contains(&F::FPU)
        || features.contains(&F::FPU287)
        || features.contains(&F::FPU387)
        || insn.mnemonic() == Mnemonic::Wait
}

/// Whether a register is one of the two that live in the vCPU structure.
pub fn displaced(register: Register) -> bool {
    register.is_gpr() && matches!(register.full_register(), Register::R10 | Register::R11)
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Decoder, DecoderOptions};

    fn class(bytes: &[u8]) -> Class {
        classify(&Decoder::new(64, bytes, DecoderOptions::NONE).decode())
    }

    #[test]
    fn ordinary_instructions_are_native_and_privileged_ones_are_not() {
        use Class::*;
        for (bytes, expected) in [
            (&[0x48, 0x01, 0xd8][..], Native(Unit::Integer)),
            (&[0xf3, 0x0f, 0xb8, 0xc1], Native(Unit::Integer)), // popcnt
            (&[0x0f, 0x58, 0xc1], Native(Unit::Sse)),           // addps
            (&[0xc5, 0xfc, 0x58, 0xc1], Native(Unit::Avx)),     // vaddps ymm
            (&[0xd8, 0xc1], Native(Unit::X87)),                 // fadd
            (&[0xdb, 0x28], Native(Unit::X87)),                 // fld m80
            (&[0xdf, 0xe0], Native(Unit::X87)),                 // fnstsw ax
            (&[0xd9, 0x38], Native(Unit::X87)),                 // fnstcw
            (&[0x9b], Native(Unit::X87)),                       // wait
            (&[0xdf, 0xf1], Native(Unit::X87)),                 // fcomip
            (&[0xdb, 0x08], Native(Unit::X87)),                 // fisttp
            (&[0x0f, 0xfe, 0xc1], Native(Unit::X87)),           // paddd mm
            (&[0x66, 0x0f, 0xfe, 0xc1], Native(Unit::Sse)),     // paddd xmm
            (&[0x0f, 0x77], Native(Unit::X87)),                 // emms
            (&[0xf0, 0x48, 0x0f, 0xb1, 0x0f], Native(Unit::Integer)),
            (&[0x0f, 0xae, 0x00], System),                      // fxsave
            (&[0xd9, 0x30], System),                            // fnstenv
            (&[0x0f, 0x22, 0xd8], System),                      // mov cr3
            (&[0x8e, 0xd8], System),                            // mov ds
            (&[0xf4], System),                                  // hlt
            (&[0xa4], System),                                  // movsb
            (&[0xcf], System),                                  // iret
            (&[0x0f, 0x05], System),                            // syscall
            (&[0x62, 0xf1, 0x7c, 0x48, 0x58, 0xc1], System),    // vaddps zmm
            (&[0xc4, 0xe2, 0x7d, 0x90, 0x04, 0x08], System),    // gather
            (&[0x0f, 0xa2], System),                            // cpuid
            (&[0x0f, 0xa3, 0x08], BitString),                   // bt [rax],ecx
            (&[0x0f, 0xba, 0x20, 0x05], Native(Unit::Integer)), // bt [rax],5
            (&[0xe8, 0, 0, 0, 0], Branch),
            (&[0x74, 0], Branch),
            (&[0xc3], Branch),
            (&[0xe2, 0], System),    // loop
            (&[0xff, 0x28], System), // jmp far
            (&[0x50], Stack),
            (&[0x0f, 0xa0], System), // push fs
            (&[0xfc], Direction),
        ] {
            assert_eq!(class(bytes), expected, "{bytes:02x?}");
        }
    }
}
