//! The legacy register block in port space (VIRTIO 1.2, 4.1.4.10).

use super::fields::{self, Field};
use super::state::{Parts, State};
use crate::virtio::RingConfig;

/// Where the notification register is.
pub(super) const NOTIFY: u64 = 16;
/// Where the device's configuration space begins: further on while MSI-X is enabled.
const CONFIG: u64 = 20;
const CONFIG_MSIX: u64 = 24;

#[derive(Clone, Copy)]
enum Register {
    DeviceFeatures,
    DriverFeatures,
    QueueAddress,
    QueueSize,
    QueueSelect,
    QueueNotify,
    Status,
    Isr,
    ConfigVector,
    QueueVector,
}

use Register::{
    ConfigVector, DeviceFeatures, DriverFeatures, Isr, QueueAddress, QueueNotify, QueueSelect, QueueSize,
    QueueVector, Status,
};

const MAP: &[Field<Register>] = &[
    (0, 4, DeviceFeatures),
    (4, 4, DriverFeatures),
    (8, 4, QueueAddress),
    (12, 2, QueueSize),
    (14, 2, QueueSelect),
    (NOTIFY, 2, QueueNotify),
    (18, 1, Status),
    (19, 1, Isr),
];
const MSIX_MAP: &[Field<Register>] = &[(20, 2, ConfigVector), (22, 2, QueueVector)];

/// Size of the block for a configuration space of `config_len`.
pub(super) fn bar_size(config_len: usize) -> u64 {
    (CONFIG_MSIX + config_len as u64).next_power_of_two().max(64)
}

/// What registers hold, without side effects.
fn get(parts: &Parts, state: &State, register: Register) -> u32 {
    let signals = &parts.signals;
    match register {
        DeviceFeatures => parts.legacy_features(),
        DriverFeatures => state.registers.driver_features as u32,
        QueueAddress => state.queue().map_or(0, |q| q.pfn),
        QueueSize => state.queue().map_or(0, |q| u32::from(q.ring.size)),
        QueueSelect => u32::from(state.registers.queue_select),
        QueueNotify => 0,
        Status => u32::from(signals.status()),
        Isr => u32::from(signals.isr_pending()),
        ConfigVector => u32::from(signals.config_vector()),
        QueueVector => u32::from(signals.queue_vector(state.registers.queue_select)),
    }
}

fn set(parts: &Parts, state: &mut State, register: Register, value: u32) {
    let signals = &parts.signals;
    match register {
        DriverFeatures => parts.set_driver_features(state, 0, value & parts.legacy_features()),
        QueueAddress if value == 0 => parts.remove_queue(state),
        QueueAddress => {
            if let Some(queue) = state.queue_mut() {
                queue.pfn = value;
                queue.ring = RingConfig::legacy(queue.ring.size, value);
                queue.enabled = true;
            }
        }
        QueueSelect => state.registers.queue_select = value as u16,
        QueueNotify => parts.device.notify(value as u16),
        Status => parts.set_status(state, value as u8),
        ConfigVector => signals.set_config_vector(value as u16),
        QueueVector => signals.set_queue_vector(state.registers.queue_select, value as u16),
        DeviceFeatures | QueueSize | Isr => {}
    }
}

fn config_offset(parts: &Parts) -> u64 {
    if parts.signals.interrupts().msix_enabled() { CONFIG_MSIX } else { CONFIG }
}

fn maps(config: u64) -> impl Iterator<Item = &'static [Field<Register>]> {
    std::iter::once(MAP).chain((config == CONFIG_MSIX).then_some(MSIX_MAP))
}

pub(super) fn read(parts: &Parts, state: &State, offset: u64, data: &mut [u8]) {
    data.fill(0xff);
    let config = config_offset(parts);
    for map in maps(config) {
        fields::read(map, offset, data, |register| match register {
            Isr => u32::from(parts.signals.take_isr()),
            other => get(parts, state, other),
        });
    }
    let skip = usize::try_from(config.saturating_sub(offset)).unwrap_or(usize::MAX);
    if let Some(data) = data.get_mut(skip..).filter(|d| !d.is_empty()) {
        parts.config_read(offset.max(config) - config, data);
    }
}

pub(super) fn write(parts: &Parts, state: &mut State, offset: u64, data: &[u8]) {
    let config = config_offset(parts);
    for map in maps(config) {
        // Registers that are written in part are read first; nothing else changes between.
        let mut writes = Vec::new();
        let current = |register| get(parts, state, register);
        fields::write(map, offset, data, current, |register, value| writes.push((register, value)));
        for (register, value) in writes {
            set(parts, state, register, value);
        }
    }
    let skip = usize::try_from(config.saturating_sub(offset)).unwrap_or(usize::MAX);
    if let Some(data) = data.get(skip..).filter(|d| !d.is_empty()) {
        parts.config_write(state, offset.max(config) - config, data);
    }
}
