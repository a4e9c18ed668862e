use std::sync::atomic::Ordering;

use engine::{Segment, reg, seg};

use crate::cpu::{ARITHMETIC_FLAGS, Cpu, control, flag};
use crate::exception::{Exception, Exec, vector};
use crate::system::Flow;
use crate::testing::*;

const REP: u8 = 0xf3;

/// Runs to the end of the instruction; the number of times it let others in.
fn finish(cpu: &mut Cpu, bytes: &[u8]) -> Exec<u32> {
    let mut turns = 0;
    loop {
        match cpu.run(bytes)? {
            Flow::Again => turns += 1,
            flow => {
                assert_eq!(flow, Flow::Next);
                return Ok(turns);
            }
        }
    }
}

/// What a string instruction works on, without the processor.
struct Model {
    memory: Vec<u8>,
    si: u64,
    di: u64,
    cx: u64,
    ax: u64,
    flags: u64,
}

impl Model {
    fn load(&self, at: u64, size: usize) -> u64 {
        self.memory[at as usize..][..size].iter().rev().fold(0, |v, b| v << 8 | u64::from(*b))
    }

    /// Flags of left - right, from the definition.
    fn compare(&mut self, left: u64, right: u64, size: usize) {
        let bits = size * 8;
        let sign = |v: u64| i128::from(((v << (64 - bits)) as i64) >> (64 - bits));
        let difference = sign(left) - sign(right);
        let result = left.wrapping_sub(right) << (64 - bits) >> (64 - bits);
        let mut flags = 0;
        for (bit, on) in [
            (flag::CF, left < right),
            (flag::ZF, left == right),
            (flag::SF, sign(result) < 0),
            (flag::OF, difference != sign(result)),
            (flag::AF, left & 15 < right & 15),
            (flag::PF, (result as u8).count_ones().is_multiple_of(2)),
        ] {
            if on {
                flags |= bit;
            }
        }
        self.flags = flags;
    }

    fn run(&mut self, opcode: u8, size: usize, repeat: Option<bool>, down: bool) {
        let step = if down { (size as u64).wrapping_neg() } else { size as u64 };
        loop {
            if repeat.is_some() && self.cx == 0 {
                return;
            }
            let bytes = |v: u64| v.to_le_bytes()[..size].to_vec();
            let (mut si, mut di, mut compares) = (false, false, false);
            match opcode & 0xfe {
                0xa4 | 0xaa => {
                    let value = if opcode & 0xfe == 0xa4 { self.load(self.si, size) } else { self.ax };
                    self.memory[self.di as usize..][..size].copy_from_slice(&bytes(value));
                    (si, di) = (opcode & 0xfe == 0xa4, true);
                }
                0xac => {
                    let value = self.load(self.si, size);
                    let keep = if size >= 4 { 0 } else { u64::MAX << (size * 8) };
                    self.ax = self.ax & keep | value;
                    si = true;
                }
                0xae => {
                    let ax = self.ax << (64 - size * 8) >> (64 - size * 8);
                    self.compare(ax, self.load(self.di, size), size);
                    (di, compares) = (true, true);
                }
                _ => {
                    self.compare(self.load(self.si, size), self.load(self.di, size), size);
                    (si, di, compares) = (true, true, true);
                }
            }
            self.si = if si { self.si.wrapping_add(step) } else { self.si };
            self.di = if di { self.di.wrapping_add(step) } else { self.di };
            let Some(equal) = repeat else { return };
            self.cx -= 1;
            if compares && (self.flags & flag::ZF != 0) != equal {
                return;
            }
        }
    }
}

/// Any form, any overlap, both directions: as element by element.
#[test]
fn all_forms_agree_with_the_definition() {
    const WINDOW: u64 = 0x5000;
    let mut random = Random(77);
    let mut cpu = long();
    let memory = cpu.shared.services.memory.clone();
    for round in 0..3000 {
        let opcode = [0xa4u8, 0xaa, 0xac, 0xae, 0xa6][(random.next() % 5) as usize];
        let size = [1usize, 2, 4, 8][(random.next() % 4) as usize];
        let repeat = [None, Some(true), Some(false)][(random.next() % 3) as usize];
        let down = random.next().is_multiple_of(2);
        let cx = if repeat.is_some() { random.next() % 0x380 } else { 3 };
        let middle = 0x4000 + random.next() % 0x1000;
        // Near each other, so that they overlap often, and mostly equal bytes.
        let (si, di) = (middle, middle + random.next() % 40 - 20);
        let fill = random.next() as u8;
        let mut bytes = vec![fill; WINDOW as usize];
        for _ in 0..random.next() % 3 {
            bytes[(random.next() % WINDOW) as usize] = random.next() as u8;
        }
        let mut model = Model {
            memory: [vec![0; 0x2000], bytes.clone()].concat(),
            si,
            di,
            cx,
            ax: 0x0101_0101_0101_0101u64.wrapping_mul(u64::from(fill)),
            flags: flag::CF,
        };
        memory.write(0x2000, &bytes).unwrap();
        (cpu.gpr[reg::RSI], cpu.gpr[reg::RDI], cpu.gpr[reg::RCX], cpu.gpr[reg::RAX]) = (si, di, cx, model.ax);
        cpu.rflags = 2 | flag::CF | if down { flag::DF } else { 0 };
        let mut code = Vec::new();
        if size == 2 {
            code.push(0x66);
        }
        match repeat {
            Some(true) => code.push(REP),
            Some(false) => code.push(0xf2),
            None => {}
        }
        if size == 8 {
            code.push(0x48);
        }
        code.push(opcode | u8::from(size > 1));
        let name = format!("round {round}: {code:x?} si={si:x} di={di:x} cx={cx:x} down={down}");
        model.run(opcode, size, repeat, down);
        finish(&mut cpu, &code).unwrap();
        let got = [cpu.gpr[reg::RSI], cpu.gpr[reg::RDI], cpu.gpr[reg::RCX], cpu.gpr[reg::RAX]];
        assert_eq!(got, [model.si, model.di, model.cx, model.ax], "{name}");
        assert_eq!(cpu.rflags & ARITHMETIC_FLAGS, model.flags, "{name}");
        memory.read(0x2000, &mut bytes).unwrap();
        assert!(bytes[..] == model.memory[0x2000..], "{name}");
    }
}

#[test]
fn addresses_of_16_and_32_bits_wrap_and_keep_upper_halves() {
    let mut cpu = cpu();
    cpu.gpr[reg::RSI] = 0xaaaa_ffff;
    cpu.gpr[reg::RDI] = 0xbbbb_0010;
    cpu.gpr[reg::RCX] = 0xcccc_0002;
    cpu.poke(0xffff, 1, 0x11);
    cpu.poke(0, 1, 0x22);
    finish(&mut cpu, &[REP, 0xa4]).unwrap();
    assert_eq!(cpu.look(0x10, 2), 0x2211);
    assert_eq!(cpu.gpr[reg::RSI], 0xaaaa_0001);
    assert_eq!((cpu.gpr[reg::RDI], cpu.gpr[reg::RCX]), (0xbbbb_0012, 0xcccc_0000));
    let mut cpu = long();
    cpu.gpr[reg::RDI] = 0x5_0000_4000;
    cpu.gpr[reg::RCX] = 0x7_0000_0003;
    cpu.gpr[reg::RAX] = 0x99;
    finish(&mut cpu, &[0x67, REP, 0xaa]).unwrap();
    assert_eq!(cpu.look(0x4000, 4), 0x99_9999);
    assert_eq!((cpu.gpr[reg::RDI], cpu.gpr[reg::RCX]), (0x4003, 0));
}

#[test]
fn the_source_can_be_overridden_the_target_not() {
    let mut cpu = protected();
    for (number, base) in [(seg::FS, 0x100), (seg::ES, 0x200), (seg::DS, 0x300)] {
        cpu.segments[number].base = base;
    }
    cpu.poke(0x4100, 4, 0x1234);
    (cpu.gpr[reg::RSI], cpu.gpr[reg::RDI]) = (0x4000, 0x4000);
    cpu.run(&[0x64, 0xa5]).unwrap();
    assert_eq!(cpu.look(0x4200, 4), 0x1234);
}

#[test]
fn a_fault_leaves_the_registers_at_its_element() {
    let mut cpu = protected();
    let es = &mut cpu.segments[seg::ES];
    (es.limit, es.access) = (0x5fff, es.access & !Segment::GRANULAR);
    (cpu.gpr[reg::RSI], cpu.gpr[reg::RDI], cpu.gpr[reg::RCX]) = (0x9000, 0x5ff0, 0x100);
    assert_eq!(finish(&mut cpu, &[REP, 0xa5]), Err(Exception::gp(0)));
    assert_eq!([cpu.gpr[reg::RSI], cpu.gpr[reg::RDI], cpu.gpr[reg::RCX]], [0x9010, 0x6000, 0xfc]);
    assert_eq!(cpu.rip, 0x6000);
}

/// 32-bit paging, identity for the first 4 MiB but for the page at `missing`.
fn paged(missing: u64) -> Box<Cpu> {
    let mut cpu = protected();
    cpu.poke(0x10000, 4, 0x11007);
    for page in 0..256 {
        cpu.poke(0x11000 + page * 4, 4, page << 12 | 7);
    }
    cpu.poke(0x11000 + (missing >> 12) * 4, 4, 0);
    cpu.cr3 = 0x10000;
    cpu.cr0 |= control::CR0_PG;
    cpu
}

#[test]
fn page_faults_come_where_they_happen_in_both_directions() {
    for down in [false, true] {
        let mut cpu = paged(0x30000);
        cpu.rflags = 2 | if down { flag::DF } else { 0 };
        let (start, stop) = if down { (0x31ffc, 0x30ffc) } else { (0x2f000, 0x30000) };
        (cpu.gpr[reg::RSI], cpu.gpr[reg::RDI], cpu.gpr[reg::RCX]) = (0x50000, start, 0x1000);
        let fault = finish(&mut cpu, &[REP, 0xa5]).unwrap_err();
        assert_eq!((fault.vector, fault.address, fault.error), (vector::PF, Some(stop), Some(2)));
        assert_eq!((cpu.gpr[reg::RDI], cpu.gpr[reg::RCX]), (stop, 0xc00));
    }
}

#[test]
fn a_scan_stops_before_the_page_that_is_not_there() {
    let mut cpu = paged(0x30000);
    cpu.poke(0x2fff0, 1, 5);
    (cpu.gpr[reg::RDI], cpu.gpr[reg::RCX], cpu.gpr[reg::RAX]) = (0x2f000, u64::from(u32::MAX), 5);
    finish(&mut cpu, &[0xf2, 0xae]).unwrap();
    assert_eq!(cpu.gpr[reg::RDI], 0x2fff1);
    assert_eq!(finish(&mut cpu, &[0xf2, 0xae]).unwrap_err().address, Some(0x30000));
    assert_eq!(cpu.gpr[reg::RDI], 0x30000);
}

#[test]
fn long_repeats_let_interrupts_in() {
    let mut cpu = long();
    (cpu.gpr[reg::RDI], cpu.gpr[reg::RCX], cpu.gpr[reg::RAX]) = (0x40000, 0x8000, u64::MAX);
    cpu.attention.store(1, Ordering::SeqCst);
    assert_eq!(cpu.run(&[REP, 0xaa]), Ok(Flow::Again));
    assert_eq!((cpu.gpr[reg::RDI], cpu.gpr[reg::RCX]), (0x41000, 0x7000));
    assert_eq!(finish(&mut cpu, &[REP, 0xaa]), Ok(6));
    assert_eq!(cpu.look(0x47fff, 2), 0xff);
}
