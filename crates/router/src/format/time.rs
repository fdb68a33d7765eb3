//! Points in time as `%START_TIME(…)%` writes them, in UTC.

use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

/// How a point in time is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TimeFormat(Vec<Part>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Literal(char),
    Year,
    Month,
    Day,
    Hour,
    Minute,
    Second,
    /// So many digits of the second's fraction.
    Fraction(usize),
    /// Since 1970, in units of 10^-n seconds.
    Epoch(usize),
    Zone,
}

struct Civil {
    year: i64,
    month: u8,
    day: u8,
}

impl TimeFormat {
    /// `2026-01-31T12:00:00.000Z` (Envoy's default).
    pub(crate) fn iso() -> TimeFormat {
        TimeFormat::parse("%Y-%m-%dT%H:%M:%S.%3fZ").expect("all of these are known")
    }

    /// `2026-01-31T12:00:00`
    pub(crate) fn seconds() -> TimeFormat {
        TimeFormat::parse("%Y-%m-%dT%H:%M:%S").expect("all of these are known")
    }

    /// Reads what Envoy takes: `strftime` letters, `%f` and `%1f` to `%9f`, `%s`, `%3s`, `%6s`, `%9s`.
    pub(crate) fn parse(text: &str) -> Result<TimeFormat, String> {
        let mut parts = Vec::new();
        let mut chars = text.chars();
        while let Some(c) = chars.next() {
            if c != '%' {
                parts.push(Part::Literal(c));
                continue;
            }
            let mut letter = chars.next();
            let digits = letter.and_then(|c| c.to_digit(10)).map(|digits| digits as usize);
            if digits.is_some() {
                letter = chars.next();
            }
            match (digits, letter) {
                (None, Some('%')) => parts.push(Part::Literal('%')),
                (None, Some('Y')) => parts.push(Part::Year),
                (None, Some('m')) => parts.push(Part::Month),
                (None, Some('d')) => parts.push(Part::Day),
                (None, Some('H')) => parts.push(Part::Hour),
                (None, Some('M')) => parts.push(Part::Minute),
                (None, Some('S')) => parts.push(Part::Second),
                (None, Some('z')) => parts.push(Part::Zone),
                (None, Some('Z')) => parts.extend("UTC".chars().map(Part::Literal)),
                (None, Some('F')) => parts.extend(TimeFormat::parse("%Y-%m-%d")?.0),
                (None, Some('T')) => parts.extend(TimeFormat::parse("%H:%M:%S")?.0),
                (None, Some('f')) => parts.push(Part::Fraction(9)),
                (Some(digits @ 1..=9), Some('f')) => parts.push(Part::Fraction(digits)),
                (None, Some('s')) => parts.push(Part::Epoch(0)),
                (Some(digits @ (3 | 6 | 9)), Some('s')) => parts.push(Part::Epoch(digits)),
                (_, letter) => {
                    let letter = letter.map(String::from).unwrap_or_default();
                    return Err(format!("`%{letter}` is not known in a time format"));
                }
            }
        }
        Ok(TimeFormat(parts))
    }

    /// Writes a point in time; what is before 1970 counts as its beginning.
    pub(crate) fn render(&self, time: SystemTime, out: &mut String) {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let (seconds, nanos) = (since.as_secs(), u64::from(since.subsec_nanos()));
        let civil = Civil::from_days(seconds / 86_400);
        let of_day = seconds % 86_400;
        for part in &self.0 {
            // Writing to a String cannot fail.
            let _ = match part {
                Part::Literal(c) => out.write_char(*c),
                Part::Year => write!(out, "{:04}", civil.year),
                Part::Month => write!(out, "{:02}", civil.month),
                Part::Day => write!(out, "{:02}", civil.day),
                Part::Hour => write!(out, "{:02}", of_day / 3600),
                Part::Minute => write!(out, "{:02}", of_day / 60 % 60),
                Part::Second => write!(out, "{:02}", of_day % 60),
                Part::Fraction(digits) => {
                    write!(out, "{:0digits$}", nanos / power_of_ten(9 - digits))
                }
                Part::Epoch(0) => write!(out, "{seconds}"),
                Part::Epoch(digits) => {
                    write!(out, "{seconds}{:0digits$}", nanos / power_of_ten(9 - digits))
                }
                Part::Zone => out.write_str("+0000"),
            };
        }
    }
}

impl Civil {
    /// Days since 1970-01-01, in the proleptic Gregorian calendar. Years begin in March here, so
    /// that the leap day is the last one.
    fn from_days(days: u64) -> Civil {
        let days = i64::try_from(days).unwrap_or(i64::MAX / 2) + 719_468;
        let era = days / 146_097;
        let of_era = days % 146_097;
        let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let march_month = (5 * of_year + 2) / 153;
        let day = of_year - (153 * march_month + 2) / 5 + 1;
        let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
        Civil {
            year: era * 400 + year_of_era + i64::from(month <= 2),
            month: u8::try_from(month).unwrap_or(12),
            day: u8::try_from(day).unwrap_or(31),
        }
    }
}

fn power_of_ten(exponent: usize) -> u64 {
    (0..exponent).fold(1, |product, _| product * 10)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::time::Duration;

    fn render(format: &str, seconds: u64, nanos: u32) -> String {
        let mut out = String::new();
        let time = UNIX_EPOCH + Duration::new(seconds, nanos);
        TimeFormat::parse(format).unwrap().render(time, &mut out);
        out
    }

    #[test]
    fn calendar() {
        for (seconds, expected) in [
            (0, "1970-01-01 00:00:00"),
            (951_782_399, "2000-02-28 23:59:59"),
            (951_782_400, "2000-02-29 00:00:00"),
            (951_868_800, "2000-03-01 00:00:00"),
            (1_709_164_800, "2024-02-29 00:00:00"),
            (1_798_761_599, "2026-12-31 23:59:59"),
            (4_107_542_400, "2100-03-01 00:00:00"),
        ] {
            assert_eq!(render("%F %T", seconds, 0), expected);
        }
    }

    #[test]
    fn parts() {
        let at = (1_460_751_600, 310_042_007);
        assert_eq!(render("%Y/%m/%dT%H:%M:%S%z %Z", at.0, at.1), "2016/04/15T20:20:00+0000 UTC");
        assert_eq!(render("%s %3s %6s", at.0, at.1), "1460751600 1460751600310 1460751600310042");
        assert_eq!(render("%f %3f %1f %%", at.0, at.1), "310042007 310 3 %");
        let mut out = String::new();
        TimeFormat::iso().render(UNIX_EPOCH + Duration::new(at.0, at.1), &mut out);
        assert_eq!(out, "2016-04-15T20:20:00.310Z");
        TimeFormat::iso().render(UNIX_EPOCH - Duration::from_secs(5), &mut out);
        assert!(out.ends_with("1970-01-01T00:00:00.000Z"));
    }

    #[test]
    fn unknown() {
        for format in ["%q", "%", "%3", "%4s", "%0f"] {
            assert!(TimeFormat::parse(format).unwrap_err().contains("is not known"), "{format}");
        }
    }
}
