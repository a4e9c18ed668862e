//! System instructions: everything that is not re-encoded, as Rust over the vCPU structure.
//!
//! Each module executes one topic's instructions and says `None` to all others.

pub mod control;
pub mod cpuid;
pub mod descriptor;
pub mod far;
pub mod features;
pub mod fpu;
pub mod gate;
pub mod interrupts;
pub mod io;
pub mod iret;
pub mod legacy;
pub mod masked;
pub mod msr;
pub mod operand;
pub mod segments;
pub mod string;
pub mod syscall;
pub mod task;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod unit;
pub mod x87;

use iced_x86::Instruction;

use crate::cpu::Cpu;
use crate::exception::{Exception, Exec};

/// Where execution goes on after a system instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// After the instruction; the caller advances RIP (truncated to the code size).
    Next,
    /// RIP (and perhaps CS, CPL, mode) has been set.
    Jump,
    /// After the instruction, once an interrupt comes.
    Halt,
    /// At the same instruction again (a REP instruction that let an interrupt in).
    Again,
    /// An `-e` access to an unclaimed port.
    UnclaimedPort {
        /// The port.
        port: u16,
        /// Whether it was a write.
        write: bool,
        /// 1, 2 or 4 bytes.
        size: u8,
    },
}

/// What a module makes of an instruction: `None` if it is another's.
pub type Outcome = Option<Exec<Flow>>;

/// A module's way in.
pub type Topic = fn(&mut Cpu, &Instruction) -> Outcome;

/// Every topic; the first that knows the instruction executes it.
const TOPICS: [Topic; 12] = [
    syscall::execute,
    iret::execute,
    segments::execute,
    interrupts::execute,
    control::execute,
    io::execute,
    string::execute,
    far::execute,
    descriptor::execute,
    fpu::execute,
    masked::execute,
    legacy::execute,
];

/// Executes `instruction`, which was decoded at CS:RIP, on `cpu`, and says which topic it was. On
/// an exception the state is as before the instruction (RIP included), except where the
/// architecture says otherwise.
pub fn execute(cpu: &mut Cpu, instruction: &Instruction) -> (Exec<Flow>, Option<Topic>) {
    for topic in TOPICS {
        if let Some(result) = topic(cpu, instruction) {
            return (result, Some(topic));
        }
    }
    (Err(Exception::ud()), None)
}
