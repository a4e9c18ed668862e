//! Where interrupt lines meet: wired-OR sharing, the fan-out to PIC and I/O APIC, PIRQ routing.
//!
//! Levels are logical (true = asserted); the polarity that software programs has no effect.
//! Rules for the connected sink: its methods are called with chipset locks held, so they must
//! not call back; and an engine must hold no lock that those methods take when it calls
//! [`InterruptController`].

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use bus::{InterruptController, IrqLine, IrqSink, Msi, MsiSink};

use super::ioapic::Ioapic;
use super::pic::Pic;
use crate::pci::PirqRouter;

/// Number of global system interrupts: 16 ISA IRQs and 16 inputs for PCI INTx.
pub const GSIS: u32 = 32;
/// Number of PIRQ routing registers of the ISA bridge (PIRQA–PIRQH). GSI 16 + n is on PIRQ n mod 8.
pub const PIRQS: u8 = 8;

/// The timer's I/O APIC input: the MADT and MP table say that IRQ 0 is there.
const TIMER_PIN: u32 = 2;

/// Forwards to the engine's VM, once there is one.
#[derive(Default)]
pub(crate) struct Outlet(RwLock<Option<Arc<dyn MsiSink>>>);

impl Outlet {
    fn set(&self, sink: Option<Arc<dyn MsiSink>>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = sink;
    }

    fn with(&self, call: impl FnOnce(&dyn MsiSink)) {
        if let Some(sink) = &*self.0.read().unwrap_or_else(PoisonError::into_inner) {
            call(&**sink);
        }
    }
}

/// Asserted sources and routing.
struct Lines {
    /// How many inputs of each GSI are asserted.
    asserted: [u32; GSIS as usize],
    /// The ISA IRQ that each PIRQ goes to.
    pirq: [Option<u8>; PIRQS as usize],
}

impl Lines {
    fn level(&self, gsi: u32) -> bool {
        self.asserted.get(gsi as usize).is_some_and(|n| *n > 0)
    }

    /// The level that the PIC's `irq` has from its ISA line and the PIRQs routed to it.
    fn pic_level(&self, irq: u8) -> bool {
        let routed = |pirq: u32| {
            self.pirq.get(pirq as usize) == Some(&Some(irq))
                && (16 + pirq..GSIS).step_by(usize::from(PIRQS)).any(|gsi| self.level(gsi))
        };
        self.level(u32::from(irq)) || (0..u32::from(PIRQS)).any(routed)
    }
}

/// The machine's interrupt wiring. Also an [`MsiSink`] that forwards to the connected one, so
/// that devices can be made before the VM.
pub struct Interrupts {
    /// The 8259 pair.
    pub pic: Arc<Pic>,
    /// The I/O APIC.
    pub ioapic: Arc<Ioapic>,
    outlet: Arc<Outlet>,
    lines: Mutex<Lines>,
}

impl Interrupts {
    /// Controllers after power-on, connected to nothing.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        let outlet = Arc::new(Outlet::default());
        let (intr, msi) = (outlet.clone(), outlet.clone());
        Self {
            pic: Arc::new(Pic::new(move |level| intr.with(|sink| sink.set_intr(level)))),
            ioapic: Arc::new(Ioapic::new(move |m| msi.with(|sink| sink.signal_msi(m)))),
            outlet,
            lines: Mutex::new(Lines { asserted: [0; GSIS as usize], pirq: [None; PIRQS as usize] }),
        }
    }

    /// Connects the engine's VM. Until then messages are dropped.
    pub fn connect(&self, sink: Arc<dyn MsiSink>) {
        self.outlet.set(Some(sink));
        let level = self.pic.intr();
        self.outlet.with(|sink| sink.set_intr(level));
    }

    /// Lets go of the VM, which usually holds this object too.
    pub fn disconnect(&self) {
        self.outlet.set(None);
    }

    /// A new input of `gsi`: the GSI is asserted while any of its inputs is.
    pub fn line(self: &Arc<Self>, gsi: u32) -> IrqLine {
        IrqLine::new(Arc::new(Input { wiring: self.clone(), gsi, asserted: Mutex::new(false) }), gsi)
    }

    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds or takes one asserted input of `gsi`.
    fn count(&self, gsi: u32, level: bool) {
        let mut lines = self.lock();
        let Some(asserted) = lines.asserted.get_mut(gsi as usize) else { return };
        let before = *asserted > 0;
        *asserted = if level { asserted.saturating_add(1) } else { asserted.saturating_sub(1) };
        let after = *asserted > 0;
        if before == after {
            return;
        }
        let pic = if gsi < 16 {
            Some(gsi as u8)
        } else {
            lines.pirq.get(gsi as usize % usize::from(PIRQS)).copied().flatten()
        };
        if let Some(irq) = pic {
            self.pic.set_irq(irq, lines.pic_level(irq));
        }
        match gsi {
            0 => self.ioapic.set_pin(TIMER_PIN, after),
            TIMER_PIN => {}
            _ => self.ioapic.set_pin(gsi, after),
        }
    }
}

impl PirqRouter for Interrupts {
    /// Routes PIRQ `pirq` (0 = A) to the PIC's `irq`, or to nothing.
    fn set_pirq(&self, pirq: u8, irq: Option<u8>) {
        let mut lines = self.lock();
        let Some(slot) = lines.pirq.get_mut(usize::from(pirq)) else { return };
        let old = std::mem::replace(slot, irq.filter(|irq| *irq < 16));
        let new = *slot;
        for irq in [old, new].into_iter().flatten() {
            self.pic.set_irq(irq, lines.pic_level(irq));
        }
    }
}

impl InterruptController for Interrupts {
    fn acknowledge(&self) -> Option<u8> {
        self.pic.acknowledge()
    }

    fn end_of_interrupt(&self, vector: u8) {
        self.ioapic.end_of_interrupt(vector);
    }
}

impl MsiSink for Interrupts {
    fn signal_msi(&self, msi: Msi) {
        self.outlet.with(|sink| sink.signal_msi(msi));
    }

    fn set_intr(&self, level: bool) {
        self.outlet.with(|sink| sink.set_intr(level));
    }
}

/// One device's input of a GSI.
struct Input {
    wiring: Arc<Interrupts>,
    gsi: u32,
    asserted: Mutex<bool>,
}

impl IrqSink for Input {
    fn set_irq(&self, _: u32, level: bool) {
        let mut asserted = self.asserted.lock().unwrap_or_else(PoisonError::into_inner);
        if *asserted != level {
            *asserted = level;
            self.wiring.count(self.gsi, level);
        }
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        self.set_irq(self.gsi, false);
    }
}

#[cfg(test)]
mod tests {
    use super::super::access::BytePorts;
    use super::super::access::testing::Probe;
    use super::*;
    use bus::BusDevice;

    fn wiring() -> (Arc<Interrupts>, Arc<Probe>) {
        let wiring = Arc::new(Interrupts::new());
        let probe = Arc::new(Probe::default());
        wiring.connect(probe.clone());
        for (port, base) in [(0x20, 0x20), (0xa0, 0x28)] {
            for value in [0x11, base, if base == 0x20 { 4 } else { 2 }, 1, 0] {
                wiring.pic.write_port(if value == 0x11 { port } else { port + 1 }, value);
            }
        }
        (wiring, probe)
    }

    fn set_entry(wiring: &Interrupts, pin: u8, low: u32) {
        wiring.ioapic.write(0, &[0x10 + pin * 2]);
        wiring.ioapic.write(0x10, &low.to_le_bytes());
    }

    #[test]
    fn shared_lines_are_the_or_of_their_inputs() {
        let (wiring, probe) = wiring();
        wiring.pic.write_port(0x4d0, 0x10);
        let (a, b) = (wiring.line(4), wiring.line(4));
        assert_eq!(a.gsi(), 4);
        a.set(true);
        b.set(true);
        a.set(false);
        assert!(probe.intr());
        b.set(false);
        b.set(false);
        assert!(!probe.intr());
        a.set(true);
        assert_eq!(wiring.acknowledge(), Some(0x24));
    }

    #[test]
    fn the_timer_is_on_input_2() {
        let (wiring, probe) = wiring();
        set_entry(&wiring, 2, 0x31);
        wiring.line(0).pulse();
        assert_eq!(probe.take_msis().len(), 1);
        assert_eq!(wiring.acknowledge(), Some(0x20));
        wiring.line(2).pulse();
        assert_eq!(wiring.acknowledge(), None);
        assert!(probe.take_msis().is_empty());
    }

    #[test]
    fn pirqs_reach_the_pic_where_they_are_routed() {
        let (wiring, probe) = wiring();
        for irq in [10, 11] {
            let elcr = wiring.pic.read_port(0x4d1);
            wiring.pic.write_port(0x4d1, elcr | 1 << (irq - 8));
        }
        let (low, high) = (wiring.line(17), wiring.line(25));
        low.set(true);
        assert!(!probe.intr());
        wiring.set_pirq(1, Some(10));
        assert!(probe.intr());
        high.set(true);
        low.set(false);
        assert!(probe.intr());
        wiring.set_pirq(1, Some(11));
        assert_eq!(wiring.acknowledge(), Some(0x2b));
        wiring.set_pirq(1, None);
        wiring.set_pirq(9, Some(3));
        assert!(!probe.intr());
    }

    #[test]
    fn level_messages_repeat_after_eoi() {
        let (wiring, probe) = wiring();
        set_entry(&wiring, 20, 0x8060);
        let line = wiring.line(20);
        line.set(true);
        wiring.end_of_interrupt(0x60);
        assert_eq!(probe.take_msis().len(), 2);
        line.set(false);
        wiring.end_of_interrupt(0x60);
        assert!(probe.take_msis().is_empty());
    }

    #[test]
    fn connecting_late_gets_the_present_level() {
        let (wiring, probe) = wiring();
        wiring.disconnect();
        wiring.line(1).pulse();
        assert!(!probe.intr());
        wiring.connect(probe.clone());
        assert!(probe.intr());
    }
}
