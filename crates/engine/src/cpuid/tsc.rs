//! The host's TSC frequency.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// How long to measure where CPUID does not tell.
const MEASURE: Duration = Duration::from_millis(10);

/// The fraction nearest to `hz` / `crystal` whose numerator is so small that Linux' 32-bit
/// `crystal in kHz * numerator` does not overflow.
pub(crate) fn ratio(hz: u64, crystal: u64) -> (u32, u32) {
    let max_numerator = u64::from(u32::MAX) / (crystal / 1000).max(1);
    let error = |numerator: u64, denominator: u64| {
        (u128::from(crystal) * u128::from(numerator)).abs_diff(u128::from(hz) * u128::from(denominator))
            / u128::from(denominator)
    };
    (1..=1000u64)
        .map(|d| ((hz * d + crystal / 2) / crystal, d))
        .filter(|(n, _)| (1..=max_numerator).contains(n))
        .min_by_key(|&(n, d)| error(n, d))
        .map_or((1, 1), |(n, d)| (n as u32, d as u32))
}

fn tsc() -> u64 {
    // SAFETY: RDTSC exists on every x86-64 processor and Linux does not disable it by default.
    unsafe { std::arch::x86_64::_rdtsc() }
}

/// TSC ticks a second, from CPUID leaf 15h where it is complete, else measured once.
pub fn host_tsc_hz() -> u64 {
    static HZ: OnceLock<u64> = OnceLock::new();
    *HZ.get_or_init(|| {
        let leaf = super::host_or_zero(0x15, 0);
        if leaf.eax != 0 && leaf.ebx != 0 && leaf.ecx != 0 {
            return u64::from(leaf.ecx) * u64::from(leaf.ebx) / u64::from(leaf.eax);
        }
        let (start, first) = (Instant::now(), tsc());
        std::thread::sleep(MEASURE);
        let (elapsed, last) = (start.elapsed(), tsc());
        (u128::from(last.wrapping_sub(first)) * 1_000_000_000 / elapsed.as_nanos().max(1)) as u64
    })
}
