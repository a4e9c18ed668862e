//! What a virtio-blk request asks for (VIRTIO 1.2, 5.2.6), from the buffers of its chain.
//!
//! Buffers may be cut anywhere (2.7.4.3), so nothing depends on where descriptors begin. Each byte
//! of the request's own is read once.

use host::block::Op;
use memory::GuestSlice;

/// Unit of `sector` and of lengths, whatever the disk's own sectors are (5.2.6).
pub(super) const SECTOR: u64 = 512;
/// Ranges in one discard or write-zeroes request.
pub(super) const MAX_RANGES: u32 = 256;
/// Sectors in one such range: 2 GiB, so that a length in bytes fits 32 bits.
pub(super) const MAX_RANGE_SECTORS: u32 = 1 << 22;
/// Length of the answer to `GET_ID` (5.2.6).
const ID_LEN: usize = 20;

const HEADER: usize = 16;
const RANGE: usize = 16;

/// Request types (5.2.6).
mod kind {
    pub const IN: u32 = 0;
    pub const OUT: u32 = 1;
    pub const FLUSH: u32 = 4;
    pub const GET_ID: u32 = 8;
    pub const DISCARD: u32 = 11;
    pub const WRITE_ZEROES: u32 = 13;
    /// Set by drivers from before 1.0 on any type; barriers are not offered.
    pub const LEGACY_BARRIER: u32 = 1 << 31;
}

/// `unmap` in the flags of a range (5.2.6).
const UNMAP: u32 = 1;

/// The status byte (5.2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Status {
    Ok = 0,
    IoError = 1,
    Unsupported = 2,
}

/// What the device and its driver agreed on, as far as requests depend on it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Terms<'a> {
    pub read_only: bool,
    pub discard: bool,
    pub write_zeroes: bool,
    /// Writes are durable when they complete.
    pub write_through: bool,
    pub serial: &'a str,
}

/// A request, ready to run.
pub(super) enum Work {
    /// Answered at once.
    Now(Status),
    /// Runs on the disk.
    Disk(Vec<Op>),
}

/// A request and where its status goes.
pub(super) struct Request {
    pub work: Work,
    /// The last byte that the device may write.
    pub status: GuestSlice,
    /// Bytes before it that the device writes on success.
    pub data: u32,
}

fn total(bufs: &[GuestSlice]) -> u64 {
    bufs.iter().map(|b| b.len() as u64).sum()
}

/// The part of `bufs` from `skip`, at most `len` bytes.
fn part(bufs: &[GuestSlice], skip: u64, len: u64) -> Vec<GuestSlice> {
    let (mut skip, mut len) = (skip, len);
    let mut parts = Vec::with_capacity(bufs.len());
    for buf in bufs {
        let offset = skip.min(buf.len() as u64);
        skip -= offset;
        let piece = buf.sub(offset as usize, usize::try_from(len).unwrap_or(usize::MAX));
        len -= piece.len() as u64;
        if !piece.is_empty() {
            parts.push(piece);
        }
    }
    parts
}

/// Copies the start of `bufs` out; returns how much there was.
fn copy_out(bufs: &[GuestSlice], to: &mut [u8]) -> usize {
    let mut done = 0;
    for buf in bufs {
        done += buf.read(to.get_mut(done..).unwrap_or_default());
    }
    done
}

fn copy_in(bufs: &[GuestSlice], from: &[u8]) -> usize {
    let mut done = 0;
    for buf in bufs {
        done += buf.write(from.get(done..).unwrap_or_default());
    }
    done
}

fn u32_at(data: &[u8], at: usize) -> u32 {
    data.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
}

fn u64_at(data: &[u8], at: usize) -> u64 {
    data.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
}

impl Request {
    /// Reads the request; `None` if there is no whole header or no room for a status, so that the
    /// driver can't even be told.
    pub fn parse(readable: &[GuestSlice], writable: &[GuestSlice], terms: &Terms<'_>) -> Option<Self> {
        let mut header = [0; HEADER];
        if copy_out(readable, &mut header) < HEADER {
            return None;
        }
        let room = total(writable).checked_sub(1)?;
        let status = part(writable, room, 1).pop()?;
        let sector = u64_at(&header, 8);
        let payload = || part(readable, HEADER as u64, u64::MAX);
        let space = || part(writable, 0, room);
        let mut data = 0;
        let work = match u32_at(&header, 0) & !kind::LEGACY_BARRIER {
            kind::IN => match Self::offset(sector, room) {
                Some(offset) => {
                    data = u32::try_from(room).unwrap_or(u32::MAX);
                    Work::Disk(vec![Op::Read { offset, bufs: space() }])
                }
                None => Work::Now(Status::IoError),
            },
            kind::OUT if terms.read_only => Work::Now(Status::IoError),
            kind::OUT => {
                let bufs = payload();
                match Self::offset(sector, total(&bufs)) {
                    Some(offset) => {
                        Work::Disk(vec![Op::Write { offset, bufs, durable: terms.write_through }])
                    }
                    None => Work::Now(Status::IoError),
                }
            }
            kind::FLUSH => Work::Disk(vec![Op::Flush]),
            kind::GET_ID => {
                let mut id = [0; ID_LEN];
                id.iter_mut().zip(terms.serial.bytes()).for_each(|(to, from)| *to = from);
                data = copy_in(&space(), &id) as u32;
                Work::Now(Status::Ok)
            }
            kind::DISCARD if terms.discard => Self::ranges(&payload(), terms, true),
            kind::WRITE_ZEROES if terms.write_zeroes => Self::ranges(&payload(), terms, false),
            _ => Work::Now(Status::Unsupported),
        };
        Some(Self { work, status, data })
    }

    /// Byte offset of a transfer of `len` bytes, which must be whole sectors.
    fn offset(sector: u64, len: u64) -> Option<u64> {
        sector.checked_mul(SECTOR).filter(|_| len.is_multiple_of(SECTOR))
    }

    /// The ranges of a discard or write-zeroes request (5.2.6.1 and 5.2.6.2).
    fn ranges(payload: &[GuestSlice], terms: &Terms<'_>, discard: bool) -> Work {
        let len = total(payload);
        let count = len / RANGE as u64;
        if terms.read_only || count == 0 || count > u64::from(MAX_RANGES) || !len.is_multiple_of(RANGE as u64)
        {
            return Work::Now(Status::IoError);
        }
        let mut bytes = vec![0; len as usize];
        copy_out(payload, &mut bytes);
        let mut ops = Vec::with_capacity(count as usize);
        for range in bytes.chunks_exact(RANGE) {
            let (sectors, flags) = (u32_at(range, 8), u32_at(range, 12));
            if flags & !UNMAP != 0 || (discard && flags != 0) {
                return Work::Now(Status::Unsupported);
            }
            let Some(offset) = u64_at(range, 0).checked_mul(SECTOR) else {
                return Work::Now(Status::IoError);
            };
            if sectors > MAX_RANGE_SECTORS {
                return Work::Now(Status::IoError);
            }
            let len = u64::from(sectors) * SECTOR;
            ops.push(if discard {
                Op::Discard { offset, len }
            } else {
                Op::WriteZeroes { offset, len, unmap: flags & UNMAP != 0 }
            });
        }
        Work::Disk(ops)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use memory::{Backing, GuestMemory};

    fn terms() -> Terms<'static> {
        Terms { discard: true, write_zeroes: true, serial: "S", ..Terms::default() }
    }

    fn ram() -> GuestMemory {
        GuestMemory::new(&[(0, 0x10000)], &Backing::Anonymous).unwrap()
    }

    /// A request whose header is at 0 and whose payload follows, cut in pieces of `cut` bytes, with
    /// `room` writable bytes at 0x8000.
    fn request(
        ram: &GuestMemory,
        kind: u32,
        sector: u64,
        payload: &[u8],
        cut: u64,
        room: u64,
    ) -> Option<Request> {
        let mut bytes = Vec::new();
        bytes.extend(kind.to_le_bytes());
        bytes.extend(0u32.to_le_bytes());
        bytes.extend(sector.to_le_bytes());
        bytes.extend(payload);
        ram.write(0, &bytes).unwrap();
        let cuts = |base: u64, len: u64| -> Vec<_> {
            (0..len.div_ceil(cut))
                .map(|i| ram.slice(base + i * cut, cut.min(len - i * cut)).unwrap())
                .collect()
        };
        Request::parse(&cuts(0, bytes.len() as u64), &cuts(0x8000, room), &terms())
    }

    fn now(request: Option<Request>) -> Status {
        match request.unwrap().work {
            Work::Now(status) => status,
            Work::Disk(_) => panic!("went to the disk"),
        }
    }

    #[test]
    fn cuts_do_not_matter() {
        let ram = ram();
        for cut in [1, 3, 16, 17, 512, 513, 4096] {
            let read = request(&ram, 0, 7, &[], cut, 1025).unwrap();
            assert_eq!((read.status.gpa(), read.status.len(), read.data), (0x8400, 1, 1024));
            let Work::Disk(ops) = read.work else { panic!() };
            let [Op::Read { offset: 3584, bufs }] = ops.as_slice() else { panic!() };
            assert_eq!((total(bufs), bufs[0].gpa()), (1024, 0x8000));

            let write = request(&ram, 1, 1, &[5; 1024], cut, 1).unwrap();
            assert_eq!((write.status.gpa(), write.data), (0x8000, 0));
            let Work::Disk(ops) = write.work else { panic!() };
            let [Op::Write { offset: 512, bufs, durable: false }] = ops.as_slice() else { panic!() };
            assert_eq!((total(bufs), bufs[0].gpa()), (1024, 16));
        }
    }

    #[test]
    fn without_header_or_status_there_is_no_request() {
        let ram = ram();
        let one = [ram.slice(0x8000, 1).unwrap()];
        assert!(Request::parse(&[ram.slice(0, 15).unwrap()], &one, &terms()).is_none());
        assert!(Request::parse(&[], &one, &terms()).is_none());
        assert!(Request::parse(&[ram.slice(0, 16).unwrap()], &[], &terms()).is_none());
    }

    #[test]
    fn bad_lengths_sectors_and_types() {
        let ram = ram();
        assert_eq!(now(request(&ram, 0, 0, &[], 512, 101)), Status::IoError);
        assert_eq!(now(request(&ram, 0, u64::MAX / 512 + 1, &[], 512, 513)), Status::IoError);
        assert_eq!(now(request(&ram, 1, 0, &[0; 100], 512, 1)), Status::IoError);
        for kind in [2, 3, 5, 10, 14, 0x7fff_ffff] {
            assert_eq!(now(request(&ram, kind, 0, &[], 512, 1)), Status::Unsupported);
        }
    }

    #[test]
    fn the_serial_is_padded_and_cut() {
        let ram = ram();
        ram.fill(0x8000, 0xee, 64).unwrap();
        let whole = request(&ram, 8, 0, &[], 512, 21).unwrap();
        assert_eq!(whole.data, 20);
        let mut id = [0; 21];
        ram.read(0x8000, &mut id).unwrap();
        assert_eq!((&id[..2], id[19], id[20]), (&b"S\0"[..], 0, 0xee));
        assert_eq!(request(&ram, 8, 0, &[], 512, 5).unwrap().data, 4);
    }

    fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
        let mut bytes = sector.to_le_bytes().to_vec();
        bytes.extend(sectors.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes
    }

    #[test]
    fn ranges_of_discard_and_write_zeroes() {
        let ram = ram();
        let two = [range(8, 8, 0), range(64, 1, 0)].concat();
        let Work::Disk(ops) = request(&ram, 11, 0, &two, 7, 1).unwrap().work else { panic!() };
        assert!(matches!(
            ops.as_slice(),
            [Op::Discard { offset: 4096, len: 4096 }, Op::Discard { offset: 32768, len: 512 }]
        ));
        let Work::Disk(ops) = request(&ram, 13, 0, &range(8, 8, 1), 7, 1).unwrap().work else { panic!() };
        assert!(matches!(ops.as_slice(), [Op::WriteZeroes { offset: 4096, len: 4096, unmap: true }]));

        assert_eq!(now(request(&ram, 11, 0, &range(0, 1, 1), 512, 1)), Status::Unsupported);
        assert_eq!(now(request(&ram, 13, 0, &range(0, 1, 2), 512, 1)), Status::Unsupported);
        assert_eq!(now(request(&ram, 13, 0, &range(u64::MAX, 1, 0), 512, 1)), Status::IoError);
        assert_eq!(now(request(&ram, 13, 0, &range(0, u32::MAX, 0), 512, 1)), Status::IoError);
        assert_eq!(now(request(&ram, 11, 0, &[], 512, 1)), Status::IoError);
        assert_eq!(now(request(&ram, 11, 0, &[0; 17], 512, 1)), Status::IoError);
        assert_eq!(now(request(&ram, 11, 0, &vec![0; 257 * 16], 512, 1)), Status::IoError);
    }
}
