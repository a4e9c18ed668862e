//! Address translation and guest memory access.

mod access;
#[cfg(test)]
mod tests;
mod tlb;
mod walk;

pub use access::{AccessMode, Fetched, Filled, Span, fetch, fill_tlb};
pub use tlb::{ENTRIES, Entry, Tlb, TlbClass};
pub use walk::{Access, PagingLimits, Translation, read_pdptes, translate};
