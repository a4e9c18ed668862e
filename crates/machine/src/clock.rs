//! The host's time zone, for a clock that keeps local time.

/// Seconds that local time is ahead of UTC now; 0 where the host does not know.
pub fn utc_offset() -> i64 {
    // SAFETY: a null argument asks for the result only.
    let now = unsafe { libc::time(std::ptr::null_mut()) };
    // SAFETY: `tm` is plain data for which zeros are valid.
    let mut local: libc::tm = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to live values.
    let known = unsafe { !libc::localtime_r(&raw const now, &raw mut local).is_null() };
    if known { local.tm_gmtoff } else { 0 }
}

#[cfg(test)]
mod tests {
    #[test]
    fn no_zone_is_a_day_away() {
        assert!(super::utc_offset().abs() <= 14 * 3600);
    }
}
