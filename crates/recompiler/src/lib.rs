//! The software engine: a same-ISA recompiler.
//!
//! A block of guest code is decoded, each ordinary instruction is re-encoded as itself with its
//! memory operands rewritten, and the block runs natively. What differs from the host — address
//! translation and the system instructions — is Rust over [`cpu::Cpu`].

pub mod apic;
pub mod cpu;
pub mod exception;
pub mod mmu;
pub mod shared;
pub mod system;
#[cfg(test)]
mod testing;
mod translate;
