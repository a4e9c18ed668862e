//! The VM's monotonic clock.

use std::time::Instant;

/// Nanoseconds since the VM was made. All timers and counters (PIT, HPET, PM timer, APIC timer)
/// are derived from it.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
}

impl Clock {
    /// A clock that starts now.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        Self { start: Instant::now() }
    }

    /// Nanoseconds since the start.
    pub fn now(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    /// The host instant at `ns`.
    pub fn instant(&self, ns: u64) -> Instant {
        self.start + std::time::Duration::from_nanos(ns)
    }

    /// Ticks of a counter of `hz` at `ns`, without overflow for any frequency below 2^32.
    pub fn ticks(ns: u64, hz: u64) -> u64 {
        ((u128::from(ns) * u128::from(hz)) / 1_000_000_000) as u64
    }

    /// Nanoseconds that `ticks` of a counter of `hz` take, rounded up.
    pub fn nanos(ticks: u64, hz: u64) -> u64 {
        (u128::from(ticks) * 1_000_000_000).div_ceil(u128::from(hz)).min(u128::from(u64::MAX)) as u64
    }
}
