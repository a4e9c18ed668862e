//! What KVM counts of one vCPU (KVM_GET_STATS_FD; Documentation/virt/kvm/api.rst, 4.133), and what
//! its run loop counts beside.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use super::sys;
use crate::{Counters, Event, Statistics};

/// KVM's names for what bhyve has names for.
const NAMES: [(&str, Event); 9] = [
    ("exits", Event::Exit),
    ("irq_exits", Event::ExternalInterrupt),
    ("halt_exits", Event::Hlt),
    ("irq_window_exits", Event::InterruptWindow),
    ("nmi_window_exits", Event::NmiWindow),
    ("io_exits", Event::Port),
    ("pf_taken", Event::NestedFault),
    ("insn_emulation", Event::Emulated),
    ("nmi_injections", Event::Nmi),
];

/// struct kvm_stats_header: six 32-bit fields.
const HEADER: usize = 24;
/// struct kvm_stats_desc without the name that follows it.
const DESCRIPTOR: usize = 16;
/// KVM has some sixty statistics with names of 48 bytes.
const MAX_DESCRIPTORS: u32 = 1024;
const MAX_NAME: u32 = 256;

/// The statistics of one vCPU.
pub struct Stats {
    own: Counters,
    /// KVM's file, and where in it each value is. Kernels before 5.14 have none.
    kernel: Option<(File, Vec<(Event, u64)>)>,
}

impl Stats {
    pub fn open(vcpu: &impl AsRawFd) -> Self {
        let kernel = sys::stats(vcpu).ok().map(File::from).and_then(|file| {
            let places = places(|at, bytes| file.read_exact_at(bytes, at).ok())?;
            Some((file, places))
        });
        Self { own: Counters::new(&[Event::Port, Event::UserSpace, Event::ExternalDelivered]), kernel }
    }

    pub fn count(&self, event: Event) {
        self.own.count(event);
    }
}

impl Statistics for Stats {
    fn list(&self) -> Vec<(Event, u64)> {
        let value = |file: &File, at: u64| {
            let mut bytes = [0; 8];
            file.read_exact_at(&mut bytes, at).ok().map(|()| u64::from_le_bytes(bytes))
        };
        let mut list = self.own.list();
        let (file, places) = self.kernel.as_ref().map_or((None, [].as_slice()), |(f, p)| (Some(f), p));
        for (event, at) in places {
            let Some(count) = file.and_then(|file| value(file, *at)) else { continue };
            match list.iter_mut().find(|(own, _)| own == event) {
                // KVM does not count port accesses of instructions that it emulates, the run loop none
                // that ring a doorbell.
                Some((_, own)) => *own = count.max(*own),
                None => list.push((*event, count)),
            }
        }
        list.sort_by_key(|(event, _)| *event as usize);
        list
    }
}

/// Finds the values in the file that `read` reads.
fn places(read: impl Fn(u64, &mut [u8]) -> Option<()>) -> Option<Vec<(Event, u64)>> {
    let mut header = [0; HEADER];
    read(0, &mut header)?;
    let word = |bytes: &[u8], at: usize| Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
    let (name_size, count) = (word(&header, 4)?, word(&header, 8)?);
    let (descriptors, data) = (word(&header, 16)?, word(&header, 20)?);
    if name_size > MAX_NAME || count > MAX_DESCRIPTORS {
        return None;
    }
    let mut places = Vec::new();
    let mut bytes = vec![0; DESCRIPTOR + name_size as usize];
    for n in 0..u64::from(count) {
        read(u64::from(descriptors) + n * bytes.len() as u64, &mut bytes)?;
        let name = bytes.get(DESCRIPTOR..)?.split(|b| *b == 0).next()?;
        if let Some((_, event)) = NAMES.iter().find(|(known, _)| known.as_bytes() == name) {
            places.push((*event, u64::from(data) + u64::from(word(&bytes, 8)?)));
        }
    }
    Some(places)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_by_name() {
        let mut file = Vec::new();
        for word in [0u32, 16, 2, 24, 24, 24 + 2 * 32] {
            file.extend(word.to_le_bytes());
        }
        for (name, offset) in [("unknown", 0u32), ("halt_exits", 8)] {
            file.extend([0; 8]);
            file.extend(offset.to_le_bytes());
            file.extend([0; 4]);
            let mut text = name.as_bytes().to_vec();
            text.resize(16, 0);
            file.extend(text);
        }
        let read = |at: u64, bytes: &mut [u8]| {
            bytes.copy_from_slice(file.get(at as usize..at as usize + bytes.len())?);
            Some(())
        };
        assert_eq!(places(read), Some(vec![(Event::Hlt, 24 + 64 + 8)]));
        assert_eq!(places(|_, _| None), None);
    }
}
