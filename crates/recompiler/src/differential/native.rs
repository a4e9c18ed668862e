//! Runs a sequence on the host itself.

use std::mem::offset_of;

use super::generate::{CODE, DATA, DATA_SIZE, Sequence, State};
use super::long_mode;
use crate::cache::{ExitKind, Stubs};
use crate::cpu::{ARITHMETIC_FLAGS, Cpu, Jit};
use crate::run::SoftVcpu;
use crate::translate::emit::{Code, Mem, R10, R11};

const CODE_SIZE: usize = 64 << 10;

/// Native code and data areas at the guest's addresses, and an idle vCPU for its entry code.
pub struct Native {
    frame: SoftVcpu,
}

/// Maps memory at a fixed address.
fn map(at: u64, size: usize, protection: i32) {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    // SAFETY: NOREPLACE refuses to touch anything that exists.
    let got = unsafe { libc::mmap(at as *mut libc::c_void, size, protection, flags, -1, 0) };
    assert_eq!(got as u64, at, "the test's address range is taken");
}

impl Native {
    /// Maps the areas; they stay until the process ends.
    pub fn new() -> Self {
        map(CODE, CODE_SIZE, libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC);
        map(DATA, DATA_SIZE, libc::PROT_READ | libc::PROT_WRITE);
        Self { frame: long_mode().0 }
    }

    /// Runs `sequence` from `state`.
    pub fn run(&mut self, sequence: &Sequence, state: &State) -> State {
        let mut code = sequence.code.clone();
        let mut back = Code::default();
        // Native code has no use for the page mask; its field holds the way out.
        back.jmp_mem(Stubs::jit(offset_of!(Jit, page_mask)));
        code.extend_from_slice(back.bytes());
        // SAFETY: both areas were mapped by `new`; the sequences fit (400 * 64 + code < 64 KiB).
        unsafe {
            std::ptr::copy_nonoverlapping(code.as_ptr(), (CODE + sequence.start) as *mut u8, code.len());
            std::ptr::copy_nonoverlapping(state.data.as_ptr(), DATA as *mut u8, DATA_SIZE);
        }
        let mut result = self.call(CODE + sequence.start, state);
        // SAFETY: as above.
        unsafe { std::ptr::copy_nonoverlapping(DATA as *const u8, result.data.as_mut_ptr(), DATA_SIZE) };
        result.completed = true;
        result
    }

    fn call(&mut self, target: u64, state: &State) -> State {
        let frame = &mut self.frame;
        let done = frame.cache_mut().stubs().exit(ExitKind::Done);
        // The way in loads what translated code keeps in memory; the way out stores it.
        let leave = frame.cache_mut().scratch(|code, base| {
            code.store(Stubs::home(R10), R10);
            code.store(Stubs::home(R11), R11);
            let jump = code.jmp();
            code.fix_to(jump, i64::from(done) - base as i64);
        });
        let way_in = frame.cache_mut().scratch(|code, _| {
            code.load(R10, Stubs::home(R10));
            code.load(R11, Stubs::home(R11));
            code.jmp_mem(Mem::field(offset_of!(Cpu, jit) + offset_of!(Jit, value)));
        });
        let leave = frame.cache_mut().address(leave);
        let way_in = frame.cache_mut().address(way_in);
        let cpu = frame.cpu_mut();
        cpu.gpr = state.gpr;
        cpu.rflags = 2 | state.flags;
        cpu.vectors = state.vectors;
        cpu.jit.upper_used = 1;
        cpu.mxcsr = state.mxcsr;
        cpu.jit.value = target;
        cpu.jit.page_mask = leave;
        state.put_x87();
        frame.enter_with_gs(way_in);
        let mut result = State { data: vec![0; DATA_SIZE], ..State::default() };
        result.take_x87();
        let cpu = frame.cpu_mut();
        result.gpr = cpu.gpr;
        result.flags = cpu.rflags & ARITHMETIC_FLAGS;
        result.vectors = cpu.vectors;
        result.mxcsr = cpu.mxcsr;
        result
    }
}
