//! virtio-console (VIRTIO 1.2, 5.3) with up to 16 ports, each a listening UNIX socket.
//!
//! Ports are plain ports, as bhyve's, unless `port.N.console` asks for a console. Sockets have no
//! size, so RESIZE is never sent; the configuration space says 80 by 25.

mod control;
mod port;

use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use bus::{EventLoop, SavedState, StateError};
use config::{Key, Kind as KeyKind, Node};
use serde::{Deserialize, Serialize};

use self::control::{Control, Message, event};
use self::port::{Port, PortState};
use super::later::{Later, TURN};
use super::{Kind, Queues, VirtioDevice, pci};
use crate::pci::PciFunction;
use crate::registry::{BuildContext, BuildError, DeviceEntry};

/// Ports, as bhyve.
const MAX_PORTS: u32 = 16;
/// Two queues a port and two for control.
const QUEUES: usize = 2 * (MAX_PORTS as usize + 1);
const QUEUE_SIZES: &[u16] = &[64; QUEUES];
/// The driver's control messages.
const CONTROL_QUEUE: u16 = 3;
/// Length of `sun_path` without the final 0 (unix(7)).
const MAX_PATH: usize = 107;

// Features (5.3.3).
const SIZE: u64 = 1 << 0;
const MULTIPORT: u64 = 1 << 1;
const EMERG_WRITE: u64 = 1 << 2;

// Configuration space (5.3.4).
const CONFIG_LEN: usize = 12;
const EMERGENCY: usize = 8;
const COLUMNS: u16 = 80;
const ROWS: u16 = 25;

const VERSION: u32 = 1;

/// The console.
pub const DEVICE: DeviceEntry = DeviceEntry {
    name: "virtio-console",
    aliases: &[],
    help: "up to 16 byte streams, each a listening UNIX socket (NAME=PATH,...)",
    keys: &[
        Key::new("port.*.name", KeyKind::Text(64), "name of the port that the guest sees"),
        Key::new("port.*.path", KeyKind::Path, "where the socket is made"),
        Key::new("port.*.console", KeyKind::Bool, "make the port a console of the guest").default("false"),
    ],
    build,
};

fn build(context: &BuildContext, node: &Node<'_>) -> Result<Arc<dyn PciFunction>, BuildError> {
    let mut ports = Vec::new();
    for number in node.node("port").children() {
        let key = |name: &str| format!("port.{number}.{name}");
        let id = number.parse().ok().filter(|id| *id < MAX_PORTS);
        let Some(id) = id else {
            return Err(node.error(&key("path"), format!("ports are 0 to {}", MAX_PORTS - 1)).into());
        };
        let (name, path) = (node.require(&key("name"))?, node.require(&key("path"))?);
        if Path::new(&path).as_os_str().as_bytes().len() > MAX_PATH {
            return Err(node.error(&key("path"), "too long for a socket's name").into());
        }
        let port = Port::new(id, name, &path, node.flag(&key("console"))?)
            .map_err(|source| BuildError::Host { what: format!("socket {path}"), source })?;
        ports.push(port);
    }
    let inner = Arc::new_cyclic(|this: &Weak<Inner>| {
        let this = this.clone();
        let later = Later::new(&context.timers, move |queue| {
            if let Some(inner) = this.upgrade() {
                inner.notify(queue);
            }
        });
        Inner {
            ports,
            control: Control::default(),
            multiport: AtomicBool::new(false),
            handling: Mutex::default(),
            later,
            events: context.events.clone(),
        }
    });
    for (place, port) in inner.ports.iter().enumerate() {
        port.start(&inner.events, Arc::downgrade(&inner), place)
            .map_err(|source| BuildError::Host { what: "event loop".into(), source })?;
    }
    pci::function(context, Arc::new(Console(inner)))
}

/// What the sockets' handlers share with the device.
struct Inner {
    ports: Vec<Port>,
    control: Control,
    multiport: AtomicBool,
    /// Held from taking a control message until it has had its effect.
    handling: Mutex<()>,
    later: Later,
    events: Arc<EventLoop>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        for port in &self.ports {
            port.stop(&self.events);
        }
    }
}

impl Inner {
    fn multiport(&self) -> bool {
        self.multiport.load(Ordering::Acquire)
    }

    fn port(&self, id: u32) -> Option<&Port> {
        self.ports.iter().find(|port| port.id == id)
    }

    fn send_open(&self, port: u32, open: bool) {
        if self.multiport() {
            self.control.send(Message::new(port, event::PORT_OPEN, u16::from(open)));
        }
    }

    fn lock_handling(&self) -> MutexGuard<'_, ()> {
        self.handling.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn control(self: &Arc<Self>) {
        let _handling = self.lock_handling();
        for _ in 0..TURN {
            let Ok(Some(message)) = self.control.receive() else { return };
            self.handle(&message);
        }
        self.later.call(CONTROL_QUEUE);
    }

    /// Queue `index` may have something for us.
    fn notify(self: &Arc<Self>, index: u16) {
        match owner(index) {
            Owner::ControlOut => self.control.flush(),
            Owner::ControlIn => self.control(),
            Owner::Input(port) => {
                if let Some(port) = self.port(port) {
                    port.notify_receive(self);
                }
            }
            Owner::Output(port) => {
                if let Some(port) = self.port(port) {
                    port.notify_transmit(self);
                }
            }
        }
    }

    fn handle(self: &Arc<Self>, message: &Message) {
        if message.event == event::DEVICE_READY {
            if message.value == 1 {
                for port in &self.ports {
                    self.control.send(Message::new(port.id, event::PORT_ADD, 1));
                }
            }
            return;
        }
        // Ports that do not exist and events that only we send have no effect.
        let Some(port) = self.port(message.port) else { return };
        match message.event {
            event::PORT_READY => {
                if message.value == 1 {
                    if port.console {
                        self.control.send(Message::new(port.id, event::CONSOLE_PORT, 1));
                    }
                    let name = Message::new(port.id, event::PORT_NAME, 1);
                    self.control.send(Message { text: port.name.clone(), ..name });
                }
                port.set_ready(self, message.value == 1);
            }
            event::PORT_OPEN => port.set_guest_open(self, message.value == 1),
            _ => {}
        }
    }
}

/// First queue of a port (5.3.2): the control queues follow those of port 0.
fn first_queue(port: u32) -> usize {
    match port as usize {
        0 => 0,
        port => 2 + 2 * port,
    }
}

/// Whose queue it is.
enum Owner {
    ControlOut,
    ControlIn,
    Input(u32),
    Output(u32),
}

fn owner(queue: u16) -> Owner {
    let port = u32::from(queue / 2);
    match queue {
        0 => Owner::Input(0),
        1 => Owner::Output(0),
        2 => Owner::ControlOut,
        CONTROL_QUEUE => Owner::ControlIn,
        _ if queue.is_multiple_of(2) => Owner::Input(port - 1),
        _ => Owner::Output(port - 1),
    }
}

#[derive(Serialize, Deserialize)]
struct Saved {
    ports: Vec<(u32, PortState)>,
    pending: Vec<Message>,
}

struct Console(Arc<Inner>);

impl VirtioDevice for Console {
    fn kind(&self) -> Kind {
        Kind::CONSOLE
    }

    fn features(&self) -> u64 {
        SIZE | MULTIPORT | EMERG_WRITE
    }

    fn queue_sizes(&self) -> &[u16] {
        QUEUE_SIZES
    }

    fn config_len(&self) -> usize {
        CONFIG_LEN
    }

    fn config_read(&self, offset: usize, data: &mut [u8]) {
        let mut space = [0; CONFIG_LEN];
        let bytes = [COLUMNS.to_le_bytes(), ROWS.to_le_bytes()].concat();
        let bytes = bytes.into_iter().chain(MAX_PORTS.to_le_bytes());
        space.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
        for (to, from) in data.iter_mut().zip(space.iter().skip(offset)) {
            *to = *from;
        }
    }

    fn config_write(&self, offset: usize, data: &[u8], _: u64) {
        // Works at any time, even before the features are agreed on (5.3.4).
        if let (EMERGENCY, Some(byte), Some(port)) = (offset, data.first(), self.0.port(0)) {
            port.emergency(*byte);
        }
    }

    fn activate(&self, features: u64, queues: Queues) {
        let inner = &self.0;
        let queue = |index: usize| queues.get(index).cloned().flatten();
        let multiport = features & MULTIPORT != 0;
        inner.multiport.store(multiport, Ordering::Release);
        if multiport {
            inner.control.activate(queue(2), queue(3));
        }
        for port in inner.ports.iter().filter(|port| multiport || port.id == 0) {
            let first = first_queue(port.id);
            port.activate(inner, queue(first), queue(first + 1), !multiport);
        }
    }

    fn notify(&self, index: u16) {
        self.0.notify(index);
    }

    fn reset(&self) {
        self.drain();
        self.0.multiport.store(false, Ordering::Release);
        self.0.control.reset();
        for port in &self.0.ports {
            port.reset(&self.0);
        }
    }

    fn drain(&self) {
        // Everything that takes chains does so under the locks that this takes.
        drop(self.0.lock_handling());
        for port in &self.0.ports {
            port.drain(&self.0);
        }
        drop(self.0.control.pending());
    }

    fn save(&self) -> Result<SavedState, StateError> {
        let ports = self.0.ports.iter().map(|port| (port.id, port.state())).collect();
        SavedState::encode(VERSION, &Saved { ports, pending: self.0.control.pending() })
    }

    fn restore(&self, state: &SavedState) -> Result<(), StateError> {
        let saved: Saved = state.decode(VERSION)?;
        let ids = saved.ports.iter().map(|(id, _)| *id);
        if !ids.eq(self.0.ports.iter().map(|port| port.id)) {
            return Err(StateError::Invalid("console ports"));
        }
        for (port, (_, state)) in self.0.ports.iter().zip(saved.ports) {
            port.set_state(state);
        }
        self.0.control.set_pending(saved.pending);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
