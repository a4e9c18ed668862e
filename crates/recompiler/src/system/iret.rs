//! To be filled.

use iced_x86::Instruction;

use super::Outcome;
use crate::cpu::Cpu;

/// Executes the instructions of this topic.
pub fn execute(_cpu: &mut Cpu, _insn: &Instruction) -> Outcome {
    None
}
