//! Dates.

/// A date and time of the day, UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DateTime {
    year: i64,
    month: i64,
    day: i64,
    hour: i64,
    minute: i64,
    second: i64,
    weekday: usize,
}

const SECONDS: i64 = 86_400;
const WEEKDAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

impl DateTime {
    /// From seconds since 1970.
    pub fn new(time: i64) -> Self {
        let (days, rest) = (time.div_euclid(SECONDS), time.rem_euclid(SECONDS));
        // Years that start in March, so that the leap day is the last one of a year; day 0 is the
        // 1st of March of the year 0.
        let day = days + 719_468;
        let (era, day) = (day.div_euclid(146_097), day.rem_euclid(146_097));
        let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
        let day = day - (365 * year + year / 4 - year / 100);
        let month = (5 * day + 2) / 153;
        let date = day - (153 * month + 2) / 5 + 1;
        let month = if month < 10 { month + 3 } else { month - 9 };
        Self {
            year: year + era * 400 + i64::from(month <= 2),
            month,
            day: date,
            hour: rest / 3600,
            minute: rest / 60 % 60,
            second: rest % 60,
            weekday: (days + 4).rem_euclid(7) as usize,
        }
    }

    /// Now.
    pub fn now() -> Self {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Self::new(since.map_or(0, |d| d.as_secs() as i64))
    }

    /// `2026-11-24 12:00:00 Tuesday`
    pub fn long(&self) -> String {
        let Self { year, month, day, hour, minute, second, weekday } = self;
        let name = WEEKDAYS.get(*weekday).copied().unwrap_or_default();
        format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} {name}")
    }

    /// `20261124120000`
    pub fn digits(&self) -> String {
        let Self { year, month, day, hour, minute, second, .. } = self;
        format!("{year:04}{month:02}{day:02}{hour:02}{minute:02}{second:02}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        for (time, text) in [
            (0, "1970-01-01 00:00:00 Thursday"),
            (951_782_399, "2000-02-28 23:59:59 Monday"),
            (951_868_800, "2000-03-01 00:00:00 Wednesday"),
            (1_795_521_600, "2026-11-24 12:00:00 Tuesday"),
            (4_107_542_400, "2100-03-01 00:00:00 Monday"),
            (-1, "1969-12-31 23:59:59 Wednesday"),
        ] {
            assert_eq!(DateTime::new(time).long(), text);
        }
        assert_eq!(DateTime::new(1_795_521_600).digits(), "20261124120000");
        // No time is too far away.
        assert!(!DateTime::new(i64::MAX / 2).long().is_empty());
        assert!(!DateTime::new(i64::MIN).digits().is_empty());
    }
}
