//! Builds the PC from the key tree and owns its life: start, reset, power-off.

mod builder;
mod clock;
mod control;
mod cpus;
mod engines;
mod entry;
mod error;
mod identity;
mod lifecycle;
mod memory;
mod signals;
mod slots;
mod system;
mod tables;
#[cfg(test)]
mod testing;

pub use error::{Error, Result};
pub use slots::{check_devices, device_help, device_keys};

use std::sync::Arc;

use config::Tree;
use host::tty::restore_terminal;
use identity::Identity;
use lifecycle::SignalTarget;
use vm::Directory;

/// Runs the VM that `tree` describes until it ends; the answer is bhyve's exit status: 0 after a
/// reset, 1 after power-off, 2 after a halt, 3 after a triple fault, 4 when it can't go on.
///
/// The VM is the one that `name` names in [`vm::Directory::open`]: what a loader has left, or a new
/// one for the kernel of `kernel.path`.
///
/// The tree has been checked by [`config::validate`]. While the VM runs, SIGTERM presses its power
/// button if the guest has turned ACPI on, and otherwise ends the process. However this function
/// returns, the terminal is as it was.
pub fn run(tree: &Tree) -> Result<u8> {
    let target = Arc::new(SignalTarget::new(restore_terminal));
    let watch = signals::watch(target.clone())?;
    let result = take(tree, &target);
    restore_terminal();
    drop(watch);
    result
}

fn take(tree: &Tree, target: &SignalTarget) -> Result<u8> {
    let identity = Identity::take(tree, &Directory::open()?)?;
    let machine = builder::build(tree, &identity, target)?;
    lifecycle::run(machine, &identity, restore_terminal)
}
