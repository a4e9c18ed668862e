//! What each guest must show.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use bus::{Msi, PowerEvent};

use super::code;
use super::rig::{Access, MMIO, PORTS, RESULT, Rig, Running};
use crate::{Doorbell, Engine, Event, FpuState, RunState, SharedVm, Stop, VcpuState};

/// Edge-triggered, fixed, to APIC id 0, vector 50 (Intel SDM vol. 3, 11.11).
const MESSAGE: Msi = Msi { address: 0xfee0_0000, data: 0x50 };
const READY: u64 = 0x501;
const HANDLED: u64 = 0x502;

fn write(address: u64, bytes: &[u8]) -> Access {
    Access::Write(address, bytes.to_vec())
}

fn eventfd() -> OwnedFd {
    // SAFETY: makes a new descriptor, which nobody else owns.
    unsafe {
        let fd = libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK);
        assert!(fd >= 0);
        OwnedFd::from_raw_fd(fd)
    }
}

/// How often the eventfd was signalled since the last look.
fn count(event: &OwnedFd) -> u64 {
    let mut value = 0u64;
    // SAFETY: reads 8 bytes into `value`.
    let read = unsafe { libc::read(event.as_raw_fd(), (&raw mut value).cast(), 8) };
    if read == 8 { value } else { 0 }
}

fn signal(event: &OwnedFd) {
    let one = 1u64;
    // SAFETY: writes 8 bytes out of `one`.
    assert_eq!(unsafe { libc::write(event.as_raw_fd(), (&raw const one).cast(), 8) }, 8);
}

/// Long enough that the guest most likely sleeps in HLT; right either way.
fn let_it_sleep() {
    std::thread::sleep(Duration::from_millis(20));
}

pub fn port_io(engine: &dyn Engine) {
    let rig = Rig::new(engine, 1, code::PORT_IO);
    rig.put(0x6000, b"xyz");
    assert_eq!(rig.run(engine), Stop::Stopped);
    assert_eq!(rig.services.power.event(), Some(PowerEvent::PowerOff));
    let port = u64::from(PORTS);
    let expected = [
        write(port, &[0x44, 0x33, 0x22, 0x11]),
        write(port, &[0x44, 0x33]),
        write(port, &[0x44]),
        Access::Read(port, 4),
        Access::Read(port, 2),
        Access::Read(port, 1),
        write(port, b"x"),
        write(port, b"y"),
        write(port, b"z"),
        Access::Read(port, 2),
        Access::Read(port, 2),
    ];
    assert_eq!(rig.log.all(), expected);
    assert_eq!((rig.result(0), rig.result(4), rig.result(8)), (0x8382_8180, 0x8180, 0x80));
    assert_eq!(rig.result(0x10), 0x8180_8180);
}

pub fn memory_io(engine: &dyn Engine) {
    let rig = Rig::new(engine, 1, code::MEMORY_IO);
    assert_eq!(rig.run(engine), Stop::Stopped);
    let base = MMIO + 0x10;
    let expected = [
        Access::Read(base, 4),
        Access::Read(base + 1, 1),
        write(base + 8, &[0x34, 0x12, 0xfe, 0xca]),
        write(base + 2, &[0x78, 0x56]),
        write(base + 1, &[0x9a]),
        Access::Read(base + 4, 4),
        write(base + 4, &[0x95, 0x95, 0x96, 0x97]),
    ];
    assert_eq!(rig.log.all(), expected);
    assert_eq!((rig.result(0), rig.result(4)), (0x9392_9190, 0x91));
}

/// Starts the guest that waits for interrupts and lets `send` send them, one after the other.
fn interrupts(
    engine: &dyn Engine,
    vector: u64,
    handler: &[u8],
    send: impl Fn(&Rig, &SharedVm, usize),
) -> Rig {
    let rig = Rig::new(engine, 1, code::WAIT_FOR_INTERRUPTS);
    rig.handler(vector, handler);
    let vm = rig.vm(engine);
    let running = rig.start(&vm);
    rig.log.wait(READY, 1);
    for n in 1..=3 {
        let_it_sleep();
        send(&rig, &vm, n);
        rig.log.wait(HANDLED, n);
    }
    let_it_sleep();
    assert_eq!(rig.log.writes_to(HANDLED), 3);
    rig.services.power.request(PowerEvent::PowerOff);
    assert_eq!(running.join()[0].0, Stop::Stopped);
    rig
}

pub fn msi_by_signal(engine: &dyn Engine) {
    interrupts(engine, 0x50, code::HANDLER, |_, vm, _| vm.signal_msi(MESSAGE));
}

pub fn msi_by_event(engine: &dyn Engine) {
    let (event, other) = (eventfd(), eventfd());
    interrupts(engine, 0x50, code::HANDLER, |_, vm, n| {
        let short_cut = match n {
            1 => {
                // A message that nobody takes, then the real one in its place.
                let nobody = Msi { data: 0, ..MESSAGE };
                vm.add_msi_event(nobody, &event).unwrap();
                vm.add_msi_event(MESSAGE, &other).unwrap();
                vm.remove_msi_event(&other).unwrap();
                vm.add_msi_event(MESSAGE, &event).unwrap()
            }
            _ => vm.add_msi_event(MESSAGE, &event).unwrap(),
        };
        if short_cut {
            signal(&other);
            signal(&event);
        } else {
            vm.signal_msi(MESSAGE);
        }
    });
}

pub fn pic_interrupt(engine: &dyn Engine) {
    let rig = interrupts(engine, 0x28, code::PIC_HANDLER, |_, vm, _| vm.set_intr(true));
    assert_eq!(*rig.chipset.acknowledged.lock().unwrap(), 3);
}

pub fn level_eoi(engine: &dyn Engine) {
    // Level, assert (bits 15 and 14), vector 50.
    let level = Msi { data: 0xc050, ..MESSAGE };
    let rig = interrupts(engine, 0x50, code::HANDLER, |rig, vm, n| {
        if n == 3 {
            // An edge: nobody is told.
            vm.set_ioapic_route(16, None).unwrap();
            vm.signal_msi(MESSAGE);
            return;
        }
        vm.set_ioapic_route(16, Some(level)).unwrap();
        vm.signal_msi(level);
        rig.log.wait(HANDLED, n);
        let end = Instant::now() + super::rig::PATIENCE;
        while rig.chipset.ended.lock().unwrap().len() < n {
            assert!(Instant::now() < end, "no EOI");
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    assert_eq!(*rig.chipset.ended.lock().unwrap(), [0x50, 0x50]);
}

pub fn doorbell(engine: &dyn Engine) {
    let rig = Rig::new(engine, 1, code::DOORBELLS);
    let vm = rig.vm(engine);
    let bells = [
        Doorbell::Memory { gpa: MMIO + 0x20, size: 4, value: None },
        Doorbell::Port { port: 0x504, size: 2, value: Some(3) },
    ];
    let events = [eventfd(), eventfd()];
    let short_cut = bells.iter().zip(&events).all(|(bell, event)| vm.add_doorbell(*bell, event).unwrap());
    let stops = rig.start(&vm).join();
    assert_eq!(stops[0].0, Stop::Stopped);
    let rung = (count(&events[0]), count(&events[1]));
    let seen = (rig.log.writes_to(MMIO + 0x20), rig.log.writes_to(0x504));
    if short_cut {
        assert_eq!((rung, seen), ((1, 1), (0, 1)));
    } else {
        assert_eq!((rung, seen), ((0, 0), (1, 2)));
    }
    for (bell, event) in bells.iter().zip(&events) {
        vm.remove_doorbell(*bell, event).unwrap();
        assert_eq!(vm.add_doorbell(*bell, event).unwrap(), short_cut);
    }
}

pub fn second_vcpu(engine: &dyn Engine) {
    let rig = Rig::new(engine, 2, code::START_SECOND);
    rig.put(0x8000, code::SECOND);
    let vm = rig.vm(engine);
    let mut stops = rig.start(&vm).join();
    assert_eq!(stops.iter().map(|s| s.0).collect::<Vec<_>>(), [Stop::Stopped; 2]);
    assert_eq!((rig.result(0), rig.log.writes_to(0x503)), (0xbeef, 1));
    assert_eq!(rig.services.power.event(), Some(PowerEvent::PowerOff));
    let second = stops[1].1.state().unwrap();
    assert_eq!((second.segments[crate::seg::CS].base, second.rip >> 8), (0x8000, 0));
}

pub fn apic_timer(engine: &dyn Engine) {
    let rig = Rig::new(engine, 1, code::APIC_TIMER);
    rig.handler(0x50, code::TIMER_HANDLER);
    assert_eq!(rig.run(engine), Stop::Stopped);
    assert_eq!(rig.result(0), 1);
}

/// A state in which everything is different from zero and from everything else.
fn odd_state() -> VcpuState {
    let mut state = Rig::entry();
    for (i, value) in state.gpr.iter_mut().enumerate() {
        *value = 0x1111_2222_3333_0000 + i as u64;
    }
    state.rip = 0x1234;
    state.rflags = 0x8d7;
    state.segments[crate::seg::FS].base = 0x5_0000;
    state.segments[crate::seg::FS].selector = 0x38;
    state.segments[crate::seg::LDTR] =
        crate::Segment { base: 0x7000, limit: 0xff, access: 0x82, selector: 0x40 };
    state.segments[crate::seg::TR] =
        crate::Segment { base: 0x7100, limit: 0x67, access: 0x8b, selector: 0x48 };
    state.cr2 = 0xfeed_f000;
    state.cr3 = 0x4000;
    // DE, PSE, OSFXSR.
    state.cr4 = 0x218;
    state.dr = [0x11, 0x22, 0x33, 0x44, 0, 0, 0xffff_0ff0, 0x400];
    for (i, byte) in state.fpu.area.iter_mut().enumerate().take(416).skip(160) {
        *byte = i as u8;
    }
    // ST0 is 1.0, one register in use.
    state.fpu.area[4] = 0x80;
    state.fpu.area[2..4].copy_from_slice(&0x3800u16.to_le_bytes());
    state.fpu.area[32..42].copy_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0x80, 0xff, 0x3f]);
    // SYSENTER_EIP, PAT, LSTAR, KERNEL_GS_BASE.
    state.msrs = vec![
        (0x176, 0xc0de),
        (0x277, 0x0007_0406_0007_0106),
        (0xc000_0082, 0xffff_8000_0000_1000),
        (0xc000_0102, 0x1234_5678),
    ];
    state
}

pub fn state_round_trip(engine: &dyn Engine) {
    let rig = Rig::new(engine, 2, code::HALT);
    let vm = rig.vm(engine);
    let mut vcpu = vm.new_vcpu(0).unwrap();
    let odd = odd_state();
    vcpu.set_state(&odd).unwrap();
    let mut got = vcpu.state().unwrap();
    for msr in &odd.msrs {
        assert!(got.msrs.contains(msr), "{msr:x?}");
    }
    // MXCSR's mask and what lies outside of the three components is not state.
    let fpu = |state: &VcpuState| {
        let mut fpu = FpuState::default();
        for range in [0..8, 24..28, 32..416, 576..832] {
            fpu.area[range.clone()].copy_from_slice(&state.fpu.area[range]);
        }
        fpu
    };
    assert_eq!(fpu(&got), fpu(&odd));
    got.msrs.clone_from(&odd.msrs);
    got.fpu = odd.fpu.clone();
    got.apic = odd.apic.clone();
    assert_eq!(got, odd);
    for run in [RunState::Halted, RunState::WaitForSipi, RunState::Running] {
        vcpu.set_state(&VcpuState { run, ..odd.clone() }).unwrap();
        assert_eq!(vcpu.state().unwrap().run, run);
    }
    let second = vm.new_vcpu(1).unwrap().state().unwrap();
    assert_eq!((second.run, second.apic_base), (RunState::WaitForSipi, 0xfee0_0800));
    assert!(vcpu.set_state(&VcpuState { rflags: 0, ..odd }).is_err());
}

/// Runs the counting guest for a moment and stops it.
fn stop_counting(rig: &Rig, vm: &SharedVm) -> Box<dyn crate::Vcpu> {
    let running = rig.start(vm);
    let end = Instant::now() + super::rig::PATIENCE;
    while rig.result(4) < 1000 {
        assert!(Instant::now() < end, "the guest does not count");
        std::thread::sleep(Duration::from_millis(1));
    }
    running.kickers[0].stop();
    let mut stops = running.join();
    let (stop, vcpu) = stops.remove(0);
    assert_eq!(stop, Stop::Stopped);
    assert_eq!(rig.services.power.event(), None);
    vcpu
}

pub fn kick(engine: &dyn Engine) {
    let rig = Rig::new(engine, 1, code::COUNT);
    let vm = rig.vm(engine);
    let vcpu = stop_counting(&rig, &vm);
    let stood_at = rig.result(4);
    // Stays in force.
    let (stop, vcpu) = Running::start(vec![vcpu]).join().remove(0);
    assert_eq!(stop, Stop::Stopped);
    assert_eq!(rig.result(4), stood_at);
    vcpu.kicker().resume();
    let running = Running::start(vec![vcpu]);
    let end = Instant::now() + super::rig::PATIENCE;
    while rig.result(4) < stood_at + 1000 {
        assert!(Instant::now() < end, "the guest does not go on");
        std::thread::sleep(Duration::from_millis(1));
    }
    rig.put(RESULT, &[1]);
    assert_eq!(running.join()[0].0, Stop::Stopped);
    assert_eq!(rig.services.power.event(), Some(PowerEvent::PowerOff));
}

pub fn nmi_and_statistics(engine: &dyn Engine) {
    /// MSI data: delivery mode NMI.
    const NMI: u32 = 4 << 8;
    let rig = Rig::new(engine, 1, code::WAIT_FOR_INTERRUPTS);
    rig.handler(2, code::HANDLER);
    let vm = rig.vm(engine);
    let mut vcpu = vm.new_vcpu(0).unwrap();
    vcpu.set_state(&Rig::entry()).unwrap();
    let statistics = vcpu.statistics();
    let running = Running::start(vec![vcpu]);
    rig.log.wait(0x501, 1);
    assert!(vm.signal_vcpu(7, NMI).is_err());
    vm.signal_vcpu(0, NMI).unwrap();
    rig.log.wait(0x502, 1);
    // What an engine can't count is left out.
    let counted = |event: Event, least: u64| {
        statistics.list().iter().find(|(e, _)| *e == event).is_none_or(|(_, count)| *count >= least)
    };
    let end = Instant::now() + super::rig::PATIENCE;
    while !counted(Event::Hlt, 1) && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(1));
    }
    rig.services.power.request(PowerEvent::PowerOff);
    running.join();
    let list = statistics.list();
    for (event, least) in [(Event::Port, 2), (Event::Hlt, 1), (Event::Nmi, 1), (Event::Exit, 3)] {
        assert!(counted(event, least), "{list:?}");
    }
    assert!(!list.is_empty() && list.is_sorted_by_key(|(event, _)| *event as usize), "{list:?}");
}

pub fn state_moves(engine: &dyn Engine) {
    let rig = Rig::new(engine, 1, code::COUNT);
    let vm = rig.vm(engine);
    let state = stop_counting(&rig, &vm).state().unwrap();
    let counted = rig.result(4);
    // ECX is stored right after it is counted.
    assert!((state.gpr[crate::reg::RCX] as u32).wrapping_sub(counted) <= 1);
    let target = Rig::new(engine, 1, code::COUNT);
    let vm = target.vm(engine);
    let mut vcpu = vm.new_vcpu(0).unwrap();
    vcpu.set_state(&state).unwrap();
    let running = Running::start(vec![vcpu]);
    let end = Instant::now() + super::rig::PATIENCE;
    while target.result(4) < counted + 1000 {
        assert!(Instant::now() < end, "the guest does not go on");
        std::thread::sleep(Duration::from_millis(1));
    }
    target.put(RESULT, &[1]);
    assert_eq!(running.join()[0].0, Stop::Stopped);
}

pub fn power_event(engine: &dyn Engine) {
    let rig = Rig::new(engine, 2, code::COUNT);
    let vm = rig.vm(engine);
    let running = rig.start(&vm);
    let_it_sleep();
    rig.services.power.request(PowerEvent::Reset);
    let stops: Vec<_> = running.join().into_iter().map(|s| s.0).collect();
    assert_eq!(stops, [Stop::Stopped; 2]);
}

pub fn triple_fault(engine: &dyn Engine) {
    let rig = Rig::new(engine, 1, code::UNDEFINED);
    let vm = rig.vm(engine);
    let mut vcpu = vm.new_vcpu(0).unwrap();
    let mut state = Rig::entry();
    state.idtr.limit = 0;
    vcpu.set_state(&state).unwrap();
    assert_eq!(Running::start(vec![vcpu]).join()[0].0, Stop::TripleFault);
    assert_eq!(rig.services.power.event(), Some(PowerEvent::TripleFault));
}

pub fn halted_for_good(engine: &dyn Engine) {
    let rig = Rig::new(engine, 2, code::HALT);
    assert_eq!(rig.run(engine), Stop::Stopped);
    assert_eq!(rig.services.power.event(), Some(PowerEvent::Halt));
}

pub fn cpuid(engine: &dyn Engine) {
    let rig = Rig::new(engine, 4, code::CPUID);
    assert_eq!(rig.run(engine), Stop::Stopped);
    let name: Vec<u8> = [0, 4, 8].iter().flat_map(|at| rig.result(*at).to_le_bytes()).collect();
    assert_eq!(name, b"bhyve bhyve ");
    // APIC id 0 of 4 in the package; a hypervisor; four processors on the core level.
    assert_eq!((rig.result(0xc) >> 24, rig.result(0xc) >> 16 & 0xff), (0, 4));
    assert_eq!(rig.result(0x10) >> 31, 1);
    assert_eq!((rig.result(0x14), rig.result(0x18)), (4, 0));
}

fn unknown_msr(engine: &dyn Engine, strict: bool) -> (u32, u32) {
    let mut rig = Rig::new(engine, 1, code::UNKNOWN_MSR);
    rig.config.strict_msr = strict;
    // #GP.
    rig.handler(13, code::FAULT_HANDLER);
    assert_eq!(rig.run(engine), Stop::Stopped);
    (rig.result(0), rig.result(4))
}

pub fn unknown_msr_strict(engine: &dyn Engine) {
    assert_eq!(unknown_msr(engine, true), (1, u32::MAX));
}

pub fn unknown_msr_ignored(engine: &dyn Engine) {
    assert_eq!(unknown_msr(engine, false), (0, 0));
}

pub fn unclaimed_port(engine: &dyn Engine) {
    let mut rig = Rig::new(engine, 1, code::UNCLAIMED);
    rig.config.strict_io = true;
    assert_eq!(rig.run(engine), Stop::UnclaimedPort { port: 0x999, write: false, size: 1 });
    rig.config.strict_io = false;
    assert_eq!(rig.run(engine), Stop::Stopped);
}
