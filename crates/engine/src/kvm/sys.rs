//! The few KVM calls that take descriptors or pages of our own.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use kvm_bindings::{kvm_interrupt, kvm_ioeventfd, kvm_irqfd};

/// `_IOW(KVMIO, nr, T)` (asm-generic/ioctl.h): direction 1 in bits 30–31, size in bits 16–29.
const fn write_request<T>(nr: u64) -> u64 {
    1 << 30 | (size_of::<T>() as u64) << 16 | KVMIO << 8 | nr
}

/// KVM's ioctl type (linux/kvm.h).
const KVMIO: u64 = 0xae;
const RUN: u64 = KVMIO << 8 | 0x80;
const IRQFD: u64 = write_request::<kvm_irqfd>(0x76);
const IOEVENTFD: u64 = write_request::<kvm_ioeventfd>(0x79);
const STATS: u64 = KVMIO << 8 | 0xce;
const INTERRUPT: u64 = write_request::<kvm_interrupt>(0x86);

fn checked(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Runs a vCPU until the next exit.
pub fn run(vcpu: &impl AsRawFd) -> io::Result<()> {
    // SAFETY: KVM_RUN takes no argument. What the guest does to memory it does to guest RAM and to the
    // shared page, both of which are only ever accessed through raw pointers.
    checked(unsafe { libc::ioctl(vcpu.as_raw_fd(), RUN, 0) })
}

/// A file with what KVM counts of a vCPU.
pub fn stats(vcpu: &impl AsRawFd) -> io::Result<OwnedFd> {
    // SAFETY: KVM_GET_STATS_FD takes no argument.
    let fd = unsafe { libc::ioctl(vcpu.as_raw_fd(), STATS, 0) };
    checked(fd)?;
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Hands KVM the vector of an external interrupt.
pub fn interrupt(vcpu: &impl AsRawFd, vector: u8) -> io::Result<()> {
    let request = kvm_interrupt { irq: u32::from(vector) };
    // SAFETY: the request lives for the call and is only read.
    checked(unsafe { libc::ioctl(vcpu.as_raw_fd(), INTERRUPT, &raw const request) })
}

/// Ties an eventfd to a GSI, or unties it with [`kvm_bindings::KVM_IRQFD_FLAG_DEASSIGN`].
pub fn irqfd(vm: &impl AsRawFd, event: BorrowedFd<'_>, gsi: u32, flags: u32) -> io::Result<()> {
    let request = kvm_irqfd { fd: event.as_raw_fd() as u32, gsi, flags, ..Default::default() };
    // SAFETY: as above; KVM takes its own reference to the eventfd.
    checked(unsafe { libc::ioctl(vm.as_raw_fd(), IRQFD, &raw const request) })
}

/// Ties an eventfd to guest writes, or unties it.
pub fn ioeventfd(vm: &impl AsRawFd, request: &kvm_ioeventfd) -> io::Result<()> {
    // SAFETY: as above.
    checked(unsafe { libc::ioctl(vm.as_raw_fd(), IOEVENTFD, std::ptr::from_ref(request)) })
}
