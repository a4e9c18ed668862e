//! The software engine: a same-ISA recompiler.
//!
//! A block of guest code is decoded, each ordinary instruction is re-encoded as itself with its
//! memory operands rewritten, and the block runs natively. What differs from the host — address
//! translation and the system instructions — is Rust over [`cpu::Cpu`].

pub mod apic;
mod cache;
pub mod cpu;
#[cfg(test)]
mod differential;
pub mod exception;
mod fabric;
pub mod mmu;
mod run;
pub mod shared;
mod signal;
pub mod system;
#[cfg(test)]
mod testing;
mod translate;
mod vm;

pub use run::steppers;
pub use vm::SoftEngine;
