//! The host as the judge: random instruction sequences run natively and in the engine; registers,
//! flags, vector and x87 state and memory must come out the same, bit for bit.
//!
//! `DIFFERENTIAL_SEQUENCES` sets how many sequences run, `DIFFERENTIAL_SEED` the first seed.

pub mod generate;
mod native;
mod random;

use std::sync::Arc;

use bus::{Bus, Clock, InterruptController, PowerSwitch, Timers};
use engine::{CpuidTable, Segment, Topology, VmConfig, VmServices, seg};
use memory::{Backing, GuestMemory};

use crate::apic::Apics;
use crate::cpu::{Activity, Cpu, control};
use crate::run::SoftVcpu;
use crate::shared::Shared;
use generate::{CODE, DATA, DATA_SIZE};
use random::Random;

/// Guest-physical addresses of page tables, code and data.
const TABLES: u64 = 0x1000;
pub const CODE_GPA: u64 = 0x20_0000;
pub const DATA_GPA: u64 = 0x40_0000;
const RAM: u64 = 0x80_0000;

struct NoController;

impl InterruptController for NoController {
    fn acknowledge(&self) -> Option<u8> {
        None
    }
    fn end_of_interrupt(&self, _vector: u8) {}
}

/// A VM with one vCPU in 64-bit mode, CPL 0, interrupts off.
pub fn long_mode() -> (SoftVcpu, GuestMemory) {
    let (mut vcpus, memory) = long_mode_vcpus(1);
    (vcpus.remove(0), memory)
}

/// A VM with some such vCPUs.
pub fn long_mode_vcpus(count: u32) -> (Vec<SoftVcpu>, GuestMemory) {
    let memory = GuestMemory::new(&[(0, RAM)], &Backing::Anonymous).unwrap();
    let clock = Clock::new();
    let services = VmServices {
        memory: memory.clone(),
        bus: Arc::new(Bus::new()),
        interrupts: Arc::new(NoController),
        power: Arc::default(),
        timers: Arc::new(Timers::start(clock).unwrap()),
        clock,
    };
    let _: &PowerSwitch = &services.power;
    let topology = Topology { sockets: 1, cores: count, threads: 1 };
    let config = VmConfig {
        vcpus: count,
        cpuid: CpuidTable { topology, leaves: Vec::new() },
        strict_msr: true,
        x2apic: false,
        strict_io: false,
    };
    let apics = Apics::new(&config, &services);
    let shared = Shared::new(config, services);
    page_tables(&memory);
    let vcpus = (0..count).map(|id| {
        let mut vcpu = SoftVcpu::new(&shared, &apics, id).unwrap();
        enter_long_mode(vcpu.cpu_mut());
        vcpu
    });
    (vcpus.collect(), memory)
}

fn enter_long_mode(cpu: &mut Cpu) {
    cpu.cr0 = control::CR0_PE | control::CR0_PG | control::CR0_NE | control::CR0_WP | control::CR0_ET;
    cpu.cr4 = control::CR4_PAE | control::CR4_OSFXSR | control::CR4_OSXMMEXCPT | control::CR4_OSXSAVE;
    cpu.efer = control::EFER_LME | control::EFER_LMA | control::EFER_SCE;
    cpu.xcr0 = 7;
    cpu.cr3 = TABLES;
    cpu.segments[seg::CS] = Segment { base: 0, limit: u32::MAX, access: 0xa09b, selector: 8 };
    for n in [seg::ES, seg::SS, seg::DS, seg::FS, seg::GS] {
        cpu.segments[n] = Segment { base: 0, limit: u32::MAX, access: 0xc093, selector: 16 };
    }
    cpu.activity = Activity::Running;
}

/// Maps CODE and DATA, 2 MiB each, where the native run has them, too.
fn page_tables(memory: &GuestMemory) {
    let put = |at: u64, value: u64| memory.write(at, &value.to_le_bytes()).unwrap();
    for (n, (linear, gpa)) in [(CODE, CODE_GPA), (DATA, DATA_GPA)].into_iter().enumerate() {
        let pdpt = TABLES + 0x1000 + 0x2000 * n as u64;
        put(TABLES + 8 * (linear >> 39 & 511), pdpt | 3);
        put(pdpt + 8 * (linear >> 30 & 511), (pdpt + 0x1000) | 3);
        // Present, writable, page size.
        put(pdpt + 0x1000 + 8 * (linear >> 21 & 511), gpa | 0x83);
    }
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

#[test]
fn random_sequences_agree_with_the_host() {
    let (mut vcpu, memory) = long_mode();
    let mut native = native::Native::new();
    let first = setting("DIFFERENTIAL_SEED", 1);
    let count = setting("DIFFERENTIAL_SEQUENCES", 200_000);
    let mut generator = generate::Generator::new();
    let mut instructions = 0;
    vcpu.enter_thread();
    for seed in first..first + count {
        let mut random = Random::new(seed);
        let sequence = generator.sequence(&mut random);
        instructions += sequence.count;
        let state = generate::State::random(&mut random);
        let expected = native.run(&sequence, &state);
        memory.write(CODE_GPA + sequence.start, &sequence.guest_code()).unwrap();
        let actual = run_guest(&mut vcpu, &memory, &sequence, &state);
        if let Some(difference) = expected.difference(&actual) {
            vcpu.leave_thread();
            panic!("seed {seed}: {difference}\n{}", sequence.listing());
        }
    }
    vcpu.leave_thread();
    println!("{count} sequences, {instructions} instructions, seeds {first}..{}", first + count);
}

fn run_guest(
    vcpu: &mut SoftVcpu,
    memory: &GuestMemory,
    sequence: &generate::Sequence,
    state: &generate::State,
) -> generate::State {
    memory.write(DATA_GPA, &state.data).unwrap();
    state.put_x87();
    let cpu = vcpu.cpu_mut();
    cpu.gpr = state.gpr;
    cpu.rflags = 2 | state.flags;
    cpu.vectors = state.vectors;
    cpu.jit.upper_used = 1;
    cpu.mxcsr = state.mxcsr;
    cpu.rip = CODE + sequence.start;
    cpu.activity = Activity::Running;
    // Without an IDT any exception ends in Shutdown, which the comparison of RIP shows.
    for _ in 0..100_000 {
        if vcpu.cpu_mut().activity != Activity::Running {
            break;
        }
        assert!(vcpu.turn().is_none(), "{}", sequence.listing());
    }
    let mut result = generate::State { data: vec![0; DATA_SIZE], ..generate::State::default() };
    result.take_x87();
    memory.read(DATA_GPA, &mut result.data).unwrap();
    let cpu = vcpu.cpu_mut();
    result.gpr = cpu.gpr;
    result.flags = cpu.rflags & crate::cpu::ARITHMETIC_FLAGS;
    result.vectors = cpu.vectors;
    result.mxcsr = cpu.mxcsr;
    result.completed = cpu.activity == Activity::Halted;
    result
}
