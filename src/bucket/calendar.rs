//! Where the windows of the UTC calendar begin and end, in the proleptic Gregorian calendar.
//!
//! Whole-number arithmetic on days since the epoch; `decide.lua` has the same. Years begin in March here, so that the
//! leap day is the last one of a year: the 400 years of the calendar's cycle, its centuries and its fours of years are
//! then all of one length each, but for the last day.

use crate::clock::Micros;

/// A day in microseconds.
pub(super) const DAY: Micros = 86_400_000_000;

/// Days from the first of March of the year 0 to the epoch.
const EPOCH: u64 = 719_468;

/// A day of the calendar.
struct Day {
    /// Days since the first of its month.
    of_month: u64,
    /// Days since the first of January.
    of_year: u64,
}

/// The day that is so many days after the epoch.
fn day(days: u64) -> Day {
    let of_cycle = (days + EPOCH) % 146_097;
    let year = (of_cycle - of_cycle / 1_460 + of_cycle / 36_524 - of_cycle / 146_096) / 365;
    let since_march = of_cycle - (365 * year + year / 4 - year / 100);
    // Five months, of 31, 30, 31, 30 and 31 days, are 153 days; and again from August on.
    let month = (5 * since_march + 2) / 153;
    let of_month = since_march - (153 * month + 2) / 5;
    let is_leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year == 0);
    let of_year = if month >= 10 { since_march - 306 } else { since_march + 59 + u64::from(is_leap) };
    Day { of_month, of_year }
}

/// The month of a moment: its first one, and its length.
pub(super) fn month(now: Micros) -> (Micros, Micros) {
    // 31 days after the first of a month is early in the next one.
    slot(now, 31, |days| day(days).of_month)
}

/// The year of a moment: its first one, and its length.
pub(super) fn year(now: Micros) -> (Micros, Micros) {
    slot(now, 366, |days| day(days).of_year)
}

fn slot(now: Micros, longest: u64, since_first: impl Fn(u64) -> u64) -> (Micros, Micros) {
    let days = now / DAY;
    let first = days - since_first(days);
    let next = first + longest - since_first(first + longest);
    (first * DAY, (next - first) * DAY)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_leap(year: u64) -> bool {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    }

    /// Day by day from 1970 to 2400, over every kind of leap year.
    #[test]
    fn every_day_is_in_its_month_and_its_year() {
        let mut days = 0;
        for y in 1970..2400 {
            let lengths = [31, 28 + u64::from(is_leap(y)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
            let (first_of_year, length_of_year) = (days, lengths.iter().sum::<u64>());
            for length in lengths {
                let first = days;
                for _ in 0..length {
                    for now in [days * DAY, days * DAY + DAY - 1] {
                        assert_eq!(month(now), (first * DAY, length * DAY), "day {days}, in {y}");
                        assert_eq!(
                            year(now),
                            (first_of_year * DAY, length_of_year * DAY),
                            "day {days}, in {y}"
                        );
                    }
                    days += 1;
                }
            }
        }
    }

    #[test]
    fn leap_days_month_ends_and_year_ends() {
        // Moments as `date -u -d … +%s` tells them.
        let second = 1_000_000;
        let cases = [
            // 2024-02-29T23:59:59Z is in the February that begins at 2024-02-01T00:00:00Z, of 29 days.
            (1_709_251_199, 1_706_745_600, 29),
            // A second later it is March.
            (1_709_251_200, 1_709_251_200, 31),
            // 2023-02-28T23:59:59Z, 2100-02-28T23:59:59Z: the last of 28.
            (1_677_628_799, 1_675_209_600, 28),
            (4_107_542_399, 4_105_123_200, 28),
            // 2025-12-31T23:59:59Z.
            (1_767_225_599, 1_764_547_200, 31),
        ];
        for (now, first, days) in cases {
            assert_eq!(month(now * second), (first * second, days * DAY), "{now}");
        }
        // 2024-12-31T23:59:59Z is in the leap year that begins at 2024-01-01T00:00:00Z.
        assert_eq!(year(1_735_689_599 * second), (1_704_067_200 * second, 366 * DAY));
        assert_eq!(year(1_735_689_600 * second), (1_735_689_600 * second, 365 * DAY));
    }
}
