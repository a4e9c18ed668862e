//! The register blocks of VIRTIO 1.2 in one memory BAR, and the capabilities that point to them
//! (4.1.4).

use super::fields::{self, Field};
use super::state::{Parts, State};

/// The BAR and its size.
pub(super) const BAR: u8 = 4;
pub(super) const BAR_SIZE: u64 = 0x4000;
// The blocks in it, a page each.
const COMMON: u64 = 0;
const ISR: u64 = 0x1000;
const CONFIG: u64 = 0x2000;
/// Where notifications go.
pub(super) const NOTIFY: u64 = 0x3000;
/// Distance between the notification registers of two queues (4.1.4.4).
pub(super) const NOTIFY_STEP: u64 = 4;
/// Length of the common configuration without what needs features that we do not offer.
const COMMON_LEN: u64 = 56;

/// Capability id for vendors' use (PCI 3.0, appendix H).
pub(super) const VENDOR_CAPABILITY: u8 = 9;
// Structure types (4.1.4).
const TYPE_COMMON: u8 = 1;
const TYPE_NOTIFY: u8 = 2;
const TYPE_ISR: u8 = 3;
const TYPE_CONFIG: u8 = 4;
const TYPE_PCI_CONFIG: u8 = 5;

#[derive(Clone, Copy)]
enum Register {
    DeviceFeatureSelect,
    DeviceFeature,
    DriverFeatureSelect,
    DriverFeature,
    ConfigVector,
    NumQueues,
    Status,
    Generation,
    QueueSelect,
    QueueSize,
    QueueVector,
    QueueEnable,
    QueueNotifyOffset,
    /// Half of a ring's address.
    Ring(Part, Half),
}

#[derive(Clone, Copy)]
enum Part {
    Desc,
    Driver,
    Device,
}

#[derive(Clone, Copy)]
enum Half {
    Low,
    High,
}

use Register::{
    ConfigVector, DeviceFeature, DeviceFeatureSelect, DriverFeature, DriverFeatureSelect, Generation,
    NumQueues, QueueEnable, QueueNotifyOffset, QueueSelect, QueueSize, QueueVector, Ring, Status,
};

const MAP: &[Field<Register>] = &[
    (0x00, 4, DeviceFeatureSelect),
    (0x04, 4, DeviceFeature),
    (0x08, 4, DriverFeatureSelect),
    (0x0c, 4, DriverFeature),
    (0x10, 2, ConfigVector),
    (0x12, 2, NumQueues),
    (0x14, 1, Status),
    (0x15, 1, Generation),
    (0x16, 2, QueueSelect),
    (0x18, 2, QueueSize),
    (0x1a, 2, QueueVector),
    (0x1c, 2, QueueEnable),
    (0x1e, 2, QueueNotifyOffset),
    (0x20, 4, Ring(Part::Desc, Half::Low)),
    (0x24, 4, Ring(Part::Desc, Half::High)),
    (0x28, 4, Ring(Part::Driver, Half::Low)),
    (0x2c, 4, Ring(Part::Driver, Half::High)),
    (0x30, 4, Ring(Part::Device, Half::Low)),
    (0x34, 4, Ring(Part::Device, Half::High)),
];

/// Body of a capability after id and pointer: length, type, BAR, offset, length of the structure.
fn body(kind: u8, offset: u64, len: u64, extra: &[u8]) -> Vec<u8> {
    let mut body = vec![(16 + extra.len()) as u8, kind, BAR, 0, 0, 0];
    body.extend((offset as u32).to_le_bytes());
    body.extend((len as u32).to_le_bytes());
    body.extend(extra);
    body
}

/// Bodies of the capabilities for a device of `queues` queues. The last is the window in
/// configuration space, whose BAR, offset, length and data can be written.
pub(super) fn capabilities(queues: usize, config_len: usize) -> Vec<(Vec<u8>, Vec<u8>)> {
    let step = (NOTIFY_STEP as u32).to_le_bytes();
    let mut fixed = vec![
        body(TYPE_COMMON, COMMON, COMMON_LEN, &[]),
        body(TYPE_ISR, ISR, 1, &[]),
        body(TYPE_NOTIFY, NOTIFY, NOTIFY_STEP * queues as u64, &step),
    ];
    // Only for devices that have one (4.1.4.6): Linux gives up on an empty structure.
    if config_len > 0 {
        fixed.push(body(TYPE_CONFIG, CONFIG, config_len as u64, &[]));
    }
    let mut all: Vec<_> = fixed.into_iter().map(|body| (body, Vec::new())).collect();
    let mut window = body(TYPE_PCI_CONFIG, 0, 0, &[0; 4]);
    if let Some(bar) = window.get_mut(2) {
        *bar = 0;
    }
    let mut mask = vec![0, 0, 0xff, 0, 0, 0];
    mask.resize(window.len(), 0xff);
    all.push((window, mask));
    all
}

fn half(features: u64, select: u32) -> u32 {
    match select {
        0 => features as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    }
}

fn address(state: &State, part: Part) -> u64 {
    state.queue().map_or(0, |queue| match part {
        Part::Desc => queue.ring.desc,
        Part::Driver => queue.ring.avail,
        Part::Device => queue.ring.used,
    })
}

fn get(parts: &Parts, state: &mut State, register: Register) -> u32 {
    let signals = &parts.signals;
    let registers = &state.registers;
    match register {
        DeviceFeatureSelect => registers.device_feature_select,
        DeviceFeature => half(parts.modern_features(), registers.device_feature_select),
        DriverFeatureSelect => registers.driver_feature_select,
        DriverFeature => half(registers.driver_features, registers.driver_feature_select),
        ConfigVector => u32::from(signals.config_vector()),
        NumQueues => registers.queues.len() as u32,
        Status => u32::from(signals.status()),
        Generation => u32::from(parts.generation(state)),
        QueueSelect => u32::from(registers.queue_select),
        QueueSize => state.queue().map_or(0, |q| u32::from(q.ring.size)),
        QueueVector => u32::from(signals.queue_vector(registers.queue_select)),
        QueueEnable => u32::from(state.queue().is_some_and(|q| q.enabled)),
        QueueNotifyOffset => u32::from(registers.queue_select),
        Ring(part, Half::Low) => address(state, part) as u32,
        Ring(part, Half::High) => (address(state, part) >> 32) as u32,
    }
}

fn set(parts: &Parts, state: &mut State, register: Register, value: u32) {
    let signals = &parts.signals;
    match register {
        DeviceFeatureSelect => state.registers.device_feature_select = value,
        DriverFeatureSelect => state.registers.driver_feature_select = value,
        DriverFeature => {
            let half = state.registers.driver_feature_select;
            parts.set_driver_features(state, half, value);
        }
        ConfigVector => signals.set_config_vector(value as u16),
        Status => parts.set_status(state, value as u8),
        QueueSelect => state.registers.queue_select = value as u16,
        QueueSize => set_size(parts, state, value as u16),
        QueueVector => signals.set_queue_vector(state.registers.queue_select, value as u16),
        QueueEnable => {
            if let Some(queue) = state.queue_mut() {
                // A queue can't be disabled again but by a reset (4.1.4.3.2).
                queue.enabled |= value == 1;
            }
        }
        Ring(part, half) => {
            if let Some(queue) = state.queue_mut() {
                let place = match part {
                    Part::Desc => &mut queue.ring.desc,
                    Part::Driver => &mut queue.ring.avail,
                    Part::Device => &mut queue.ring.used,
                };
                *place = match half {
                    Half::Low => *place & !0xffff_ffff | u64::from(value),
                    Half::High => *place & 0xffff_ffff | u64::from(value) << 32,
                };
            }
        }
        DeviceFeature | NumQueues | Generation | QueueNotifyOffset => {}
    }
}

/// A driver may make a queue smaller, to a power of 2 (4.1.5.1.3).
fn set_size(parts: &Parts, state: &mut State, size: u16) {
    let index = usize::from(state.registers.queue_select);
    let max = parts.device.queue_sizes().get(index).copied().unwrap_or(0);
    if let Some(queue) = state.queue_mut()
        && size <= max
        && size.is_power_of_two()
    {
        queue.ring.size = size;
    }
}

/// The queue whose notification register is at `offset`.
pub(super) fn notified(offset: u64) -> Option<u16> {
    offset.checked_sub(NOTIFY).and_then(|offset| u16::try_from(offset / NOTIFY_STEP).ok())
}

/// Reads the BAR.
pub(super) fn read(parts: &Parts, state: &mut State, offset: u64, data: &mut [u8]) {
    data.fill(0);
    match offset {
        COMMON..ISR => fields::read(MAP, offset, data, |register| get(parts, state, register)),
        ISR => {
            if let Some(first) = data.first_mut() {
                *first = parts.signals.take_isr();
            }
        }
        CONFIG..NOTIFY => parts.config_read(offset - CONFIG, data),
        _ => {}
    }
}

/// Writes the BAR. Notifications never come here.
pub(super) fn write(parts: &Parts, state: &mut State, offset: u64, data: &[u8]) {
    match offset {
        COMMON..ISR => {
            let mut writes = Vec::new();
            let current = |register| get(parts, state, register);
            fields::write(MAP, offset, data, current, |register, value| writes.push((register, value)));
            for (register, value) in writes {
                set(parts, state, register, value);
            }
        }
        CONFIG..NOTIFY => parts.config_write(state, offset - CONFIG, data),
        _ => {}
    }
}
