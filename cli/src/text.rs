//! Figures and lines as text.

use std::io::{self, Write};
use std::time::{Duration, SystemTime};

use crate::failure::Failure;

/// Formats bytes with three digits: `1.25 MiB`.
pub fn bytes(number: f64) -> String {
    let (mut value, mut unit) = (number.abs(), "B");
    for next in ["KiB", "MiB", "GiB", "TiB"] {
        if value < 1023.5 {
            break;
        }
        (value, unit) = (value / 1024.0, next);
    }
    let digits = match value {
        _ if unit == "B" || value >= 99.95 => 0,
        value if value >= 9.995 => 1,
        _ => 2,
    };
    format!("{}{value:.digits$} {unit}", if number < 0.0 { "-" } else { "" })
}

/// Formats a change of bytes with its sign.
pub fn change(number: f64) -> String {
    format!("{}{}", if number > 0.0 { "+" } else { "" }, bytes(number))
}

/// Formats a whole number with commas between its thousands.
pub fn whole(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Formats a part of a whole.
pub fn percent(part: f64, all: f64) -> String {
    if all > 0.0 { format!("{:.1} %", 100.0 * part / all) } else { "-".into() }
}

/// Formats seconds since 1970.
pub fn time(seconds: f64) -> String {
    let since = Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or_default();
    match SystemTime::UNIX_EPOCH.checked_add(since) {
        // The year 10000, which the format does not have.
        Some(at) if seconds < 253_402_300_800.0 => humantime::format_rfc3339_seconds(at).to_string(),
        _ => format!("{seconds} seconds after 1970"),
    }
}

/// Formats a time span in the unit that fits.
pub fn span(seconds: f64) -> String {
    match seconds {
        seconds if seconds < 90.0 => format!("{seconds:.0} s"),
        seconds if seconds < 5_400.0 => format!("{:.0} min", seconds / 60.0),
        seconds if seconds < 172_800.0 => format!("{:.1} h", seconds / 3_600.0),
        _ => format!("{:.1} d", seconds / 86_400.0),
    }
}

/// Replaces what is no character of a line: names come from files and servers, and must not steer a terminal.
pub fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Shortens a text that is not this program's own.
pub fn short(text: &str) -> String {
    const LONGEST: usize = 200;
    let line = one_line(text.trim().lines().next().unwrap_or_default());
    match line.char_indices().nth(LONGEST) {
        Some((at, _)) => format!("{}…", &line[..at]),
        None => line,
    }
}

/// Prints to stdout.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(Failure::of_output)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_three_digits_and_their_unit() {
        let shown =
            [0.0, 999.0, 1_023.0, 1_024.0, 10_235.0, 102_390.0, 1_048_575.0, 5e9, -2_048.0].map(bytes);
        let expected = [
            "0 B",
            "999 B",
            "1023 B",
            "1.00 KiB",
            "10.0 KiB",
            "100 KiB",
            "1.00 MiB",
            "4.66 GiB",
            "-2.00 KiB",
        ];
        assert_eq!(shown, expected);
        assert_eq!([change(1.0), change(0.0), change(-1.0)], ["+1 B", "0 B", "-1 B"]);
        assert_eq!(
            [whole(0), whole(999), whole(1_000), whole(1_234_567)],
            ["0", "999", "1,000", "1,234,567"]
        );
        assert_eq!(time(1_793_000_000.25), "2026-10-26T07:33:20Z");
        assert_eq!(time(1e15), "1000000000000000 seconds after 1970");
        assert_eq!([span(89.0), span(300.0), span(7_200.0), span(1e6)], ["89 s", "5 min", "2.0 h", "11.6 d"]);
    }

    #[test]
    fn foreign_text_is_one_short_line_without_control_characters() {
        assert_eq!(short("a\x1b[2Jb\nc"), "a [2Jb");
        assert_eq!(short(&"ä".repeat(300)).chars().count(), 201);
    }
}
