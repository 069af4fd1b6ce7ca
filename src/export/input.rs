//! Values from outside, of the environment or of a query → numbers, durations and sizes, and the form in which a message shows
//! them.
//!
//! Pure.

use std::fmt;
use std::time::Duration;

/// Reads a number in decimal digits within bounds.
pub(crate) fn number(value: &str, least: usize, most: usize) -> Option<usize> {
    let number = usize::try_from(digits(value)?).ok()?;
    (least..=most).contains(&number).then_some(number)
}

/// Reads a number in decimal digits alone; `parse` would take a sign, too.
pub(crate) fn digits(value: &str) -> Option<u64> {
    value.bytes().all(|byte| byte.is_ascii_digit()).then(|| value.parse().ok()).flatten()
}

/// Splits digits from the unit behind them.
fn number_and_unit(value: &str) -> Option<(u64, &str)> {
    let end = value.find(|c: char| !c.is_ascii_digit()).unwrap_or(value.len());
    Some((digits(&value[..end])?, value[end..].trim_start()))
}

/// Reads a duration: a number and a unit, such as `5m`; 0 needs none.
pub(crate) fn duration(value: &str) -> Option<Duration> {
    let (number, unit) = number_and_unit(value)?;
    let seconds = match unit {
        "ms" => return Some(Duration::from_millis(number)),
        "" if number == 0 => 1,
        "s" => 1,
        "m" => 60,
        "h" => 60 * 60,
        "d" => 24 * 60 * 60,
        _ => return None,
    };
    Some(Duration::from_secs(number.checked_mul(seconds)?))
}

/// Reads a size: bytes, or a number and a unit such as `64MiB`.
pub(crate) fn size(value: &str) -> Option<u64> {
    let (number, unit) = number_and_unit(value)?;
    let bytes: u64 = match unit {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    };
    number.checked_mul(bytes)
}

/// Displays a value from outside in a line of text: cut short, and without control characters.
pub(crate) struct Quoted<'a>(pub(crate) &'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const LONGEST: usize = 80;
        for c in self.0.chars().take(LONGEST) {
            write!(f, "{}", if c.is_control() { '?' } else { c })?;
        }
        if self.0.chars().nth(LONGEST).is_some() { f.write_str("…") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes() {
        for (text, millis) in [("5m", 300_000), ("0", 0), ("0s", 0), ("250ms", 250), ("2 h", 7_200_000)] {
            assert_eq!(duration(text), Some(Duration::from_millis(millis)), "{text}");
        }
        for text in
            ["", "m", "5", "-5m", "5 minutes", "1.5h", "99999999999999999999s", "18446744073709551615d"]
        {
            assert_eq!(duration(text), None, "{text}");
        }
        for (text, bytes) in [("0", 0), ("17", 17), ("17B", 17), ("512KiB", 524_288), ("1 GiB", 1 << 30)] {
            assert_eq!(size(text), Some(bytes), "{text}");
        }
        for text in ["", "KiB", "-1", "1.5MiB", "1MB", "20000000000GiB"] {
            assert_eq!(size(text), None, "{text}");
        }
    }
}
