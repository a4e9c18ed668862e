//! Vector loads and stores of single elements: masked moves and gathers. Elements whose mask bit
//! is clear are not accessed, so these can't be re-encoded with one checked operand.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use super::operand::segment_number;
use super::x87::Image;
use super::{Flow, Outcome};
use crate::cpu::{Cpu, control};
use crate::exception::{Exception, Exec, vector};

/// Executes the masked moves and gathers of AVX and AVX2, MASKMOVDQU and MASKMOVQ.
pub fn execute(cpu: &mut Cpu, insn: &Instruction) -> Outcome {
    use Mnemonic as M;
    let (data, index) = match insn.mnemonic() {
        M::Vmaskmovps | M::Vpmaskmovd => (4, 0),
        M::Vmaskmovpd | M::Vpmaskmovq => (8, 0),
        M::Vgatherdps | M::Vpgatherdd => (4, 4),
        M::Vgatherdpd | M::Vpgatherdq => (8, 4),
        M::Vgatherqps | M::Vpgatherqd => (4, 8),
        M::Vgatherqpd | M::Vpgatherqq => (8, 8),
        M::Maskmovdqu | M::Vmaskmovdqu => (1, 0),
        M::Maskmovq => return Some(quadword(cpu, insn).map(|()| Flow::Next)),
        _ => return None,
    };
    let mut run = || {
        usable(cpu, data != 1 || insn.mnemonic() == M::Vmaskmovdqu)?;
        match (data, index) {
            (1, _) => bytes(cpu, insn),
            (_, 0) => masked_move(cpu, insn, data),
            _ => gather(cpu, insn, data, index),
        }
    };
    Some(run().map(|()| Flow::Next))
}

/// The exceptions that come before any access (Intel SDM vol. 2, 2.4).
fn usable(cpu: &Cpu, avx: bool) -> Exec<()> {
    let enabled = if avx {
        cpu.cr4 & control::CR4_OSXSAVE != 0 && cpu.xcr0 & 6 == 6
    } else {
        cpu.cr4 & control::CR4_OSFXSR != 0 && cpu.cr0 & control::CR0_EM == 0
    };
    if !enabled {
        return Err(Exception::ud());
    }
    if cpu.cr0 & control::CR0_TS != 0 { Err(Exception::plain(vector::NM)) } else { Ok(()) }
}

type Vector = [u8; 32];

fn read(cpu: &Cpu, register: Register) -> Vector {
    let mut out = [0; 32];
    for (to, from) in out.chunks_exact_mut(8).zip(cpu.vectors[register.number() & 15]) {
        to.copy_from_slice(&from.to_le_bytes());
    }
    out
}

/// Writes a vector register of `len` bytes; VEX clears the rest.
fn write(cpu: &mut Cpu, register: Register, value: &Vector, len: usize) {
    let mut value = *value;
    value[len..].fill(0);
    cpu.jit.upper_used = 1;
    for (to, from) in cpu.vectors[register.number() & 15].iter_mut().zip(value.chunks_exact(8)) {
        *to = value_of(from);
    }
}

fn value_of(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |v, &b| v << 8 | u64::from(b))
}

/// Whether the sign bit of element `n` is set.
fn selected(mask: &Vector, n: usize, size: usize) -> bool {
    mask[n * size + size - 1] & 0x80 != 0
}

fn masked_move(cpu: &mut Cpu, insn: &Instruction, size: usize) -> Exec<()> {
    let store = insn.op0_kind() == OpKind::Memory;
    let len = if store { insn.op2_register() } else { insn.op0_register() }.size();
    let mask = read(cpu, insn.op1_register());
    let place = cpu.place(insn, if store { 0 } else { 2 });
    let address = |n: usize| place.offset.wrapping_add((n * size) as u64);
    let chosen: Vec<usize> = (0..len / size).filter(|&n| selected(&mask, n, size)).collect();
    if store {
        let data = read(cpu, insn.op2_register());
        // All or nothing: look at every element before the first store.
        for &n in &chosen {
            let linear = cpu.linear_address(place.seg, address(n), size as u64, true)?;
            cpu.probe_linear(linear, crate::mmu::AccessMode::Current, size, true)?;
        }
        for n in chosen {
            cpu.write_seg(place.seg, address(n), size, value_of(&data[n * size..(n + 1) * size]))?;
        }
        return Ok(());
    }
    let mut data = [0; 32];
    for n in chosen {
        let value = cpu.read_seg(place.seg, address(n), size)?;
        data[n * size..(n + 1) * size].copy_from_slice(&value.to_le_bytes()[..size]);
    }
    write(cpu, insn.op0_register(), &data, len);
    Ok(())
}

fn gather(cpu: &mut Cpu, insn: &Instruction, data: usize, index: usize) -> Exec<()> {
    let (to, mask_register) = (insn.op0_register(), insn.op2_register());
    let indices = insn.memory_index();
    if to.number() == mask_register.number()
        || to.number() == indices.number()
        || mask_register.number() == indices.number()
    {
        return Err(Exception::ud());
    }
    let count = (indices.size() / index).min(to.size() / data);
    let len = count * data;
    let mut value = read(cpu, to);
    let mut mask = read(cpu, mask_register);
    let segment = segment_number(insn.memory_segment());
    let positions = read(cpu, indices);
    for n in 0..count {
        if !selected(&mask, n, data) {
            continue;
        }
        let offset = insn.virtual_address(1, n, |register, element, size| {
            if register.is_segment_register() {
                return Some(0);
            }
            if register.is_vector_register() {
                let raw = value_of(positions.get(element * size..(element + 1) * size)?);
                return Some(if size == 4 { raw as u32 as i32 as i64 as u64 } else { raw });
            }
            Some(cpu.register(register))
        });
        let loaded = cpu.read_seg(segment, offset.unwrap_or(0), data);
        match loaded {
            Ok(element) => value[n * data..(n + 1) * data].copy_from_slice(&element.to_le_bytes()[..data]),
            Err(fault) => {
                // What was gathered stays, and its mask is cleared, so that a restart goes on.
                let full = to.size().max(mask_register.size());
                write(cpu, to, &value, full);
                write(cpu, mask_register, &mask, full);
                return Err(fault);
            }
        }
        mask[n * data..(n + 1) * data].fill(0);
    }
    write(cpu, to, &value, len);
    write(cpu, mask_register, &[0; 32], 0);
    Ok(())
}

/// MASKMOVDQU.
fn bytes(cpu: &mut Cpu, insn: &Instruction) -> Exec<()> {
    let data = read(cpu, insn.op1_register());
    let mask = read(cpu, insn.op2_register());
    store_bytes(cpu, insn, &data, &mask, 16)
}

/// MASKMOVQ: its registers are those of the x87 (Intel SDM vol. 1, 9.2.1), and as every MMX
/// instruction it makes all of them valid and TOP 0.
fn quadword(cpu: &mut Cpu, insn: &Instruction) -> Exec<()> {
    if cpu.cr0 & control::CR0_EM != 0 {
        return Err(Exception::ud());
    }
    if cpu.cr0 & control::CR0_TS != 0 {
        return Err(Exception::plain(vector::NM));
    }
    let mut image = Image::save();
    if image.pending() {
        return Err(Exception::plain(vector::MF));
    }
    image.turn(0);
    let value = |register: Register| {
        let mut out = [0; 32];
        out[..8].copy_from_slice(&image.0[32 + 16 * (register.number() & 7)..][..8]);
        out
    };
    store_bytes(cpu, insn, &value(insn.op1_register()), &value(insn.op2_register()), 8)?;
    image.0[4] = 0xff;
    image.load();
    Ok(())
}

fn store_bytes(cpu: &mut Cpu, insn: &Instruction, data: &Vector, mask: &Vector, count: usize) -> Exec<()> {
    let place = cpu.place(insn, 0);
    let chosen: Vec<u64> = (0..count).filter(|&n| selected(mask, n, 1)).map(|n| n as u64).collect();
    for &n in &chosen {
        let linear = cpu.linear_address(place.seg, place.offset.wrapping_add(n), 1, true)?;
        cpu.probe_linear(linear, crate::mmu::AccessMode::Current, 1, true)?;
    }
    for n in chosen {
        cpu.write_seg(place.seg, place.offset.wrapping_add(n), 1, u64::from(data[n as usize]))?;
    }
    Ok(())
}
