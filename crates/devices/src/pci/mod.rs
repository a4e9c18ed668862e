//! PCI: configuration space, interrupts, DMA, the root bus and its bridges.

mod assign;
mod bus;
mod config_space;
mod dma;
mod function;
pub(crate) mod hostbridge;
mod interrupt;
pub(crate) mod lpc;
mod msi;
mod msix;

pub use assign::{RootWindows, Route};
pub use bus::{PciBus, PciBusConfig, ResetControl};
pub use config_space::{Bar, BarKind, Identity, LayoutError};
pub use dma::{DmaError, DmaMemory, DmaResult};
pub use function::{CoreState, ExpressKind, FunctionBuilder, FunctionCore, PciFunction};
pub use interrupt::Interrupter;
pub use lpc::PirqRouter;
