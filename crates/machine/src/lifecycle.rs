//! From the first instruction to the exit status.

use std::io::Write;
use std::sync::{Arc, OnceLock, PoisonError};

use bus::{Device, EventLoop, PowerEvent, PowerSwitch, Timers};
use devices::chipset::{Interrupts, Rtc, Uart};
use devices::pci::PciBus;
use engine::{SharedVm, Vcpu};
use memory::GuestMemory;
use vm::Topology;
use vm::control::Server;

use crate::Result;
use crate::control::Control;
use crate::cpus::{Complaints, Cpus, Pinning};
use crate::identity::Identity;
use crate::signals::Reaction;

/// The part of a machine that takes the power button.
pub trait PowerButton: Send + Sync {
    /// Whether the guest has turned ACPI on and so answers the button.
    fn listening(&self) -> bool;
    /// Presses it.
    fn press(&self);
}

/// What signals act on: the button, once there is one, and the terminal.
pub struct SignalTarget {
    button: OnceLock<Arc<dyn PowerButton>>,
    restore_terminal: fn(),
}

impl SignalTarget {
    /// A target without a machine yet.
    pub fn new(restore_terminal: fn()) -> Self {
        Self { button: OnceLock::new(), restore_terminal }
    }

    /// From now on SIGTERM presses `button`.
    pub fn connect(&self, button: Arc<dyn PowerButton>) {
        let _ = self.button.set(button);
    }
}

impl Reaction for SignalTarget {
    fn power_button(&self) -> bool {
        let Some(button) = self.button.get().filter(|button| button.listening()) else { return false };
        button.press();
        true
    }

    fn before_end(&self) {
        (self.restore_terminal)();
    }
}

/// A machine that is ready to run.
pub struct Machine {
    /// Where the end is announced.
    pub power: Arc<PowerSwitch>,
    /// The processors, the bootstrap processor first.
    pub vcpus: Vec<Box<dyn Vcpu>>,
    /// Where they may run.
    pub pinning: Pinning,
    /// How they are grouped.
    pub topology: Topology,
    /// The engine's VM, and the engine's name.
    pub vm: (SharedVm, &'static str),
    /// What bhyve calls capabilities, and whether each is on.
    pub capabilities: Vec<(&'static str, bool)>,
    /// Guest RAM; whether it stays in the host's RAM.
    pub memory: (GuestMemory, bool),
    /// The clock.
    pub rtc: Arc<Rtc>,
    /// Whether nothing of the VM shall outlive its power-off.
    pub destroy: bool,
    /// Everything that may have work in flight.
    pub devices: Vec<Arc<dyn Device>>,
    /// The serial ports, whose last words are still to be said.
    pub uarts: Vec<Arc<Uart>>,
    /// The wiring, which holds the VM until it is told to let go.
    pub interrupts: Arc<Interrupts>,
    /// The PCI bus: its windows work only as long as it lives.
    pub pci: Arc<PciBus>,
    /// Threads that devices need until the end.
    pub services: (Arc<Timers>, Arc<EventLoop>),
}

/// Runs the machine until a power event; the answer is bhyve's exit status.
pub fn run(machine: Machine, identity: &Identity, restore_terminal: fn()) -> Result<u8> {
    let (memory, wired) = machine.memory;
    let running = identity.begin(memory.size(), wired, machine.topology)?;
    let (vm, engine) = machine.vm;
    let complaints = Complaints::default();
    let started = Cpus::start(machine.vcpus, &machine.pinning, &machine.power, &complaints);
    let mut cpus = match started {
        Ok(cpus) => cpus,
        Err(error) => {
            running.end(config::EXIT_ERROR, Vec::new(), false)?;
            return Err(error);
        }
    };
    let control = Control {
        vm: Arc::downgrade(&vm),
        engine,
        capabilities: machine.capabilities,
        topology: machine.topology,
        ram: running.ram().clone(),
        memory,
        desks: cpus.desks(),
        rtc: Arc::downgrade(&machine.rtc),
        power: machine.power.clone(),
    };
    let server = Server::start(identity.claim(), Arc::new(control));
    if server.is_err() {
        machine.power.request(PowerEvent::Error);
    }
    let event = machine.power.wait();
    let states = cpus.stop();
    for device in &machine.devices {
        device.drain();
    }
    for backend in machine.uarts.iter().filter_map(|uart| uart.backend()) {
        backend.flush();
    }
    machine.interrupts.disconnect();
    drop((machine.pci, machine.services));
    restore_terminal();
    let server = server.map(drop);
    for text in complaints.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        let _ = writeln!(std::io::stderr(), "bhyve: {text}");
    }
    let status = exit_status(event);
    // The guest's end is what scripts look at, whatever becomes of the files.
    if let Err(error) = running.end(status, states, machine.destroy && event == PowerEvent::PowerOff) {
        let _ = writeln!(std::io::stderr(), "bhyve: warning: {error}");
    }
    server?;
    Ok(status)
}

/// bhyve's exit statuses (bhyve(8), EXIT STATUS).
fn exit_status(event: PowerEvent) -> u8 {
    match event {
        PowerEvent::Reset => 0,
        PowerEvent::PowerOff => 1,
        PowerEvent::Halt => 2,
        PowerEvent::TripleFault => 3,
        PowerEvent::Error => config::EXIT_ERROR,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[derive(Default)]
    struct Button {
        on: AtomicU32,
        pressed: AtomicU32,
    }

    impl PowerButton for Button {
        fn listening(&self) -> bool {
            self.on.load(Ordering::SeqCst) != 0
        }
        fn press(&self) {
            self.pressed.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn the_button_works_only_once_the_guest_listens() {
        let target = SignalTarget::new(|| {});
        assert!(!target.power_button());
        let button = Arc::new(Button::default());
        target.connect(button.clone());
        assert!(!target.power_button());
        button.on.store(1, Ordering::SeqCst);
        assert!(target.power_button());
        assert_eq!(button.pressed.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn exit_statuses_are_bhyves() {
        let events = [PowerEvent::Reset, PowerEvent::PowerOff, PowerEvent::Halt, PowerEvent::TripleFault];
        assert_eq!(events.map(exit_status), [0, 1, 2, 3]);
        assert_eq!(exit_status(PowerEvent::Error), 4);
    }
}
