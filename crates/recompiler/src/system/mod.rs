//! System instructions: everything that is not re-encoded, as Rust over the vCPU structure.

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

/// Executes `instruction`, which was decoded at CS:RIP, on `cpu`. On an exception the state is as
/// before the instruction (RIP included), except where the architecture says otherwise.
pub fn execute(_cpu: &mut Cpu, _instruction: &Instruction) -> Exec<Flow> {
    Err(Exception::ud())
}
