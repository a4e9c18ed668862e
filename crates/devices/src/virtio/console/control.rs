//! The control queues of a multiport console (VIRTIO 1.2, 5.3.6.2).

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::virtio::{QueueError, VirtQueue};

/// Messages that wait for buffers. A driver that causes more without taking them is broken.
const MAX_PENDING: usize = 256;
const HEADER: usize = 8;

/// Events (5.3.6.2).
pub(super) mod event {
    pub const DEVICE_READY: u16 = 0;
    pub const PORT_ADD: u16 = 1;
    pub const PORT_READY: u16 = 3;
    pub const CONSOLE_PORT: u16 = 4;
    pub const PORT_OPEN: u16 = 6;
    pub const PORT_NAME: u16 = 7;
}

/// A control message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Message {
    pub port: u32,
    pub event: u16,
    pub value: u16,
    /// Follows the header: a port's name.
    pub text: String,
}

impl Message {
    pub fn new(port: u32, event: u16, value: u16) -> Self {
        Self { port, event, value, text: String::new() }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.port.to_le_bytes().to_vec();
        bytes.extend(self.event.to_le_bytes());
        bytes.extend(self.value.to_le_bytes());
        bytes.extend(self.text.as_bytes());
        bytes
    }

    fn parse(bytes: [u8; HEADER]) -> Self {
        let raw = u64::from_le_bytes(bytes);
        Self::new(raw as u32, (raw >> 32) as u16, (raw >> 48) as u16)
    }
}

#[derive(Default)]
struct State {
    to_driver: Option<Arc<VirtQueue>>,
    from_driver: Option<Arc<VirtQueue>>,
    pending: VecDeque<Message>,
}

/// Both control queues.
#[derive(Default)]
pub(super) struct Control(Mutex<State>);

impl Control {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn activate(&self, to_driver: Option<Arc<VirtQueue>>, from_driver: Option<Arc<VirtQueue>>) {
        let mut state = self.lock();
        (state.to_driver, state.from_driver) = (to_driver, from_driver);
    }

    pub fn reset(&self) {
        *self.lock() = State::default();
    }

    pub fn pending(&self) -> Vec<Message> {
        self.lock().pending.iter().cloned().collect()
    }

    pub fn set_pending(&self, pending: Vec<Message>) {
        self.lock().pending = pending.into();
    }

    /// Sends a message, as soon as there is a buffer for it.
    pub fn send(&self, message: Message) {
        let mut state = self.lock();
        if state.pending.len() < MAX_PENDING {
            state.pending.push_back(message);
        } else if let Some(queue) = &state.to_driver {
            queue.fault("control messages pile up");
        }
        let _ = flush(&mut state);
    }

    /// There may be buffers for messages.
    pub fn flush(&self) {
        let _ = flush(&mut self.lock());
    }

    /// The driver's next message. Ports may be locked, the control queues are not.
    pub fn receive(&self) -> Result<Option<Message>, QueueError> {
        let Some(queue) = self.lock().from_driver.clone() else { return Ok(None) };
        loop {
            let Some(chain) = queue.pop()? else {
                if queue.enable_notifications()? {
                    continue;
                }
                return Ok(None);
            };
            let mut header = [0; HEADER];
            if chain.read(0, &mut header) < HEADER {
                queue.fault("a control message is too short");
                return Ok(None);
            }
            queue.complete(chain.head, 0)?;
            return Ok(Some(Message::parse(header)));
        }
    }
}

fn flush(state: &mut State) -> Result<(), QueueError> {
    let Some(queue) = state.to_driver.clone() else { return Ok(()) };
    while let Some(message) = state.pending.front() {
        let Some(chain) = queue.pop()? else {
            if queue.enable_notifications()? {
                continue;
            }
            return Ok(());
        };
        let bytes = message.bytes();
        if chain.write(0, &bytes) < bytes.len() {
            queue.fault("a buffer is too small for a control message");
            return Ok(());
        }
        state.pending.pop_front();
        queue.complete(chain.head, bytes.len() as u32)?;
    }
    Ok(())
}
