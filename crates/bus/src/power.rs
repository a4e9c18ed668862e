//! How devices end or restart the VM.

use std::sync::{Condvar, Mutex, PoisonError};

/// Why the VM stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerEvent {
    /// Reset: CF9, keyboard controller, ACPI reset register (exit status 0).
    Reset,
    /// ACPI S5 (exit status 1).
    PowerOff,
    /// All vCPUs halted with interrupts off (exit status 2).
    Halt,
    /// Triple fault (exit status 3).
    TripleFault,
    /// An engine or device can't go on (exit status 4).
    Error,
}

type Hook = Box<dyn Fn(PowerEvent) + Send + Sync>;

/// Takes the first power event and tells the machine.
#[derive(Default)]
pub struct PowerSwitch {
    event: Mutex<Option<PowerEvent>>,
    changed: Condvar,
    hooks: Mutex<Vec<Hook>>,
}

impl PowerSwitch {
    /// Asks for `event`. Only the first request counts.
    pub fn request(&self, event: PowerEvent) {
        {
            let mut slot = self.event.lock().unwrap_or_else(PoisonError::into_inner);
            if slot.is_some() {
                return;
            }
            *slot = Some(event);
        }
        self.changed.notify_all();
        for hook in self.hooks.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            hook(event);
        }
    }

    /// Calls `hook` once when an event comes (engines use it to stop their vCPUs).
    pub fn on_event(&self, hook: impl Fn(PowerEvent) + Send + Sync + 'static) {
        self.hooks.lock().unwrap_or_else(PoisonError::into_inner).push(Box::new(hook));
    }

    /// The event, if one has come.
    pub fn event(&self) -> Option<PowerEvent> {
        *self.event.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Blocks until an event comes.
    pub fn wait(&self) -> PowerEvent {
        let mut slot = self.event.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(event) = *slot {
                return event;
            }
            slot = self.changed.wait(slot).unwrap_or_else(PoisonError::into_inner);
        }
    }
}
