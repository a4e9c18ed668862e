//! Messages between local APICs, and from the I/O APIC and devices to them.

use std::sync::atomic::Ordering;

use bus::{Msi, MsiSink};

use super::registers::{Command, ERROR_SENT, Effect, mode};
use super::{Apic, Apics};

/// An interrupt message on its way.
struct Message {
    mode: u32,
    vector: u8,
    level: bool,
    destination: u32,
    logical: bool,
    /// The destination has 32 bits.
    wide: bool,
    /// One of the addressed processors is enough.
    lowest: bool,
}

impl Apics {
    fn deliver(&self, message: &Message) {
        let to = |apic: &&std::sync::Arc<Apic>| {
            apic.lock().matches(message.destination, message.logical, message.wide)
        };
        let send = |apic: &Apic| apic.receive(message.mode, message.vector, message.level);
        let broadcast = message.destination == if message.wide { u32::MAX } else { 0xff };
        if message.lowest {
            // Arbitration by processor priority (Intel SDM vol. 3, 11.6.2.4).
            let ready = self.cpus.iter().filter(to).filter(|a| a.lock().software_enabled());
            if let Some(apic) = ready.min_by_key(|a| a.lock().ppr()) {
                send(apic);
            }
        } else if !message.logical && !broadcast {
            self.cpus.iter().filter(|a| a.id() == message.destination).filter(to).for_each(|a| send(a));
        } else {
            self.cpus.iter().filter(to).for_each(|a| send(a));
        }
    }
}

impl MsiSink for Apics {
    /// Address and data as in Intel SDM vol. 3, 11.11. The destination mode counts whether or not
    /// the redirection hint is set: the I/O APIC and today's kernels send it that way.
    fn signal_msi(&self, msi: Msi) {
        let delivery = msi.data >> 8 & 7;
        let hint = msi.address & 1 << 3 != 0;
        self.deliver(&Message {
            mode: delivery,
            vector: msi.data as u8,
            level: msi.data & 1 << 15 != 0,
            destination: (msi.address >> 12 & 0xff) as u32,
            logical: msi.address & 1 << 2 != 0,
            wide: false,
            lowest: delivery == mode::LOWEST || delivery == mode::FIXED && hint,
        });
    }

    fn set_intr(&self, level: bool) {
        if self.intr.swap(level, Ordering::SeqCst) == level {
            return;
        }
        for apic in &self.cpus {
            // What is stored last is what counts when two threads meet here.
            apic.change(|r| r.set_intr(self.intr.load(Ordering::SeqCst)));
        }
    }
}

impl Apic {
    /// Takes the message that MSI data asks for, whatever its destination.
    pub fn signal(&self, data: u32) {
        self.receive(data >> 8 & 7, data as u8, data & 1 << 15 != 0);
    }

    fn receive(&self, mode: u32, vector: u8, level: bool) {
        self.change(|r| r.message(mode, vector, level));
    }

    /// Does what a register write asks for, without the lock.
    pub(super) fn act(&self, effect: Effect) {
        match effect {
            Effect::None => {}
            Effect::EndOfInterrupt(vector) => self.interrupts.end_of_interrupt(vector),
            Effect::Send(command) => self.send(command),
        }
    }

    fn send(&self, Command { low, destination, wide }: Command) {
        let (delivery, vector) = (low >> 8 & 7, low as u8);
        let (level_trigger, assert) = (low & 1 << 15 != 0, low & 1 << 14 != 0);
        let shorthand = low >> 18 & 3;
        let fixed = matches!(delivery, mode::FIXED | mode::LOWEST);
        // INIT level de-assert only sets arbitration ids, which no longer exist; the rest is not
        // sent by the ICR (SDM vol. 3, 11.6.1).
        let known = matches!(delivery, mode::NMI | mode::INIT | mode::STARTUP | mode::SMI) || fixed;
        if !known || delivery == mode::INIT && level_trigger && !assert {
            return;
        }
        if fixed && vector < 16 {
            self.change(|r| r.error(ERROR_SENT));
            return;
        }
        let Some(peers) = self.peers.upgrade() else { return };
        // Interrupts by ICR are edges, whatever the trigger bit says (SDM vol. 3, 11.6.1).
        match shorthand {
            // Self takes only fixed (table 11-3).
            1 if fixed => self.receive(delivery, vector, false),
            1 => {}
            0 => peers.deliver(&Message {
                mode: delivery,
                vector,
                level: false,
                destination,
                logical: low & 1 << 11 != 0,
                wide,
                lowest: delivery == mode::LOWEST,
            }),
            all => {
                for apic in &peers.cpus {
                    let own = apic.index == self.index;
                    if !(own && (all == 3 || !fixed)) && apic.lock().enabled() {
                        apic.receive(delivery, vector, false);
                    }
                }
            }
        }
    }
}
