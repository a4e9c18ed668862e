//! What is at a port: an ATA disk or an ATAPI drive.

use std::sync::Arc;

use host::block::{Disk, Op};
use serde::{Deserialize, Serialize};

use super::command::{BadBuffers, Command};
use super::fis::Reply;
use super::{ata, atapi};
use crate::pci::DmaMemory;

/// Error register bits (ACS-3, 6.3): aborted; the range is not on the medium; data can't be read.
pub(super) const ABORTED: u8 = 1 << 2;
pub(super) const NOT_FOUND: u8 = 1 << 4;
pub(super) const UNCORRECTABLE: u8 = 1 << 6;

/// Hard disk or optical drive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Media {
    Disk,
    Optical,
}

/// The device at a port and what it says of itself.
pub(super) struct Drive {
    pub media: Media,
    /// `None`: an optical drive without a disc.
    pub disk: Option<Arc<dyn Disk>>,
    pub model: String,
    pub revision: String,
    pub serial: String,
    /// Nominal media rotation rate (ACS-3, 7.12.7.82): 0 is not told, 1 is not rotating.
    pub rotation: u16,
}

/// What a driver changes in a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct DriveState {
    /// Sectors in a block of READ MULTIPLE; 0 before the driver sets it.
    pub multiple: u8,
    pub write_cache: bool,
    pub look_ahead: bool,
    /// Transfer mode as SET FEATURES gave it.
    pub transfer_mode: u8,
    /// SRST is asserted.
    pub soft_reset: bool,
    /// The first queued command that failed: slot, error, address.
    pub queue_error: Option<(u8, u8, u64)>,
    /// Sense key and additional sense of the last packet command.
    pub sense: (u8, u16),
    pub tray_open: bool,
    pub tray_locked: bool,
}

impl Default for DriveState {
    fn default() -> Self {
        Self {
            multiple: 0,
            write_cache: true,
            look_ahead: true,
            // Ultra DMA mode 6.
            transfer_mode: 0x46,
            soft_reset: false,
            queue_error: None,
            sense: (0, 0),
            tray_open: false,
            tray_locked: false,
        }
    }
}

/// What a command comes to.
pub(super) enum Outcome {
    /// It is done.
    Done(Reply),
    /// Bytes for the host, then it is done.
    Data { bytes: Vec<u8>, protocol: Protocol },
    /// The disk works on it.
    Io(Io),
    /// The buffers are not in guest RAM.
    BadMemory,
}

/// How a command ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    /// By a register FIS.
    Register,
    /// By the PIO set-up FIS of the last block.
    PioIn,
    /// By a set-device-bits FIS.
    Queued,
}

/// What the disk has to do.
pub(super) struct Io {
    pub ops: Vec<Op>,
    pub protocol: Protocol,
    /// Where it begins, for errors.
    pub lba: u64,
    pub bytes: u64,
}

impl Outcome {
    /// The command is refused.
    pub const ABORTED: Self = Self::Done(Reply::failed(ABORTED));

    /// Bad buffers: the device sees a transfer that ends early.
    pub fn bad_buffers(error: &BadBuffers) -> Self {
        match error {
            BadBuffers::Short => Self::ABORTED,
            BadBuffers::Memory => Self::BadMemory,
        }
    }
}

impl Drive {
    /// The registers after a reset, which tell drivers what the device is (ACS-3, 7.1.5.2 and
    /// table 206): the error register holds the diagnostic code "passed".
    pub fn signature(&self) -> Reply {
        let passed = 1;
        match self.media {
            Media::Disk => Reply { error: passed, lba: 1, count: 1, ..Reply::GOOD },
            Media::Optical => Reply { status: 0, error: passed, lba: 0xeb_1401, count: 1, device: 0 },
        }
    }

    /// Whether the opcode is a queued one, which may run beside others.
    pub fn is_queued(&self, command: &Command) -> bool {
        self.media == Media::Disk && ata::is_queued(command.opcode())
    }

    /// Starts a command.
    pub fn execute(&self, state: &mut DriveState, command: &Command, dma: &DmaMemory) -> Outcome {
        match self.media {
            Media::Disk => ata::execute(self, state, command, dma),
            Media::Optical => atapi::execute(self, state, command, dma),
        }
    }

    /// The reply to a failed request of the disk.
    pub fn io_failed(&self, state: &mut DriveState, io: &Failed) -> Reply {
        match self.media {
            Media::Optical => atapi::read_failed(state, io.kind),
            Media::Disk => {
                let error = match io.kind {
                    std::io::ErrorKind::InvalidInput => NOT_FOUND,
                    _ if io.read => UNCORRECTABLE,
                    _ => ABORTED,
                };
                Reply { lba: io.lba, ..Reply::failed(error) }
            }
        }
    }
}

/// A request that failed.
pub(super) struct Failed {
    pub kind: std::io::ErrorKind,
    pub read: bool,
    pub lba: u64,
}
