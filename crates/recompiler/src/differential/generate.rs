//! Random states and instruction sequences.

use iced_x86::{
    Code, CpuidFeature, Encoder, FastFormatter, Instruction, MemoryOperand, Mnemonic, OpCodeOperandKind as K,
    OpKind, Register,
};

use super::random::Random;
use crate::translate::classify::{Class, Unit, classify};

/// Linear addresses, the same natively and in the guest.
pub const CODE: u64 = 0x2000_0000_0000;
/// See [`CODE`].
pub const DATA: u64 = 0x1000_0000_0000;
/// Bytes of data that are compared: a few pages, so that accesses cross them.
pub const DATA_SIZE: usize = 4 * 4096;

/// Everything that is compared.
#[derive(Clone, Default)]
pub struct State {
    pub gpr: [u64; 16],
    pub flags: u64,
    pub vectors: [[u64; 4]; 16],
    pub mxcsr: u32,
    pub x87: X87,
    pub data: Vec<u8>,
    pub completed: bool,
}

/// An FXSAVE image; only its x87 part is used.
#[derive(Clone)]
#[repr(C, align(16))]
pub struct X87(pub [u8; 512]);

impl Default for X87 {
    fn default() -> Self {
        Self([0; 512])
    }
}

impl State {
    /// Random values, small and special ones among them.
    pub fn random(random: &mut Random) -> Self {
        let mut state = Self { mxcsr: 0x1f80, data: vec![0; DATA_SIZE], completed: true, ..Self::default() };
        for r in &mut state.gpr {
            *r = value(random);
        }
        state.flags = random.next() & crate::cpu::ARITHMETIC_FLAGS;
        for v in state.vectors.iter_mut().flatten() {
            *v = value(random);
        }
        for chunk in state.data.chunks_exact_mut(8) {
            chunk.copy_from_slice(&value(random).to_le_bytes());
        }
        let image = &mut state.x87.0;
        image[0..2].copy_from_slice(&0x37fu16.to_le_bytes());
        image[24..28].copy_from_slice(&0x1f80u32.to_le_bytes());
        // Registers that were loaded from numbers, all in use.
        image[4] = 0xff;
        for n in 0..8 {
            let at = 32 + 16 * n;
            let mantissa = random.next() | 1 << 63;
            image[at..at + 8].copy_from_slice(&mantissa.to_le_bytes());
            let exponent = (0x3fff + random.below(64)) as u16 | ((random.next() & 1) << 15) as u16;
            image[at + 8..at + 10].copy_from_slice(&exponent.to_le_bytes());
        }
        state
    }

    /// Loads the x87 state into the FPU of this thread.
    pub fn put_x87(&self) {
        // SAFETY: a valid, aligned image; clobbers are declared.
        unsafe {
            std::arch::asm!("fxrstor64 [{}]", in(reg) self.x87.0.as_ptr(),
                out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _, out("xmm4") _, out("xmm5") _,
                out("xmm6") _, out("xmm7") _, out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
                out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _, options(nostack));
        }
    }

    /// Takes the x87 state of this thread, less opcode and pointers.
    pub fn take_x87(&mut self) {
        // SAFETY: an aligned image of ours.
        unsafe {
            std::arch::asm!("fxsave64 [{}]", "fninit", in(reg) self.x87.0.as_mut_ptr(), options(nostack));
        };
        self.x87.0[6..32].fill(0);
        self.x87.0[160..].fill(0);
    }

    /// The first difference, if any.
    pub fn difference(&self, other: &Self) -> Option<String> {
        for n in 0..16 {
            if self.gpr[n] != other.gpr[n] {
                return Some(format!("gpr {n}: host {:#x}, engine {:#x}", self.gpr[n], other.gpr[n]));
            }
        }
        if !other.completed {
            return Some("the engine did not come to the end".into());
        }
        if self.flags != other.flags {
            return Some(format!("flags: host {:#x}, engine {:#x}", self.flags, other.flags));
        }
        for n in 0..16 {
            if self.vectors[n] != other.vectors[n] {
                return Some(format!("ymm{n}: host {:x?}, engine {:x?}", self.vectors[n], other.vectors[n]));
            }
        }
        if self.mxcsr != other.mxcsr {
            return Some(format!("mxcsr: host {:#x}, engine {:#x}", self.mxcsr, other.mxcsr));
        }
        if let Some(at) = (0..160).find(|&n| self.x87.0[n] != other.x87.0[n]) {
            return Some(format!("x87 image differs at byte {at}"));
        }
        let at = (0..DATA_SIZE).find(|&n| self.data[n] != other.data[n])?;
        Some(format!("data at {at:#x}: host {:#x}, engine {:#x}", self.data[at], other.data[at]))
    }
}

fn value(random: &mut Random) -> u64 {
    match random.below(8) {
        0 => random.below(256),
        1 => u64::MAX - random.below(256),
        2 => 1 << random.below(64),
        3 => f64::to_bits(random.below(1000) as f64 / 8.0),
        4 => u64::from(f32::to_bits(random.below(1000) as f32 / 8.0)) * 0x1_0000_0001,
        _ => random.next(),
    }
}

/// A sequence of instructions.
pub struct Sequence {
    /// Offset of the code in the code area.
    pub start: u64,
    /// Number of instructions.
    pub count: u64,
    pub code: Vec<u8>,
    insns: Vec<Instruction>,
}

impl Sequence {
    /// The code with a HLT at its end.
    pub fn guest_code(&self) -> Vec<u8> {
        let mut code = self.code.clone();
        code.push(0xf4);
        code
    }

    /// The instructions as text.
    pub fn listing(&self) -> String {
        let mut formatter = FastFormatter::new();
        let mut out = String::new();
        for insn in &self.insns {
            formatter.format(insn, &mut out);
            out.push('\n');
        }
        out
    }
}

/// Makes sequences out of the instruction forms that the translator re-encodes.
pub struct Generator {
    forms: Vec<Code>,
    encoder: Encoder,
}

/// Forms that are not compared: they differ from run to run, trap at random, or need set-up.
fn unsuitable(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Rdrand | M::Rdseed | M::Div | M::Idiv | M::Fldcw | M::Wait | M::Fldenv | M::Cmpxchg16b | M::Emms | M::Bound
            // Transcendentals keep the host's microcode busy for nothing.
            | M::Fsin | M::Fcos | M::Fsincos | M::Fptan | M::Fpatan | M::F2xm1 | M::Fyl2x | M::Fyl2xp1 | M::Fprem
            | M::Fprem1 | M::Fbstp
    )
}

fn host_has(features: &[CpuidFeature]) -> bool {
    use CpuidFeature as F;
    features.iter().all(|f| match f {
        F::AVX => is_x86_feature_detected!("avx"),
        F::AVX2 => is_x86_feature_detected!("avx2"),
        F::FMA => is_x86_feature_detected!("fma"),
        F::F16C => is_x86_feature_detected!("f16c"),
        F::BMI1 => is_x86_feature_detected!("bmi1"),
        F::BMI2 => is_x86_feature_detected!("bmi2"),
        F::ADX => is_x86_feature_detected!("adx"),
        F::AES => is_x86_feature_detected!("aes"),
        F::PCLMULQDQ => is_x86_feature_detected!("pclmulqdq"),
        F::SHA => is_x86_feature_detected!("sha"),
        F::GFNI => is_x86_feature_detected!("gfni"),
        F::VAES => is_x86_feature_detected!("vaes"),
        F::VPCLMULQDQ => is_x86_feature_detected!("vpclmulqdq"),
        F::MOVBE => is_x86_feature_detected!("movbe"),
        F::POPCNT => is_x86_feature_detected!("popcnt"),
        F::LZCNT => is_x86_feature_detected!("lzcnt"),
        F::SSE4_1 => is_x86_feature_detected!("sse4.1"),
        F::SSE4_2 => is_x86_feature_detected!("sse4.2"),
        F::TBM | F::XOP | F::LWP | F::CYRIX_FPU => false,
        _ => true,
    })
}

impl Generator {
    /// Collects the forms.
    pub fn new() -> Self {
        let forms = Code::values()
            .filter(|code| {
                let op = code.op_code();
                op.mode64()
                    && op.is_instruction()
                    && op.decoder_option() == 0
                    && !unsuitable(code.mnemonic())
                    && host_has(code.cpuid_features())
            })
            .filter(|&code| {
                let mut probe = Random::new(7);
                (0..4).any(|_| random_form(code, &mut probe).is_some_and(|i| suitable_class(&i)))
            })
            .collect();
        Self { forms, encoder: Encoder::new(64) }
    }

    /// A random sequence.
    pub fn sequence(&mut self, random: &mut Random) -> Sequence {
        let mut sequence =
            Sequence { start: random.below(400) * 64, count: 0, code: Vec::new(), insns: Vec::new() };
        let wanted = 4 + random.below(24);
        while sequence.count < wanted {
            let code = *random.pick(&self.forms);
            let Some(insn) = random_form(code, random) else { continue };
            if !suitable_class(&insn) {
                continue;
            }
            for part in placed(insn, random) {
                self.push(&mut sequence, part);
            }
        }
        sequence
    }

    fn push(&mut self, sequence: &mut Sequence, insn: Instruction) {
        let rip = CODE + sequence.start + sequence.code.len() as u64;
        self.encoder.set_buffer(std::mem::take(&mut sequence.code));
        let length = self.encoder.encode(&insn, rip);
        sequence.code = self.encoder.take_buffer();
        if let Ok(length) = length {
            let mut insn = insn;
            insn.set_next_ip(rip + length as u64);
            sequence.insns.push(insn);
            sequence.count += 1;
        }
    }
}

fn suitable_class(insn: &Instruction) -> bool {
    matches!(classify(insn), Class::Native(_) | Class::Lea | Class::BitString | Class::Stack)
}

/// The instruction with registers set so that its memory operand lies in the data area.
fn placed(insn: Instruction, random: &mut Random) -> Vec<Instruction> {
    let mov = |r: Register, v: u64| Instruction::with2(Code::Mov_r64_imm64, r, v).unwrap();
    let mut parts = Vec::new();
    let mut insn = insn;
    let stack = classify(&insn) == Class::Stack;
    if stack {
        parts.push(mov(Register::RSP, DATA + 4096 + random.below(8192)));
    }
    if insn.mnemonic() == Mnemonic::Leave {
        parts.push(mov(Register::RBP, DATA + 4096 + random.below(8192)));
    }
    if !insn.op_kinds().any(|k| k == OpKind::Memory) || classify(&insn) == Class::Lea {
        parts.push(insn);
        return parts;
    }
    let size = insn.memory_size().size().max(1) as u64;
    let vector = matches!(classify(&insn), Class::Native(Unit::Sse | Unit::Avx));
    let align = if vector || size >= 16 { size.next_power_of_two() } else { 1 };
    let at = (DATA + 1024 + random.below(DATA_SIZE as u64 - 2048 - size)) & !(align - 1);
    if classify(&insn) == Class::BitString {
        parts.push(mov(insn.op1_register().full_register(), random.below(4000).wrapping_sub(2000)));
    }
    let used: Vec<Register> = (0..insn.op_count())
        .filter(|&i| insn.op_kind(i) == OpKind::Register)
        .map(|i| insn.op_register(i).full_register())
        .collect();
    let free = |r: &Register| !(used.contains(r) || stack && *r == Register::RSP);
    let gprs: Vec<Register> = (0..16).map(|n| Register::RAX + n).filter(free).collect();
    let base = *random.pick(&gprs);
    match random.below(4) {
        0 => {
            insn.set_memory_base(base);
            insn.set_memory_displacement64(0);
            insn.set_memory_displ_size(0);
            parts.push(mov(base, at));
        }
        1 => {
            let disp = random.below(200) as i64 - 100;
            insn.set_memory_base(base);
            insn.set_memory_displacement64(disp as u64);
            insn.set_memory_displ_size(1);
            parts.push(mov(base, at.wrapping_sub(disp as u64)));
        }
        _ => {
            let others: Vec<Register> =
                gprs.iter().copied().filter(|r| *r != base && *r != Register::RSP).collect();
            let index = *random.pick(&others);
            let scale = 1 << random.below(4);
            let offset = random.below(64);
            insn.set_memory_base(base);
            insn.set_memory_index(index);
            insn.set_memory_index_scale(scale);
            insn.set_memory_displacement64(16);
            insn.set_memory_displ_size(8);
            parts.push(mov(base, at.wrapping_sub(16).wrapping_sub(offset * u64::from(scale))));
            parts.push(mov(index, offset));
        }
    }
    if insn.mnemonic() != Mnemonic::Xchg && insn.op_code().can_use_lock_prefix() && random.one_in(3) {
        insn.set_has_lock_prefix(true);
    }
    parts.push(insn);
    parts
}

fn register(random: &mut Random, first: Register, count: u64) -> Register {
    first + random.below(count) as u32
}

/// The form with random registers and immediates, and a memory operand without an address.
fn random_form(code: Code, random: &mut Random) -> Option<Instruction> {
    let op = code.op_code();
    let mut insn = Instruction::default();
    insn.set_code(code);
    let no_rex = random.one_in(4);
    for i in 0..op.op_count() {
        let memory = |insn: &mut Instruction| {
            insn.set_op_kind(i, OpKind::Memory);
            let m = MemoryOperand::with_base(Register::RBX);
            insn.set_memory_base(m.base);
        };
        let mut reg = |insn: &mut Instruction, first: Register| {
            let count = match first {
                Register::MM0 | Register::ST0 => 8,
                _ => 16,
            };
            insn.set_op_kind(i, OpKind::Register);
            let r = if first == Register::AL && no_rex {
                register(random, Register::AL, 8)
            } else if first == Register::AL {
                byte(random.below(16) as u32)
            } else {
                register(random, first, count)
            };
            insn.set_op_register(i, r);
        };
        match op.op_kind(i) {
            K::mem => memory(&mut insn),
            K::r8_or_mem
            | K::r16_or_mem
            | K::r32_or_mem
            | K::r64_or_mem
            | K::mm_or_mem
            | K::xmm_or_mem
            | K::ymm_or_mem
                if random_memory(code, no_rex) =>
            {
                memory(&mut insn);
            }
            K::r8_or_mem | K::r8_reg => reg(&mut insn, Register::AL),
            K::r16_or_mem | K::r16_reg | K::r16_rm | K::r16_opcode => reg(&mut insn, Register::AX),
            K::r32_or_mem | K::r32_reg | K::r32_rm | K::r32_vvvv | K::r32_opcode => {
                reg(&mut insn, Register::EAX);
            }
            K::r64_or_mem | K::r64_reg | K::r64_rm | K::r64_vvvv | K::r64_opcode => {
                reg(&mut insn, Register::RAX);
            }
            K::r8_opcode => reg(&mut insn, Register::AL),
            K::mm_or_mem | K::mm_reg | K::mm_rm => reg(&mut insn, Register::MM0),
            K::xmm_or_mem | K::xmm_reg | K::xmm_rm | K::xmm_vvvv | K::xmm_is4 => {
                reg(&mut insn, Register::XMM0);
            }
            K::ymm_or_mem | K::ymm_reg | K::ymm_rm | K::ymm_vvvv | K::ymm_is4 => {
                reg(&mut insn, Register::YMM0);
            }
            K::al => fixed(&mut insn, i, Register::AL),
            K::cl => fixed(&mut insn, i, Register::CL),
            K::ax => fixed(&mut insn, i, Register::AX),
            K::eax => fixed(&mut insn, i, Register::EAX),
            K::rax => fixed(&mut insn, i, Register::RAX),
            K::st0 => fixed(&mut insn, i, Register::ST0),
            K::sti_opcode => reg(&mut insn, Register::ST0),
            kind if immediate(&mut insn, i, kind, random) => {}
            _ => return None,
        }
    }
    Some(insn)
}

/// Sets operand `i` to a random immediate of this kind; false if it is none.
fn immediate(insn: &mut Instruction, i: u32, kind: K, random: &mut Random) -> bool {
    match kind {
        K::imm8 => {
            insn.set_op_kind(i, OpKind::Immediate8);
            insn.set_immediate8(random.next() as u8);
        }
        K::imm8_const_1 => {
            insn.set_op_kind(i, OpKind::Immediate8);
            insn.set_immediate8(1);
        }
        K::imm8sex16 => small(insn, i, OpKind::Immediate8to16, random),
        K::imm8sex32 => small(insn, i, OpKind::Immediate8to32, random),
        K::imm8sex64 => small(insn, i, OpKind::Immediate8to64, random),
        K::imm16 => {
            insn.set_op_kind(i, OpKind::Immediate16);
            insn.set_immediate16(random.next() as u16);
        }
        K::imm32 => {
            insn.set_op_kind(i, OpKind::Immediate32);
            insn.set_immediate32(random.next() as u32);
        }
        K::imm32sex64 => {
            insn.set_op_kind(i, OpKind::Immediate32to64);
            insn.set_immediate32to64(random.next() as i32 as i64);
        }
        K::imm64 => {
            insn.set_op_kind(i, OpKind::Immediate64);
            insn.set_immediate64(random.next());
        }
        _ => return false,
    }
    true
}

fn random_memory(code: Code, coin: bool) -> bool {
    // Both kinds come up over a run: the coin is fair enough with the form's number mixed in.
    coin ^ (code as u32).is_multiple_of(2)
}

fn byte(number: u32) -> Register {
    match number {
        0..4 => Register::AL + number,
        4..8 => Register::SPL + (number - 4),
        _ => Register::R8L + (number - 8),
    }
}

fn fixed(insn: &mut Instruction, op: u32, register: Register) {
    insn.set_op_kind(op, OpKind::Register);
    insn.set_op_register(op, register);
}

fn small(insn: &mut Instruction, op: u32, kind: OpKind, random: &mut Random) {
    insn.set_op_kind(op, kind);
    match kind {
        OpKind::Immediate8to16 => insn.set_immediate8to16(random.next() as i8 as i16),
        OpKind::Immediate8to32 => insn.set_immediate8to32(random.next() as i8 as i32),
        _ => insn.set_immediate8to64(random.next() as i8 as i64),
    }
}
