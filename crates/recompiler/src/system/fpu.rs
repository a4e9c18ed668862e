//! Saving and restoring x87, SSE and AVX state.

use engine::reg;
use iced_x86::{Instruction, Mnemonic};

use super::features::feature;
use super::operand::Place;
use super::x87::Image;
use super::{Flow, Outcome, x87};
use crate::cpu::{Cpu, control};
use crate::exception::{Exception, Exec, vector};
use crate::mmu::AccessMode;

/// MXCSR bits that exist (Intel SDM vol. 1, 10.2.3).
const MXCSR_MASK: u32 = 0xffff;
/// MXCSR in its initial state.
const MXCSR_RESET: u32 = 0x1f80;
/// Offsets in the legacy region and the standard XSAVE area (Intel SDM vol. 1, 10.5.1 and 13.4).
const MXCSR: usize = 24;
const ST: std::ops::Range<usize> = 32..160;
const XMM: usize = 160;
const HEADER: usize = 512;
const YMM_HIGH: usize = 576;
const AREA: usize = 832;
/// State components.
const X87: u64 = 1;
const SSE: u64 = 2;
const AVX: u64 = 4;
/// XCOMP_BV bit 63: compacted format.
const COMPACTED: u64 = 1 << 63;

/// Executes this topic's instructions.
pub fn execute(cpu: &mut Cpu, insn: &Instruction) -> Outcome {
    use Mnemonic as M;
    Some(match insn.mnemonic() {
        M::Fxsave => fxsave(cpu, insn, false),
        M::Fxsave64 => fxsave(cpu, insn, true),
        M::Fxrstor | M::Fxrstor64 => fxrstor(cpu, insn),
        M::Xsave | M::Xsave64 => xsave(cpu, insn, Format::Standard),
        M::Xsaveopt | M::Xsaveopt64 if cpu.has(feature::XSAVEOPT) => xsave(cpu, insn, Format::Standard),
        M::Xsavec | M::Xsavec64 if cpu.has(feature::XSAVEC) => xsave(cpu, insn, Format::Compacted),
        M::Xrstor | M::Xrstor64 => xrstor(cpu, insn),
        M::Ldmxcsr | M::Vldmxcsr => ldmxcsr(cpu, insn),
        M::Fnstenv => x87_only(cpu).and_then(|()| fnstenv(cpu, insn)),
        M::Fldenv => waiting(cpu).and_then(|()| fldenv(cpu, insn)),
        M::Fnsave => x87_only(cpu).and_then(|()| fnsave(cpu, insn)),
        M::Frstor => waiting(cpu).and_then(|()| frstor(cpu, insn)),
        _ => return None,
    })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Format {
    Standard,
    Compacted,
}

fn x87_only(cpu: &Cpu) -> Exec<()> {
    let off = cpu.cr0 & (control::CR0_EM | control::CR0_TS) != 0;
    if off { Err(Exception::plain(vector::NM)) } else { Ok(()) }
}

/// The checks of an x87 instruction that waits: an unmasked exception comes before it.
fn waiting(cpu: &Cpu) -> Exec<()> {
    x87_only(cpu)?;
    if Image::save().pending() { Err(Exception::plain(vector::MF)) } else { Ok(()) }
}

/// The checks of FXSAVE and FXRSTOR, and the operand's linear address.
fn fx_operand(cpu: &mut Cpu, insn: &Instruction, write: bool) -> Exec<u64> {
    x87_only(cpu)?;
    let place = cpu.place(insn, 0);
    let linear = cpu.linear_address(place.seg, place.offset, 512, write)?;
    if linear % 16 != 0 {
        return Err(Exception::gp(0));
    }
    Ok(linear)
}

/// The legacy region with everything in it.
fn legacy_region(cpu: &Cpu, rex_w: bool) -> [u8; 512] {
    let mut region = Image::save().0;
    if !rex_w {
        // FCS and FDS have replaced the pointers' upper halves; all are 0 here.
        region[8..24].fill(0);
    }
    region[MXCSR..MXCSR + 4].copy_from_slice(&cpu.mxcsr.to_le_bytes());
    region[MXCSR + 4..MXCSR + 8].copy_from_slice(&MXCSR_MASK.to_le_bytes());
    region[XMM..].fill(0);
    for (n, v) in cpu.vectors.iter().enumerate() {
        put_half(&mut region, XMM + 16 * n, [v[0], v[1]]);
    }
    region
}

fn put_half(area: &mut [u8], at: usize, half: [u64; 2]) {
    for (k, word) in half.into_iter().enumerate() {
        area[at + 8 * k..at + 8 * k + 8].copy_from_slice(&word.to_le_bytes());
    }
}

fn half(area: &[u8], at: usize) -> [u64; 2] {
    [word(area, at), word(area, at + 8)]
}

fn word(area: &[u8], at: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&area[at..at + 8]);
    u64::from_le_bytes(bytes)
}

fn mxcsr_of(area: &[u8]) -> Exec<u32> {
    let value = word(area, MXCSR) as u32;
    if value & !MXCSR_MASK != 0 { Err(Exception::gp(0)) } else { Ok(value) }
}

/// XMM registers that exist in the current mode.
fn registers(cpu: &Cpu) -> usize {
    if cpu.code64() { 16 } else { 8 }
}

fn fxsave(cpu: &mut Cpu, insn: &Instruction, rex_w: bool) -> Exec<Flow> {
    let linear = fx_operand(cpu, insn, true)?;
    let region = legacy_region(cpu, rex_w);
    let sse = cpu.cr4 & control::CR4_OSFXSR != 0;
    let end = if sse { XMM + 16 * registers(cpu) } else { XMM };
    // Bytes 464–511 are software's and stay.
    cpu.probe_linear(linear, AccessMode::Current, 512, true)?;
    cpu.write_linear(linear, AccessMode::Current, &region[..end])?;
    Ok(Flow::Next)
}

fn fxrstor(cpu: &mut Cpu, insn: &Instruction) -> Exec<Flow> {
    let linear = fx_operand(cpu, insn, false)?;
    let mut region = Image::new();
    cpu.read_linear(linear, AccessMode::Current, &mut region.0)?;
    let mxcsr = mxcsr_of(&region.0)?;
    region.0[8..24].fill(0);
    region.load();
    if cpu.cr4 & control::CR4_OSFXSR != 0 {
        cpu.mxcsr = mxcsr;
        for n in 0..registers(cpu) {
            let [low, high] = half(&region.0, XMM + 16 * n);
            cpu.vectors[n][0] = low;
            cpu.vectors[n][1] = high;
        }
    }
    Ok(Flow::Next)
}

/// The checks of the XSAVE family, the operand and the components asked for.
fn xsave_operand(cpu: &mut Cpu, insn: &Instruction) -> Exec<(Place, u64)> {
    if cpu.cr4 & control::CR4_OSXSAVE == 0 {
        return Err(Exception::ud());
    }
    if cpu.cr0 & control::CR0_TS != 0 {
        return Err(Exception::plain(vector::NM));
    }
    let asked = cpu.gpr[reg::RDX] << 32 | cpu.gpr[reg::RAX] & 0xffff_ffff;
    Ok((cpu.place(insn, 0), asked & cpu.xcr0))
}

fn aligned(cpu: &Cpu, place: Place, size: u64, write: bool) -> Exec<u64> {
    let linear = cpu.linear_address(place.seg, place.offset, size, write)?;
    if linear % 64 != 0 { Err(Exception::gp(0)) } else { Ok(linear) }
}

/// Components that are not in their initial state.
fn in_use(cpu: &Cpu, image: &[u8; 512]) -> u64 {
    let count = registers(cpu);
    let mut used = 0;
    let fresh = image[0..2] == 0x37fu16.to_le_bytes()
        && image[2..6].iter().all(|b| *b == 0)
        && image[ST].iter().all(|b| *b == 0);
    if !fresh {
        used |= X87;
    }
    if cpu.vectors[..count].iter().any(|v| v[0] | v[1] != 0) {
        used |= SSE;
    }
    if cpu.vectors[..count].iter().any(|v| v[2] | v[3] != 0) {
        used |= AVX;
    }
    used
}

fn xsave(cpu: &mut Cpu, insn: &Instruction, format: Format) -> Exec<Flow> {
    let (place, asked) = xsave_operand(cpu, insn)?;
    let size = if asked & AVX != 0 { AREA } else { YMM_HIGH };
    let linear = aligned(cpu, place, size as u64, true)?;
    cpu.probe_linear(linear, AccessMode::Current, size, true)?;
    let region = legacy_region(cpu, true);
    let compacted = format == Format::Compacted;
    let mut used = in_use(cpu, &region);
    // In this format MXCSR comes and goes with SSE (Intel SDM vol. 1, 13.10).
    if compacted && cpu.mxcsr != MXCSR_RESET {
        used |= SSE;
    }
    // XSAVEC leaves components in their initial state out.
    let stored = if compacted { asked & used } else { asked };
    // What lies behind XCOMP_BV is not written.
    let mut header = [0; 16];
    cpu.read_linear(linear + HEADER as u64, AccessMode::Current, &mut header)?;
    let kept = if compacted { 0 } else { word(&header, 0) & !asked };
    header[..8].copy_from_slice(&(kept | asked & used).to_le_bytes());
    if compacted {
        header[8..16].copy_from_slice(&(asked | COMPACTED).to_le_bytes());
    }
    let parts = [
        (stored & X87 != 0, 0..MXCSR),
        // MXCSR goes with SSE or AVX (Intel SDM vol. 1, 13.7).
        (asked & (SSE | AVX) != 0, MXCSR..MXCSR + 8),
        (stored & X87 != 0, ST),
        (stored & SSE != 0, XMM..XMM + 16 * registers(cpu)),
    ];
    for (wanted, range) in parts {
        if wanted {
            cpu.write_linear(linear + range.start as u64, AccessMode::Current, &region[range])?;
        }
    }
    if stored & AVX != 0 {
        let count = registers(cpu);
        let mut high = [0; 256];
        for (n, v) in cpu.vectors[..count].iter().enumerate() {
            put_half(&mut high, 16 * n, [v[2], v[3]]);
        }
        cpu.write_linear(linear + YMM_HIGH as u64, AccessMode::Current, &high[..16 * count])?;
    }
    cpu.write_linear(linear + HEADER as u64, AccessMode::Current, &header)?;
    Ok(Flow::Next)
}

fn xrstor(cpu: &mut Cpu, insn: &Instruction) -> Exec<Flow> {
    let (place, asked) = xsave_operand(cpu, insn)?;
    let linear = aligned(cpu, place, YMM_HIGH as u64, false)?;
    let mut area = [0; AREA];
    cpu.read_linear(linear, AccessMode::Current, &mut area[..YMM_HIGH])?;
    let (present, layout) = (word(&area, HEADER), word(&area, HEADER + 8));
    let compacted = layout & COMPACTED != 0;
    let reserved = area[HEADER + 16..HEADER + 64].iter().any(|b| *b != 0);
    let bad = if compacted {
        !cpu.has(feature::XSAVEC)
            || present & !layout != 0
            || layout & !(cpu.xcr0 | COMPACTED) != 0
            || reserved
    } else {
        layout != 0 || present & !cpu.xcr0 != 0 || area[HEADER + 16..HEADER + 24].iter().any(|b| *b != 0)
    };
    if bad {
        return Err(Exception::gp(0));
    }
    let count = registers(cpu);
    // In both formats AVX is the first extended component, right behind the header.
    if asked & present & AVX != 0 {
        let end = YMM_HIGH + 16 * count;
        cpu.read_linear(linear + YMM_HIGH as u64, AccessMode::Current, &mut area[YMM_HIGH..end])?;
    }
    // Standard: with SSE or AVX, whatever XSTATE_BV says; compacted: with SSE (SDM vol. 1, 13.8).
    let loads_mxcsr = if compacted { asked & present & SSE != 0 } else { asked & (SSE | AVX) != 0 };
    if loads_mxcsr {
        cpu.mxcsr = mxcsr_of(&area)?;
    } else if asked & SSE != 0 {
        cpu.mxcsr = MXCSR_RESET;
    }
    if asked & X87 != 0 {
        let mut image = Image::initial();
        if present & X87 != 0 {
            image.0.copy_from_slice(&area[..512]);
            image.0[8..24].fill(0);
        }
        image.load();
    }
    if asked & present & AVX != 0 {
        cpu.jit.upper_used = 1;
    }
    for n in 0..count {
        let parts = [(SSE, 0, XMM), (AVX, 2, YMM_HIGH)];
        for (component, word, at) in parts {
            if asked & component != 0 {
                let value = if present & component != 0 { half(&area, at + 16 * n) } else { [0, 0] };
                cpu.vectors[n][word..word + 2].copy_from_slice(&value);
            }
        }
    }
    Ok(Flow::Next)
}

fn ldmxcsr(cpu: &mut Cpu, insn: &Instruction) -> Exec<Flow> {
    if cpu.cr4 & control::CR4_OSFXSR == 0 || cpu.cr0 & control::CR0_EM != 0 {
        return Err(Exception::ud());
    }
    if cpu.cr0 & control::CR0_TS != 0 {
        return Err(Exception::plain(vector::NM));
    }
    let value = cpu.operand(insn, 0, 4)? as u32;
    if value & !MXCSR_MASK != 0 {
        return Err(Exception::gp(0));
    }
    cpu.mxcsr = value;
    Ok(Flow::Next)
}

/// Bytes of an environment in 16- and 32-bit format (Intel SDM vol. 1, 8.1.10).
fn environment_size(insn: &Instruction) -> usize {
    use iced_x86::Code as C;
    match insn.code() {
        C::Fnstenv_m14byte | C::Fldenv_m14byte | C::Fnsave_m94byte | C::Frstor_m94byte => 14,
        _ => 28,
    }
}

/// The full tag word: FXSAVE only has a bit a register (Intel SDM vol. 1, 10.5.1.1).
fn full_tags(image: &[u8; 512]) -> u16 {
    let top = usize::from(image[3] >> 3 & 7);
    (0..8).fold(0, |tags, register| {
        let tag = if image[4] >> register & 1 == 0 {
            3
        } else {
            // Physical register r is ST((r - TOP) mod 8).
            let at = 32 + 16 * ((register + 8 - top) % 8);
            let mantissa = word(image, at);
            let exponent = u16::from_le_bytes([image[at + 8], image[at + 9]]) & 0x7fff;
            match (exponent, mantissa) {
                (0, 0) => 1,
                (0 | 0x7fff, _) => 2,
                (_, m) if m >> 63 == 0 => 2,
                _ => 0,
            }
        };
        tags | tag << (2 * register)
    })
}

/// Control, status and tag words as 14- or 28-byte environment; pointers are 0.
fn environment(image: &[u8; 512], size: usize) -> [u8; 28] {
    let mut out = [0; 28];
    let words = [[image[0], image[1]], [image[2], image[3]], full_tags(image).to_le_bytes()];
    for (n, w) in words.into_iter().enumerate() {
        let at = n * size / 7;
        out[at..at + 2].copy_from_slice(&w);
        if size == 28 {
            out[at + 2..at + 4].fill(0xff);
        }
    }
    out
}

fn set_environment(image: &mut Image, env: &[u8], size: usize) {
    let at = |n: usize| [env[n * size / 7], env[n * size / 7 + 1]];
    image.0[0..2].copy_from_slice(&at(0));
    image.0[2..4].copy_from_slice(&at(1));
    let tags = u16::from_le_bytes(at(2));
    image.0[4] = (0..8).fold(0, |all, r| all | u8::from(tags >> (2 * r) & 3 != 3) << r);
}

fn x87_operand(cpu: &Cpu, insn: &Instruction, size: usize, write: bool) -> Exec<u64> {
    let place = cpu.place(insn, 0);
    cpu.linear_address(place.seg, place.offset, size as u64, write)
}

fn fnstenv(cpu: &mut Cpu, insn: &Instruction) -> Exec<Flow> {
    let size = environment_size(insn);
    let linear = x87_operand(cpu, insn, size, true)?;
    let mut image = Image::save();
    cpu.write_linear(linear, AccessMode::Current, &environment(&image.0, size)[..size])?;
    // All exceptions are masked afterwards.
    image.0[0] |= 0x3f;
    image.load();
    Ok(Flow::Next)
}

fn fldenv(cpu: &mut Cpu, insn: &Instruction) -> Exec<Flow> {
    let size = environment_size(insn);
    let linear = x87_operand(cpu, insn, size, false)?;
    let mut env = [0; 28];
    cpu.read_linear(linear, AccessMode::Current, &mut env[..size])?;
    let mut image = Image::save();
    image.turn(usize::from(env[size / 7 + 1] >> 3 & 7));
    set_environment(&mut image, &env, size);
    image.load();
    Ok(Flow::Next)
}

fn fnsave(cpu: &mut Cpu, insn: &Instruction) -> Exec<Flow> {
    let size = environment_size(insn);
    let linear = x87_operand(cpu, insn, size + 80, true)?;
    let image = Image::save();
    let mut out = [0; 108];
    out[..28].copy_from_slice(&environment(&image.0, size));
    for n in 0..8 {
        out[size + 10 * n..size + 10 * n + 10].copy_from_slice(&image.0[32 + 16 * n..42 + 16 * n]);
    }
    cpu.write_linear(linear, AccessMode::Current, &out[..size + 80])?;
    x87::init();
    Ok(Flow::Next)
}

fn frstor(cpu: &mut Cpu, insn: &Instruction) -> Exec<Flow> {
    let size = environment_size(insn);
    let linear = x87_operand(cpu, insn, size + 80, false)?;
    let mut saved = [0; 108];
    cpu.read_linear(linear, AccessMode::Current, &mut saved[..size + 80])?;
    let mut image = Image::new();
    set_environment(&mut image, &saved, size);
    for n in 0..8 {
        image.0[32 + 16 * n..42 + 16 * n].copy_from_slice(&saved[size + 10 * n..size + 10 * n + 10]);
    }
    image.load();
    Ok(Flow::Next)
}
