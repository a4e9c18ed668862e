//! virtio-net (VIRTIO 1.2, 5.1) on a back end of the host.
//!
//! Each direction has a thread of its own, which waits for the driver's notifications and for the
//! back end at once. Frames pass between the back end and the driver's buffers without a copy,
//! with the header that the driver wrote or will read.

use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;

use bus::{SavedState, StateError};
use config::{Key, Kind as Value, Node};
use host::net::{MAX_FRAME, MacAddress, NetBackend, Offloads, Waker};

use super::{Chain, Kind, QueueError, Queues, Transport, VirtQueue, VirtioDevice, feature, pci};
use crate::pci::PciFunction;
use crate::registry::{BuildContext, BuildError, DeviceEntry};

mod features;
mod receive;

#[cfg(test)]
mod tests;

use receive::{Buffer, Fault, LONG_HEADER, Receiver, SHORT_HEADER, Step};

/// The network card.
pub const DEVICE: DeviceEntry =
    DeviceEntry { name: "virtio-net", aliases: &[], help: "virtio network card", keys: KEYS, build };

fn build(context: &BuildContext, node: &Node<'_>) -> Result<Arc<dyn PciFunction>, BuildError> {
    let address = context.address;
    let device = VirtioNet::open(node, address.slot, address.function, &context.vm_name)?;
    pci::function(context, Arc::new(device))
}

/// What the user can set.
pub const KEYS: &[Key] = &[
    Key::new("backend", Value::Text(64), "tap interface, such as tap0"),
    Key::new("type", Value::Text(16), "kind of the back end; told by its name by default"),
    Key::new("mac", Value::Mac, "the guest's address; made from slot and VM name by default"),
    Key::new("mtu", Value::Integer { min: 68, max: 65535 }, "largest packet, told to the guest"),
];

/// Numbers of the queues (5.1.2).
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
/// Entries of each queue, as bhyve.
const QUEUE_SIZE: u16 = 1024;
/// Frames that a thread moves before others may have the half's lock.
const BUDGET: u32 = 64;
/// The MTU of Ethernet (IEEE 802.3, 3.2.7).
const ETHERNET_MTU: u16 = 1500;
/// Ethernet header and one VLAN tag.
const LINK_HEADER: usize = 18;

/// What a thread waits for next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wait {
    /// Nothing: there is more to do.
    No,
    /// The driver.
    Driver,
    /// The driver or the back end.
    Backend,
}

/// One direction at work.
trait Work: Send {
    /// Moves up to [`BUDGET`] frames. An error has been told to the driver.
    fn run(&mut self, backend: &dyn NetBackend) -> Result<Wait, QueueError>;
    /// Gives back the chains that it holds.
    fn release(&mut self);
}

/// One direction.
struct Half {
    waker: Waker,
    work: Mutex<Option<Box<dyn Work>>>,
}

impl Half {
    fn new() -> io::Result<Self> {
        Ok(Self { waker: Waker::new()?, work: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, Option<Box<dyn Work>>> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, backend: &dyn NetBackend) -> Wait {
        let mut work = self.lock();
        let Some(half) = work.as_mut() else { return Wait::Driver };
        half.run(backend).unwrap_or_else(|_| {
            *work = None;
            Wait::Driver
        })
    }

    fn release(&self) {
        if let Some(work) = self.lock().as_mut() {
            work.release();
        }
    }
}

struct Shared {
    backend: Arc<dyn NetBackend>,
    receive: Half,
    transmit: Half,
    stop: AtomicBool,
}

impl Shared {
    /// The life of one thread.
    fn serve(&self, half: &Half, writes: bool) {
        let backend = &*self.backend;
        while !self.stop.load(Ordering::Acquire) {
            let waited = match half.run(backend) {
                Wait::No => Ok(()),
                Wait::Driver => half.waker.wait(),
                Wait::Backend if writes => half.waker.wait_writable(backend).map(drop),
                Wait::Backend => half.waker.wait_readable(backend).map(drop),
            };
            if waited.is_err() {
                return;
            }
        }
    }
}

/// The receiving direction.
struct Receive {
    queue: Arc<VirtQueue>,
    receiver: Receiver,
}

impl Work for Receive {
    fn run(&mut self, backend: &dyn NetBackend) -> Result<Wait, QueueError> {
        let Self { queue, receiver } = self;
        let mut wait = Wait::No;
        for _ in 0..BUDGET {
            let pop = || Ok(queue.pop()?.map(|chain| Buffer::new(chain.head, chain.writable)));
            match receiver.step(backend, pop) {
                Ok(Step::Frame(used)) => queue.push_all(&used)?,
                Ok(Step::Lost) => {}
                Ok(Step::Empty) => {
                    wait = Wait::Backend;
                    break;
                }
                Ok(Step::Starved) => {
                    queue.signal()?;
                    if !queue.enable_notifications()? {
                        wait = Wait::Driver;
                        break;
                    }
                    queue.disable_notifications()?;
                }
                // As if the cable were out; a reset tries again.
                Ok(Step::Failed) => {
                    wait = Wait::Driver;
                    break;
                }
                Err(Fault::Queue(error)) => return Err(error),
                Err(Fault::Short) => {
                    const REASON: &str = "a receive buffer without room for the header";
                    queue.fault(REASON);
                    return Err(QueueError::Request(REASON));
                }
            }
        }
        queue.signal()?;
        if wait == Wait::Backend {
            queue.disable_notifications()?;
        }
        Ok(wait)
    }

    fn release(&mut self) {
        self.queue.rewind(self.receiver.release());
    }
}

/// The sending direction.
struct Transmit {
    queue: Arc<VirtQueue>,
    header: usize,
    /// A frame for which the back end had no room.
    held: Option<Chain>,
}

impl Work for Transmit {
    fn run(&mut self, backend: &dyn NetBackend) -> Result<Wait, QueueError> {
        let mut wait = Wait::No;
        self.queue.disable_notifications()?;
        for _ in 0..BUDGET {
            let next = match self.held.take() {
                Some(chain) => Some(chain),
                None => self.queue.pop()?,
            };
            let Some(chain) = next else {
                self.queue.signal()?;
                if self.queue.enable_notifications()? {
                    self.queue.disable_notifications()?;
                    continue;
                }
                wait = Wait::Driver;
                break;
            };
            if chain.readable_len() < self.header as u64 {
                const REASON: &str = "a frame without a header";
                self.queue.fault(REASON);
                return Err(QueueError::Request(REASON));
            }
            match backend.send(&chain.readable) {
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    self.held = Some(chain);
                    wait = Wait::Backend;
                    break;
                }
                // What the host does not take is lost, as on any network.
                _ => self.queue.push_all(&[(chain.head, 0)])?,
            }
        }
        self.queue.signal()?;
        Ok(wait)
    }

    fn release(&mut self) {
        if self.held.take().is_some() {
            self.queue.rewind(1);
        }
    }
}

/// The virtio-net device.
pub struct VirtioNet {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    features: u64,
    config: [u8; 12],
    /// Longest frame without offloads, without the virtio header.
    longest: usize,
    transport: OnceLock<Arc<dyn Transport>>,
}

const STATE_VERSION: u32 = 1;

impl VirtioNet {
    /// A device on `backend`; the guest is told `mtu`, if there is one.
    pub fn new(backend: Arc<dyn NetBackend>, mac: MacAddress, mtu: Option<u16>) -> io::Result<Self> {
        let features = features::offered(backend.offloads(), mtu);
        let largest = backend.mtu()?.unwrap_or(ETHERNET_MTU).max(mtu.unwrap_or(ETHERNET_MTU));
        let (receive, transmit) = (Half::new()?, Half::new()?);
        let shared = Arc::new(Shared { backend, receive, transmit, stop: AtomicBool::new(false) });
        let mut device = Self {
            shared: shared.clone(),
            threads: Vec::new(),
            features,
            config: features::config_space(mac, mtu),
            longest: usize::from(largest) + LINK_HEADER,
            transport: OnceLock::new(),
        };
        let receiver = shared.clone();
        device.spawn("net-rx", move || receiver.serve(&receiver.receive, false))?;
        device.spawn("net-tx", move || shared.serve(&shared.transmit, true))?;
        Ok(device)
    }

    /// A device as its node says. `slot`, `function` and `vm` make its default address.
    pub fn open(node: &Node<'_>, slot: u8, function: u8, vm: &str) -> Result<Self, config::Error> {
        let node = node.clone().declared(KEYS);
        let mac = match node.read("mac", "expected a MAC address", config::value::parse_mac)? {
            Some(bytes) => MacAddress::try_from(bytes).map_err(|e| node.error("mac", e.to_string()))?,
            None => MacAddress::default_for(slot, function, vm),
        };
        let mtu = node.read("mtu", "expected 68 to 65535", |text| {
            let mtu = config::value::parse_integer(text)?;
            u16::try_from(mtu).ok().filter(|mtu| *mtu >= 68)
        })?;
        let name = node.require("backend")?;
        let backend = host::net::open(&name, node.get("type")?.as_deref())
            .map_err(|e| node.error("backend", e.to_string()))?;
        if let Some(mtu) = mtu {
            raise_mtu(&*backend, mtu).map_err(|e| node.error("mtu", e))?;
        }
        Self::new(backend, mac, mtu).map_err(|e| node.error("backend", format!("{name}: {e}")))
    }

    fn spawn(&mut self, name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
        self.threads.push(std::thread::Builder::new().name(name.into()).spawn(work)?);
        Ok(())
    }

    fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        self.shared.backend.set_offloads(offloads)
    }

    fn settle(&self, features: u64) -> io::Result<usize> {
        let long = features & (feature::VERSION_1 | features::MRG_RXBUF) != 0;
        let header = if long { LONG_HEADER } else { SHORT_HEADER };
        self.shared.backend.set_header_len(header)?;
        self.set_offloads(features::taken_by_guest(features))?;
        Ok(header)
    }
}

/// A guest that may send packets of `mtu` bytes needs an interface that takes them.
fn raise_mtu(backend: &dyn NetBackend, mtu: u16) -> Result<(), String> {
    let now = backend.mtu().map_err(|e| e.to_string())?;
    let Some(now) = now.filter(|now| *now < mtu) else { return Ok(()) };
    let name = backend.name();
    backend.set_mtu(mtu).map_err(|e| {
        format!(
            "{name} has an MTU of {now}, and {mtu} can't be set: {e}; as root: ip link set {name} mtu {mtu}"
        )
    })
}

impl VirtioDevice for VirtioNet {
    fn kind(&self) -> Kind {
        Kind::NET
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE, QUEUE_SIZE]
    }

    fn config_len(&self) -> usize {
        self.config.len()
    }

    fn config_read(&self, offset: usize, data: &mut [u8]) {
        let bytes = self.config.iter().skip(offset).copied().chain(std::iter::repeat(0));
        data.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
    }

    fn attach(&self, transport: Arc<dyn Transport>) {
        let _ = self.transport.set(transport);
    }

    fn activate(&self, features: u64, queues: Queues) {
        let header = match self.settle(features) {
            Ok(header) => header,
            Err(e) => {
                if let Some(transport) = self.transport.get() {
                    transport.needs_reset(&format!("{}: {e}", self.shared.backend.name()));
                }
                return;
            }
        };
        let taken = features::taken_by_guest(features);
        let large = taken.tso4 || taken.tso6 || taken.ufo;
        let longest = if large { MAX_FRAME - LONG_HEADER } else { self.longest };
        let mergeable = features & features::MRG_RXBUF != 0;
        let mut queues = queues.into_iter();
        let mut next = || queues.next().flatten();
        *self.shared.receive.lock() = next().map(|queue| {
            let receiver = Receiver::new(header, mergeable, longest, queue.size());
            Box::new(Receive { queue, receiver }) as Box<dyn Work>
        });
        *self.shared.transmit.lock() =
            next().map(|queue| Box::new(Transmit { queue, header, held: None }) as Box<dyn Work>);
    }

    fn notify(&self, index: u16) {
        match index {
            RECEIVE => self.shared.receive.waker.wake(),
            TRANSMIT => self.shared.transmit.waker.wake(),
            _ => {}
        }
    }

    fn doorbell(&self, index: u16) -> Option<Arc<OwnedFd>> {
        match index {
            RECEIVE => Some(self.shared.receive.waker.fd()),
            TRANSMIT => Some(self.shared.transmit.waker.fd()),
            _ => None,
        }
    }

    fn reset(&self) {
        // Frames move under these locks, so nothing is in flight afterwards.
        *self.shared.receive.lock() = None;
        *self.shared.transmit.lock() = None;
        // A back end that refuses this says so again when the next driver comes.
        let _ = self.set_offloads(Offloads::default());
    }

    fn drain(&self) {
        self.shared.receive.release();
        self.shared.transmit.release();
    }

    fn save(&self) -> Result<SavedState, StateError> {
        SavedState::encode(STATE_VERSION, &())
    }

    fn restore(&self, state: &SavedState) -> Result<(), StateError> {
        state.decode(STATE_VERSION)
    }
}

impl Drop for VirtioNet {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.receive.waker.wake();
        self.shared.transmit.waker.wake();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
