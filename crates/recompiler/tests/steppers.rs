//! Single instructions by the recompiler, alone and in the service of KVM.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::sync::Arc;

use bus::{Bus, BusDevice, Clock, InterruptController, PowerEvent, PowerSwitch, Timers};
use engine::{
    CpuidTable, Engine, EngineFeatures, KvmEngine, RunState, Segment, Stop, TableRegister, Topology,
    VcpuState, VmConfig, VmServices, reg, seg,
};
use memory::{Backing, GuestMemory};

const TABLES: u64 = 0x1000;
const IDT: u64 = 0x4000;
const GDT: u64 = 0x5000;
const STACK: u64 = 0x9000;
const CODE: u64 = 0x1_0000;
const DATA: u64 = 0x2_0000;
/// Offset of the handler of every exception.
const HANDLER: u64 = 0x3_0000;

struct NoChipset;

impl InterruptController for NoChipset {
    fn acknowledge(&self) -> Option<u8> {
        None
    }
    fn end_of_interrupt(&self, _: u8) {}
}

struct End(Arc<PowerSwitch>);

impl BusDevice for End {
    fn read(&self, _: u64, data: &mut [u8]) {
        data.fill(0);
    }
    fn write(&self, _: u64, _: &[u8]) {
        self.0.request(PowerEvent::PowerOff);
    }
}

/// 1 MiB of RAM; port 5F4 ends the VM.
fn machine() -> (VmConfig, VmServices) {
    let (clock, power, bus) = (Clock::new(), Arc::new(PowerSwitch::default()), Arc::new(Bus::new()));
    bus.claim_ports(0x5f4..0x5f5, Arc::new(End(power.clone()))).unwrap();
    let services = VmServices {
        memory: GuestMemory::new(&[(0, 1 << 20)], &Backing::Anonymous).unwrap(),
        bus,
        interrupts: Arc::new(NoChipset),
        power,
        timers: Arc::new(Timers::start(clock).unwrap()),
        clock,
    };
    let topology = Topology { sockets: 1, cores: 1, threads: 1 };
    let cpuid = CpuidTable::new(topology, EngineFeatures::default());
    (VmConfig { vcpus: 1, cpuid, strict_msr: true, x2apic: false, strict_io: false }, services)
}

/// 64-bit mode at CPL 0 with the first 2 MiB mapped as they are, at `code`.
fn long_mode(memory: &GuestMemory, code: &[u8]) -> VcpuState {
    let put = |at: u64, value: u64| memory.write(at, &value.to_le_bytes()).unwrap();
    put(TABLES, (TABLES + 0x1000) | 3);
    put(TABLES + 0x1000, (TABLES + 0x2000) | 3);
    put(TABLES + 0x2000, 0x83);
    put(GDT + 8, 0x00af_9b00_0000_ffff);
    put(GDT + 16, 0x00cf_9300_0000_ffff);
    for vector in 0..32 {
        // A present interrupt gate to selector 8 (Intel SDM vol. 3, figure 7-8).
        put(IDT + 16 * vector, HANDLER & 0xffff | 8 << 16 | 0x8e << 40 | HANDLER >> 16 << 48);
        put(IDT + 16 * vector + 8, 0);
    }
    memory.write(CODE, code).unwrap();
    memory.write(HANDLER, &[0xf4]).unwrap();
    let mut state = VcpuState::reset(0);
    let data = Segment { base: 0, limit: u32::MAX, access: 0xc093, selector: 16 };
    for n in [seg::ES, seg::SS, seg::DS, seg::FS, seg::GS] {
        state.segments[n] = data;
    }
    state.segments[seg::CS] = Segment { access: 0xa09b, selector: 8, ..data };
    state.gdtr = TableRegister { base: GDT, limit: 23 };
    state.idtr = TableRegister { base: IDT, limit: 0x1ff };
    // PG, WP, NE, ET, PE; PAE, OSFXSR, OSXMMEXCPT; LMA, LME.
    (state.cr0, state.cr3, state.cr4, state.efer) = (0x8001_0031, TABLES, 0x620, 0x500);
    (state.rip, state.gpr[reg::RSP]) = (CODE, STACK);
    state
}

/// Steps once through `code` from a state that `prepare` changes.
fn step(code: &[u8], prepare: impl FnOnce(&mut VcpuState, &GuestMemory)) -> (VcpuState, GuestMemory) {
    let (config, services) = machine();
    let mut state = long_mode(&services.memory, code);
    prepare(&mut state, &services.memory);
    let mut stepper = recompiler::steppers()(&config, &services, 0).unwrap();
    stepper.step(&mut state, &services).unwrap();
    (state, services.memory.clone())
}

fn word(memory: &GuestMemory, at: u64) -> u64 {
    let mut bytes = [0; 8];
    memory.read(at, &mut bytes).unwrap();
    u64::from_le_bytes(bytes)
}

#[test]
fn popcnt_and_not_more() {
    // popcnt rax,rcx; inc rax.
    let (state, _) = step(&[0xf3, 0x48, 0x0f, 0xb8, 0xc1, 0x48, 0xff, 0xc0], |state, _| {
        state.gpr[reg::RCX] = 0xff00_ff00_0000_0001;
    });
    assert_eq!((state.gpr[reg::RAX], state.rip), (17, CODE + 5));
}

#[test]
fn cmpxchg16b_stores_or_loads() {
    // lock cmpxchg16b [rsi].
    let code = [0xf0, 0x48, 0x0f, 0xc7, 0x0e];
    let prepare = |rax: u64| {
        move |state: &mut VcpuState, memory: &GuestMemory| {
            memory.write(DATA, &[1u64.to_le_bytes(), 2u64.to_le_bytes()].concat()).unwrap();
            state.gpr[reg::RSI] = DATA;
            (state.gpr[reg::RAX], state.gpr[reg::RDX]) = (rax, 2);
            (state.gpr[reg::RBX], state.gpr[reg::RCX]) = (3, 4);
        }
    };
    let (state, memory) = step(&code, prepare(1));
    assert_eq!((word(&memory, DATA), word(&memory, DATA + 8)), (3, 4));
    assert_eq!((state.rflags & 0x40, state.rip), (0x40, CODE + 5));
    let (state, memory) = step(&code, prepare(7));
    assert_eq!((word(&memory, DATA), word(&memory, DATA + 8)), (1, 2));
    assert_eq!((state.rflags & 0x40, state.gpr[reg::RAX], state.gpr[reg::RDX]), (0, 1, 2));
}

#[test]
fn fxsave_stores_the_state_that_was_given() {
    // fxsave64 [rsi].
    let (state, memory) = step(&[0x48, 0x0f, 0xae, 0x06], |state, _| {
        state.gpr[reg::RSI] = DATA;
        state.fpu.area[24..28].copy_from_slice(&0x1fa0u32.to_le_bytes());
        // ST0 is 1.0; XMM15.
        state.fpu.area[2..4].copy_from_slice(&0x3800u16.to_le_bytes());
        state.fpu.area[4] = 0x80;
        state.fpu.area[39..42].copy_from_slice(&[0x80, 0xff, 0x3f]);
        state.fpu.area[400..416].fill(0x5a);
    });
    let mut image = [0; 512];
    memory.read(DATA, &mut image).unwrap();
    assert_eq!(image[..5], [0x7f, 3, 0, 0x38, 0x80]);
    assert_eq!(image[24..28], 0x1fa0u32.to_le_bytes());
    assert_eq!(image[32..42], [0, 0, 0, 0, 0, 0, 0, 0x80, 0xff, 0x3f]);
    assert_eq!(image[400..416], [0x5a; 16]);
    assert_eq!(state.rip, CODE + 4);
}

#[test]
fn push_and_pop() {
    let (state, memory) = step(&[0x50], |state, _| state.gpr[reg::RAX] = 0x1122_3344_5566_7788);
    assert_eq!((state.gpr[reg::RSP], word(&memory, STACK - 8)), (STACK - 8, 0x1122_3344_5566_7788));
    // pop r10.
    let (state, _) = step(&[0x41, 0x5a], |_, memory| memory.write(STACK, &[9]).unwrap());
    assert_eq!((state.gpr[reg::RSP], state.gpr[10], state.rip), (STACK + 8, 9, CODE + 2));
}

#[test]
fn an_exception_is_delivered() {
    // div rcx.
    let (state, memory) = step(&[0x48, 0xf7, 0xf1], |state, _| {
        (state.gpr[reg::RAX], state.gpr[10], state.gpr[11]) = (5, 10, 11);
    });
    assert_eq!((state.rip, state.gpr[reg::RSP]), (HANDLER, STACK - 40));
    // RIP, CS, RFLAGS, RSP, SS.
    let frame = [0, 8, 16, 24, 32].map(|at| word(&memory, STACK - 40 + at));
    assert_eq!((frame[0], frame[1], frame[3], frame[4]), (CODE, 8, STACK, 16));
    assert_eq!((state.gpr[reg::RAX], state.gpr[10], state.gpr[11]), (5, 10, 11));
}

#[test]
fn a_page_fault_is_delivered_with_its_address() {
    // mov [rsi],al.
    let (state, memory) = step(&[0x88, 0x06], |state, _| state.gpr[reg::RSI] = 0x40_0123);
    assert_eq!((state.rip, state.cr2), (HANDLER, 0x40_0123));
    assert_eq!((word(&memory, STACK - 48), word(&memory, STACK - 40)), (2, CODE));
}

#[test]
fn a_halt_halts_and_new_code_is_seen() {
    let (config, services) = machine();
    let mut state = long_mode(&services.memory, &[0xf4]);
    let mut stepper = recompiler::steppers()(&config, &services, 0).unwrap();
    stepper.step(&mut state, &services).unwrap();
    assert_eq!((state.run, state.rip), (RunState::Halted, CODE + 1));
    // inc eax in the same place, without any notice.
    services.memory.write(CODE, &[0xff, 0xc0]).unwrap();
    (state.run, state.rip) = (RunState::Running, CODE);
    stepper.step(&mut state, &services).unwrap();
    assert_eq!((state.rip, state.gpr[reg::RAX]), (CODE + 2, 1));
}

fn kvm() -> Option<KvmEngine> {
    KvmEngine::new(Some(recompiler::steppers())).map_err(|error| eprintln!("left out: {error}")).ok()
}

#[test]
fn kvm_with_steppers_passes_the_scenarios() {
    let Some(kvm) = kvm() else { return };
    for scenario in engine::guests::ALL {
        eprintln!("{}", scenario.name);
        scenario.check(&kvm);
    }
}

#[test]
fn what_kvm_leaves_to_the_recompiler_is_right() {
    let Some(kvm) = kvm() else { return };
    let (config, services) = machine();
    // popcnt rax,rcx; lock cmpxchg16b [rsi]; fxsave64 [rdi]; mov dx,5F4h; out dx,al; hlt.
    let code = [
        &[0xf3, 0x48, 0x0f, 0xb8, 0xc1][..],
        &[0xf0, 0x48, 0x0f, 0xc7, 0x0e],
        &[0x48, 0x0f, 0xae, 0x07],
        &[0x66, 0xba, 0xf4, 0x05, 0xee, 0xf4],
    ]
    .concat();
    let mut state = long_mode(&services.memory, &code);
    (state.gpr[reg::RSI], state.gpr[reg::RDI]) = (DATA, DATA + 0x100);
    (state.gpr[reg::RBX], state.gpr[reg::RCX]) = (3, 0xff);
    services.memory.write(DATA, &8u64.to_le_bytes()).unwrap();
    let vm = kvm.new_vm(config, services.clone()).unwrap();
    let mut vcpu = vm.new_vcpu(0).unwrap();
    vcpu.set_state(&state).unwrap();
    assert_eq!(vcpu.run(), Stop::Stopped);
    assert_eq!(services.power.event(), Some(PowerEvent::PowerOff));
    assert_eq!((word(&services.memory, DATA), word(&services.memory, DATA + 8)), (3, 0xff));
    assert_eq!(word(&services.memory, DATA + 0x100) & 0xffff, 0x37f);
}
