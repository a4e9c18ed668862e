//! Address translation.

mod tlb;

pub use tlb::{ENTRIES, Entry, Tlb, TlbClass};
