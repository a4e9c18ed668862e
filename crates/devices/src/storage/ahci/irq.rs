//! The controller's one interrupt out of those of its ports (AHCI 1.3.1, 10.7).

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::pci::Interrupter;

#[derive(Default)]
struct State {
    enabled: bool,
    /// The IS register.
    status: u32,
    /// Ports that have an enabled interrupt pending.
    ports: u32,
}

/// The interrupt registers.
pub(super) struct Irq {
    interrupter: Interrupter,
    state: Mutex<State>,
}

impl Irq {
    pub fn new(interrupter: Interrupter) -> Self {
        Self { interrupter, state: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn update(&self, state: &State, fresh: bool) {
        if !state.enabled || state.status == 0 {
            self.interrupter.lower();
        } else if fresh {
            self.interrupter.raise(0);
        }
    }

    /// Port `index` has, or no longer has, something pending; `fresh` if it is news.
    pub fn set_port(&self, index: u8, pending: bool, fresh: bool) {
        let mut state = self.lock();
        let bit = 1u32 << (index & 31);
        if pending {
            state.ports |= bit;
            state.status |= bit;
        } else {
            state.ports &= !bit;
        }
        self.update(&state, pending && fresh);
    }

    pub fn status(&self) -> u32 {
        self.lock().status
    }

    /// Clears bits of the IS register. Ports with something pending stay.
    pub fn acknowledge(&self, bits: u32) {
        let mut state = self.lock();
        state.status = state.status & !bits | state.ports;
        self.update(&state, true);
    }

    pub fn enabled(&self) -> bool {
        self.lock().enabled
    }

    pub fn enable(&self, on: bool) {
        let mut state = self.lock();
        let fresh = on && !state.enabled;
        state.enabled = on;
        self.update(&state, fresh);
    }

    /// Sets the registers that were saved; the ports say on their own what is pending.
    pub fn restore(&self, enabled: bool, status: u32) {
        let mut state = self.lock();
        (state.enabled, state.status) = (enabled, status);
    }

    pub fn reset(&self) {
        let mut state = self.lock();
        *state = State::default();
        self.update(&state, false);
    }
}
