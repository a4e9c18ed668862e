//! Packet commands of an optical drive (MMC-6, SPC-4).

use std::io::ErrorKind;

use host::block::Op;

use super::ata::set_features;
use super::command::Command;
use super::drive::{Drive, DriveState, Io, Outcome, Protocol};
use super::fis::{Reply, status};
use super::identify;
use crate::pci::DmaMemory;

/// Length of a sector.
pub(super) const SECTOR: u64 = 2048;
/// Discs of more sectors than a CD has are DVDs (80 minutes of 75 sectors a second).
const CD_SECTORS: u64 = 80 * 60 * 75;
/// Frames before the first sector in minutes, seconds and frames (MMC-6, table 711).
const MSF_START: u64 = 150;

/// ATA commands of a packet device.
mod ata_op {
    pub const DEVICE_RESET: u8 = 0x08;
    pub const PACKET: u8 = 0xa0;
    pub const IDENTIFY_PACKET: u8 = 0xa1;
    pub const STANDBY_IMMEDIATE: u8 = 0xe0;
    pub const IDLE_IMMEDIATE: u8 = 0xe1;
    pub const CHECK_POWER_MODE: u8 = 0xe5;
    pub const SLEEP: u8 = 0xe6;
    pub const IDENTIFY: u8 = 0xec;
    pub const SET_FEATURES: u8 = 0xef;
}

/// Packet commands.
mod op {
    pub const TEST_UNIT_READY: u8 = 0x00;
    pub const REQUEST_SENSE: u8 = 0x03;
    pub const INQUIRY: u8 = 0x12;
    pub const START_STOP: u8 = 0x1b;
    pub const PREVENT_REMOVAL: u8 = 0x1e;
    pub const READ_CAPACITY: u8 = 0x25;
    pub const READ_10: u8 = 0x28;
    pub const SEEK: u8 = 0x2b;
    pub const SYNCHRONIZE_CACHE: u8 = 0x35;
    pub const READ_TOC: u8 = 0x43;
    pub const GET_CONFIGURATION: u8 = 0x46;
    pub const GET_EVENT_STATUS: u8 = 0x4a;
    pub const READ_DISC_INFORMATION: u8 = 0x51;
    pub const MODE_SENSE_10: u8 = 0x5a;
    pub const READ_12: u8 = 0xa8;
    pub const MECHANISM_STATUS: u8 = 0xbd;
    pub const READ_CD: u8 = 0xbe;
}

/// Sense keys and additional sense codes (SPC-4, 4.5.6 and annex D).
mod sense {
    pub const NONE: (u8, u16) = (0, 0);
    pub const NO_MEDIUM: (u8, u16) = (2, 0x3a00);
    pub const UNREADABLE: (u8, u16) = (3, 0x1100);
    pub const BAD_OPCODE: (u8, u16) = (5, 0x2000);
    pub const OUT_OF_RANGE: (u8, u16) = (5, 0x2100);
    pub const BAD_FIELD: (u8, u16) = (5, 0x2400);
    pub const REMOVAL_PREVENTED: (u8, u16) = (5, 0x5302);
}

/// Interrupt reason in the count register: the end of a packet command.
const COMMAND_DONE: u16 = 3;
const GOOD: Reply = Reply { count: COMMAND_DONE, ..Reply::GOOD };

/// Starts a command of an optical drive.
pub(super) fn execute(drive: &Drive, state: &mut DriveState, command: &Command, dma: &DmaMemory) -> Outcome {
    match command.opcode() {
        ata_op::PACKET => match command.packet_bytes(dma) {
            Ok(packet) if command.packet => packet_command(drive, state, command, &packet, dma),
            Ok(_) => Outcome::ABORTED,
            Err(_) => Outcome::BadMemory,
        },
        ata_op::IDENTIFY_PACKET => {
            Outcome::Data { bytes: identify::optical(drive, state), protocol: Protocol::PioIn }
        }
        // ACS-3, 7.12.2: the signature tells the driver to ask as a packet device.
        ata_op::IDENTIFY => {
            let aborted = Reply::failed(super::drive::ABORTED);
            Outcome::Done(Reply { status: aborted.status, error: aborted.error, ..drive.signature() })
        }
        ata_op::DEVICE_RESET => {
            *state = DriveState::default();
            Outcome::Done(drive.signature())
        }
        ata_op::SET_FEATURES => set_features(state, command),
        ata_op::CHECK_POWER_MODE => Outcome::Done(Reply { count: 0xff, ..Reply::GOOD }),
        ata_op::STANDBY_IMMEDIATE | ata_op::IDLE_IMMEDIATE | ata_op::SLEEP => Outcome::Done(Reply::GOOD),
        _ => Outcome::ABORTED,
    }
}

/// CHECK CONDITION: the sense key is in the error register too.
fn check(state: &mut DriveState, sense: (u8, u16)) -> Reply {
    state.sense = sense;
    Reply { status: status::READY | status::SEEK_COMPLETE | status::ERROR, error: sense.0 << 4, ..GOOD }
}

fn fail(state: &mut DriveState, sense: (u8, u16)) -> Outcome {
    Outcome::Done(check(state, sense))
}

/// The disc could not be read.
pub(super) fn read_failed(state: &mut DriveState, kind: ErrorKind) -> Reply {
    check(state, if kind == ErrorKind::InvalidInput { sense::OUT_OF_RANGE } else { sense::UNREADABLE })
}

/// Sectors of the disc, if there is one.
fn sectors(drive: &Drive, state: &DriveState) -> Option<u64> {
    let disk = drive.disk.as_ref().filter(|_| !state.tray_open)?;
    Some(disk.info().size / SECTOR)
}

fn be16(packet: &[u8; 16], at: usize) -> u16 {
    packet.get(at..at + 2).and_then(|b| b.try_into().ok()).map_or(0, u16::from_be_bytes)
}

fn be32(packet: &[u8; 16], at: usize) -> u32 {
    packet.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_be_bytes)
}

/// Gives at most `room` bytes.
fn answer(mut bytes: Vec<u8>, room: usize) -> Outcome {
    bytes.truncate(room);
    Outcome::Data { bytes, protocol: Protocol::Register }
}

fn packet_command(
    drive: &Drive,
    state: &mut DriveState,
    command: &Command,
    packet: &[u8; 16],
    dma: &DmaMemory,
) -> Outcome {
    let opcode = packet[0];
    let previous = std::mem::replace(&mut state.sense, sense::NONE);
    let disc = sectors(drive, state);
    match opcode {
        op::REQUEST_SENSE => return answer(sense_data(previous), packet[4].into()),
        op::INQUIRY => return inquiry(drive, state, packet),
        op::START_STOP => return start_stop(state, packet[4]),
        op::PREVENT_REMOVAL => {
            state.tray_locked = packet[4] & 1 != 0;
            return Outcome::Done(GOOD);
        }
        op::GET_CONFIGURATION => return configuration(disc, packet),
        op::GET_EVENT_STATUS => return event_status(state, disc, packet),
        op::MODE_SENSE_10 => return mode_sense(state, packet),
        op::MECHANISM_STATUS => return answer(mechanism_status(state), be16(packet, 8).into()),
        _ => {}
    }
    let Some(sectors) = disc else {
        let known = [
            op::TEST_UNIT_READY,
            op::READ_CAPACITY,
            op::READ_10,
            op::READ_12,
            op::READ_CD,
            op::SEEK,
            op::SYNCHRONIZE_CACHE,
            op::READ_TOC,
            op::READ_DISC_INFORMATION,
        ];
        return fail(state, if known.contains(&opcode) { sense::NO_MEDIUM } else { sense::BAD_OPCODE });
    };
    match opcode {
        op::TEST_UNIT_READY | op::SYNCHRONIZE_CACHE => Outcome::Done(GOOD),
        op::SEEK if u64::from(be32(packet, 2)) < sectors => Outcome::Done(GOOD),
        op::SEEK => fail(state, sense::OUT_OF_RANGE),
        op::READ_CAPACITY => {
            let last = u32::try_from(sectors.saturating_sub(1)).unwrap_or(u32::MAX);
            answer([last.to_be_bytes(), (SECTOR as u32).to_be_bytes()].concat(), 8)
        }
        op::READ_10 => read(state, command, dma, sectors, (be32(packet, 2), be16(packet, 7).into())),
        op::READ_12 => read(state, command, dma, sectors, (be32(packet, 2), be32(packet, 6))),
        op::READ_CD => {
            let count = u32::from_be_bytes([0, packet[6], packet[7], packet[8]]);
            match packet[9] & 0xf8 {
                // Only user data is there, without headers and error correction.
                _ if count == 0 => Outcome::Done(GOOD),
                0x00 => Outcome::Done(GOOD),
                0x10 => read(state, command, dma, sectors, (be32(packet, 2), count)),
                _ => fail(state, sense::BAD_FIELD),
            }
        }
        op::READ_TOC => contents(state, sectors, packet),
        op::READ_DISC_INFORMATION => answer(disc_information(), be16(packet, 7).into()),
        _ => fail(state, sense::BAD_OPCODE),
    }
}

fn read(
    state: &mut DriveState,
    command: &Command,
    dma: &DmaMemory,
    sectors: u64,
    (lba, count): (u32, u32),
) -> Outcome {
    let (lba, count) = (u64::from(lba), u64::from(count));
    if lba + count > sectors {
        return fail(state, sense::OUT_OF_RANGE);
    }
    if count == 0 {
        return Outcome::Done(GOOD);
    }
    let bytes = count * SECTOR;
    match command.buffers(dma, bytes) {
        Ok(bufs) => Outcome::Io(Io {
            ops: vec![Op::Read { offset: lba * SECTOR, bufs }],
            protocol: Protocol::Register,
            lba,
            bytes,
        }),
        Err(error) => Outcome::bad_buffers(&error),
    }
}

/// Fixed-format sense data (SPC-4, 4.5.3).
fn sense_data((key, code): (u8, u16)) -> Vec<u8> {
    let [asc, ascq] = code.to_be_bytes();
    vec![0x70, 0, key, 0, 0, 0, 0, 10, 0, 0, 0, 0, asc, ascq, 0, 0, 0, 0]
}

fn inquiry(drive: &Drive, state: &mut DriveState, packet: &[u8; 16]) -> Outcome {
    // No vital product data.
    if packet[1] & 1 != 0 || packet[2] != 0 {
        return fail(state, sense::BAD_FIELD);
    }
    // CD/DVD, removable, MMC; ATAPI's response data format; 31 more bytes.
    let mut bytes = vec![5, 0x80, 0, 0x21, 31, 0, 0, 0];
    let (vendor, product) = drive.model.split_once(' ').unwrap_or(("BHYVE", &drive.model));
    for (text, len) in [(vendor, 8), (product, 16), (drive.revision.as_str(), 4)] {
        bytes.extend(text.bytes().chain(std::iter::repeat(b' ')).take(len));
    }
    answer(bytes, be16(packet, 3).into())
}

/// START STOP UNIT (MMC-6, 6.42): load and eject.
fn start_stop(state: &mut DriveState, bits: u8) -> Outcome {
    let (start, load_eject) = (bits & 1 != 0, bits & 2 != 0);
    if load_eject {
        if !start && state.tray_locked {
            return fail(state, sense::REMOVAL_PREVENTED);
        }
        state.tray_open = !start;
    }
    Outcome::Done(GOOD)
}

/// Profiles (MMC-6, table 94).
fn profile(disc: Option<u64>) -> u16 {
    const CD_ROM: u16 = 0x0008;
    const DVD_ROM: u16 = 0x0010;
    match disc {
        None => 0,
        Some(sectors) if sectors > CD_SECTORS => DVD_ROM,
        Some(_) => CD_ROM,
    }
}

/// GET CONFIGURATION (MMC-6, 6.6): what the drive can do, and with this disc.
fn configuration(disc: Option<u64>, packet: &[u8; 16]) -> Outcome {
    let current = profile(disc);
    let is = |p: u16| u8::from(current == p);
    let (cd, dvd, any) = (is(0x08), is(0x10), u8::from(disc.is_some()));
    // Feature code; version, persistent and current bits; the rest (5.3).
    let features: [(u16, u8, Vec<u8>); 6] = [
        (0x0000, 0x03, vec![0x00, 0x10, dvd, 0, 0x00, 0x08, cd, 0]),
        // Core: ATAPI, device busy events.
        (0x0001, 0x0b, vec![0, 0, 0, 2, 1, 0, 0, 0]),
        // Removable medium: tray, ejectable, lockable.
        (0x0003, 0x03, vec![0x29, 0, 0, 0]),
        // Random readable: block size, one block.
        (0x0010, any, vec![0, 0, 0x08, 0, 0, 1, 0, 0]),
        (0x001e, cd, vec![0, 0, 0, 0]),
        (0x001f, dvd, vec![]),
    ];
    let (kind, first) = (packet[1] & 3, be16(packet, 2));
    let mut list = Vec::new();
    for (code, flags, data) in features {
        let wanted = match kind {
            0 => code >= first,
            1 => code >= first && flags & 1 != 0,
            _ => code == first,
        };
        if wanted {
            list.extend(code.to_be_bytes());
            list.extend([flags, data.len() as u8]);
            list.extend(data);
        }
    }
    let [p0, p1] = current.to_be_bytes();
    let mut bytes = (list.len() as u32 + 4).to_be_bytes().to_vec();
    bytes.extend([0, 0, p0, p1]);
    bytes.extend(list);
    answer(bytes, be16(packet, 7).into())
}

/// GET EVENT STATUS NOTIFICATION (MMC-6, 6.7), polled, of the media class.
fn event_status(state: &mut DriveState, disc: Option<u64>, packet: &[u8; 16]) -> Outcome {
    const MEDIA: u8 = 4;
    if packet[1] & 1 == 0 {
        return fail(state, sense::BAD_FIELD);
    }
    let bytes = if packet[4] & 1 << MEDIA == 0 {
        // No event of the classes that were asked for.
        vec![0, 2, 0x80, 1 << MEDIA]
    } else {
        let present = u8::from(disc.is_some()) << 1 | u8::from(state.tray_open);
        vec![0, 6, MEDIA, 1 << MEDIA, 0, present, 0, 0]
    };
    answer(bytes, be16(packet, 7).into())
}

/// MODE SENSE (10) of the pages for error recovery and capabilities (MMC-6, 7.3 and annex E).
fn mode_sense(state: &mut DriveState, packet: &[u8; 16]) -> Outcome {
    const RECOVERY: u8 = 0x01;
    const CAPABILITIES: u8 = 0x2a;
    const ALL: u8 = 0x3f;
    let (control, page) = (packet[2] >> 6, packet[2] & 0x3f);
    // Saved values are not there.
    if control == 3 || ![RECOVERY, CAPABILITIES, ALL].contains(&page) {
        return fail(state, sense::BAD_FIELD);
    }
    let changeable = control == 1;
    let mut pages = Vec::new();
    if page != CAPABILITIES {
        pages.extend([RECOVERY, 10, 0, if changeable { 0 } else { 5 }, 0, 0, 0, 0, 0, 0, 0, 0]);
    }
    if page != RECOVERY {
        let locked = u8::from(state.tray_locked) << 1;
        // Reads DVD-ROM; mode 2 forms and multisession; lock, eject, tray; 32x CD speed; 512 KiB.
        let body = [0x08, 0, 0x70, 0, 0x29 | locked, 0, 0x15, 0x80, 0, 2, 0x02, 0x00, 0x15, 0x80, 0, 0, 0, 0];
        pages.extend([CAPABILITIES, body.len() as u8]);
        pages.extend(if changeable { [0; 18] } else { body });
    }
    let mut bytes = (pages.len() as u16 + 6).to_be_bytes().to_vec();
    bytes.extend([0; 6]);
    bytes.extend(pages);
    answer(bytes, be16(packet, 7).into())
}

fn mechanism_status(state: &DriveState) -> Vec<u8> {
    vec![0, u8::from(state.tray_open) << 4, 0, 0, 0, 0, 0, 0]
}

/// An address as READ TOC wants it: a number, or minutes, seconds and frames.
fn address(lba: u64, msf: bool) -> [u8; 4] {
    if !msf {
        return u32::try_from(lba).unwrap_or(u32::MAX).to_be_bytes();
    }
    let frames = lba + MSF_START;
    [0, (frames / (75 * 60)).min(255) as u8, (frames / 75 % 60) as u8, (frames % 75) as u8]
}

/// READ TOC/PMA/ATIP (MMC-6, 6.25): one session with one data track.
fn contents(state: &mut DriveState, sectors: u64, packet: &[u8; 16]) -> Outcome {
    const LEAD_OUT: u8 = 0xaa;
    /// Data track, recorded uninterrupted.
    const DATA: u8 = 0x14;
    let msf = packet[1] & 2 != 0;
    // Older hosts have the format in the last byte.
    let format = if packet[2] & 0xf == 0 { packet[9] >> 6 } else { packet[2] & 0xf };
    let track = |number: u8, lba: u64| [[0, DATA, number, 0], address(lba, msf)].concat();
    let full = |point: u8, value: [u8; 3]| {
        let mut entry = vec![1, DATA, 0, point, 0, 0, 0, 0];
        entry.extend(value);
        entry
    };
    let mut list = Vec::new();
    match format {
        0 => {
            let first = packet[6];
            if first > 1 && first != LEAD_OUT {
                return fail(state, sense::BAD_FIELD);
            }
            if first <= 1 {
                list.extend(track(1, 0));
            }
            list.extend(track(LEAD_OUT, sectors));
        }
        1 => list.extend(track(1, 0)),
        2 => {
            let [_, m, s, f] = address(sectors, true);
            for entry in
                [full(0xa0, [1, 0, 0]), full(0xa1, [1, 0, 0]), full(0xa2, [m, s, f]), full(1, [0, 2, 0])]
            {
                list.extend(entry);
            }
        }
        _ => return fail(state, sense::BAD_FIELD),
    }
    let mut bytes = (list.len() as u16 + 2).to_be_bytes().to_vec();
    // First and last track or session.
    bytes.extend([1, 1]);
    bytes.extend(list);
    answer(bytes, be16(packet, 7).into())
}

/// READ DISC INFORMATION (MMC-6, 6.21): a finalized disc of one session and one track.
fn disc_information() -> Vec<u8> {
    let mut bytes = vec![0; 34];
    let head = [0, 32, 0x0e, 1, 1, 1, 1];
    bytes.iter_mut().zip(head).for_each(|(to, from)| *to = from);
    bytes
}
