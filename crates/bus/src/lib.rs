//! What devices and engines share: port and memory dispatch, interrupt lines, MSI, clock and
//! timers, power events, and the traits that a device implements.
#![forbid(unsafe_code)]

mod clock;
mod device;
mod dispatch;
mod events;
mod irq;
mod power;
mod timer;

pub use clock::Clock;
pub use device::{Device, SavedState, StateError};
pub use dispatch::{Bus, BusDevice, ClaimError};
pub use events::{EventLoop, FdHandler, FdInterest, FdToken};
pub use irq::{InterruptController, IrqLine, IrqSink, Msi, MsiSink};
pub use power::{PowerEvent, PowerSwitch};
pub use timer::{Timer, Timers};
