//! Notifications that the engine turns into an eventfd, where it can.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use bus::{EventLoop, FdHandler, FdInterest, FdToken};
use rustix::event::{EventfdFlags, eventfd};

use super::{legacy, modern};
use crate::registry::{DoorbellAddress, Doorbells};
use crate::virtio::VirtioDevice;

/// Calls the device on the event loop's thread.
struct Ring {
    device: Arc<dyn VirtioDevice>,
    index: u16,
    event: Arc<OwnedFd>,
}

impl FdHandler for Ring {
    fn ready(&self, _: bool, _: bool) {
        let mut count = [0; 8];
        // Not blocking; it fails only if somebody else was quicker.
        let _ = rustix::io::read(&*self.event, &mut count);
        self.device.notify(self.index);
    }
}

/// One queue's eventfd.
struct Bell {
    event: Arc<OwnedFd>,
    token: Option<FdToken>,
}

#[derive(Default)]
struct State {
    /// Made when the engine takes the first doorbell.
    bells: Vec<Bell>,
    /// The engine has no doorbells.
    unsupported: bool,
    /// What was added, with the BAR and the bell that it belongs to.
    added: Vec<(u8, DoorbellAddress, usize)>,
}

/// The doorbells of one device.
pub(super) struct Bells {
    engine: Arc<dyn Doorbells>,
    events: Arc<EventLoop>,
    device: Arc<dyn VirtioDevice>,
    queues: u16,
    state: Mutex<State>,
}

impl Bells {
    pub fn new(engine: Arc<dyn Doorbells>, events: Arc<EventLoop>, device: Arc<dyn VirtioDevice>) -> Self {
        let queues = device.queue_sizes().len() as u16;
        Self { engine, events, device, queues, state: Mutex::default() }
    }

    fn make(&self, index: u16) -> std::io::Result<Bell> {
        if let Some(event) = self.device.doorbell(index) {
            return Ok(Bell { event, token: None });
        }
        let event = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let ring = Ring { device: self.device.clone(), index, event: event.clone() };
        let interest = FdInterest { read: true, write: false };
        let token = self.events.add(event.clone(), interest, Arc::new(ring))?;
        Ok(Bell { event, token: Some(token) })
    }

    /// Where queue `index` is notified through BAR `bar` at `address`.
    fn place(bar: u8, address: u64, index: u16) -> Option<DoorbellAddress> {
        if bar == modern::BAR {
            let gpa = address + modern::NOTIFY + modern::NOTIFY_STEP * u64::from(index);
            return Some(DoorbellAddress::Memory { gpa, size: 2, value: None });
        }
        let port = u16::try_from(address + legacy::NOTIFY).ok()?;
        Some(DoorbellAddress::Port { port, size: 2, value: Some(u32::from(index)) })
    }

    /// Follows a BAR.
    pub fn moved(&self, bar: u8, address: Option<u64>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.clear(&mut state, Some(bar));
        let Some(address) = address else { return };
        for index in 0..self.queues {
            if state.unsupported {
                return;
            }
            let at = usize::from(index);
            if state.bells.len() <= at {
                // Without eventfds, notifications come through the bus, as without doorbells.
                let Ok(bell) = self.make(index) else { return };
                state.bells.push(bell);
            }
            let (Some(bell), Some(place)) = (state.bells.get(at), Self::place(bar, address, index)) else {
                return;
            };
            if self.engine.add(place, &bell.event) {
                state.added.push((bar, place, at));
            } else if state.added.is_empty() {
                state.unsupported = true;
                self.silence(&mut state);
            }
        }
    }

    fn clear(&self, state: &mut State, bar: Option<u8>) {
        let State { bells, added, .. } = state;
        added.retain(|(of, place, bell)| {
            let gone = bar.is_none_or(|bar| bar == *of);
            if let Some(bell) = bells.get(*bell).filter(|_| gone) {
                self.engine.remove(*place, &bell.event);
            }
            !gone
        });
    }

    fn silence(&self, state: &mut State) {
        for token in state.bells.drain(..).filter_map(|bell| bell.token) {
            self.events.remove(token);
        }
    }
}

impl Drop for Bells {
    fn drop(&mut self) {
        let mut state = std::mem::take(&mut *self.state.lock().unwrap_or_else(PoisonError::into_inner));
        self.clear(&mut state, None);
        self.silence(&mut state);
    }
}
