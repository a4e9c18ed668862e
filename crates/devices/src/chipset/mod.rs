//! The PC's chipset: interrupt controllers, timers, clock, power management, keyboard controller,
//! UARTs, and the board's single ports, at their fixed places.

mod access;
mod hpet;
mod i8042;
mod ioapic;
mod irq;
mod pic;
mod pit;
mod pm;
mod ports;
mod ps2;
mod rtc;
mod uart;

use std::sync::Arc;

use bus::{Bus, ClaimError, Device, IrqLine, MsiSink, PowerSwitch, Timers};
use host::tty::CharBackend;

pub use hpet::{HPET_BASE, HPET_HZ, HPET_ID, HPET_TIMERS, Hpet};
pub use i8042::I8042;
pub use ioapic::{IOAPIC_BASE, IOAPIC_PINS, IOAPIC_VERSION, Ioapic};
pub use irq::{GSIS, Interrupts, PIRQS};
pub use pic::Pic;
pub use pit::{PIT_HZ, Pit};
pub use pm::{
    ACPI_DISABLE, ACPI_ENABLE, PM_BASE, PM_LENGTH, PM_TIMER_HZ, Pm, RESET_CONTROL, SCI_IRQ, SLEEP_TYPE_S5,
    SMI_COMMAND,
};
pub use ports::BoardPorts;
pub use ps2::button;
pub use rtc::{Rtc, RtcConfig};
pub use uart::{COM_PORTS, UART_PORTS, Uart};

/// What the machine decides about the chipset.
#[derive(Clone, Copy, Debug)]
pub struct ChipsetConfig {
    /// Memory sizes and zone for the clock.
    pub rtc: RtcConfig,
    /// Port of the power management block, usually [`PM_BASE`]. `None`: a PCI function maps it
    /// later with [`Pm::map`].
    pub pm_base: Option<u16>,
}

/// The devices that every PC has.
pub struct Chipset {
    /// Lines, PIC and I/O APIC; the engine's `InterruptController`, the devices' `MsiSink`.
    pub interrupts: Arc<Interrupts>,
    /// 8254.
    pub pit: Arc<Pit>,
    /// Event timer.
    pub hpet: Arc<Hpet>,
    /// Clock and CMOS memory.
    pub rtc: Arc<Rtc>,
    /// Power management.
    pub pm: Arc<Pm>,
    /// Keyboard controller.
    pub i8042: Arc<I8042>,
    /// Single ports.
    pub ports: Arc<BoardPorts>,
}

impl Chipset {
    /// Makes the devices and claims their ports and memory on `bus`. CF9 is left to the PCI
    /// configuration ports around it: `Pm` is their `ResetControl`, and `Interrupts` the ISA
    /// bridge's `PirqRouter`.
    pub fn new(
        bus: &Bus,
        timers: &Timers,
        power: &Arc<PowerSwitch>,
        config: &ChipsetConfig,
    ) -> Result<Self, ClaimError> {
        let interrupts = Arc::new(Interrupts::new());
        let line = |gsi| interrupts.line(gsi);
        let hpet = Hpet::new(timers, line, interrupts.clone());
        let pit = Pit::new(timers, hpet.replaceable(line(0)));
        let rtc = Rtc::new(timers, hpet.replaceable(line(8)), &config.rtc);
        let pm = Arc::new(Pm::new(timers, line(SCI_IRQ), power.clone()));
        let i8042 = Arc::new(I8042::new(line(1), line(12), power.clone()));
        let ports = Arc::new(BoardPorts::new(power.clone()));
        interrupts.pic.claim(bus)?;
        interrupts.ioapic.claim(bus)?;
        pit.claim(bus)?;
        hpet.claim(bus)?;
        rtc.claim(bus)?;
        pm.claim(bus)?;
        if let Some(base) = config.pm_base {
            pm.map(bus, base)?;
        }
        i8042.claim(bus)?;
        ports.claim(bus)?;
        Ok(Self { interrupts, pit, hpet, rtc, pm, i8042, ports })
    }

    /// Connects the engine's VM.
    pub fn connect(&self, sink: Arc<dyn MsiSink>) {
        self.interrupts.connect(sink);
    }

    /// A new input of `gsi`; any number of devices may share one.
    pub fn line(&self, gsi: u32) -> IrqLine {
        self.interrupts.line(gsi)
    }

    /// A UART in the place of com1 to com4 (`number` 1–4), claimed on `bus`. `None` for another
    /// number.
    pub fn com_port(
        &self,
        bus: &Bus,
        number: usize,
        backend: Option<Arc<dyn CharBackend>>,
    ) -> Option<Result<Arc<Uart>, ClaimError>> {
        let (port, irq) = *COM_PORTS.get(number.checked_sub(1)?)?;
        let uart = Uart::new(format!("com{number}"), self.line(irq), backend);
        Some(bus.claim_ports(port..port + UART_PORTS, uart.clone()).map(|()| uart))
    }

    /// All devices here (without UARTs), for reset, save and restore in this order.
    pub fn devices(&self) -> Vec<Arc<dyn Device>> {
        vec![
            self.pit.clone(),
            self.hpet.clone(),
            self.rtc.clone(),
            self.pm.clone(),
            self.i8042.clone(),
            self.ports.clone(),
            self.interrupts.pic.clone(),
            self.interrupts.ioapic.clone(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::access::testing::Probe;
    use super::*;
    use crate::testing::Random;
    use bus::{Clock, InterruptController};

    fn chipset() -> (Bus, Timers, Chipset, Arc<Probe>) {
        let (bus, timers) = (Bus::new(), Timers::start(Clock::new()).unwrap());
        let config = ChipsetConfig { rtc: RtcConfig::default(), pm_base: Some(PM_BASE) };
        let chipset = Chipset::new(&bus, &timers, &Arc::new(PowerSwitch::default()), &config).unwrap();
        let probe = Arc::new(Probe::default());
        chipset.connect(probe.clone());
        (bus, timers, chipset, probe)
    }

    #[test]
    fn the_timer_interrupt_reaches_the_processor() {
        let (bus, _timers, chipset, probe) = chipset();
        for (port, value) in [
            (0x20, 0x11),
            (0x21, 0x20),
            (0x21, 4),
            (0x21, 1),
            (0x21, 0xfe),
            (0x43, 0x34),
            (0x40, 0xa9),
            (0x40, 4),
        ] {
            assert!(bus.port_write(port, &[value]));
        }
        let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while !probe.intr() && std::time::Instant::now() < end {
            std::thread::yield_now();
        }
        assert_eq!(chipset.interrupts.acknowledge(), Some(0x20));
    }

    #[test]
    fn com_ports_have_their_places() {
        let (bus, _timers, chipset, _) = chipset();
        for number in 1..=4 {
            chipset.com_port(&bus, number, None).unwrap().unwrap();
        }
        assert!(chipset.com_port(&bus, 0, None).is_none() && chipset.com_port(&bus, 5, None).is_none());
        assert!(chipset.com_port(&bus, 1, None).unwrap().is_err(), "taken");
        let mut data = [0];
        assert!(bus.port_read(0x2ed, &mut data));
        assert_eq!(data, [0x60]);
    }

    #[test]
    fn names_are_unique_and_a_whole_chipset_moves_to_another() {
        let (bus, _timers, chipset, _) = chipset();
        let mut random = Random(42);
        for _ in 0..50_000 {
            let port = (random.next() % 0x500) as u16;
            bus.port_write(port, &[random.next() as u8]);
        }
        let (_bus, _timers, other, _) = self::chipset();
        let mut names = std::collections::HashSet::new();
        for (from, to) in chipset.devices().iter().zip(other.devices()) {
            assert!(names.insert(from.name()));
            to.restore(&from.save().unwrap()).unwrap();
        }
    }
}
