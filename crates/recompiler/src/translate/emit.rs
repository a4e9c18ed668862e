//! Raw x86-64 machine code: the few fixed forms that the translator adds around re-encoded guest
//! instructions. Encodings: Intel SDM vol. 2, chapter 2.

/// Host scratch registers; their guest namesakes live in the vCPU structure.
pub const R10: u8 = 10;
/// See [`R10`].
pub const R11: u8 = 11;
/// RCX, which JRCXZ tests.
pub const RCX: u8 = 1;
/// The guest's stack pointer, in the host's.
pub const RSP: u8 = 4;

/// A memory operand.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mem {
    /// Relative to the vCPU structure (GS).
    pub gs: bool,
    /// Base register.
    pub base: Option<u8>,
    /// Index register (not RSP) and log2 of its scale.
    pub index: Option<(u8, u8)>,
    /// Displacement.
    pub disp: i32,
}

impl Mem {
    /// A field of the vCPU structure.
    pub const fn field(offset: usize) -> Self {
        Self { gs: true, base: None, index: None, disp: offset as i32 }
    }

    /// A field at a register's value, times 2^`scale`, in the vCPU structure.
    pub const fn indexed_field(offset: usize, index: u8, scale: u8) -> Self {
        if scale == 0 {
            return Self { gs: true, base: Some(index), index: None, disp: offset as i32 };
        }
        Self { gs: true, base: None, index: Some((index, scale)), disp: offset as i32 }
    }

    /// Memory at a register.
    pub const fn at(base: u8, disp: i32) -> Self {
        Self { gs: false, base: Some(base), index: None, disp }
    }
}

/// A growing piece of code.
#[derive(Default)]
pub struct Code {
    bytes: Vec<u8>,
}

impl Code {
    /// Length so far: the offset of the next byte.
    pub fn here(&self) -> usize {
        self.bytes.len()
    }

    /// The code.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Drops everything from `length` on.
    pub fn truncate(&mut self, length: usize) {
        self.bytes.truncate(length);
    }

    /// Appends raw bytes.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The underlying buffer, for an encoder that appends to it.
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.bytes)
    }

    /// Gives the buffer of [`Code::take`] back.
    pub fn restore(&mut self, bytes: Vec<u8>) {
        self.bytes = bytes;
    }

    /// `opcode reg, mem` (or the other way round, as the opcode says). `prefix` is a mandatory
    /// prefix; `w` sets REX.W.
    pub fn rm(&mut self, prefix: Option<u8>, w: bool, opcode: &[u8], reg: u8, mem: Mem) {
        if mem.gs {
            self.bytes.push(0x65);
        }
        self.bytes.extend(prefix);
        let (index, scale) = mem.index.unwrap_or((4, 0));
        let base = mem.base.unwrap_or(5);
        let rex = 0x40 | u8::from(w) << 3 | (reg >> 3 & 1) << 2 | (index >> 3 & 1) << 1 | (base >> 3 & 1);
        if rex != 0x40 {
            self.bytes.push(rex);
        }
        self.bytes.extend_from_slice(opcode);
        self.mem_operand(reg, mem, base, index, scale);
    }

    /// ModRM, SIB and displacement.
    fn mem_operand(&mut self, reg: u8, mem: Mem, base: u8, index: u8, scale: u8) {
        let reg = (reg & 7) << 3;
        let need_sib = mem.index.is_some() || mem.base.is_none() || base & 7 == 4;
        // Mode 0 with base 5 means "no base, disp32"; so rbp and r13 always take a displacement.
        let mode = match mem {
            Mem { base: None, .. } => 0,
            Mem { disp: 0, .. } if base & 7 != 5 => 0,
            Mem { disp, .. } if i8::try_from(disp).is_ok() => 1,
            _ => 2,
        };
        if need_sib {
            self.bytes.push(mode << 6 | reg | 4);
            self.bytes.push(scale << 6 | (index & 7) << 3 | base & 7);
        } else {
            self.bytes.push(mode << 6 | reg | base & 7);
        }
        match mode {
            1 => self.bytes.push(mem.disp as u8),
            0 if mem.base.is_some() => {}
            _ => self.bytes.extend_from_slice(&mem.disp.to_le_bytes()),
        }
    }

    /// `opcode reg, rm` between registers.
    pub fn rr(&mut self, w: bool, opcode: &[u8], reg: u8, rm: u8) {
        let rex = 0x40 | u8::from(w) << 3 | (reg >> 3 & 1) << 2 | (rm >> 3 & 1);
        if rex != 0x40 {
            self.bytes.push(rex);
        }
        self.bytes.extend_from_slice(opcode);
        self.bytes.push(0xc0 | (reg & 7) << 3 | rm & 7);
    }

    /// `mov reg, mem`, 64 bits.
    pub fn load(&mut self, reg: u8, mem: Mem) {
        self.rm(None, true, &[0x8b], reg, mem);
    }

    /// `mov reg32, mem`: zero-extends.
    pub fn load32(&mut self, reg: u8, mem: Mem) {
        self.rm(None, false, &[0x8b], reg, mem);
    }

    /// `mov mem, reg`, 64 bits.
    pub fn store(&mut self, mem: Mem, reg: u8) {
        self.rm(None, true, &[0x89], reg, mem);
    }

    /// `mov mem, reg` of 2, 4 or 8 bytes.
    pub fn store_sized(&mut self, mem: Mem, reg: u8, size: u32) {
        self.rm((size == 2).then_some(0x66), size == 8, &[0x89], reg, mem);
    }

    /// `mov reg, reg`, 64 bits.
    pub fn mov(&mut self, to: u8, from: u8) {
        self.rr(true, &[0x8b], to, from);
    }

    /// `lea reg, mem`; with `w` false the result is cut to 32 bits. Leaves flags alone.
    pub fn lea(&mut self, w: bool, reg: u8, mem: Mem) {
        self.rm(None, w, &[0x8d], reg, mem);
    }

    /// The shortest `mov reg, value`. Leaves flags alone.
    pub fn mov_imm(&mut self, reg: u8, value: u64) {
        let low = reg & 7;
        if let Ok(v) = u32::try_from(value) {
            if reg >= 8 {
                self.bytes.push(0x41);
            }
            self.bytes.push(0xb8 | low);
            self.bytes.extend_from_slice(&v.to_le_bytes());
        } else if let Ok(v) = i32::try_from(value as i64) {
            self.bytes.extend_from_slice(&[0x48 | (reg >> 3), 0xc7, 0xc0 | low]);
            self.bytes.extend_from_slice(&v.to_le_bytes());
        } else {
            self.bytes.extend_from_slice(&[0x48 | (reg >> 3), 0xb8 | low]);
            self.bytes.extend_from_slice(&value.to_le_bytes());
        }
    }

    /// `mov dword mem, imm`.
    pub fn store_imm32(&mut self, mem: Mem, value: u32) {
        self.rm(None, false, &[0xc7], 0, mem);
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    /// `mov qword mem, simm32`.
    pub fn store_simm32(&mut self, mem: Mem, value: i32) {
        self.rm(None, true, &[0xc7], 0, mem);
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    /// `cmp reg, imm32`, 64 bits.
    pub fn cmp_imm(&mut self, reg: u8, value: i32) {
        self.rr(true, &[0x81], 7, reg);
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    /// `cmp dword mem, imm32`.
    pub fn cmp_mem_imm(&mut self, mem: Mem, value: u32) {
        self.rm(None, false, &[0x81], 7, mem);
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    /// `pext to, from, mem` (VEX.NDS.LZ.F3.0F38.W1 F5 /r): leaves flags alone.
    pub fn pext(&mut self, to: u8, from: u8, mask_field: usize) {
        let not = |high: u8| (high ^ 1) & 1;
        self.bytes.extend_from_slice(&[
            0x65,
            0xc4,
            not(to >> 3) << 7 | 1 << 6 | 1 << 5 | 2,
            1 << 7 | (!from & 15) << 3 | 2,
            0xf5,
            (to & 7) << 3 | 4,
            0x25,
        ]);
        self.bytes.extend_from_slice(&(mask_field as u32).to_le_bytes());
    }

    /// `not reg`, 64 bits: leaves flags alone.
    pub fn not(&mut self, reg: u8) {
        self.rr(true, &[0xf7], 2, reg);
    }

    /// `jmp rel32` to be fixed up; returns the offset of the displacement.
    pub fn jmp(&mut self) -> usize {
        self.bytes.extend_from_slice(&[0xe9, 0, 0, 0, 0]);
        self.here() - 4
    }

    /// `jcc rel32` to be fixed up; `condition` as in the opcode's low four bits.
    pub fn jcc(&mut self, condition: u8) -> usize {
        self.bytes.extend_from_slice(&[0x0f, 0x80 | condition, 0, 0, 0, 0]);
        self.here() - 4
    }

    /// `jrcxz rel8` to be fixed up by [`Code::fix8`].
    pub fn jrcxz(&mut self) -> usize {
        self.bytes.extend_from_slice(&[0xe3, 0]);
        self.here() - 1
    }

    /// `jmp qword mem`.
    pub fn jmp_mem(&mut self, mem: Mem) {
        self.rm(None, false, &[0xff], 4, mem);
    }

    /// Points a rel8 at here.
    pub fn fix8(&mut self, at: usize) {
        let distance = self.here() - at - 1;
        debug_assert!(distance < 128);
        self.bytes[at] = distance as u8;
    }

    /// Points a rel32 at offset `target` of this piece.
    pub fn fix(&mut self, at: usize, target: usize) {
        self.fix_to(at, target as i64);
    }

    /// Points a rel32 at `target`, an offset relative to the start of this piece that may lie
    /// outside of it.
    pub fn fix_to(&mut self, at: usize, target: i64) {
        let relative = (target - (at as i64 + 4)) as i32;
        self.bytes[at..at + 4].copy_from_slice(&relative.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Decoder, DecoderOptions, FastFormatter};

    fn text(emit: impl Fn(&mut Code)) -> String {
        let mut code = Code::default();
        emit(&mut code);
        let mut out = String::new();
        let mut formatter = FastFormatter::new();
        for insn in &mut Decoder::new(64, code.bytes(), DecoderOptions::NONE) {
            if !out.is_empty() {
                out.push_str("; ");
            }
            formatter.format(&insn, &mut out);
        }
        out
    }

    #[test]
    fn forms_decode_as_meant() {
        let field = Mem::field(0x1234);
        assert_eq!(text(|c| c.load(R10, field)), "mov r10,gs:[1234h]");
        assert_eq!(text(|c| c.store(field, RCX)), "mov gs:[1234h],rcx");
        assert_eq!(text(|c| c.load(R10, Mem::indexed_field(0x40, R11, 0))), "mov r10,gs:[r11+40h]");
        assert_eq!(
            text(|c| c.rm(None, true, &[0x2b], R10, Mem::indexed_field(0x40, R11, 3))),
            "sub r10,gs:[r11*8+40h]"
        );
        assert_eq!(
            text(|c| c.lea(true, R10, Mem { gs: false, base: Some(12), index: Some((13, 2)), disp: 0 })),
            "lea r10,[r12+r13*4]"
        );
        assert_eq!(text(|c| c.lea(true, R10, Mem::at(13, 0))), "lea r10,[r13]");
        assert_eq!(text(|c| c.lea(false, R10, Mem::at(4, 300))), "lea r10d,[rsp+12Ch]");
        assert_eq!(
            text(|c| c.lea(true, R10, Mem { gs: false, base: None, index: Some((5, 3)), disp: -8 })),
            "lea r10,[rbp*8-8h]"
        );
        assert_eq!(text(|c| c.pext(R11, R10, 0x80)), "pext r11,r10,gs:[80h]");
        assert_eq!(text(|c| c.pext(RCX, RCX, 0x80)), "pext rcx,rcx,gs:[80h]");
        assert_eq!(text(|c| c.mov_imm(R10, 5)), "mov r10d,5h");
        assert_eq!(text(|c| c.mov_imm(R10, u64::MAX)), "mov r10,0FFFFFFFFFFFFFFFFh");
        assert_eq!(text(|c| c.mov_imm(3, 0x1_2345_6789)), "mov rbx,123456789h");
        assert_eq!(text(|c| c.not(RCX)), "not rcx");
        assert_eq!(text(|c| c.cmp_imm(R10, 4088)), "cmp r10,0FF8h");
        assert_eq!(text(|c| c.cmp_mem_imm(field, 7)), "cmp dword ptr gs:[1234h],7h");
        assert_eq!(text(|c| c.store_simm32(Mem::at(R10, 0), -1)), "mov qword ptr [r10],0FFFFFFFFFFFFFFFFh");
        assert_eq!(text(|c| c.jmp_mem(Mem::indexed_field(0x100, R11, 3))), "jmp qword ptr gs:[r11*8+100h]");
        assert_eq!(text(|c| c.store_sized(Mem::at(R10, 0), R11, 2)), "mov [r10],r11w");
    }
}
