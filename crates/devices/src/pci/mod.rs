//! PCI: configuration space, interrupts, DMA and the root bus.

mod dma;

pub use dma::{DmaError, DmaMemory, DmaResult};
