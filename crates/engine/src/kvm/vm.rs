//! One VM of KVM.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use bus::{Msi, MsiSink, PowerEvent, Timer};
use kvm_bindings::{
    KVM_CAP_EXIT_ON_EMULATION_FAILURE, KVM_CAP_SPLIT_IRQCHIP, KVM_CAP_X2APIC_API, KVM_CAP_X86_USER_SPACE_MSR,
    KVM_MAX_CPUID_ENTRIES, KVM_MSR_EXIT_REASON_UNKNOWN, KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK,
    KVM_X2APIC_API_USE_32BIT_IDS, kvm_cpuid_entry2, kvm_enable_cap, kvm_ioeventfd,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, Kvm, VmFd};

use super::halt::{FIRST_LOOK, HaltWatch, Verdict};
use super::kick::Kick;
use super::routes::{PINS, Routes, message};
use super::vcpu::KvmVcpu;
use super::{StepperFactory, failed, sys};
use crate::{Doorbell, Error, Result, Vcpu, Vm, VmConfig, VmServices};

/// Pages that KVM uses itself on Intel processors without "unrestricted guest": one for an identity
/// map and three for a task state segment (Documentation/virt/kvm/api.rst, 4.54 and 4.79), below the boot
/// ROM's 16 MiB where nothing of ours is.
const IDENTITY_MAP: u64 = 0xfeff_c000;
const TASK_STATE: usize = 0xfeff_d000;

/// Where interrupt messages go (Intel SDM vol. 3, 11.11.1).
const MESSAGE_BASE: u64 = 0xfee0_0000;

/// Flags of an ioeventfd (linux/kvm.h).
const IOEVENT_DATAMATCH: u32 = 1;
const IOEVENT_PIO: u32 = 2;
const IOEVENT_DEASSIGN: u32 = 4;

/// What the VM and its vCPUs share.
pub struct Shared {
    // Closed before guest RAM (in `services`) is unmapped.
    pub fd: VmFd,
    pub config: VmConfig,
    pub supported: Vec<kvm_cpuid_entry2>,
    pub tsc_deadline: bool,
    pub has_xcrs: bool,
    /// The 8259's INTR pin.
    pub intr: AtomicBool,
    pub steppers: Option<StepperFactory>,
    kicks: Mutex<Vec<(u32, Arc<Kick>)>>,
    routes: Mutex<Routes>,
    watch: HaltWatch,
    watch_timer: OnceLock<Timer>,
    pub services: VmServices,
}

/// One VM of KVM.
pub struct KvmVm(Arc<Shared>);

fn enable(fd: &VmFd, cap: u32, arg: u64) -> std::result::Result<(), kvm_ioctls::Error> {
    fd.enable_cap(&kvm_enable_cap { cap, args: [arg, 0, 0, 0], ..Default::default() })
}

impl KvmVm {
    pub fn new(
        kvm: &Kvm,
        config: VmConfig,
        services: VmServices,
        steppers: Option<StepperFactory>,
    ) -> Result<Self> {
        let most = kvm.get_max_vcpus();
        if config.vcpus as usize > most {
            return Err(Error::Unsupported(format!(
                "KVM has at most {most} vCPUs a VM, not {}",
                config.vcpus
            )));
        }
        let fd = kvm.create_vm().map_err(failed("KVM_CREATE_VM"))?;
        enable(&fd, KVM_CAP_SPLIT_IRQCHIP, u64::from(PINS)).map_err(failed("KVM_CAP_SPLIT_IRQCHIP"))?;
        set_up(&fd, &config)?;
        map_memory(&fd, &services)?;
        let supported =
            kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(failed("KVM_GET_SUPPORTED_CPUID"))?;
        let shared = Arc::new(Shared {
            fd,
            supported: supported.as_slice().to_vec(),
            tsc_deadline: kvm.check_extension(Cap::TscDeadlineTimer),
            has_xcrs: kvm.check_extension(Cap::Xcrs),
            intr: AtomicBool::new(false),
            steppers,
            kicks: Mutex::default(),
            routes: Mutex::new(Routes::new()),
            watch: HaltWatch::default(),
            watch_timer: OnceLock::new(),
            config,
            services,
        });
        shared.connect();
        Ok(Self(shared))
    }
}

/// Turns on what is off by default.
fn set_up(fd: &VmFd, config: &VmConfig) -> Result<()> {
    // AMD's processors need neither, and not every KVM has them.
    if fd.check_extension(Cap::SetIdentityMapAddr) {
        fd.set_identity_map_address(IDENTITY_MAP).map_err(failed("KVM_SET_IDENTITY_MAP_ADDR"))?;
    }
    if fd.check_extension(Cap::SetTssAddr) {
        fd.set_tss_address(TASK_STATE).map_err(failed("KVM_SET_TSS_ADDR"))?;
    }
    if fd.check_extension(Cap::X2ApicApi) {
        let flags = KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK;
        enable(fd, KVM_CAP_X2APIC_API, u64::from(flags)).map_err(failed("KVM_CAP_X2APIC_API"))?;
    } else if (0..config.vcpus).any(|index| config.cpuid.topology.apic_id(index) > 254) {
        return Err(Error::Unsupported("this host's KVM has no APIC ids above 254".into()));
    }
    if fd.check_extension(Cap::X86UserSpaceMsr) {
        enable(fd, KVM_CAP_X86_USER_SPACE_MSR, u64::from(KVM_MSR_EXIT_REASON_UNKNOWN))
            .map_err(failed("KVM_CAP_X86_USER_SPACE_MSR"))?;
    } else if !config.strict_msr {
        return Err(Error::Unsupported("this host's KVM can't ignore unknown MSRs (-w)".into()));
    }
    // Otherwise KVM raises #UD in guest programs for what it can't emulate.
    if fd.check_extension_raw(u64::from(KVM_CAP_EXIT_ON_EMULATION_FAILURE)) > 0 {
        enable(fd, KVM_CAP_EXIT_ON_EMULATION_FAILURE, 1)
            .map_err(failed("KVM_CAP_EXIT_ON_EMULATION_FAILURE"))?;
    }
    Ok(())
}

fn map_memory(fd: &VmFd, services: &VmServices) -> Result<()> {
    for (slot, region) in (0..).zip(services.memory.regions()) {
        let request = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: region.gpa(),
            memory_size: region.len(),
            userspace_addr: region.host().as_ptr() as u64,
        };
        // SAFETY: the region stays mapped as long as `services.memory`, which `Shared` drops after the
        // VM's descriptor; vCPUs hold `Shared`.
        unsafe { fd.set_user_memory_region(request) }.map_err(failed("KVM_SET_USER_MEMORY_REGION"))?;
    }
    Ok(())
}

impl Shared {
    /// Reacts to power events, and starts the halt watch.
    fn connect(self: &Arc<Self>) {
        let me = Arc::downgrade(self);
        self.services.power.on_event(move |_| {
            if let Some(me) = me.upgrade() {
                me.kicks().iter().for_each(|(_, kick)| kick.nudge());
            }
        });
        let me = Arc::downgrade(self);
        let timer = self.services.timers.timer(move || look(&me));
        timer.arm(self.services.clock.now() + FIRST_LOOK);
        let _ = self.watch_timer.set(timer);
    }

    fn kicks(&self) -> MutexGuard<'_, Vec<(u32, Arc<Kick>)>> {
        self.kicks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn routes(&self) -> MutexGuard<'_, Routes> {
        self.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes vCPU `id`'s handle; false if there is one.
    pub fn register(&self, id: u32, kick: Arc<Kick>) -> bool {
        let mut kicks = self.kicks();
        let new = kicks.iter().all(|(other, _)| *other != id);
        if new {
            kicks.push((id, kick));
        }
        new
    }
}

/// The halt watch's timer has fired.
fn look(me: &Weak<Shared>) {
    let Some(me) = me.upgrade() else { return };
    if me.services.power.event().is_some() {
        return;
    }
    let kicks: Vec<_> = me.kicks().iter().map(|(_, kick)| kick.clone()).collect();
    let next = if kicks.len() == me.config.vcpus as usize {
        me.watch.look(&kicks)
    } else {
        Verdict::Again(FIRST_LOOK)
    };
    match next {
        Verdict::Again(wait) => {
            if let Some(timer) = me.watch_timer.get() {
                timer.arm(me.services.clock.now() + wait);
            }
        }
        Verdict::Halted => me.services.power.request(PowerEvent::Halt),
    }
}

impl MsiSink for KvmVm {
    fn signal_msi(&self, msi: Msi) {
        // Fails only for messages that no local APIC takes, which are dropped as on hardware.
        let _ = self.0.fd.signal_msi(message(msi));
    }

    fn set_intr(&self, level: bool) {
        if self.0.intr.swap(level, Ordering::SeqCst) != level
            && level
            && let Some((_, kick)) = self.0.kicks().iter().find(|(id, _)| *id == 0)
        {
            kick.nudge();
        }
    }
}

fn ioevent(address: Doorbell, event: &OwnedFd, flags: u32) -> kvm_ioeventfd {
    let (addr, size, value, pio) = match address {
        Doorbell::Port { port, size, value } => (u64::from(port), size, value, IOEVENT_PIO),
        Doorbell::Memory { gpa, size, value } => (gpa, size, value, 0),
    };
    kvm_ioeventfd {
        datamatch: u64::from(value.unwrap_or(0)),
        addr,
        len: u32::from(size),
        fd: event.as_raw_fd(),
        flags: flags | pio | if value.is_some() { IOEVENT_DATAMATCH } else { 0 },
        ..Default::default()
    }
}

impl Vm for KvmVm {
    fn new_vcpu(&self, id: u32) -> Result<Box<dyn Vcpu>> {
        Ok(Box::new(KvmVcpu::new(&self.0, id)?))
    }

    fn signal_vcpu(&self, id: u32, data: u32) -> Result<()> {
        let apic_id = u64::from(self.0.config.cpuid.topology.apic_id(id));
        // Bits 8–31 of the destination are in the upper half (KVM_X2APIC_API_USE_32BIT_IDS).
        let address = (apic_id & !0xff) << 32 | MESSAGE_BASE | (apic_id & 0xff) << 12;
        let sent = self.0.fd.signal_msi(message(Msi { address, data })).map_err(failed("KVM_SIGNAL_MSI"))?;
        if sent > 0 { Ok(()) } else { Err(Error::Unsupported(format!("vCPU {id} takes no such interrupt"))) }
    }

    fn add_doorbell(&self, address: Doorbell, event: &OwnedFd) -> Result<bool> {
        sys::ioeventfd(&self.0.fd, &ioevent(address, event, 0))
            .map_err(|source| Error::System { what: "KVM_IOEVENTFD", source })?;
        Ok(true)
    }

    fn remove_doorbell(&self, address: Doorbell, event: &OwnedFd) -> Result<()> {
        sys::ioeventfd(&self.0.fd, &ioevent(address, event, IOEVENT_DEASSIGN))
            .map_err(|source| Error::System { what: "KVM_IOEVENTFD", source })
    }

    fn add_msi_event(&self, msi: Msi, event: &OwnedFd) -> Result<bool> {
        self.0.routes().add_event(&self.0.fd, msi, event)?;
        Ok(true)
    }

    fn remove_msi_event(&self, event: &OwnedFd) -> Result<()> {
        self.0.routes().remove_event(&self.0.fd, event)
    }

    fn set_ioapic_route(&self, pin: u32, msi: Option<Msi>) -> Result<()> {
        self.0.routes().set_pin(&self.0.fd, pin, msi)
    }
}
