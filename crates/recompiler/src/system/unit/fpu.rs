use engine::reg;

use super::{DEVICE, GP, UD};
use crate::cpu::{Cpu, control};
use crate::exception::{Exception, vector};
use crate::system::x87::{self, Image};
use crate::testing::*;

const AREA: u64 = 0x4000;

fn ready(mut cpu: Box<Cpu>) -> Box<Cpu> {
    cpu.cr4 |= control::CR4_OSXSAVE | control::CR4_OSFXSR;
    cpu.cr0 &= !(control::CR0_EM | control::CR0_TS);
    cpu.xcr0 = 7;
    cpu.gpr[reg::RBX] = AREA;
    (cpu.gpr[reg::RAX], cpu.gpr[reg::RDX]) = (7, 0);
    for (n, v) in cpu.vectors.iter_mut().enumerate() {
        *v = [1, 2, 3, 4].map(|k| 100 * n as u64 + k);
    }
    cpu.mxcsr = 0x1fa0;
    cpu
}

/// 1.0 and π on the host's x87 stack, with flags.
fn some_x87() {
    // SAFETY: only x87 state changes, which tests own.
    unsafe { std::arch::asm!("fninit", "fld1", "fldpi", "fxam", options(nostack)) };
}

fn bytes(cpu: &mut Cpu, at: u64, len: usize) -> Vec<u8> {
    (0..len as u64).map(|n| cpu.look(at + n, 1) as u8).collect()
}

/// x87 state without the pointers that guests never see.
fn x87_state() -> Vec<u8> {
    let image = Image::save();
    [&image.0[..6], &image.0[32..160]].concat()
}

#[test]
fn fxsave_and_fxrstor() {
    let mut cpu = ready(long());
    some_x87();
    let before = x87_state();
    cpu.poke(AREA + 464, 8, 0x55);
    cpu.run(&[0x48, 0x0f, 0xae, 0x03]).unwrap();
    assert_eq!(cpu.look(AREA + 24, 8), 0xffff << 32 | 0x1fa0);
    assert_eq!((cpu.look(AREA + 160, 8), cpu.look(AREA + 168 + 15 * 16, 8)), (1, 1502));
    assert_eq!(bytes(&mut cpu, AREA + 8, 16), [0; 16], "no host addresses");
    assert_eq!(cpu.look(AREA + 464, 8), 0x55, "software's bytes");
    assert_eq!(bytes(&mut cpu, AREA, 6), before[..6]);
    x87::init();
    let kept = cpu.vectors;
    cpu.vectors = [[0; 4]; 16];
    cpu.mxcsr = 0;
    cpu.run(&[0x48, 0x0f, 0xae, 0x0b]).unwrap();
    assert_eq!(x87_state(), before);
    for (v, k) in cpu.vectors.iter().zip(kept) {
        assert_eq!(*v, [k[0], k[1], 0, 0]);
    }
    assert_eq!(cpu.mxcsr, 0x1fa0);
    x87::init();
    cpu.poke(AREA + 24, 4, 0x1_0000);
    assert_eq!(cpu.run(&[0x0f, 0xae, 0x0b]), Err(GP), "MXCSR bit that is not there");
    cpu.gpr[reg::RBX] = AREA + 8;
    assert_eq!(cpu.run(&[0x0f, 0xae, 0x03]), Err(GP));
    cpu.cr0 |= control::CR0_TS;
    assert_eq!(cpu.run(&[0x0f, 0xae, 0x03]), Err(DEVICE));
}

#[test]
fn outside_64_bit_mode_there_are_eight_registers() {
    let mut cpu = ready(protected());
    cpu.run(&[0x0f, 0xae, 0x03]).unwrap();
    assert_eq!((cpu.look(AREA + 160 + 7 * 16, 8), cpu.look(AREA + 160 + 8 * 16, 8)), (701, 0));
    cpu.vectors = [[9; 4]; 16];
    cpu.run(&[0x0f, 0xae, 0x0b]).unwrap();
    assert_eq!((cpu.vectors[7], cpu.vectors[8]), ([701, 702, 9, 9], [9; 4]));
    x87::init();
}

const XSAVE: &[u8] = &[0x0f, 0xae, 0x23];
const XRSTOR: &[u8] = &[0x0f, 0xae, 0x2b];
const XSAVEC: &[u8] = &[0x0f, 0xc7, 0x23];

#[test]
fn xsave_keeps_what_was_not_asked_for() {
    let mut cpu = ready(long());
    some_x87();
    cpu.poke(AREA + 512, 8, 1 << 40 | 1);
    cpu.poke(AREA + 528, 8, 0x77);
    cpu.gpr[reg::RAX] = 6;
    cpu.run(XSAVE).unwrap();
    assert_eq!(cpu.look(AREA + 512, 8), 1 << 40 | 7);
    assert_eq!((cpu.look(AREA, 8), cpu.look(AREA + 528, 8)), (0, 0x77));
    assert_eq!((cpu.look(AREA + 160, 8), cpu.look(AREA + 576 + 15 * 16 + 8, 8)), (1, 1504));
    cpu.poke(AREA + 512, 8, 7);
    assert_eq!(cpu.run(XRSTOR), Err(GP), "header bytes 16 to 23 must be 0");
    cpu.poke(AREA + 528, 8, 0);
    cpu.poke(AREA + 512, 8, 15);
    assert_eq!(cpu.run(XRSTOR), Err(GP), "a component that XCR0 does not have");
    let before = x87_state();
    cpu.poke(AREA + 512, 8, 2);
    let kept = cpu.vectors;
    cpu.vectors = [[9; 4]; 16];
    cpu.run(XRSTOR).unwrap();
    assert_eq!(cpu.vectors[3], [kept[3][0], kept[3][1], 0, 0], "AVX to its initial state");
    assert_eq!(x87_state(), before, "x87 was not asked for");
    cpu.gpr[reg::RAX] = 1;
    cpu.run(XRSTOR).unwrap();
    assert_eq!(x87_state()[..6], Image::initial().0[..6]);
    x87::init();
}

#[test]
fn compacted_areas_round_trip_with_mxcsr() {
    let mut cpu = ready(long());
    x87::init();
    for v in &mut cpu.vectors {
        (v[0], v[1]) = (0, 0);
    }
    cpu.run(XSAVEC).unwrap();
    assert_eq!(cpu.look(AREA + 520, 8), 1 << 63 | 7);
    assert_eq!(cpu.look(AREA + 512, 8), 6, "MXCSR alone brings SSE");
    let kept = cpu.vectors;
    cpu.vectors = [[9; 4]; 16];
    cpu.mxcsr = 0x1f80;
    cpu.run(XRSTOR).unwrap();
    assert_eq!((cpu.vectors, cpu.mxcsr), (kept, 0x1fa0));
    cpu.poke(AREA + 512, 8, 4);
    cpu.run(XRSTOR).unwrap();
    assert_eq!(cpu.mxcsr, 0x1f80, "with SSE to its initial state");
    cpu.poke(AREA + 520, 8, 1 << 63 | 3);
    assert_eq!(cpu.run(XRSTOR), Err(GP), "AVX there but not laid out");
}

#[test]
fn xsave_needs_its_conditions() {
    let mut cpu = ready(long());
    cpu.gpr[reg::RBX] = AREA + 32;
    assert_eq!(cpu.run(XSAVE), Err(GP));
    cpu.cr0 |= control::CR0_TS;
    assert_eq!(cpu.run(XRSTOR), Err(DEVICE));
    cpu.cr4 &= !control::CR4_OSXSAVE;
    assert_eq!(cpu.run(XSAVE), Err(UD));
}

/// The same by the host, for the same state.
macro_rules! host {
    ($insn:literal, $len:literal) => {{
        let mut out = [0u8; $len];
        // SAFETY: the buffer is large enough; only x87 state changes.
        unsafe { std::arch::asm!($insn, in(reg) out.as_mut_ptr(), options(nostack)) };
        out
    }};
}

/// Words 0 to 2 of an environment, and the registers behind it.
fn visible(area: &[u8], size: usize) -> Vec<u8> {
    let word = |n: usize| area[n * size / 7..][..2].to_vec();
    [word(0), word(1), word(2), area[size..].to_vec()].concat()
}

#[test]
fn environments_as_the_host_writes_them() {
    let mut cpu = ready(protected());
    some_x87();
    // SAFETY: only x87 state changes: a zero, an infinity and a denormal join.
    unsafe {
        let denormal = 1.0e-310f64;
        std::arch::asm!("fldz", "fld1", "fldz", "fdivp", "fld qword ptr [{}]", in(reg) &raw const denormal,
            options(nostack));
    }
    let start = Image::save();
    for (guest, size) in [(&[0xd9, 0x33][..], 28), (&[0x66, 0xd9, 0x33], 14)] {
        start.load();
        cpu.run(guest).unwrap();
        assert_eq!(Image::save().0[0] & 0x3f, 0x3f);
        start.load();
        let expected = if size == 28 {
            host!("fnstenv [{}]", 28).to_vec()
        } else {
            host!("data16 fnstenv [{}]", 14).to_vec()
        };
        let got = bytes(&mut cpu, AREA, size);
        assert_eq!(visible(&got, size), visible(&expected, size));
    }
    start.load();
    cpu.run(&[0xdd, 0x33]).unwrap();
    assert_eq!(x87_state()[..6], Image::initial().0[..6], "FNSAVE initializes");
    start.load();
    let expected = host!("fnsave [{}]", 108);
    let got = bytes(&mut cpu, AREA, 108);
    assert_eq!(visible(&got, 28), visible(&expected, 28));
    x87::init();
    cpu.run(&[0xdd, 0x23]).unwrap();
    start.load();
    let wanted = x87_state();
    x87::init();
    cpu.run(&[0xdd, 0x23]).unwrap();
    assert_eq!(x87_state(), wanted);
    x87::init();
}

#[test]
fn a_loaded_environment_moves_the_top_not_the_registers() {
    let mut cpu = ready(protected());
    some_x87();
    cpu.run(&[0xd9, 0x33]).unwrap();
    // TOP from 6 to 7: what was ST(1) is ST(0).
    let status = cpu.look(AREA + 4, 2);
    cpu.poke(AREA + 4, 2, status & !0x3800 | 7 << 11);
    let one = Image::save().0[48..58].to_vec();
    cpu.run(&[0xd9, 0x23]).unwrap();
    assert_eq!(Image::save().0[32..42], one);
    // Invalid operation, unmasked: loaded now, raised by the next one that waits.
    cpu.poke(AREA, 2, 0x37e);
    cpu.poke(AREA + 4, 2, 0x8081);
    cpu.run(&[0xd9, 0x23]).unwrap();
    assert_eq!(cpu.run(&[0xd9, 0x23]), Err(Exception::plain(vector::MF)));
    cpu.run(&[0xdd, 0x33]).unwrap();
    cpu.cr0 |= control::CR0_TS;
    assert_eq!(cpu.run(&[0xd9, 0x33]), Err(DEVICE));
}

#[test]
fn mxcsr_is_checked() {
    let mut cpu = ready(long());
    cpu.poke(AREA, 4, 0x1f81);
    cpu.run(&[0x0f, 0xae, 0x13]).unwrap();
    assert_eq!(cpu.mxcsr, 0x1f81);
    cpu.poke(AREA, 4, 0x1_0000);
    assert_eq!(cpu.run(&[0x0f, 0xae, 0x13]), Err(GP));
    cpu.cr4 &= !control::CR4_OSFXSR;
    assert_eq!(cpu.run(&[0x0f, 0xae, 0x13]), Err(UD));
}
