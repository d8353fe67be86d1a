//! The time that a chat template may print.
//!
//! A template that reads the clock would give another prompt after a restart. So the time is part of the run: whoever
//! starts it says what time it is, once.

/// A date and a time of day, in whatever zone the user lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CivilTime {
    year: i64,
    month: u8,
    day: u8,
    hour: u8,
    minute: u8,
    second: u8,
    /// Days since 1970-01-01.
    days: i64,
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
/// 1970-01-01 was a Thursday.
const WEEKDAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];

impl CivilTime {
    /// From seconds since 1970-01-01 00:00 and the zone's offset from UTC in seconds.
    pub fn from_unix(seconds: i64, utc_offset_seconds: i32) -> Self {
        let local = seconds.saturating_add(i64::from(utc_offset_seconds));
        let (days, second_of_day) = (local.div_euclid(86_400), local.rem_euclid(86_400));
        // Years that begin in March have their odd day at the end. (H. Hinnant, "chrono-compatible low-level date
        // algorithms", civil_from_days)
        let shifted = days + 719_468;
        let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_of_year + 2) / 153;
        let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
        Self {
            year: year_of_era + era * 400 + i64::from(month <= 2),
            month: month as u8,
            day: (day_of_year - (153 * month_from_march + 2) / 5 + 1) as u8,
            hour: (second_of_day / 3600) as u8,
            minute: (second_of_day / 60 % 60) as u8,
            second: (second_of_day % 60) as u8,
            days,
        }
    }

    /// The beginning of a day, written as `2026-11-23`; years have four digits. `None` for what is no day.
    pub fn from_iso_date(text: &str) -> Option<Self> {
        let mut parts = text.splitn(3, '-');
        let mut number = |digits: usize| {
            let part = parts.next().filter(|part| part.len() == digits && part.bytes().all(|b| b.is_ascii_digit()));
            part.and_then(|part| part.parse::<i64>().ok())
        };
        let (year, month, day) = (number(4)?, number(2)?, number(2)?);
        // The inverse of the days in `from_unix`; what is no day comes back as another one.
        let year_from_march = year - i64::from(month <= 2);
        let (era, year_of_era) = (year_from_march.div_euclid(400), year_from_march.rem_euclid(400));
        let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
        let days = era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468;
        Some(Self::from_unix(days * 86_400, 0)).filter(|time| time.iso_date() == text)
    }

    /// The day, as `2026-11-23`.
    pub fn iso_date(&self) -> String {
        format!("{:04}-{:02}-{:02}", self.year, self.month, self.day)
    }

    /// Python's `strftime` in the C locale. An error is the directive that is not supported.
    pub fn strftime(&self, format: &str) -> Result<String, String> {
        let month = MONTHS[usize::from(self.month) - 1];
        let weekday = WEEKDAYS[self.days.rem_euclid(7) as usize];
        let hour12 = (self.hour + 11) % 12 + 1;
        let mut out = String::new();
        let mut chars = format.chars();
        while let Some(c) = chars.next() {
            if c != '%' {
                out.push(c);
                continue;
            }
            let unpadded = chars.as_str().starts_with('-');
            let directive = if unpadded { chars.nth(1) } else { chars.next() };
            let number = |n: u8| if unpadded { n.to_string() } else { format!("{n:02}") };
            out += &match directive {
                Some('Y') => self.year.to_string(),
                Some('y') => number(self.year.rem_euclid(100) as u8),
                Some('m') => number(self.month),
                Some('d') => number(self.day),
                Some('e') => format!("{:2}", self.day),
                Some('H') => number(self.hour),
                Some('I') => number(hour12),
                Some('M') => number(self.minute),
                Some('S') => number(self.second),
                Some('p') => if self.hour < 12 { "AM" } else { "PM" }.into(),
                Some('B') => month.into(),
                Some('b' | 'h') => month[..3].into(),
                Some('A') => weekday.into(),
                Some('a') => weekday[..3].into(),
                Some('F') => self.iso_date(),
                Some('T') => format!("{:02}:{:02}:{:02}", self.hour, self.minute, self.second),
                Some('%') => "%".into(),
                Some(other) => return Err(format!("%{other}")),
                None => return Err("% at the end".into()),
            };
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected strings by Python's datetime.
    #[test]
    fn dates_are_those_of_the_calendar() {
        let format = "%Y-%m-%d %H:%M:%S %a %A %b %B %-d %y %I %p %F %T 100%%";
        for (seconds, offset, want) in [
            (0, 0, "1970-01-01 00:00:00 Thu Thursday Jan January 1 70 12 AM 1970-01-01 00:00:00 100%"),
            (951_782_399, 0, "2000-02-28 23:59:59 Mon Monday Feb February 28 00 11 PM 2000-02-28 23:59:59 100%"),
            (951_782_399, 3600, "2000-02-29 00:59:59 Tue Tuesday Feb February 29 00 12 AM 2000-02-29 00:59:59 100%"),
            (1_795_379_400, 10_800, "2026-11-22 23:30:00 Sun Sunday Nov November 22 26 11 PM 2026-11-22 23:30:00 100%"),
            (-1, 0, "1969-12-31 23:59:59 Wed Wednesday Dec December 31 69 11 PM 1969-12-31 23:59:59 100%"),
        ] {
            assert_eq!(CivilTime::from_unix(seconds, offset).strftime(format).as_deref(), Ok(want));
        }
    }

    #[test]
    fn every_day_is_read_back_and_what_is_no_day_is_not() {
        for days in -200_000..200_000 {
            let day = CivilTime::from_unix(days * 86_400, 0);
            assert_eq!(CivilTime::from_iso_date(&day.iso_date()), Some(day));
        }
        for text in [
            "",
            "2026",
            "2026-11",
            "2026-11-31",
            "2026-02-29",
            "1900-02-29",
            "2026-13-01",
            "2026-00-01",
            "2026-01-00",
            "2026-1-01",
            "26-01-01",
            "2026-01-01-",
            "2026-01-01T00",
            "+026-01-01",
            "2026/01/01",
            " 2026-01-01",
        ] {
            assert_eq!(CivilTime::from_iso_date(text), None, "{text}");
        }
    }

    #[test]
    fn extreme_times_do_not_overflow_and_unknown_directives_are_named() {
        for seconds in [i64::MIN, i64::MAX] {
            assert!(CivilTime::from_unix(seconds, i32::MAX).strftime("%Y %j").is_err_and(|d| d == "%j"));
        }
        assert!(CivilTime::from_unix(0, 0).strftime("%").is_err());
    }
}
