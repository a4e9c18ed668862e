//! Address translation and guest memory access.

mod access;
mod span;
#[cfg(test)]
mod tests;
mod tlb;
mod walk;

pub use access::{AccessMode, Fetched, Filled, fetch, fill_tlb};
pub use span::Span;
pub use tlb::{ENTRIES, Entry, Tlb, TlbClass, Written};
pub use walk::{Access, PagingLimits, Translation, read_pdptes, translate};
