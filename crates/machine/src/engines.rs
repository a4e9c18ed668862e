//! Which engine runs the VM, and how devices reach its short cuts.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::Weak;

use config::Tree;
use devices::{DoorbellAddress, Doorbells};
use engine::{Choice, Doorbell, Engine, Kind, KvmEngine, Vm, Wanted, choose};
use recompiler::SoftEngine;

use crate::{Error, Result};

/// Makes the engine that the `engine` key asks for. Where the choice is ours, one line on standard
/// error says what it is and why.
pub fn make(tree: &Tree) -> Result<Box<dyn Engine>> {
    let at = tree.origin("engine");
    let fail = |source: engine::Error| Error::Engine { at: at.clone(), source };
    let wanted: Wanted = tree.get("engine")?.unwrap_or_default().parse().map_err(fail)?;
    let choice = choose(wanted).map_err(fail)?;
    if wanted == Wanted::Auto {
        announce(&choice);
    }
    Ok(match choice.kind {
        Kind::Kvm => Box::new(KvmEngine::new(Some(recompiler::steppers())).map_err(fail)?),
        Kind::Soft => Box::new(SoftEngine::new().map_err(fail)?),
    })
}

fn announce(choice: &Choice) {
    let _ = writeln!(std::io::stderr(), "bhyve: {choice}");
}

/// The engine's doorbells in the devices' words. Weak: the VM holds the bus, which holds the
/// devices, which hold this.
pub struct EngineDoorbells(pub Weak<dyn Vm>);

fn translate(at: DoorbellAddress) -> Doorbell {
    match at {
        DoorbellAddress::Port { port, size, value } => Doorbell::Port { port, size, value },
        DoorbellAddress::Memory { gpa, size, value } => Doorbell::Memory { gpa, size, value },
    }
}

impl Doorbells for EngineDoorbells {
    fn add(&self, at: DoorbellAddress, event: &OwnedFd) -> bool {
        // Where the engine fails, writes still come through the bus.
        self.0.upgrade().is_some_and(|vm| vm.add_doorbell(translate(at), event).unwrap_or(false))
    }

    fn remove(&self, at: DoorbellAddress, event: &OwnedFd) {
        if let Some(vm) = self.0.upgrade() {
            let _ = vm.remove_doorbell(translate(at), event);
        }
    }
}
