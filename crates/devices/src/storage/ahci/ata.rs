//! ATA commands (ACS-3).

use host::block::Op;

use super::command::Command;
use super::drive::{Drive, DriveState, Io, NOT_FOUND, Outcome, Protocol};
use super::fis::Reply;
use super::identify;
use crate::pci::DmaMemory;

/// Most sectors in a block of READ MULTIPLE.
pub(super) const MAX_MULTIPLE: u8 = 128;
/// Blocks of 512 bytes that one DATA SET MANAGEMENT may bring (IDENTIFY word 105).
pub(super) const MAX_TRIM_BLOCKS: u16 = 64;
/// Commands in the queue (IDENTIFY word 75).
pub(super) const QUEUE_DEPTH: u16 = 32;
/// Length of a page of a log, and of a block of ranges.
const BLOCK: usize = 512;
/// Log pages: the directory, and queued command error.
const LOG_DIRECTORY: u8 = 0x00;
const LOG_QUEUE_ERROR: u8 = 0x10;

/// Opcodes.
mod op {
    pub const DATA_SET_MANAGEMENT: u8 = 0x06;
    pub const RECALIBRATE: u8 = 0x10;
    pub const READ_SECTORS: u8 = 0x20;
    pub const READ_SECTORS_EXT: u8 = 0x24;
    pub const READ_DMA_EXT: u8 = 0x25;
    pub const READ_MULTIPLE_EXT: u8 = 0x29;
    pub const READ_LOG_EXT: u8 = 0x2f;
    pub const WRITE_SECTORS: u8 = 0x30;
    pub const WRITE_SECTORS_EXT: u8 = 0x34;
    pub const WRITE_DMA_EXT: u8 = 0x35;
    pub const WRITE_MULTIPLE_EXT: u8 = 0x39;
    pub const WRITE_DMA_FUA_EXT: u8 = 0x3d;
    pub const READ_VERIFY: u8 = 0x40;
    pub const READ_VERIFY_EXT: u8 = 0x42;
    pub const READ_LOG_DMA_EXT: u8 = 0x47;
    pub const READ_QUEUED: u8 = 0x60;
    pub const WRITE_QUEUED: u8 = 0x61;
    pub const SEEK: u8 = 0x70;
    pub const INITIALIZE_PARAMETERS: u8 = 0x91;
    pub const READ_MULTIPLE: u8 = 0xc4;
    pub const WRITE_MULTIPLE: u8 = 0xc5;
    pub const SET_MULTIPLE: u8 = 0xc6;
    pub const READ_DMA: u8 = 0xc8;
    pub const WRITE_DMA: u8 = 0xca;
    pub const WRITE_MULTIPLE_FUA_EXT: u8 = 0xce;
    pub const STANDBY_IMMEDIATE: u8 = 0xe0;
    pub const IDLE_IMMEDIATE: u8 = 0xe1;
    pub const STANDBY: u8 = 0xe2;
    pub const IDLE: u8 = 0xe3;
    pub const CHECK_POWER_MODE: u8 = 0xe5;
    pub const SLEEP: u8 = 0xe6;
    pub const FLUSH: u8 = 0xe7;
    pub const FLUSH_EXT: u8 = 0xea;
    pub const IDENTIFY: u8 = 0xec;
    pub const SET_FEATURES: u8 = 0xef;
}

/// Whether the opcode is a queued one.
pub(super) fn is_queued(opcode: u8) -> bool {
    matches!(opcode, op::READ_QUEUED | op::WRITE_QUEUED)
}

/// Starts a command of a disk.
pub(super) fn execute(drive: &Drive, state: &mut DriveState, command: &Command, dma: &DmaMemory) -> Outcome {
    if let Some(kind) = Transfer::of(command) {
        return transfer(drive, state, command, &kind, dma);
    }
    match command.opcode() {
        op::IDENTIFY => pio(identify::disk(drive, state)),
        op::READ_VERIFY | op::READ_VERIFY_EXT => verify(drive, command),
        op::FLUSH | op::FLUSH_EXT => {
            Outcome::Io(Io { ops: vec![Op::Flush], protocol: Protocol::Register, lba: 0, bytes: 0 })
        }
        op::DATA_SET_MANAGEMENT => trim(drive, command, dma),
        op::READ_LOG_EXT => log(state, command, Protocol::PioIn),
        op::READ_LOG_DMA_EXT => log(state, command, Protocol::Register),
        op::SET_FEATURES => set_features(state, command),
        op::SET_MULTIPLE => {
            let count = command.count() as u8;
            if count > MAX_MULTIPLE || (count != 0 && !count.is_power_of_two()) {
                return Outcome::ABORTED;
            }
            state.multiple = count;
            Outcome::Done(Reply::GOOD)
        }
        // Active or idle.
        op::CHECK_POWER_MODE => Outcome::Done(Reply { count: 0xff, ..Reply::GOOD }),
        op::STANDBY_IMMEDIATE
        | op::IDLE_IMMEDIATE
        | op::STANDBY
        | op::IDLE
        | op::SLEEP
        | op::RECALIBRATE
        | op::SEEK
        | op::INITIALIZE_PARAMETERS => Outcome::Done(Reply::GOOD),
        _ => Outcome::ABORTED,
    }
}

/// What the opcode of a read or write says.
struct Transfer {
    read: bool,
    protocol: Protocol,
    /// Of the READ MULTIPLE kind.
    multiple: bool,
    /// Done only when the data is on the medium.
    forced: bool,
}

impl Transfer {
    /// `None`: the command is of another kind.
    fn of(command: &Command) -> Option<Self> {
        use Protocol::{PioIn, Queued, Register};
        let (read, protocol, multiple) = match command.opcode() {
            op::READ_DMA | op::READ_DMA_EXT => (true, Register, false),
            op::READ_SECTORS | op::READ_SECTORS_EXT => (true, PioIn, false),
            op::READ_MULTIPLE | op::READ_MULTIPLE_EXT => (true, PioIn, true),
            op::READ_QUEUED => (true, Queued, false),
            op::WRITE_DMA
            | op::WRITE_DMA_EXT
            | op::WRITE_DMA_FUA_EXT
            | op::WRITE_SECTORS
            | op::WRITE_SECTORS_EXT => (false, Register, false),
            op::WRITE_MULTIPLE | op::WRITE_MULTIPLE_EXT | op::WRITE_MULTIPLE_FUA_EXT => {
                (false, Register, true)
            }
            op::WRITE_QUEUED => (false, Queued, false),
            _ => return None,
        };
        let forced = match command.opcode() {
            op::WRITE_DMA_FUA_EXT | op::WRITE_MULTIPLE_FUA_EXT => true,
            // FUA is bit 7 of the device register there (7.61).
            op::WRITE_QUEUED => command.device() & 1 << 7 != 0,
            _ => false,
        };
        Some(Self { read, protocol, multiple, forced })
    }
}

fn pio(bytes: Vec<u8>) -> Outcome {
    Outcome::Data { bytes, protocol: Protocol::PioIn }
}

/// First sector and number of sectors of a read, write or verification.
fn range(command: &Command) -> (u64, u64) {
    let whole = |count: u64, full: u64| if count == 0 { full } else { count };
    match command.opcode() {
        // Queued commands have the count in the features.
        op::READ_QUEUED | op::WRITE_QUEUED => {
            (command.lba48(), whole(u64::from(command.features()), 0x1_0000))
        }
        op::READ_DMA
        | op::READ_SECTORS
        | op::READ_MULTIPLE
        | op::WRITE_DMA
        | op::WRITE_SECTORS
        | op::WRITE_MULTIPLE
        | op::READ_VERIFY => (command.lba28(), whole(u64::from(command.count() & 0xff), 0x100)),
        _ => (command.lba48(), whole(u64::from(command.count()), 0x1_0000)),
    }
}

/// Byte offset and length, if they are on the disk.
fn bytes(drive: &Drive, command: &Command) -> Option<(u64, u64)> {
    let info = drive.disk.as_ref()?.info();
    let sector = u64::from(info.logical_sector);
    let (lba, count) = range(command);
    let (offset, len) = (lba.checked_mul(sector)?, count.checked_mul(sector)?);
    (offset.checked_add(len)? <= info.size).then_some((offset, len))
}

fn transfer(
    drive: &Drive,
    state: &DriveState,
    command: &Command,
    kind: &Transfer,
    dma: &DmaMemory,
) -> Outcome {
    // 7.26: without SET MULTIPLE these are refused.
    if kind.multiple && state.multiple == 0 {
        return Outcome::ABORTED;
    }
    let lba = range(command).0;
    let Some((offset, len)) = bytes(drive, command) else {
        return Outcome::Done(Reply { lba, ..Reply::failed(NOT_FOUND) });
    };
    let bufs = match command.buffers(dma, len) {
        Ok(bufs) => bufs,
        Err(error) => return Outcome::bad_buffers(&error),
    };
    let op = if kind.read {
        Op::Read { offset, bufs }
    } else {
        Op::Write { offset, bufs, durable: kind.forced || !state.write_cache }
    };
    Outcome::Io(Io { ops: vec![op], protocol: kind.protocol, lba, bytes: len })
}

fn verify(drive: &Drive, command: &Command) -> Outcome {
    match bytes(drive, command) {
        Some(_) => Outcome::Done(Reply::GOOD),
        None => Outcome::Done(Reply { lba: range(command).0, ..Reply::failed(NOT_FOUND) }),
    }
}

/// DATA SET MANAGEMENT with TRIM (7.5): ranges of a 48-bit address and a 16-bit count.
fn trim(drive: &Drive, command: &Command, dma: &DmaMemory) -> Outcome {
    let Some(info) = drive.disk.as_ref().map(|disk| disk.info()).filter(|info| info.can_discard) else {
        return Outcome::ABORTED;
    };
    let blocks = command.count();
    if command.features() & 1 == 0 || blocks == 0 || blocks > MAX_TRIM_BLOCKS {
        return Outcome::ABORTED;
    }
    let len = usize::from(blocks) * BLOCK;
    let slices = match command.buffers(dma, len as u64) {
        Ok(slices) => slices,
        Err(error) => return Outcome::bad_buffers(&error),
    };
    let mut bytes = vec![0; len];
    let mut to = bytes.as_mut_slice();
    for slice in slices {
        let n = slice.read(to);
        to = to.get_mut(n..).unwrap_or_default();
    }
    let sector = u64::from(info.logical_sector);
    let mut ops = Vec::new();
    for entry in bytes.as_chunks::<8>().0 {
        let entry = u64::from_le_bytes(*entry);
        let (lba, count) = (entry & 0xffff_ffff_ffff, entry >> 48);
        if count == 0 {
            continue;
        }
        let range = lba.checked_mul(sector).zip(count.checked_mul(sector));
        match range {
            Some((offset, len)) if offset.checked_add(len).is_some_and(|end| end <= info.size) => {
                ops.push(Op::Discard { offset, len });
            }
            _ => return Outcome::Done(Reply { lba, ..Reply::failed(NOT_FOUND) }),
        }
    }
    if ops.is_empty() {
        return Outcome::Done(Reply::GOOD);
    }
    Outcome::Io(Io { ops, protocol: Protocol::Register, lba: 0, bytes: len as u64 })
}

/// READ LOG EXT (7.22).
fn log(state: &mut DriveState, command: &Command, protocol: Protocol) -> Outcome {
    let lba = command.lba48();
    // Page number in bits 8–15 and 40–47.
    let (log, page) = (lba as u8, lba >> 8 & 0xff | lba >> 24 & 0xff00);
    if page != 0 || command.count() != 1 {
        return Outcome::ABORTED;
    }
    let mut bytes = vec![0; BLOCK];
    match log {
        LOG_DIRECTORY => {
            // Version 1; how many pages each log has, 16 bits each.
            put(&mut bytes, 0, &[1, 0]);
            put(&mut bytes, usize::from(LOG_QUEUE_ERROR) * 2, &[1, 0]);
        }
        LOG_QUEUE_ERROR => {
            queue_error(&mut bytes, state.queue_error.take());
        }
        _ => return Outcome::ABORTED,
    }
    Outcome::Data { bytes, protocol }
}

/// The queued error log (ACS-3, A.13), with its checksum.
fn queue_error(bytes: &mut [u8], error: Option<(u8, u8, u64)>) {
    match error {
        // No queued command failed.
        None => put(bytes, 0, &[1 << 7]),
        Some((slot, error, lba)) => {
            let [l0, l1, l2, l3, l4, l5, ..] = lba.to_le_bytes();
            let failed = Reply::failed(error);
            put(bytes, 0, &[slot & 31, 0, failed.status, error, l0, l1, l2, 0x40, l3, l4, l5]);
        }
    }
    let sum = bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    put(bytes, BLOCK - 1, &[sum.wrapping_neg()]);
}

fn put(bytes: &mut [u8], at: usize, from: &[u8]) {
    bytes.iter_mut().skip(at).zip(from).for_each(|(to, from)| *to = *from);
}

/// SET FEATURES (7.45).
pub(super) fn set_features(state: &mut DriveState, command: &Command) -> Outcome {
    match command.features() as u8 {
        0x02 => state.write_cache = true,
        0x82 => state.write_cache = false,
        0xaa => state.look_ahead = true,
        0x55 => state.look_ahead = false,
        0x03 => {
            let mode = command.count() as u8;
            // PIO default, PIO with flow control, multiword DMA 0–2, Ultra DMA 0–6.
            if !matches!(mode, 0 | 1 | 0x08..=0x0c | 0x20..=0x22 | 0x40..=0x46) {
                return Outcome::ABORTED;
            }
            state.transfer_mode = mode;
        }
        _ => return Outcome::ABORTED,
    }
    Outcome::Done(Reply::GOOD)
}
