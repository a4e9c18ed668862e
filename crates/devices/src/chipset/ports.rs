//! Single ports of the PC's system board: POST codes (80, 84) and system control port A (92).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bus::{Bus, ClaimError, Device, PowerEvent, PowerSwitch, SavedState, StateError};
use serde::{Deserialize, Serialize};

use super::access::{BytePorts, claim_ports};

const VERSION: u32 = 1;

const POST: u16 = 0x80;
const CONTROL_A: u16 = 0x92;
const FAST_RESET: u8 = 1 << 0;
const A20: u8 = 1 << 1;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    post: u8,
    control_a: u8,
}

impl State {
    /// Address line 20 is on from the start and never masked, as on processors since Haswell.
    fn new() -> Self {
        Self { post: 0, control_a: A20 }
    }
}

/// The ports.
pub struct BoardPorts {
    state: Mutex<State>,
    power: Arc<PowerSwitch>,
}

impl BoardPorts {
    /// Ports after power-on.
    pub fn new(power: Arc<PowerSwitch>) -> Self {
        Self { state: Mutex::new(State::new()), power }
    }

    /// Claims the ports. 84 belongs to bhyve's POST ports; it reads as 1s.
    pub fn claim(self: &Arc<Self>, bus: &Bus) -> Result<(), ClaimError> {
        for port in [POST, 0x84, CONTROL_A] {
            claim_ports(bus, port..port + 1, self)?;
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BytePorts for BoardPorts {
    fn read_port(&self, port: u16) -> u8 {
        match port {
            POST => self.lock().post,
            CONTROL_A => self.lock().control_a,
            _ => 0xff,
        }
    }

    fn write_port(&self, port: u16, value: u8) {
        match port {
            POST => self.lock().post = value,
            CONTROL_A => {
                let old = std::mem::replace(&mut self.lock().control_a, value & (A20 | FAST_RESET));
                if value & FAST_RESET & !old != 0 {
                    self.power.request(PowerEvent::Reset);
                }
            }
            _ => {}
        }
    }
}

impl Device for BoardPorts {
    fn name(&self) -> String {
        "board-ports".into()
    }

    fn reset(&self) {
        *self.lock() = State::new();
    }

    fn save(&self) -> Result<SavedState, StateError> {
        SavedState::encode(VERSION, &*self.lock())
    }

    fn restore(&self, saved: &SavedState) -> Result<(), StateError> {
        self.reset();
        let state: State = saved.decode(VERSION)?;
        if state.control_a & !(A20 | FAST_RESET) != 0 {
            return Err(StateError::Invalid("system control port"));
        }
        *self.lock() = state;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::access::testing::{as_range, hammer};
    use super::*;

    #[test]
    fn fast_reset_and_state() {
        let power = Arc::new(PowerSwitch::default());
        let ports = Arc::new(BoardPorts::new(power.clone()));
        assert_eq!((ports.read_port(CONTROL_A), ports.read_port(0x84)), (2, 0xff));
        ports.write_port(CONTROL_A, 0);
        ports.write_port(POST, 0x42);
        assert_eq!((ports.read_port(POST), power.event()), (0x42, None));
        let saved = ports.save().unwrap();
        ports.reset();
        ports.restore(&saved).unwrap();
        assert_eq!(ports.save().unwrap(), saved);
        ports.write_port(CONTROL_A, 1);
        assert_eq!(power.event(), Some(PowerEvent::Reset));
        for base in [POST, CONTROL_A] {
            hammer(&*ports, &as_range(base, &ports), 1);
        }
    }
}
