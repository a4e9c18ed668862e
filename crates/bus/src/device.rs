//! What every device can do beside answering its registers.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// A device's state at rest: a version and the encoded, versioned state struct.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, serde::Deserialize)]
pub struct SavedState {
    /// Version of the state struct; a device refuses one that it does not know.
    pub version: u32,
    /// The struct, in postcard encoding.
    pub data: Vec<u8>,
}

/// Why a saved state was not taken.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Made by another version of the device.
    #[error("saved state has version {found}, this device knows {known}")]
    Version {
        /// Version in the saved state.
        found: u32,
        /// Version that this device writes.
        known: u32,
    },
    /// Does not decode.
    #[error("saved state is damaged: {0}")]
    Encoding(#[from] postcard::Error),
    /// Decodes, but a value is out of its range.
    #[error("saved state is not valid: {0}")]
    Invalid(&'static str),
}

impl SavedState {
    /// Encodes `state`.
    pub fn encode<T: Serialize>(version: u32, state: &T) -> Result<Self, StateError> {
        Ok(Self { version, data: postcard::to_stdvec(state)? })
    }

    /// Decodes a state of exactly `version`. The caller checks the values.
    pub fn decode<T: DeserializeOwned>(&self, version: u32) -> Result<T, StateError> {
        if self.version != version {
            return Err(StateError::Version { found: self.version, known: version });
        }
        Ok(postcard::from_bytes(&self.data)?)
    }
}

/// Life cycle and state of a device. Register access is [`crate::BusDevice`] or, for PCI
/// functions, the PCI traits of the devices crate. Devices lock themselves (`&self`).
pub trait Device: Send + Sync {
    /// A stable name, unique in the machine, such as `hpet` or `pci.0.3.0`.
    fn name(&self) -> String;

    /// Back to the state after power-on. First waits for what is in flight.
    fn reset(&self);

    /// Stops taking new work and waits for what is in flight.
    fn drain(&self) {}

    /// Takes work again after [`Device::drain`].
    fn resume(&self) {}

    /// The device's state, after [`Device::drain`].
    fn save(&self) -> Result<SavedState, StateError>;

    /// Takes a saved state; on error the device is as after reset.
    fn restore(&self, state: &SavedState) -> Result<(), StateError>;
}
