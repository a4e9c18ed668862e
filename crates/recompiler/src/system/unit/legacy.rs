use engine::{Segment, reg, seg};

use super::GP;
use crate::cpu::{Cpu, flag};
use crate::exception::{Exception, vector};
use crate::system::Flow;
use crate::testing::*;

/// AX and the flags CF, AF after an instruction.
fn decimal(bytes: &[u8], ax: u64, flags: u64) -> (u64, u64) {
    let mut cpu = protected();
    cpu.gpr[reg::RAX] = 0xdead_0000 | ax;
    cpu.rflags = 2 | flags;
    cpu.run(bytes).unwrap();
    assert_eq!(cpu.gpr[reg::RAX] >> 16, 0xdead);
    (cpu.gpr[reg::RAX] & 0xffff, cpu.rflags & (flag::CF | flag::AF))
}

#[test]
fn decimal_adjustments() {
    const BOTH: u64 = flag::CF | flag::AF;
    // AAA, AAS.
    assert_eq!(decimal(&[0x37], 0x010b, 0), (0x0201, BOTH));
    assert_eq!(decimal(&[0x37], 0x0149, 0), (0x0109, 0));
    assert_eq!(decimal(&[0x37], 0x01fa, 0), (0x0300, BOTH), "the carry of AL goes into AH too");
    assert_eq!(decimal(&[0x3f], 0x02ff, flag::AF), (0x0109, BOTH));
    assert_eq!(decimal(&[0x3f], 0x0205, 0), (0x0205, 0));
    // DAA: 79 + 35 = 114.
    assert_eq!(decimal(&[0x27], 0xae, 0), (0x14, BOTH));
    assert_eq!(decimal(&[0x27], 0x45, 0), (0x45, 0));
    assert_eq!(decimal(&[0x27], 0x9a, 0), (0x00, BOTH));
    assert_eq!(decimal(&[0x27], 0x02, flag::CF), (0x62, flag::CF));
    // DAS: 35 - 47 = 88, borrow.
    assert_eq!(decimal(&[0x2f], 0xee, BOTH), (0x88, BOTH));
    assert_eq!(decimal(&[0x2f], 0x3a, 0), (0x34, flag::AF));
    assert_eq!(decimal(&[0x2f], 0x02, flag::AF), (0xfc, BOTH), "6 borrows from AL");
    // AAM, AAD, also in other bases.
    assert_eq!(decimal(&[0xd4, 10], 0xff3f, 0).0, 0x0603);
    assert_eq!(decimal(&[0xd4, 16], 0x00a5, 0).0, 0x0a05);
    assert_eq!(decimal(&[0xd5, 10], 0x0603, 0).0, 0x003f);
    assert_eq!(protected().run(&[0xd4, 0]), Err(Exception::plain(vector::DE)));
    assert_eq!(decimal(&[0xd6], 0x1234, flag::CF).0, 0x12ff);
    assert_eq!(decimal(&[0xd6], 0x1234, 0).0, 0x1200);
}

#[test]
fn flags_of_daa_follow_the_result() {
    let mut cpu = protected();
    cpu.gpr[reg::RAX] = 0x9a;
    cpu.run(&[0x27]).unwrap();
    assert_eq!(cpu.rflags & (flag::ZF | flag::SF | flag::PF), flag::ZF | flag::PF);
}

#[test]
fn all_registers_on_the_stack() {
    let mut cpu = protected();
    for (n, r) in cpu.gpr[..8].iter_mut().enumerate() {
        *r = if n == reg::RSP { STACK0 } else { 0x1111_1111 * (n as u64 + 1) };
    }
    let before = cpu.gpr;
    cpu.run(&[0x60]).unwrap();
    assert_eq!(cpu.gpr[reg::RSP], STACK0 - 32);
    assert_eq!(cpu.look(STACK0 - 4, 4), 0x1111_1111);
    assert_eq!(cpu.look(STACK0 - 20, 4), STACK0, "ESP from before");
    cpu.gpr = [0; 16];
    cpu.gpr[reg::RSP] = STACK0 - 32;
    cpu.run(&[0x61]).unwrap();
    assert_eq!(cpu.gpr, before);
    cpu.run(&[0x66, 0x60]).unwrap();
    assert_eq!((cpu.gpr[reg::RSP], cpu.look(STACK0 - 16, 2)), (STACK0 - 16, 0x8888));
    // No effect if it does not fit.
    let ss = &mut cpu.segments[seg::SS];
    (ss.limit, ss.access) = (STACK0 as u32 - 20, ss.access & !Segment::GRANULAR);
    assert_eq!(cpu.run(&[0x61]), Err(Exception::with(vector::SS, 0)));
    assert_eq!(cpu.gpr[reg::RSP], STACK0 - 16);
}

#[test]
fn frames() {
    let mut cpu = protected();
    cpu.gpr[reg::RBP] = 0x5010;
    cpu.poke(0x500c, 4, 0xaaaa);
    cpu.poke(0x5008, 4, 0xbbbb);
    cpu.run(&[0xc8, 0x20, 0, 3]).unwrap();
    let frame = STACK0 - 4;
    assert_eq!(cpu.gpr[reg::RBP], frame);
    let stack: Vec<u64> = (0..4).map(|n| cpu.look(frame - 4 * n, 4)).collect();
    assert_eq!(stack, [0x5010, 0xaaaa, 0xbbbb, frame]);
    assert_eq!(cpu.gpr[reg::RSP], frame - 12 - 0x20);
    cpu.run(&[0xc9]).unwrap();
    assert_eq!((cpu.gpr[reg::RSP], cpu.gpr[reg::RBP]), (STACK0, 0x5010));
    let mut cpu = long();
    cpu.gpr[reg::RBP] = 0x1234;
    cpu.run(&[0xc8, 8, 0, 0]).unwrap();
    assert_eq!((cpu.gpr[reg::RBP], cpu.gpr[reg::RSP]), (STACK0 - 8, STACK0 - 16));
}

#[test]
fn pushes_and_pops_of_every_size() {
    let mut cpu = long();
    cpu.run(&[0x6a, 0xff]).unwrap();
    assert_eq!((cpu.gpr[reg::RSP], cpu.look(STACK0 - 8, 8)), (STACK0 - 8, u64::MAX));
    cpu.run(&[0x66, 0x68, 0x34, 0x12]).unwrap();
    assert_eq!((cpu.gpr[reg::RSP], cpu.look(STACK0 - 10, 2)), (STACK0 - 10, 0x1234));
    cpu.gpr[reg::RAX] = u64::MAX;
    cpu.run(&[0x66, 0x58]).unwrap();
    assert_eq!(cpu.gpr[reg::RAX], 0xffff_ffff_ffff_1234);
    // pop [rsp]: the address is that after the increment.
    cpu.poke(STACK0 - 8, 8, 0x77);
    cpu.run(&[0x8f, 0x04, 0x24]).unwrap();
    assert_eq!((cpu.gpr[reg::RSP], cpu.look(STACK0, 8)), (STACK0, 0x77));
    cpu.run(&[0x54]).unwrap();
    assert_eq!(cpu.look(STACK0 - 8, 8), STACK0, "push rsp: from before");
    cpu.poke(STACK0 - 8, 8, 0x5000);
    cpu.run(&[0x5c]).unwrap();
    assert_eq!(cpu.gpr[reg::RSP], 0x5000);
    cpu.gpr[reg::RBX] = 1 << 62;
    assert_eq!(cpu.run(&[0x8f, 0x03]), Err(GP));
    assert_eq!(cpu.gpr[reg::RSP], 0x5000);
}

fn jump(cpu: &mut Cpu, bytes: &[u8]) -> u64 {
    assert_eq!(cpu.run(bytes), Ok(Flow::Jump));
    cpu.rip
}

#[test]
fn near_control_flow() {
    let mut cpu = protected();
    assert_eq!(jump(&mut cpu, &[0xe8, 0x10, 0, 0, 0]), 0x6015);
    assert_eq!(cpu.look(STACK0 - 4, 4), 0x6005);
    assert_eq!(jump(&mut cpu, &[0xc2, 8, 0]), 0x6005);
    assert_eq!(cpu.gpr[reg::RSP], STACK0 + 8);
    cpu.gpr[reg::RAX] = 0xffff_7000;
    assert_eq!(jump(&mut cpu, &[0x66, 0xff, 0xe0]), 0x7000, "16-bit operand");
    assert_eq!(jump(&mut cpu, &[0x66, 0xe9, 0xff, 0xff]), 0x7003, "4 bytes on, 1 back");
    cpu.segments[seg::CS].limit = 0x8000;
    cpu.gpr[reg::RAX] = 0x8001;
    let rip = cpu.rip;
    assert_eq!(cpu.run(&[0xff, 0xd0]), Err(GP));
    assert_eq!((cpu.rip, cpu.gpr[reg::RSP]), (rip, STACK0 + 8));
    let mut cpu = long();
    cpu.gpr[reg::RAX] = 1 << 62;
    assert_eq!(cpu.run(&[0xff, 0xe0]), Err(GP));
    cpu.poke(STACK0, 8, 1 << 50);
    assert_eq!(cpu.run(&[0xc3]), Err(GP));
    assert_eq!(cpu.gpr[reg::RSP], STACK0);
}

#[test]
fn conditions() {
    for (n, flags, taken) in [
        (0, flag::OF, true),
        (1, flag::OF, false),
        (2, flag::CF, true),
        (4, flag::ZF, true),
        (5, 0, true),
        (6, flag::CF, true),
        (7, flag::ZF, false),
        (7, 0, true),
        (8, flag::SF, true),
        (0xa, flag::PF, true),
        (0xc, flag::SF, true),
        (0xc, flag::SF | flag::OF, false),
        (0xd, flag::SF | flag::OF, true),
        (0xe, flag::ZF, true),
        (0xf, flag::ZF, false),
        (0xf, 0, true),
        (0xf, flag::OF, false),
    ] {
        let mut cpu = protected();
        cpu.rflags = 2 | flags;
        cpu.run(&[0x70 + n, 0x20]).unwrap();
        assert_eq!(cpu.rip, if taken { 0x6022 } else { 0x6002 }, "{n:x} {flags:x}");
    }
}

#[test]
fn counted_loops() {
    let mut cpu = protected();
    cpu.gpr[reg::RCX] = 0x1_0001;
    cpu.run(&[0x67, 0xe2, 0x10]).unwrap();
    assert_eq!((cpu.rip, cpu.gpr[reg::RCX]), (0x6003, 0x1_0000), "CX only");
    assert_eq!(jump(&mut cpu, &[0xe2, 0x10]), 0x6015);
    assert_eq!(cpu.gpr[reg::RCX], 0xffff);
    cpu.rflags |= flag::ZF;
    cpu.run(&[0xe0, 0x10]).unwrap();
    assert_eq!((cpu.rip, cpu.gpr[reg::RCX]), (0x6017, 0xfffe));
    assert_eq!(jump(&mut cpu, &[0xe1, 0x10]), 0x6029);
    cpu.gpr[reg::RCX] = 0x1_0000;
    assert_eq!(jump(&mut cpu, &[0x67, 0xe3, 0x10]), 0x603c);
    cpu.run(&[0xe3, 0x10]).unwrap();
    assert_eq!(cpu.rip, 0x603e);
    // A loop that faults has not counted.
    cpu.segments[seg::CS].limit = 0x6050;
    assert_eq!(cpu.run(&[0xe2, 0x7f]), Err(GP));
    assert_eq!(cpu.gpr[reg::RCX], 0x1_0000);
}

#[test]
fn tables_and_bounds() {
    let mut cpu = protected();
    (cpu.gpr[reg::RBX], cpu.gpr[reg::RAX]) = (0x4000, 0xff05);
    cpu.poke(0x4005, 1, 0x99);
    cpu.run(&[0xd7]).unwrap();
    assert_eq!(cpu.gpr[reg::RAX], 0xff99);
    cpu.poke(0x4100, 4, (-5i32) as u32 as u64);
    cpu.poke(0x4104, 4, 10);
    cpu.gpr[reg::RBX] = 0x4100;
    for (value, good) in [(-5i32, true), (10, true), (0, true), (-6, false), (11, false)] {
        cpu.gpr[reg::RAX] = u64::from(value as u32);
        let expected = if good { Ok(Flow::Next) } else { Err(Exception::plain(vector::BR)) };
        assert_eq!(cpu.run(&[0x62, 0x03]), expected, "{value}");
    }
}
