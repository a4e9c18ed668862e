//! Address translation.

mod tlb;

pub use tlb::{Entry, Tlb, TlbClass};
