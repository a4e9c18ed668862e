//! Builds the PC from the key tree and owns its life: start, reset, power-off.

mod builder;
mod clock;
mod cpus;
mod engines;
mod entry;
mod error;
mod lifecycle;
mod memory;
mod signals;
mod slots;
mod system;
mod tables;

pub use error::{Error, Result};
pub use slots::{check_devices, device_help, device_keys};

use std::sync::Arc;

use config::Tree;
use host::tty::restore_terminal;
use lifecycle::SignalTarget;

/// Runs the VM that `tree` describes until it ends; the answer is bhyve's exit status: 0 after a
/// reset, 1 after power-off, 2 after a halt, 3 after a triple fault, 4 when it can't go on.
///
/// The tree has been checked by [`config::validate`]. While the VM runs, SIGTERM presses its power
/// button if the guest has turned ACPI on, and otherwise ends the process. However this function
/// returns, the terminal is as it was.
pub fn run(tree: &Tree) -> Result<u8> {
    let target = Arc::new(SignalTarget::new(restore_terminal));
    let watch = signals::watch(target.clone())?;
    let result = builder::build(tree, &target).and_then(|m| lifecycle::run(m, restore_terminal));
    restore_terminal();
    drop(watch);
    result
}
