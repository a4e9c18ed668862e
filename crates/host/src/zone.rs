//! The host's time zone.
#![allow(unsafe_code)]

/// Seconds that local time is ahead of UTC now.
pub fn local_utc_offset() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs());
    offset_at(now as libc::time_t)
}

fn offset_at(time: libc::time_t) -> i64 {
    // SAFETY: tm is plain data for which zeros are valid; both pointers are valid for the call.
    unsafe {
        let mut local: libc::tm = std::mem::zeroed();
        if libc::localtime_r(&raw const time, &raw mut local).is_null() { 0 } else { local.tm_gmtoff }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_are_whole_minutes_within_a_day() {
        let offset = local_utc_offset();
        assert!(offset % 60 == 0 && offset.abs() < 86_400, "{offset}");
    }
}
