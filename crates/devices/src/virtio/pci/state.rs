//! The registers of the transport, which the legacy and the modern block share.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::signals::{Signals, status};
use crate::pci::DmaMemory;
use crate::virtio::{
    QueueError, QueueOwner, Queues, RingConfig, RingPosition, Transport, VirtQueue, VirtioDevice, feature,
};

/// Features that only legacy drivers may see (VIRTIO 1.2, 6.3).
const LEGACY_FEATURES: u64 = feature::NOTIFY_ON_EMPTY | feature::ANY_LAYOUT;
/// What the transport offers for every device.
const TRANSPORT_FEATURES: u64 =
    LEGACY_FEATURES | feature::INDIRECT_DESC | feature::EVENT_IDX | feature::VERSION_1;

/// Registers of one queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct QueueRegisters {
    pub ring: RingConfig,
    pub enabled: bool,
    /// What a legacy driver wrote.
    pub pfn: u32,
}

/// Registers that a driver writes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Registers {
    pub device_feature_select: u32,
    pub driver_feature_select: u32,
    pub driver_features: u64,
    pub queue_select: u16,
    pub queues: Vec<QueueRegisters>,
}

/// Everything behind the transport's lock.
pub(super) struct State {
    pub registers: Registers,
    /// Queues in use.
    active: Queues,
    /// The device was told that the driver is ready.
    activated: bool,
    /// Configuration space when its generation was last read.
    snapshot: Vec<u8>,
    generation: u8,
}

/// The parts of the transport that act on the state.
pub(super) struct Parts {
    pub device: Arc<dyn VirtioDevice>,
    pub signals: Arc<Signals>,
    pub dma: DmaMemory,
}

fn power_on(sizes: &[u16]) -> Registers {
    let queue = |size: &u16| QueueRegisters {
        ring: RingConfig { size: *size, desc: 0, avail: 0, used: 0 },
        enabled: false,
        pfn: 0,
    };
    Registers {
        device_feature_select: 0,
        driver_feature_select: 0,
        driver_features: 0,
        queue_select: 0,
        queues: sizes.iter().map(queue).collect(),
    }
}

impl State {
    pub fn new(device: &dyn VirtioDevice) -> Self {
        Self {
            registers: power_on(device.queue_sizes()),
            active: Queues::new(),
            activated: false,
            snapshot: Vec::new(),
            generation: 0,
        }
    }

    /// The selected queue.
    pub fn queue(&self) -> Option<&QueueRegisters> {
        self.registers.queues.get(usize::from(self.registers.queue_select))
    }

    /// The selected queue, if its registers can be written: not while it is in use.
    pub fn queue_mut(&mut self) -> Option<&mut QueueRegisters> {
        if self.activated {
            return None;
        }
        self.registers.queues.get_mut(usize::from(self.registers.queue_select))
    }

    pub fn activated(&self) -> bool {
        self.activated
    }

    /// Positions of the queues in use; `None` while chains are in flight.
    pub fn positions(&self) -> Option<Vec<Option<RingPosition>>> {
        let position = |queue: &Option<Arc<VirtQueue>>| match queue {
            Some(queue) => queue.position().map(Some),
            None => Some(None),
        };
        self.active.iter().map(position).collect()
    }
}

impl Parts {
    /// What a modern driver is offered.
    pub fn modern_features(&self) -> u64 {
        (self.device.features() | TRANSPORT_FEATURES) & !LEGACY_FEATURES
    }

    /// What a legacy driver is offered.
    pub fn legacy_features(&self) -> u32 {
        (self.device.features() | TRANSPORT_FEATURES) as u32
    }

    /// Takes half of the driver's features.
    pub fn set_driver_features(&self, state: &mut State, half: u32, value: u32) {
        if self.signals.status() & (status::FEATURES_OK | status::DRIVER_OK) != 0 || half > 1 {
            return;
        }
        let shift = 32 * half;
        let features = &mut state.registers.driver_features;
        *features = *features & !(0xffff_ffff << shift) | u64::from(value) << shift;
    }

    /// Takes a write to the device status (VIRTIO 1.2, 2.1): 0 resets, bits can only be set.
    pub fn set_status(&self, state: &mut State, value: u8) {
        if value == 0 {
            self.reset(state);
            return;
        }
        let old = self.signals.status();
        let mut new = value & status::DRIVER_BITS & !old;
        if new & status::FEATURES_OK != 0 {
            let features = state.registers.driver_features;
            let offered = self.modern_features() | LEGACY_FEATURES;
            if features & !offered != 0 || features & feature::VERSION_1 == 0 {
                // The driver reads the bit back to see whether we agree (3.1.1, step 6).
                new &= !status::FEATURES_OK;
            }
        }
        self.signals.add_status(new);
        if new & status::DRIVER_OK != 0 && (old | new) & (status::FAILED | status::NEEDS_RESET) == 0 {
            self.activate(state);
        }
    }

    fn activate(&self, state: &mut State) {
        let features = state.registers.driver_features;
        if features & feature::VERSION_1 != 0 && self.signals.status() & status::FEATURES_OK == 0 {
            self.signals.needs_reset("it is ready before features were agreed on");
            return;
        }
        match self.make_queues(&state.registers, &[]) {
            Ok(queues) => self.start(state, queues),
            Err((index, error)) => self.signals.fault(index, &error),
        }
    }

    fn make_queues(
        &self,
        registers: &Registers,
        positions: &[Option<RingPosition>],
    ) -> Result<Queues, (u16, QueueError)> {
        let mut queues = Queues::new();
        let features = registers.driver_features;
        for (index, queue) in (0..).zip(&registers.queues) {
            let position = positions.get(usize::from(index)).copied().flatten().unwrap_or_default();
            let owner: Arc<dyn QueueOwner> = self.signals.clone();
            let make = || VirtQueue::new(index, queue.ring, position, features, self.dma.clone(), owner);
            let made = queue.enabled.then(make).transpose().map_err(|error| (index, error))?;
            queues.push(made.map(Arc::new));
        }
        Ok(queues)
    }

    fn start(&self, state: &mut State, queues: Queues) {
        state.active.clone_from(&queues);
        state.activated = true;
        self.device.activate(state.registers.driver_features, queues);
        self.notify_all(state);
    }

    fn notify_all(&self, state: &State) {
        for (index, _) in (0..).zip(&state.active).filter(|(_, queue)| queue.is_some()) {
            self.device.notify(index);
        }
    }

    /// Stops the device and forgets what its driver set up.
    pub fn reset(&self, state: &mut State) {
        for queue in state.active.iter().flatten() {
            queue.pause(true);
        }
        self.device.reset();
        for queue in state.active.iter().flatten() {
            queue.retire();
        }
        state.active.clear();
        state.activated = false;
        state.registers = power_on(self.device.queue_sizes());
        self.signals.reset();
    }

    /// A legacy driver takes one queue away (PFN 0).
    pub fn remove_queue(&self, state: &mut State) {
        let index = state.registers.queue_select;
        if let Some(queue) = state.registers.queues.get_mut(usize::from(index)) {
            (queue.pfn, queue.enabled) = (0, false);
        }
        if let Some(queue) = state.active.get(usize::from(index)).cloned().flatten() {
            self.drain(state);
            queue.retire();
            if let Some(place) = state.active.get_mut(usize::from(index)) {
                *place = None;
            }
            self.resume(state);
        }
    }

    pub fn drain(&self, state: &State) {
        for queue in state.active.iter().flatten() {
            queue.pause(true);
        }
        self.device.drain();
    }

    pub fn resume(&self, state: &State) {
        for queue in state.active.iter().flatten() {
            queue.pause(false);
        }
        self.notify_all(state);
    }

    /// Starts from saved registers and positions.
    pub fn restart(
        &self,
        state: &mut State,
        registers: Registers,
        positions: &[Option<RingPosition>],
        running: bool,
    ) -> Result<(), QueueError> {
        let queues = if running {
            self.make_queues(&registers, positions).map_err(|(_, error)| error)?
        } else {
            Queues::new()
        };
        state.registers = registers;
        if running {
            self.start(state, queues);
        }
        Ok(())
    }

    /// The generation of configuration space: another one when its content is not what it was
    /// when the driver last asked. So two equal answers mean that nothing changed in between.
    pub fn generation(&self, state: &mut State) -> u8 {
        let mut now = vec![0; self.device.config_len()];
        self.device.config_read(0, &mut now);
        if now != state.snapshot {
            state.snapshot = now;
            state.generation = state.generation.wrapping_add(1);
        }
        state.generation
    }

    /// Reads the device's configuration space; beyond it there are 1s.
    pub fn config_read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        let rest = (self.device.config_len() as u64).saturating_sub(offset);
        let len = data.len().min(usize::try_from(rest).unwrap_or(usize::MAX));
        if let Some(data) = data.get_mut(..len).filter(|d| !d.is_empty()) {
            self.device.config_read(offset as usize, data);
        }
    }

    /// Writes the device's configuration space, as far as it goes.
    pub fn config_write(&self, state: &State, offset: u64, data: &[u8]) {
        let rest = (self.device.config_len() as u64).saturating_sub(offset);
        let len = data.len().min(usize::try_from(rest).unwrap_or(usize::MAX));
        if let Some(data) = data.get(..len).filter(|d| !d.is_empty()) {
            self.device.config_write(offset as usize, data, state.registers.driver_features);
        }
    }
}
