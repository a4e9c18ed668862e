//! The local APIC's timer: one-shot, periodic and TSC-deadline (Intel SDM vol. 3, 11.5.4).

use bus::Clock;

/// Frequency of the timer's bus clock.
pub const BUS_HZ: u64 = engine::APIC_BUS_HZ as u64;

/// A shorter period would only keep the host busy: no guest can take interrupts faster.
const SHORTEST_PERIOD: u64 = 50_000;

/// Timer modes, LVT bits 17–18.
const PERIODIC: u32 = 1;
const DEADLINE: u32 = 2;

/// The timer's registers. Deadlines are in ns on the VM's clock, 0 when it does not run.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Timing {
    pub initial: u32,
    pub divide: u32,
    pub mode: u32,
    pub deadline: u64,
    pub tsc_deadline: u64,
    /// Deadline that the timer service knows.
    pub armed: u64,
}

impl Timing {
    /// Ticks a second after the divider: bits 3, 1 and 0 give 2, 4, … 128, 1.
    fn hz(&self) -> u64 {
        let code = self.divide & 3 | self.divide >> 1 & 4;
        BUS_HZ >> ((code + 1) & 7)
    }

    fn period(&self) -> u64 {
        Clock::nanos(u64::from(self.initial), self.hz()).max(1)
    }

    /// Initial count is written.
    pub fn start(&mut self, value: u32, now: u64) {
        if self.mode & DEADLINE != 0 {
            return;
        }
        self.initial = value;
        self.deadline = if value == 0 { 0 } else { now.saturating_add(self.period()) };
    }

    /// Current count.
    pub fn current(&self, now: u64) -> u32 {
        if self.deadline == 0 || self.mode & DEADLINE != 0 {
            return 0;
        }
        let left = if self.deadline > now {
            self.deadline - now
        } else if self.mode == PERIODIC {
            // The callback is late; the count has wrapped meanwhile.
            self.period() - (now - self.deadline) % self.period()
        } else {
            0
        };
        Clock::ticks(left, self.hz()).min(u64::from(self.initial)) as u32
    }

    /// Divide configuration is written: what is left goes on at the new rate.
    pub fn set_divide(&mut self, value: u32, now: u64) {
        let left = self.current(now);
        self.divide = value;
        if self.deadline != 0 && self.mode & DEADLINE == 0 {
            self.deadline = now.saturating_add(Clock::nanos(u64::from(left), self.hz()));
        }
    }

    /// LVT mode is written. Going to or from TSC-deadline stops the timer (SDM vol. 3, 11.5.4.1).
    pub fn set_mode(&mut self, mode: u32, _now: u64) {
        if (self.mode ^ mode) & DEADLINE != 0 {
            self.initial = 0;
            self.deadline = 0;
            self.tsc_deadline = 0;
        }
        self.mode = mode;
    }

    /// IA32_TSC_DEADLINE is written while the guest's TSC reads `tsc`. True: it fires at once.
    pub fn set_tsc_deadline(&mut self, value: u64, tsc: u64, hz: u64, now: u64) -> bool {
        if self.mode & DEADLINE == 0 {
            return false;
        }
        self.tsc_deadline = value;
        self.deadline = 0;
        if value == 0 {
            return false;
        }
        match value.checked_sub(tsc) {
            Some(ticks) if ticks != 0 => {
                self.deadline = now.saturating_add(Clock::nanos(ticks, hz.max(1)));
                false
            }
            _ => {
                self.tsc_deadline = 0;
                true
            }
        }
    }

    /// The deadline has perhaps passed. True: the timer's interrupt is due.
    pub fn expire(&mut self, now: u64) -> bool {
        if self.deadline == 0 || self.deadline > now {
            return false;
        }
        if self.mode == PERIODIC && self.initial != 0 {
            let period = self.period().max(SHORTEST_PERIOD);
            // Periods that nobody could see pass are one interrupt.
            let missed = (now - self.deadline) / period;
            self.deadline = self.deadline.saturating_add(period.saturating_mul(missed + 1));
        } else {
            self.deadline = 0;
            self.tsc_deadline = 0;
        }
        true
    }
}

/// The host's time-stamp counter.
pub fn host_tsc() -> u64 {
    // SAFETY: RDTSC reads a counter; every x86-64 processor has it.
    unsafe { std::arch::x86_64::_rdtsc() }
}
