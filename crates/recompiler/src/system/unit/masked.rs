use engine::reg;

use super::{DEVICE, GP, UD};
use crate::cpu::{Cpu, control};
use crate::system::x87::Image;
use crate::testing::*;

fn avx() -> Box<Cpu> {
    let mut cpu = long();
    cpu.cr4 |= control::CR4_OSXSAVE | control::CR4_OSFXSR;
    cpu.cr0 &= !(control::CR0_EM | control::CR0_TS);
    cpu.xcr0 = 7;
    cpu
}

#[test]
fn masked_moves_touch_only_what_is_chosen() {
    let mut cpu = avx();
    // The second half of the operand lies beyond canonical space.
    cpu.gpr[reg::RBX] = 0x7fff_ffff_fff8;
    cpu.vectors[1] = [0, 0, 0, 0];
    cpu.vectors[2] = [1, 2, 3, 4];
    cpu.run(&[0xc4, 0xe2, 0x75, 0x2e, 0x13]).unwrap();
    cpu.gpr[reg::RBX] = 0x4000;
    cpu.vectors[1] = [1 << 31, 1 << 63, 0, 1 << 31];
    cpu.vectors[2] = [0x2_0000_0001, 0x4_0000_0003, 5, 0x8_0000_0007];
    cpu.run(&[0xc4, 0xe2, 0x75, 0x2e, 0x13]).unwrap();
    let words: Vec<u64> = (0..8).map(|n| cpu.look(0x4000 + 4 * n, 4)).collect();
    assert_eq!(words, [1, 0, 0, 4, 0, 0, 7, 0]);
    cpu.poke(0x4008, 4, 0x55);
    cpu.run(&[0xc4, 0xe2, 0x75, 0x2c, 0x1b]).unwrap();
    assert_eq!(cpu.vectors[3], [1, 4 << 32, 0, 7]);
    cpu.vectors[1] = [1 << 31; 4];
    cpu.gpr[reg::RBX] = 1 << 62;
    assert_eq!(cpu.run(&[0xc4, 0xe2, 0x75, 0x2c, 0x1b]), Err(GP));
    cpu.cr0 |= control::CR0_TS;
    assert_eq!(cpu.run(&[0xc4, 0xe2, 0x75, 0x2c, 0x1b]), Err(DEVICE));
    cpu.xcr0 = 3;
    assert_eq!(cpu.run(&[0xc4, 0xe2, 0x75, 0x2c, 0x1b]), Err(UD));
}

#[test]
fn a_gather_stops_at_its_fault_and_goes_on() {
    let mut cpu = avx();
    for n in 0..4 {
        cpu.poke(0x4000 + 8 * n, 8, 0x100 + n);
    }
    cpu.gpr[reg::RBX] = 0x4000;
    cpu.vectors[1] = [0, (-1i64) as u64 >> 1, 1, 3];
    cpu.vectors[2] = [u64::MAX, u64::MAX, 0, u64::MAX];
    cpu.vectors[3] = [7; 4];
    // vpgatherqq ymm3, [rbx + ymm1*8], ymm2: the second index is a wild one.
    cpu.vectors[1][1] = 1 << 58;
    let code = [0xc4, 0xe2, 0xed, 0x91, 0x1c, 0xcb];
    assert_eq!(cpu.run(&code), Err(GP));
    assert_eq!(cpu.vectors[3], [0x100, 7, 7, 7]);
    assert_eq!(cpu.vectors[2], [0, u64::MAX, 0, u64::MAX]);
    cpu.vectors[1][1] = 2;
    cpu.run(&code).unwrap();
    assert_eq!(cpu.vectors[3], [0x100, 0x102, 7, 0x103]);
    assert_eq!(cpu.vectors[2], [0; 4]);
}

#[test]
fn byte_masks() {
    let mut cpu = avx();
    cpu.gpr[reg::RDI] = 0x4000;
    cpu.vectors[1] = [0x0807_0605_0403_0201, 0x1817_1615_1413_1211, 0, 0];
    cpu.vectors[2] = [0x80_0000_0000_0080, 0x8000_0000_0000_0000, 0, 0];
    cpu.run(&[0x66, 0x0f, 0xf7, 0xca]).unwrap();
    assert_eq!((cpu.look(0x4000, 8), cpu.look(0x4008, 8)), (0x07_0000_0000_0001, 0x18 << 56));
    // maskmovq mm1, mm2: MMX registers are those of the x87.
    let mut image = Image::initial();
    image.0[32 + 16..][..8].copy_from_slice(&0x8877_6655_4433_2211u64.to_le_bytes());
    image.0[32 + 32..][..8].copy_from_slice(&0x80_8000_0000_0000u64.to_le_bytes());
    image.load();
    cpu.poke(0x4000, 8, 0);
    cpu.run(&[0x0f, 0xf7, 0xca]).unwrap();
    assert_eq!(cpu.look(0x4000, 8), 0x77_6600_0000_0000);
    let after = Image::save();
    assert_eq!((after.0[3] & 0x38, after.0[4]), (0, 0xff), "TOP 0, all valid");
    crate::system::x87::init();
}
