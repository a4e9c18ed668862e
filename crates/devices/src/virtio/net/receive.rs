//! Puts received frames in the driver's buffers (VIRTIO 1.2, 5.1.6.3 and 5.1.6.4).

use std::collections::VecDeque;
use std::io::ErrorKind;

use host::net::{MAX_FRAME, NetBackend};
use memory::GuestSlice;

/// Pieces that are handed to the back end at once, below the host's limit of 1024.
const MAX_PIECES: usize = 1000;
/// Where `num_buffers` is in the longer header (5.1.6).
const NUM_BUFFERS: usize = 10;
/// The header that has it.
pub(super) const LONG_HEADER: usize = 12;
/// The header of drivers from before 1.0 without mergeable buffers.
pub(super) const SHORT_HEADER: usize = 10;

/// One buffer of the receive queue.
pub(super) struct Buffer {
    /// Names the buffer to the driver.
    pub head: u16,
    pub slices: Vec<GuestSlice>,
    len: usize,
}

impl Buffer {
    pub fn new(head: u16, mut slices: Vec<GuestSlice>) -> Self {
        slices.retain(|s| !s.is_empty());
        let len = slices.iter().map(GuestSlice::len).sum();
        Self { head, slices, len }
    }
}

/// What came of one step.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// A frame is in these buffers: (head, bytes), to be given to the driver together.
    Frame(Vec<(u16, u32)>),
    /// A frame was lost: it did not fit or was damaged.
    Lost,
    /// The back end has no frame.
    Empty,
    /// The driver has no room for a frame.
    Starved,
    /// The back end is broken.
    Failed,
}

/// Why the queue is of no use any more.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fault<E> {
    /// The ring itself.
    Queue(E),
    /// A buffer that can't hold even the header.
    Short,
}

/// The receiving half's state between frames.
pub(super) struct Receiver {
    header: usize,
    mergeable: bool,
    /// Room that surely holds the next frame.
    want: usize,
    /// Buffers in the whole ring.
    ring: usize,
    /// Taken from the ring, not used yet.
    held: VecDeque<Buffer>,
    room: usize,
    pieces: usize,
    /// A frame that waits for more room.
    spill: Option<Vec<u8>>,
}

impl Receiver {
    /// For a ring of `ring` buffers and frames of up to `longest` bytes, without the header.
    pub fn new(header: usize, mergeable: bool, longest: usize, ring: u16) -> Self {
        Self {
            header,
            mergeable,
            want: if mergeable { header + longest } else { 1 },
            ring: usize::from(ring),
            held: VecDeque::new(),
            room: 0,
            pieces: 0,
            spill: None,
        }
    }

    /// Forgets the buffers taken from the ring and not used, which were the last to be taken;
    /// returns how many.
    pub fn release(&mut self) -> u16 {
        let count = self.held.len() as u16;
        self.held.clear();
        (self.room, self.pieces) = (0, 0);
        count
    }

    /// Receives one frame; `pop` takes the next buffer from the ring.
    pub fn step<E>(
        &mut self,
        backend: &dyn NetBackend,
        mut pop: impl FnMut() -> Result<Option<Buffer>, E>,
    ) -> Result<Step, Fault<E>> {
        if self.spill.is_none() {
            self.fill(self.want, &mut pop)?;
            if self.held.is_empty() {
                return Ok(Step::Starved);
            }
            let direct = !self.mergeable || self.room >= self.want;
            let received = if direct { self.receive(backend) } else { self.receive_spill(backend) };
            match received {
                Ok(len) if len < self.header => {
                    self.spill = None;
                    return Ok(Step::Lost);
                }
                Ok(len) if direct => return Ok(Step::Frame(self.take(len))),
                Ok(_) => {}
                Err(ErrorKind::WouldBlock) => return Ok(Step::Empty),
                Err(ErrorKind::InvalidData | ErrorKind::Interrupted) => return Ok(Step::Lost),
                Err(_) => return Ok(Step::Failed),
            }
        }
        self.place(pop)
    }

    /// Takes buffers until there is room for `want` bytes.
    fn fill<E>(
        &mut self,
        want: usize,
        mut pop: impl FnMut() -> Result<Option<Buffer>, E>,
    ) -> Result<(), Fault<E>> {
        while self.room < want && self.pieces < MAX_PIECES {
            let Some(buffer) = pop().map_err(Fault::Queue)? else { break };
            if buffer.len < self.header {
                return Err(Fault::Short);
            }
            self.room += buffer.len;
            self.pieces += buffer.slices.len();
            self.held.push_back(buffer);
        }
        Ok(())
    }

    fn receive(&mut self, backend: &dyn NetBackend) -> Result<usize, ErrorKind> {
        let count = if self.mergeable { self.held.len() } else { 1 };
        let slices: Vec<_> = self.held.iter().take(count).flat_map(|b| &b.slices).cloned().collect();
        backend.receive(&slices).map_err(|e| e.kind())
    }

    /// Receives into host memory: the buffers at hand may be too small for the frame.
    fn receive_spill(&mut self, backend: &dyn NetBackend) -> Result<usize, ErrorKind> {
        let mut frame = vec![0; MAX_FRAME + 1];
        let len = backend.receive_bytes(&mut frame).map_err(|e| e.kind())?;
        frame.truncate(len);
        self.spill = Some(frame);
        Ok(len)
    }

    /// Copies the waiting frame to buffers, if there are enough.
    fn place<E>(&mut self, pop: impl FnMut() -> Result<Option<Buffer>, E>) -> Result<Step, Fault<E>> {
        let len = self.spill.as_ref().map_or(0, Vec::len);
        self.fill(len, pop)?;
        if self.room < len {
            // Waiting is of no use if we hold all the buffers that the driver can give.
            if self.held.len() < self.ring && self.pieces < MAX_PIECES {
                return Ok(Step::Starved);
            }
            self.spill = None;
            return Ok(Step::Lost);
        }
        let frame = self.spill.take().unwrap_or_default();
        let mut rest = frame.as_slice();
        for slice in self.held.iter().flat_map(|b| &b.slices) {
            let n = slice.write(rest);
            rest = rest.get(n..).unwrap_or_default();
        }
        Ok(Step::Frame(self.take(len)))
    }

    /// The buffers that `len` bytes have filled; sets `num_buffers`.
    fn take(&mut self, len: usize) -> Vec<(u16, u32)> {
        let (mut left, mut used, mut first) = (len, Vec::with_capacity(1), Vec::new());
        while left > 0 {
            let Some(buffer) = self.held.pop_front() else { break };
            let n = buffer.len.min(left);
            left -= n;
            self.room -= buffer.len;
            self.pieces -= buffer.slices.len();
            used.push((buffer.head, n as u32));
            if used.len() == 1 {
                first = buffer.slices;
            }
        }
        if self.header == LONG_HEADER {
            let count = (used.len() as u16).to_le_bytes();
            let (mut skip, mut rest) = (NUM_BUFFERS, count.as_slice());
            for slice in first {
                let offset = skip.min(slice.len());
                skip -= offset;
                let n = slice.sub(offset, rest.len()).write(rest);
                rest = rest.get(n..).unwrap_or_default();
            }
        }
        used
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use host::net::{Offloads, PairBackend, PairPeer, pair};
    use memory::{Backing, GuestMemory};

    struct Bench {
        ram: GuestMemory,
        backend: PairBackend,
        peer: PairPeer,
        ring: VecDeque<Buffer>,
        next: u16,
    }

    impl Bench {
        fn new() -> Self {
            let (backend, peer) = pair(Offloads::default()).unwrap();
            let ram = GuestMemory::new(&[(0, 1 << 20)], &Backing::Anonymous).unwrap();
            Self { ram, backend, peer, ring: VecDeque::new(), next: 0 }
        }

        /// Adds `count` buffers of `len` bytes; buffer n is at n * 0x1000.
        fn add(&mut self, count: u16, len: u64) {
            for _ in 0..count {
                let slice = self.ram.slice(u64::from(self.next) * 0x1000, len).unwrap();
                // In two pieces, so that headers are cut.
                let slices = vec![slice.sub(0, 11), slice.sub(11, usize::MAX)];
                self.ring.push_back(Buffer::new(self.next, slices));
                self.next += 1;
            }
        }

        fn step(&mut self, receiver: &mut Receiver) -> Result<Step, Fault<()>> {
            let ring = &mut self.ring;
            receiver.step(&self.backend, || Ok(ring.pop_front()))
        }

        fn bytes(&self, used: &[(u16, u32)]) -> Vec<u8> {
            let mut all = Vec::new();
            for (head, len) in used {
                let mut part = vec![0; *len as usize];
                self.ram.read(u64::from(*head) * 0x1000, &mut part).unwrap();
                all.extend(part);
            }
            all
        }
    }

    fn frame(header: usize, len: usize) -> Vec<u8> {
        let mut frame = vec![0; header];
        frame.extend((0..len).map(|i| (i * 7) as u8));
        frame
    }

    fn expected(header: usize, len: usize, buffers: u8) -> Vec<u8> {
        let mut frame = frame(header, len);
        if header == 12 {
            frame[10] = buffers;
        }
        frame
    }

    #[test]
    fn frames_take_as_many_buffers_as_they_need() {
        let mut bench = Bench::new();
        let mut receiver = Receiver::new(12, true, 3000, 64);
        bench.add(8, 1000);
        assert_eq!(bench.step(&mut receiver), Ok(Step::Empty));
        bench.peer.send(&frame(12, 100)).unwrap();
        bench.peer.send(&frame(12, 2500)).unwrap();
        bench.peer.send(&frame(12, 988)).unwrap();
        let Ok(Step::Frame(used)) = bench.step(&mut receiver) else { panic!() };
        assert_eq!(used, [(0, 112)]);
        assert_eq!(bench.bytes(&used), expected(12, 100, 1));
        let Ok(Step::Frame(used)) = bench.step(&mut receiver) else { panic!() };
        assert_eq!(used, [(1, 1000), (2, 1000), (3, 512)]);
        assert_eq!(bench.bytes(&used), expected(12, 2500, 3));
        let Ok(Step::Frame(used)) = bench.step(&mut receiver) else { panic!() };
        assert_eq!(used, [(4, 1000)]);
        assert_eq!(bench.bytes(&used), expected(12, 988, 1));
        assert_eq!(bench.step(&mut receiver), Ok(Step::Empty));
    }

    #[test]
    fn a_frame_waits_for_room_and_is_not_lost() {
        let mut bench = Bench::new();
        let mut receiver = Receiver::new(12, true, 60000, 64);
        assert_eq!(bench.step(&mut receiver), Ok(Step::Starved));
        bench.add(2, 1000);
        bench.peer.send(&frame(12, 2500)).unwrap();
        assert_eq!(bench.step(&mut receiver), Ok(Step::Starved));
        assert_eq!(bench.step(&mut receiver), Ok(Step::Starved));
        bench.add(1, 1000);
        let Ok(Step::Frame(used)) = bench.step(&mut receiver) else { panic!() };
        assert_eq!(bench.bytes(&used), expected(12, 2500, 3));
        assert_eq!(receiver.release(), 0);
    }

    #[test]
    fn released_buffers_are_told_and_a_waiting_frame_is_kept() {
        let mut bench = Bench::new();
        let mut receiver = Receiver::new(12, true, 60000, 64);
        bench.add(2, 1000);
        bench.peer.send(&frame(12, 2500)).unwrap();
        assert_eq!(bench.step(&mut receiver), Ok(Step::Starved));
        assert_eq!(receiver.release(), 2);
        bench.add(3, 1000);
        let Ok(Step::Frame(used)) = bench.step(&mut receiver) else { panic!() };
        assert_eq!(used, [(2, 1000), (3, 1000), (4, 512)]);
        assert_eq!(bench.bytes(&used), expected(12, 2500, 3));
    }

    #[test]
    fn a_frame_too_long_for_the_whole_ring_is_dropped() {
        let mut bench = Bench::new();
        let mut receiver = Receiver::new(12, true, 60000, 4);
        bench.add(4, 1000);
        bench.peer.send(&frame(12, 5000)).unwrap();
        bench.peer.send(&frame(12, 10)).unwrap();
        assert_eq!(bench.step(&mut receiver), Ok(Step::Lost));
        assert!(matches!(bench.step(&mut receiver), Ok(Step::Frame(_))));
    }

    #[test]
    fn without_merging_a_frame_has_one_buffer() {
        for header in [10, 12] {
            let mut bench = Bench::new();
            let mut receiver = Receiver::new(header, false, 1500, 64);
            bench.add(3, 1000);
            for len in [1000 - header, 1001 - header, 60] {
                bench.peer.send(&frame(header, len)).unwrap();
            }
            let Ok(Step::Frame(used)) = bench.step(&mut receiver) else { panic!() };
            assert_eq!(bench.bytes(&used), expected(header, 1000 - header, 1));
            assert_eq!(bench.step(&mut receiver), Ok(Step::Lost));
            let Ok(Step::Frame(used)) = bench.step(&mut receiver) else { panic!() };
            assert_eq!(used, [(1, 60 + header as u32)]);
            assert_eq!(bench.bytes(&used), expected(header, 60, 1));
        }
    }

    #[test]
    fn buffers_without_room_for_the_header_are_a_fault() {
        let mut bench = Bench::new();
        let mut receiver = Receiver::new(12, true, 1500, 64);
        bench.ring.push_back(Buffer::new(0, vec![bench.ram.slice(0, 11).unwrap()]));
        assert_eq!(bench.step(&mut receiver), Err(Fault::Short));
        bench.ring.push_back(Buffer::new(0, vec![]));
        assert_eq!(bench.step(&mut receiver), Err(Fault::Short));
        let error = receiver.step(&bench.backend, || Err(7));
        assert_eq!(error, Err(Fault::Queue(7)));
    }
}
