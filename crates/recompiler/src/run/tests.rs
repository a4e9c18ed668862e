//! Guest code through the run loop.

mod faults;
mod many;
mod memory;
mod modified;

use ::memory::GuestMemory;
use engine::TableRegister;

use super::SoftVcpu;
use crate::cpu::{Activity, Cpu};
use crate::differential::generate::{CODE, DATA};
use crate::differential::{CODE_GPA, DATA_GPA, long_mode_vcpus};

/// The end of mapped data.
const DATA_END: u64 = DATA + 0x20_0000;
const GDT: u64 = 0x10_0000;
const IDT: u64 = 0x11_0000;
/// Offset in the code of 16 bytes for each vector's handler: HLT unless a test wants another.
const HANDLERS: u64 = 0x10_0000;
const STACK: u64 = DATA + 0x18_0000;

/// The bytes of assembler code; position-independent. Labels: 2 to 9.
macro_rules! code {
    ($($line:literal),* $(,)?) => {{
        let (start, end): (*const u8, *const u8);
        // SAFETY: two addresses are loaded; the guest's code is jumped over.
        unsafe {
            std::arch::asm!("lea {0}, [rip + 700f]", "lea {1}, [rip + 701f]", "jmp 701f", "700:", $($line,)* "701:",
                out(reg) start, out(reg) end, options(nomem, nostack));
        }
        // SAFETY: the code lies between the addresses, and stays.
        unsafe { std::slice::from_raw_parts(start, end.offset_from(start) as usize) }
    }};
}
use code;

/// A VM in 64-bit mode with handlers for all exceptions.
struct Guest {
    vcpus: Vec<SoftVcpu>,
    memory: GuestMemory,
}

/// A guest with one vCPU at `code`.
fn guest(code: &[u8]) -> Guest {
    guest_of(1, code)
}

fn guest_of(count: u32, code: &[u8]) -> Guest {
    let (vcpus, memory) = long_mode_vcpus(count);
    let mut guest = Guest { vcpus, memory };
    guest.put_code(0, code);
    guest.put_data(GDT + 8, &0x00af_9b00_0000_ffff_u64.to_le_bytes());
    guest.put_data(GDT + 16, &0x00cf_9300_0000_ffff_u64.to_le_bytes());
    for vector in 0..256 {
        let handler = CODE + HANDLERS + 16 * vector;
        // A present interrupt gate to selector 8 (Intel SDM vol. 3, figure 7-8).
        let low = handler & 0xffff | 8 << 16 | 0x8e << 40 | (handler >> 16 & 0xffff) << 48;
        guest.put_data(IDT + 16 * vector, &low.to_le_bytes());
        guest.put_data(IDT + 16 * vector + 8, &(handler >> 32).to_le_bytes());
        guest.put_code(HANDLERS + 16 * vector, code!("hlt"));
    }
    for (n, vcpu) in guest.vcpus.iter_mut().enumerate() {
        let cpu = vcpu.cpu_mut();
        cpu.gdtr = TableRegister { base: DATA + GDT, limit: 23 };
        cpu.idtr = TableRegister { base: DATA + IDT, limit: 0xfff };
        cpu.rip = CODE;
        cpu.gpr[engine::reg::RSP] = STACK + 0x1000 * n as u64;
        cpu.gpr[engine::reg::RSI] = DATA;
    }
    guest
}

/// Runs until the vCPU halts; a spinning guest is given up.
fn run(vcpu: &mut SoftVcpu) {
    vcpu.cpu_mut().activity = Activity::Running;
    let end = std::time::Instant::now() + std::time::Duration::from_secs(30);
    vcpu.enter_thread();
    while vcpu.cpu_mut().activity == Activity::Running && std::time::Instant::now() < end {
        if let Some(stop) = vcpu.turn() {
            vcpu.leave_thread();
            panic!("{stop:?} at {:#x}", vcpu.cpu_mut().rip);
        }
    }
    vcpu.leave_thread();
    assert_eq!(vcpu.cpu_mut().activity, Activity::Halted);
}

impl Guest {
    fn put_code(&self, at: u64, code: &[u8]) {
        self.memory.write(CODE_GPA + at, code).unwrap();
    }

    fn put_data(&self, at: u64, data: &[u8]) {
        self.memory.write(DATA_GPA + at, data).unwrap();
    }

    fn data(&self, at: u64) -> u64 {
        let mut bytes = [0; 8];
        self.memory.read(DATA_GPA + at, &mut bytes).unwrap();
        u64::from_le_bytes(bytes)
    }

    fn cpu(&mut self) -> &mut Cpu {
        self.vcpus[0].cpu_mut()
    }

    fn run(&mut self) {
        run(&mut self.vcpus[0]);
    }

    /// The vector whose handler the vCPU halted in.
    fn vector(&mut self) -> u64 {
        let rip = self.cpu().rip;
        assert_eq!((rip - 1) % 16, 0, "not in a handler: {rip:#x}");
        (rip - 1 - CODE - HANDLERS) / 16
    }

    /// Entry `n` of the stack.
    fn stack(&mut self, n: u64) -> u64 {
        let rsp = self.cpu().gpr[engine::reg::RSP];
        self.data(rsp - DATA + 8 * n)
    }
}
