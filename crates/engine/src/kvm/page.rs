//! The page that KVM shares with user space for each vCPU (`struct kvm_run`).
//!
//! Mapped here and not taken from `kvm_ioctls`, because other threads write to it while the vCPU runs:
//! no reference to it may exist, so all access is through a raw pointer.

use std::io;
use std::os::fd::AsRawFd;
use std::ptr::{NonNull, addr_of, addr_of_mut};
use std::sync::atomic::{AtomicU8, Ordering};

use kvm_bindings::kvm_run;

/// One vCPU's shared page.
pub struct RunPage {
    page: NonNull<kvm_run>,
    len: usize,
}

// SAFETY: plain shared memory, owned by this value; fields are accessed one by one through the pointer,
// the one that several threads write (`immediate_exit`) atomically.
unsafe impl Send for RunPage {}
// SAFETY: as above.
unsafe impl Sync for RunPage {}

/// A port access that KVM asks for.
#[derive(Clone, Copy, Debug)]
pub struct PortAccess {
    pub write: bool,
    pub port: u16,
    /// Bytes of one element.
    pub size: u8,
    /// Number of elements.
    pub count: u32,
    /// Where the elements are in the page.
    pub offset: u64,
}

/// A memory access that KVM asks for.
#[derive(Clone, Copy, Debug)]
pub struct MemoryAccess {
    pub gpa: u64,
    pub data: [u8; 8],
    pub len: u32,
    pub write: bool,
}

impl RunPage {
    /// Maps the page of a vCPU; `len` is what KVM_GET_VCPU_MMAP_SIZE says.
    pub fn map(vcpu: &impl AsRawFd, len: usize) -> io::Result<Self> {
        if len < size_of::<kvm_run>() {
            return Err(io::Error::from(io::ErrorKind::Unsupported));
        }
        // SAFETY: a fresh mapping at an address of the kernel's choice touches no existing memory.
        let page = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                vcpu.as_raw_fd(),
                0,
            )
        };
        if page == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let page = NonNull::new(page.cast()).ok_or_else(|| io::Error::from(io::ErrorKind::Other))?;
        Ok(Self { page, len })
    }

    /// Makes KVM_RUN return at once, or not. Any thread may call it.
    pub fn set_immediate_exit(&self, value: bool) {
        // SAFETY: the byte is inside of the mapping and only accessed atomically on this side.
        let byte = unsafe { AtomicU8::from_ptr(addr_of_mut!((*self.page.as_ptr()).immediate_exit)) };
        byte.store(u8::from(value), Ordering::SeqCst);
    }

    /// Asks for an exit as soon as the guest takes external interrupts, or not.
    pub fn request_interrupt_window(&self, value: bool) {
        // SAFETY: inside of the mapping; only the vCPU's thread writes it.
        unsafe {
            addr_of_mut!((*self.page.as_ptr()).request_interrupt_window).write_volatile(u8::from(value));
        };
    }

    /// Whether the guest took external interrupts at the last exit.
    pub fn ready_for_interrupt(&self) -> bool {
        // SAFETY: inside of the mapping; the vCPU's thread reads it between runs.
        unsafe { addr_of!((*self.page.as_ptr()).ready_for_interrupt_injection).read_volatile() != 0 }
    }

    /// Why KVM_RUN returned.
    pub fn exit_reason(&self) -> u32 {
        // SAFETY: as above.
        unsafe { addr_of!((*self.page.as_ptr()).exit_reason).read_volatile() }
    }

    /// The exit's port access.
    pub fn port_access(&self) -> PortAccess {
        // SAFETY: as above; every bit pattern of the union is a valid value of this part.
        let io = unsafe { addr_of!((*self.page.as_ptr()).__bindgen_anon_1.io).read_volatile() };
        PortAccess {
            write: u32::from(io.direction) == kvm_bindings::KVM_EXIT_IO_OUT,
            port: io.port,
            size: io.size,
            count: io.count,
            offset: io.data_offset,
        }
    }

    /// Copies `data.len()` bytes at `offset` of the page out; false if they are not inside.
    pub fn read(&self, offset: u64, data: &mut [u8]) -> bool {
        let Some(at) = self.at(offset, data.len()) else { return false };
        // SAFETY: `at` proved the source; the destination is an exclusive buffer elsewhere.
        unsafe { std::ptr::copy_nonoverlapping(at, data.as_mut_ptr(), data.len()) };
        true
    }

    /// Copies `data` to `offset` of the page; false if that is not inside.
    pub fn write(&self, offset: u64, data: &[u8]) -> bool {
        let Some(at) = self.at(offset, data.len()) else { return false };
        // SAFETY: as in `read`, with the roles exchanged.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), at, data.len()) };
        true
    }

    fn at(&self, offset: u64, len: usize) -> Option<*mut u8> {
        let offset = usize::try_from(offset).ok()?;
        if offset.checked_add(len)? > self.len {
            return None;
        }
        // SAFETY: offset is inside of the mapping.
        Some(unsafe { self.page.as_ptr().cast::<u8>().add(offset) })
    }

    /// The exit's memory access.
    pub fn memory_access(&self) -> MemoryAccess {
        // SAFETY: as for `port_access`.
        let mmio = unsafe { addr_of!((*self.page.as_ptr()).__bindgen_anon_1.mmio).read_volatile() };
        MemoryAccess { gpa: mmio.phys_addr, data: mmio.data, len: mmio.len, write: mmio.is_write != 0 }
    }

    /// Answers a memory read.
    pub fn set_memory_data(&self, data: [u8; 8]) {
        // SAFETY: inside of the mapping; only the vCPU's thread writes it, between runs.
        unsafe { addr_of_mut!((*self.page.as_ptr()).__bindgen_anon_1.mmio.data).write_volatile(data) };
    }

    /// The vector of an EOI exit.
    pub fn eoi_vector(&self) -> u8 {
        // SAFETY: as for `port_access`.
        unsafe { addr_of!((*self.page.as_ptr()).__bindgen_anon_1.eoi.vector).read_volatile() }
    }

    /// The kind of an internal error.
    pub fn internal_error(&self) -> u32 {
        // SAFETY: as for `port_access`.
        unsafe { addr_of!((*self.page.as_ptr()).__bindgen_anon_1.internal.suberror).read_volatile() }
    }

    /// Answers an MSR exit: reads give 0, writes are ignored, or the instruction raises #GP.
    pub fn answer_msr(&self, fault: bool) {
        // SAFETY: as for `set_memory_data`.
        unsafe {
            addr_of_mut!((*self.page.as_ptr()).__bindgen_anon_1.msr.error).write_volatile(u8::from(fault));
            if self.exit_reason() == kvm_bindings::KVM_EXIT_X86_RDMSR {
                addr_of_mut!((*self.page.as_ptr()).__bindgen_anon_1.msr.data).write_volatile(0);
            }
        }
    }
}

impl Drop for RunPage {
    fn drop(&mut self) {
        // SAFETY: mapped by `map` with this length; nothing else has the address.
        unsafe { libc::munmap(self.page.as_ptr().cast(), self.len) };
    }
}
