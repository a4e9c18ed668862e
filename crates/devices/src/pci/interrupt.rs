//! How a function interrupts: by MSI-X, MSI or INTx, as its guest has set it up.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bus::{IrqLine, Msi, MsiSink};
use serde::{Deserialize, Serialize};

use super::msi::MsiSetting;
use super::msix::MsixTable;

/// Address window of the local APICs (Intel SDM vol. 3, 11.11.1). A message to elsewhere would be
/// a plain store, which no driver means.
const APIC_WINDOW: u64 = 0xfee;

/// What the registers say.
#[derive(Clone, Copy, Default)]
pub(super) struct Routing {
    pub msi: Option<MsiSetting>,
    pub msix_enabled: bool,
    pub msix_masked: bool,
    pub intx_disabled: bool,
}

struct State {
    routing: Routing,
    msix: Option<MsixTable>,
    line: Option<IrqLine>,
    /// The device wants INTx.
    asserted: bool,
}

impl State {
    fn msix_enabled(&self) -> bool {
        self.msix.as_ref().is_some_and(MsixTable::enabled)
    }

    fn update_line(&self) {
        let muted = self.routing.intx_disabled || self.routing.msi.is_some() || self.msix_enabled();
        if let Some(line) = &self.line {
            line.set(self.asserted && !muted);
        }
    }
}

/// Saved state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct InterruptState {
    msix: Option<MsixTable>,
    asserted: bool,
}

/// Sends one function's interrupts. Cloning is cheap and shares the same state; all methods may
/// be called from any thread.
#[derive(Clone)]
pub struct Interrupter {
    sink: Arc<dyn MsiSink>,
    state: Arc<Mutex<State>>,
}

impl Interrupter {
    pub(super) fn new(sink: Arc<dyn MsiSink>, msix_vectors: Option<usize>) -> Self {
        let state = State {
            routing: Routing::default(),
            msix: msix_vectors.map(MsixTable::new),
            line: None,
            asserted: false,
        };
        Self { sink, state: Arc::new(Mutex::new(state)) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, msi: Msi) {
        if msi.address >> 20 == APIC_WINDOW {
            self.sink.signal_msi(msi);
        }
    }

    fn send_all(&self, messages: Vec<Msi>) {
        for msi in messages {
            self.send(msi);
        }
    }

    /// Raises `vector`: its MSI-X message, else its MSI, else INTx, which stays asserted until
    /// [`Interrupter::lower`].
    pub fn raise(&self, vector: u16) {
        let mut state = self.lock();
        let msi = state.routing.msi;
        let message = match (&mut state.msix, msi) {
            (Some(table), _) if table.enabled() => table.raise(vector),
            (_, Some(msi)) => Some(msi.message(vector)),
            _ => {
                state.asserted = true;
                state.update_line();
                None
            }
        };
        drop(state);
        if let Some(message) = message {
            self.send(message);
        }
    }

    /// Raises `vector` by MSI-X, if the guest has enabled that; whether it has. A vector that does
    /// not exist does nothing.
    pub fn raise_msix(&self, vector: u16) -> bool {
        let mut state = self.lock();
        let Some(table) = state.msix.as_mut().filter(|table| table.enabled()) else { return false };
        let message = table.raise(vector);
        drop(state);
        if let Some(message) = message {
            self.send(message);
        }
        true
    }

    /// Drops INTx. Nothing happens while messages are in use.
    pub fn lower(&self) {
        let mut state = self.lock();
        state.asserted = false;
        state.update_line();
    }

    /// Whether the guest has enabled MSI-X.
    pub fn msix_enabled(&self) -> bool {
        self.lock().msix_enabled()
    }

    /// Whether the guest uses messages of either kind.
    pub fn uses_messages(&self) -> bool {
        let state = self.lock();
        state.routing.msi.is_some() || state.msix_enabled()
    }

    /// Whether INTx is asserted as the status register shows it: whatever the disable bit says.
    pub(super) fn asserted(&self) -> bool {
        self.lock().asserted
    }

    pub(super) fn connect(&self, line: IrqLine) {
        let mut state = self.lock();
        state.line = Some(line);
        state.update_line();
    }

    pub(super) fn set_routing(&self, routing: Routing) {
        let mut state = self.lock();
        state.routing = routing;
        let table = state.msix.as_mut();
        let messages = table.map(|t| t.set_control(routing.msix_enabled, routing.msix_masked));
        state.update_line();
        drop(state);
        self.send_all(messages.unwrap_or_default());
    }

    pub(super) fn table_read(&self, offset: u64, data: &mut [u8]) {
        if let Some(table) = &self.lock().msix {
            table.read(offset, data);
        }
    }

    pub(super) fn table_write(&self, offset: u64, data: &[u8]) {
        let messages = self.lock().msix.as_mut().map(|t| t.write(offset, data));
        self.send_all(messages.unwrap_or_default());
    }

    /// No interrupt is asserted or pending and the table is empty.
    pub(super) fn reset(&self) {
        let mut state = self.lock();
        state.asserted = false;
        state.routing = Routing::default();
        state.msix = state.msix.as_ref().map(MsixTable::emptied);
        state.update_line();
    }

    pub(super) fn save(&self) -> InterruptState {
        let state = self.lock();
        InterruptState { msix: state.msix.clone(), asserted: state.asserted }
    }

    /// Takes a saved state, if it is one of this function. [`Interrupter::set_routing`] follows.
    pub(super) fn restore(&self, saved: InterruptState) -> bool {
        let mut state = self.lock();
        let fits = match (&state.msix, &saved.msix) {
            (None, None) => true,
            (Some(a), Some(b)) => a.same_shape(b),
            _ => false,
        };
        if fits {
            state.msix = saved.msix;
            state.asserted = saved.asserted;
        }
        fits
    }
}
