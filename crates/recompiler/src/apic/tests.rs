use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use bus::{Bus, Msi, MsiSink, PowerSwitch, Timers};
use engine::{ApicState, CpuidLeaf, CpuidTable, Topology};
use memory::{Backing, GuestMemory};

use super::registers::index;
use super::*;

#[derive(Default)]
struct Chipset {
    vectors: Mutex<Vec<u8>>,
    ended: Mutex<Vec<u8>>,
}

impl InterruptController for Chipset {
    fn acknowledge(&self) -> Option<u8> {
        self.vectors.lock().unwrap().pop()
    }
    fn end_of_interrupt(&self, vector: u8) {
        self.ended.lock().unwrap().push(vector);
    }
}

#[derive(Default)]
struct Flag(AtomicU64, Mutex<Option<std::thread::Thread>>);

impl Attention for Flag {
    fn raise(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
        if let Some(thread) = &*self.1.lock().unwrap() {
            thread.unpark();
        }
    }
}

struct Board {
    apics: Arc<Apics>,
    chipset: Arc<Chipset>,
    _timers: Arc<Timers>,
}

impl Board {
    fn new(vcpus: u32) -> Self {
        let clock = Clock::new();
        let (chipset, timers) = (Arc::new(Chipset::default()), Arc::new(Timers::start(clock).unwrap()));
        let services = VmServices {
            memory: GuestMemory::new(&[(0, 4096)], &Backing::Anonymous).unwrap(),
            bus: Arc::new(Bus::new()),
            interrupts: chipset.clone(),
            power: Arc::new(PowerSwitch::default()),
            timers: timers.clone(),
            clock,
        };
        let leaf = CpuidLeaf { ecx: 1 << 21 | 1 << 24, ..CpuidLeaf::default() };
        let width = CpuidLeaf { eax: 0x3028, ..CpuidLeaf::default() };
        let topology = Topology { sockets: 1, cores: vcpus, threads: 1 };
        let mut cpuid: CpuidTable = CpuidTable { topology, leaves: vec![(1, 0, leaf)] };
        cpuid.leaves.push((0x8000_0008, 0, width));
        let config = VmConfig { vcpus, cpuid, strict_msr: true, x2apic: false, strict_io: false };
        Self { apics: Apics::new(&config, &services), chipset, _timers: timers }
    }

    fn cpu(&self, index: u32) -> &Apic {
        self.apics.get(index).unwrap()
    }
}

fn write(apic: &Apic, register: usize, value: u32) {
    apic.mmio_write(register as u64 * 16, &value.to_le_bytes());
}

fn read(apic: &Apic, register: usize) -> u32 {
    let mut data = [0; 4];
    apic.mmio_read(register as u64 * 16, &mut data);
    u32::from_le_bytes(data)
}

fn enable(apic: &Apic) {
    write(apic, index::SVR, 0x1ff);
}

fn wait(what: impl Fn() -> bool) -> bool {
    let until = Instant::now() + Duration::from_secs(20);
    while Instant::now() < until {
        if what() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    false
}

#[test]
fn interrupts_go_by_priority_and_end_in_order() {
    let board = Board::new(1);
    let cpu = board.cpu(0);
    let msi = |vector, level: u32| {
        board.apics.signal_msi(Msi { address: 0xfee0_0000, data: vector | level << 15 | 1 << 14 });
    };
    msi(0x31, 0);
    assert!(!cpu.has_interrupt(), "software-disabled");
    enable(cpu);
    msi(0x31, 0);
    msi(0x52, 1);
    assert_eq!(cpu.acknowledge(), Some(0x52));
    assert_eq!(cpu.acknowledge(), None, "a lower class waits");
    assert_eq!(read(cpu, index::PPR), 0x50);
    assert_eq!(read(cpu, index::ISR + 2), 1 << 18);
    assert_eq!(read(cpu, index::IRR + 1), 1 << 17);
    cpu.set_cr8(3);
    write(cpu, index::EOI, 0);
    assert_eq!(*board.chipset.ended.lock().unwrap(), [0x52]);
    assert!(!cpu.has_interrupt(), "task priority 3 holds 31h");
    cpu.set_cr8(2);
    assert_eq!(cpu.acknowledge(), Some(0x31));
    write(cpu, index::EOI, 0);
    assert_eq!(board.chipset.ended.lock().unwrap().len(), 1, "an edge is not broadcast");
}

#[test]
fn illegal_vectors_and_registers_are_reported() {
    let board = Board::new(1);
    let cpu = board.cpu(0);
    enable(cpu);
    write(cpu, index::LVT + 5, 0xfe);
    write(cpu, index::ICR, 4 | 1 << 18);
    assert_eq!(cpu.acknowledge(), Some(0xfe));
    board.apics.signal_msi(Msi { address: 0xfee0_0000, data: 3 });
    assert_eq!(read(cpu, 0x3d), 0);
    assert_eq!(read(cpu, index::ESR), 0, "shown only once written");
    write(cpu, index::ESR, 0);
    assert_eq!(read(cpu, index::ESR), 0xe0);
    write(cpu, index::ESR, 0);
    assert_eq!(read(cpu, index::ESR), 0);
}

#[test]
fn x2apic_mode_switches_and_checks() {
    let board = Board::new(3);
    let cpu = board.cpu(2);
    assert_eq!(cpu.mmio_page(), Some(0xfee0_0000));
    assert!(cpu.read_msr(0x802).is_err(), "not in x2APIC mode yet");
    assert!(cpu.set_base(0xfee0_0400).is_err());
    assert!(cpu.set_base(1 << 41 | 0x800).is_err());
    cpu.set_base(0xfee0_0c00).unwrap();
    assert_eq!(cpu.mmio_page(), None);
    assert!(cpu.set_base(0xfee0_0800).is_err(), "only through off");
    assert_eq!(cpu.read_msr(0x802), Ok(2));
    assert_eq!(cpu.read_msr(0x80d), Ok(4));
    assert!(cpu.read_msr(0x80e).is_err());
    assert!(cpu.read_msr(0x80b).is_err());
    assert!(cpu.write_msr(0x80b, 1).is_err());
    assert!(cpu.write_msr(0x802, 0).is_err());
    assert!(cpu.write_msr(0x808, 0x100).is_err());
    cpu.write_msr(0x80f, 0x1ff).unwrap();
    cpu.write_msr(0x83f, 0x41).unwrap();
    assert_eq!(cpu.acknowledge(), Some(0x41));
    cpu.write_msr(0x80b, 0).unwrap();
    // Logical destination of cluster 0, bit 2; and a physical one from an xAPIC.
    cpu.write_msr(0x830, 4 << 32 | 1 << 11 | 0x42).unwrap();
    enable(board.cpu(0));
    write(board.cpu(0), index::ICR_HIGH, 2 << 24);
    write(board.cpu(0), index::ICR, 0x43);
    assert_eq!((cpu.acknowledge(), cpu.acknowledge()), (Some(0x43), None));
    cpu.write_msr(0x80b, 0).unwrap();
    assert_eq!(cpu.acknowledge(), Some(0x42));
    cpu.set_base(0xfee0_0000).unwrap();
    assert!(cpu.set_base(0xfee0_0c00).is_err());
    cpu.set_base(0xfed0_0800).unwrap();
    assert_eq!(cpu.mmio_page(), Some(0xfed0_0000));
    assert_eq!(read(cpu, index::ID), 2 << 24);
    assert_eq!(read(cpu, index::SVR), 0xff);
}

#[test]
fn logical_destinations() {
    let board = Board::new(4);
    for (i, apic) in board.apics.all().iter().enumerate() {
        enable(apic);
        write(apic, index::LDR, 1 << (24 + i));
    }
    let got = |vector| -> Vec<u32> {
        let cpus = board.apics.all().iter();
        cpus.filter(|a| a.acknowledge() == Some(vector)).map(|a| a.index()).collect()
    };
    let logical = |destination: u64| 0xfee0_0004 | destination << 12;
    board.apics.signal_msi(Msi { address: logical(0b1010), data: 0x40 });
    assert_eq!(got(0x40), [1, 3]);
    board.cpu(0).set_cr8(5);
    board.apics.signal_msi(Msi { address: logical(0b0101), data: 0x150 });
    assert_eq!(got(0x50), [2], "lowest priority of 0 and 2");
    write(board.cpu(3), index::DFR, 0x0fff_ffff);
    write(board.cpu(3), index::LDR, 0x21 << 24);
    board.apics.signal_msi(Msi { address: logical(0x23), data: 0x60 });
    assert_eq!(got(0x60), [0, 1, 3], "flat reads 23h as a mask, cluster as members of 2");
}

#[test]
fn startup_sequence() {
    let board = Board::new(3);
    let (boot, ap) = (board.cpu(0), board.cpu(1));
    enable(boot);
    assert!(boot.is_bootstrap() && !ap.is_bootstrap());
    write(boot, index::ICR_HIGH, 1 << 24);
    write(boot, index::ICR, 0xc500);
    write(boot, index::ICR, 0x8500);
    write(boot, index::ICR, 0x699);
    write(boot, index::ICR, 0x69a);
    assert_eq!(ap.pending(), pending::INIT | pending::SIPI);
    assert!(ap.take_init());
    assert_eq!(ap.take_sipi(), Some(0x99), "the second SIPI is for nobody");
    assert_eq!(board.cpu(2).pending(), 0);
    write(boot, index::ICR, 0x69a);
    assert_eq!(ap.pending(), 0, "it runs");
    // NMI to all but self.
    write(boot, index::ICR, 0xc_0400);
    assert!(ap.take_nmi() && !ap.take_nmi() && board.cpu(2).take_nmi() && !boot.take_nmi());
}

#[test]
fn intr_reaches_the_boot_processor_through_lint0() {
    let board = Board::new(2);
    board.chipset.vectors.lock().unwrap().push(8);
    board.apics.set_intr(true);
    assert!(board.cpu(0).has_interrupt());
    assert!(!board.cpu(1).has_interrupt(), "its LINT0 is masked");
    write(board.cpu(0), index::LVT + 3, 0x1_0700);
    assert!(!board.cpu(0).has_interrupt());
    write(board.cpu(0), index::LVT + 3, 0x700);
    assert!(!board.cpu(0).has_interrupt(), "software-disabled: entries stay masked");
    enable(board.cpu(0));
    write(board.cpu(0), index::LVT + 3, 0x700);
    assert_eq!(board.cpu(0).acknowledge(), Some(8));
    board.apics.set_intr(false);
    assert!(!board.cpu(0).has_interrupt());
    board.cpu(1).set_base(0xfee0_0000).unwrap();
    board.apics.set_intr(true);
    assert_eq!(board.cpu(1).pending(), pending::EXTINT, "with the APIC off, LINT0 is INTR");
}

#[test]
fn timer_modes() {
    let board = Board::new(1);
    let cpu = board.cpu(0);
    enable(cpu);
    write(cpu, index::DIVIDE, 0xb);
    write(cpu, index::LVT, 0x40);
    write(cpu, index::INITIAL, u32::MAX);
    let first = read(cpu, index::CURRENT);
    std::thread::sleep(Duration::from_millis(2));
    let ticks = first - read(cpu, index::CURRENT);
    assert!(ticks >= 2 * (BUS_HZ / 1000) as u32, "{ticks}");
    write(cpu, index::INITIAL, 1000);
    assert!(wait(|| cpu.acknowledge() == Some(0x40)));
    write(cpu, index::EOI, 0);
    assert_eq!(read(cpu, index::CURRENT), 0);
    write(cpu, index::LVT, 0x2_0041);
    write(cpu, index::INITIAL, (BUS_HZ / 1000) as u32);
    for _ in 0..3 {
        assert!(wait(|| cpu.acknowledge() == Some(0x41)));
        write(cpu, index::EOI, 0);
    }
    write(cpu, index::LVT, 0x4_0042);
    assert_eq!(read(cpu, index::INITIAL), 0);
    write(cpu, index::INITIAL, 5);
    assert_eq!(read(cpu, index::INITIAL), 0, "no count in this mode");
    cpu.set_tsc_deadline(1_000_000 + host_tsc_hz() / 500, 1_000_000);
    assert_ne!(cpu.tsc_deadline(), 0);
    assert!(!cpu.has_interrupt());
    assert!(wait(|| cpu.acknowledge() == Some(0x42)));
    assert_eq!(cpu.tsc_deadline(), 0);
    write(cpu, index::EOI, 0);
    cpu.set_tsc_deadline(5, 6);
    assert_eq!(cpu.acknowledge(), Some(0x42), "in the past");
}

#[test]
fn a_masked_timer_still_counts() {
    let board = Board::new(1);
    let cpu = board.cpu(0);
    enable(cpu);
    write(cpu, index::LVT, 0x1_0040);
    write(cpu, index::INITIAL, 100);
    assert!(wait(|| read(cpu, index::CURRENT) == 0));
    assert!(!cpu.has_interrupt());
}

#[test]
fn state_survives_save_and_restore() {
    let board = Board::new(2);
    let (a, b) = (board.cpu(0), board.cpu(1));
    enable(a);
    write(a, index::LVT, 0x2_0041);
    write(a, index::DIVIDE, 3);
    write(a, index::INITIAL, 0x7fff_ffff);
    for vector in [0x33, 0x85, 0x86] {
        board.apics.signal_msi(Msi { address: 0xfee0_0000, data: 1 << 15 | vector });
    }
    assert_eq!(a.acknowledge(), Some(0x86));
    let (base, mut state) = a.save();
    state.regs[index::ID] = 1 << 24;
    b.restore(base & !0x100, &state).unwrap();
    let (base_b, mut again) = b.save();
    assert_eq!(base_b, base & !0x100);
    again.regs[index::CURRENT] = state.regs[index::CURRENT];
    assert_eq!(again, state);
    assert!(!b.has_interrupt());
    write(b, index::EOI, 0);
    assert_eq!(b.acknowledge(), Some(0x85));
    assert!(b.restore(0x400, &state).is_err());
    b.restore(0xfee0_0c00, &ApicState::default()).unwrap();
    assert_eq!(b.read_msr(0x80f), Ok(0xff));
}

#[test]
fn no_interrupt_is_lost_between_threads() {
    const EACH: u32 = 20_000;
    let board = Board::new(3);
    let apics = &board.apics;
    let done = AtomicBool::new(false);
    let counts = [AtomicU64::new(0), AtomicU64::new(0)];
    std::thread::scope(|scope| {
        let receivers: Vec<_> = (0..2)
            .map(|index| {
                let apic = apics.get(index).unwrap();
                let flag = Arc::new(Flag::default());
                enable(apic);
                apic.set_attention(flag.clone());
                let (done, count) = (&done, &counts[index as usize]);
                scope.spawn(move || {
                    *flag.1.lock().unwrap() = Some(std::thread::current());
                    loop {
                        // As a run loop: clear, look, sleep only if nothing is there.
                        flag.0.store(0, Ordering::SeqCst);
                        while let Some(vector) = apic.acknowledge() {
                            assert_eq!(vector, 0x50 + index as u8);
                            write(apic, index::EOI, 0);
                            count.fetch_add(1, Ordering::SeqCst);
                        }
                        if done.load(Ordering::SeqCst) {
                            return;
                        }
                        if flag.0.load(Ordering::SeqCst) == 0 {
                            std::thread::park();
                        }
                    }
                })
            })
            .collect();
        // Each sender waits until its request was taken, so every single one must arrive.
        let senders: Vec<_> = (0..2u32)
            .map(|to| {
                let count = &counts[to as usize];
                scope.spawn(move || {
                    for sent in 1..=u64::from(EACH) {
                        let address = 0xfee0_0000 | u64::from(to) << 12;
                        apics.signal_msi(Msi { address, data: 0x50 + to });
                        let from = Instant::now();
                        while count.load(Ordering::SeqCst) < sent {
                            assert!(from.elapsed() < Duration::from_secs(20), "lost wake-up");
                            std::thread::yield_now();
                        }
                    }
                })
            })
            .collect();
        for sender in senders {
            sender.join().unwrap();
        }
        done.store(true, Ordering::SeqCst);
        for apic in apics.all() {
            apic.raise();
        }
        for receiver in receivers {
            receiver.join().unwrap();
        }
    });
    assert!(counts.iter().all(|c| c.load(Ordering::SeqCst) == u64::from(EACH)));
}
