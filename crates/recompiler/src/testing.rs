//! A vCPU with a little RAM, for unit tests.
#![allow(missing_docs)]

use std::sync::Arc;

use bus::{Bus, Clock, InterruptController, PowerSwitch, Timers};
use engine::{CpuidLeaf, CpuidTable, Segment, Topology, VmConfig, VmServices, seg};
use iced_x86::{Decoder, DecoderOptions};
use memory::{Backing, GuestMemory};

use crate::apic::Apics;
use crate::cpu::{Cpu, control};
use crate::exception::Exec;
use crate::shared::Shared;
use crate::system::{Flow, execute};

/// RAM that a test vCPU has.
pub const RAM: u64 = 1 << 20;
/// Where [`protected`] puts things.
pub const GDT: u64 = 0x1000;
pub const IDT: u64 = 0x2000;
pub const TSS: u64 = 0x3000;
pub const STACK0: u64 = 0x8000;
pub const STACK3: u64 = 0x9000;

/// A reproducible source of numbers (xorshift64*).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

struct NoChipset;

impl InterruptController for NoChipset {
    fn acknowledge(&self) -> Option<u8> {
        None
    }
    fn end_of_interrupt(&self, _: u8) {}
}

/// A vCPU after power-on with CPUID answers that tests may need; `vendor` as CPUID has it in EBX.
pub fn cpu_of(vendor: u32) -> Box<Cpu> {
    cpu_with(vendor, |_| {})
}

/// The same, of a VM that `change` has changed.
pub fn cpu_with(vendor: u32, change: impl FnOnce(&mut VmConfig)) -> Box<Cpu> {
    let clock = Clock::new();
    let services = VmServices {
        memory: GuestMemory::new(&[(0, RAM)], &Backing::Anonymous).unwrap(),
        bus: Arc::new(Bus::new()),
        interrupts: Arc::new(NoChipset),
        power: Arc::new(PowerSwitch::default()),
        timers: Arc::new(Timers::start(clock).unwrap()),
        clock,
    };
    let leaf = |eax, ebx, ecx, edx| CpuidLeaf { eax, ebx, ecx, edx };
    let leaves = vec![
        (0, 0, leaf(0xd, vendor, 0, 0)),
        (1, 0, leaf(0, 0, u32::MAX, u32::MAX)),
        (7, 0, leaf(0, u32::MAX, u32::MAX, 0)),
        (0xd, 0, leaf(7, 832, 832, 0)),
        (0xd, 1, leaf(7, 0, 0, 0)),
        (0xd, 2, leaf(256, 576, 0, 0)),
        (0x8000_0000, 0, leaf(0x8000_0008, 0, 0, 0)),
        (0x8000_0001, 0, leaf(0, 0, u32::MAX, u32::MAX)),
        (0x8000_0008, 0, leaf(0x3028, 0, 0, 0)),
    ];
    let cpuid = CpuidTable { topology: Topology { sockets: 1, cores: 1, threads: 1 }, leaves };
    let mut config = VmConfig { vcpus: 1, cpuid, strict_msr: true, x2apic: false, strict_io: false };
    change(&mut config);
    let apics = Apics::new(&config, &services);
    let apic = apics.get(0).unwrap().clone();
    Cpu::new_boxed(Shared::new(config, services), 0, apic)
}

/// An Intel one ("Genu").
pub fn cpu() -> Box<Cpu> {
    cpu_of(0x756e_6547)
}

/// A descriptor; `access` as in [`Segment::access`].
pub const fn descriptor(base: u32, limit: u32, access: u32) -> u64 {
    let (base, limit) = (base as u64, limit as u64);
    limit & 0xffff
        | (base & 0xff_ffff) << 16
        | (access as u64) << 40
        | (limit >> 16 & 15) << 48
        | base >> 24 << 56
}

/// A gate: `access` is its type, DPL and P.
pub const fn gate(selector: u16, offset: u32, access: u32, count: u32) -> u64 {
    let (offset, selector) = (offset as u64, selector as u64);
    offset & 0xffff | selector << 16 | (count as u64) << 32 | (access as u64) << 40 | offset >> 16 << 48
}

/// Selectors of [`protected`].
pub const CODE0: u16 = 0x08;
pub const DATA0: u16 = 0x10;
pub const CODE3: u16 = 0x1b;
pub const DATA3: u16 = 0x23;
pub const TASK: u16 = 0x28;
/// 16 bytes in IA-32e mode, so 0x30 is taken too.
pub const LONG0: u16 = 0x38;
pub const LONG3: u16 = 0x43;
/// Free for the test.
pub const FREE: u16 = 0x48;

impl Cpu {
    pub fn poke(&mut self, gpa: u64, size: usize, value: u64) {
        self.store_physical(gpa, &value.to_le_bytes()[..size]);
    }

    pub fn look(&mut self, gpa: u64, size: usize) -> u64 {
        let mut data = [0; 8];
        self.load_physical(gpa, &mut data[..size]);
        u64::from_le_bytes(data)
    }

    pub fn set_descriptor(&mut self, selector: u16, value: u64) {
        self.poke(GDT + u64::from(selector & 0xfff8), 8, value);
    }

    /// Loads CS, SS and the others with flat segments of `level`, 32-bit, and the stack pointer.
    pub fn at_level(&mut self, level: u8) {
        let (code, data, sp) = if level == 3 { (CODE3, DATA3, STACK3) } else { (CODE0, DATA0, STACK0) };
        let bits = u32::from(level) << 5 | Segment::GRANULAR | Segment::BIG;
        for number in [seg::ES, seg::SS, seg::DS, seg::FS, seg::GS] {
            self.segments[number] = Segment { base: 0, limit: u32::MAX, access: 0x93 | bits, selector: data };
        }
        self.segments[seg::CS] = Segment { base: 0, limit: u32::MAX, access: 0x9b | bits, selector: code };
        self.cpl = level;
        self.gpr[engine::reg::RSP] = sp;
    }

    /// Executes one instruction whose bytes are given; RIP moves on.
    pub fn run(&mut self, bytes: &[u8]) -> Exec<Flow> {
        let insn = Decoder::with_ip(self.bitness(), bytes, self.rip, DecoderOptions::NONE).decode();
        let flow = execute(self, &insn).0?;
        if flow == Flow::Next {
            self.rip = self.next_rip(&insn);
        }
        Ok(flow)
    }
}

/// Without paging, 32-bit protected mode at CPL 0 with a GDT, an IDT of no gates and a TSS.
pub fn protected() -> Box<Cpu> {
    let mut cpu = cpu();
    set_up(&mut cpu);
    cpu
}

pub fn set_up(cpu: &mut Cpu) {
    cpu.cr0 |= control::CR0_PE;
    (cpu.gdtr.base, cpu.gdtr.limit) = (GDT, 0xff);
    (cpu.idtr.base, cpu.idtr.limit) = (IDT, 0xfff);
    let wide = Segment::GRANULAR | Segment::BIG;
    let long = Segment::GRANULAR | Segment::LONG;
    for (selector, access) in [
        (CODE0, 0x9a | wide),
        (DATA0, 0x92 | wide),
        (CODE3, 0xfa | wide),
        (DATA3, 0xf2 | wide),
        (LONG0, 0x9a | long),
        (LONG3, 0xfa | long),
    ] {
        cpu.set_descriptor(selector, descriptor(0, 0xfffff, access));
    }
    cpu.set_descriptor(TASK, descriptor(TSS as u32, 0x67, 0x8b));
    cpu.segments[seg::TR] = Segment { base: TSS, limit: 0x67, access: 0x8b, selector: TASK };
    cpu.at_level(0);
    cpu.rip = 0x6000;
    // SS0:ESP0.
    cpu.poke(TSS + 4, 4, 0x7000);
    cpu.poke(TSS + 8, 4, u64::from(DATA0));
}

/// The same in 64-bit mode (paging off, which only the tests can have): RSP0 and IST1 in the TSS.
pub fn long() -> Box<Cpu> {
    let mut cpu = protected();
    go_long(&mut cpu, 0);
    cpu
}

pub fn go_long(cpu: &mut Cpu, level: u8) {
    cpu.at_level(level);
    cpu.efer |= control::EFER_LMA | control::EFER_LME | control::EFER_SCE;
    let code = &mut cpu.segments[seg::CS];
    code.access = code.access & !Segment::BIG | Segment::LONG;
    code.selector = if level == 3 { LONG3 } else { LONG0 };
    cpu.poke(TSS + 4, 8, 0x7000);
    cpu.poke(TSS + 0x24, 8, 0x7800);
}

/// A gate of IA-32e mode in the IDT.
pub fn long_gate(cpu: &mut Cpu, vector: u64, selector: u16, offset: u64, access: u32, ist: u32) {
    cpu.poke(IDT + vector * 16, 8, gate(selector, offset as u32, access, ist));
    cpu.poke(IDT + vector * 16 + 8, 8, offset >> 32);
}
