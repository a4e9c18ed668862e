//! The host's TSC frequency.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// How long to measure where CPUID does not tell.
const MEASURE: Duration = Duration::from_millis(10);

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
