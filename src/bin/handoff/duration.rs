//! Lengths of time on the command line: `250ms`, `25s`, `10m`, `2h`; a number alone is seconds.

use std::time::Duration;

/// The units, longer suffixes first, with their length in milliseconds.
const UNITS: [(&str, f64); 4] = [("ms", 1.0), ("s", 1e3), ("m", 60e3), ("h", 3_600e3)];
/// More than anybody waits, and little enough to add to any clock: ten years.
pub const LONGEST: Duration = Duration::from_secs(10 * 365 * 24 * 3_600);

/// Reads a length of time.
pub fn parse(text: &str) -> Result<Duration, String> {
    let (number, unit_ms) = split(text);
    if number.is_empty() || !number.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        return Err(format!("{text:?} is not a length of time: expected one such as 250ms, 25s, 10m or 2h"));
    }
    let number: f64 = number.parse().map_err(|_| format!("{number:?} is not a number"))?;
    let ms = number * unit_ms;
    if ms > LONGEST.as_secs_f64() * 1e3 {
        return Err(format!("{text} is longer than ten years"));
    }
    Ok(Duration::from_secs_f64(ms / 1e3))
}

fn split(text: &str) -> (&str, f64) {
    UNITS
        .iter()
        .find_map(|(suffix, ms)| text.strip_suffix(suffix).map(|number| (number, *ms)))
        .unwrap_or((text, 1e3))
}

/// As [`parse`], for what has to take some time.
pub fn parse_some(text: &str) -> Result<Duration, String> {
    match parse(text)? {
        Duration::ZERO => Err("it must be longer than nothing".to_owned()),
        length => Ok(length),
    }
}

/// As [`parse`], or `forever`.
pub fn parse_wait(text: &str) -> Result<Duration, String> {
    if text == "forever" { Ok(Duration::MAX) } else { parse(text) }
}

/// Returns a length of time as people read it: `312us`, `4.2ms`, `25.0s`, `12m5s`.
pub fn show_us(us: u64) -> String {
    #[allow(clippy::cast_precision_loss, reason = "two digits are shown")]
    let f = us as f64;
    match us {
        0..1_000 => format!("{us}us"),
        1_000..1_000_000 => format!("{:.1}ms", f / 1e3),
        1_000_000..60_000_000 => format!("{:.1}s", f / 1e6),
        60_000_000..3_600_000_000 => format!("{}m{}s", us / 60_000_000, us / 1_000_000 % 60),
        _ => format!("{}h{}m", us / 3_600_000_000, us / 60_000_000 % 60),
    }
}

/// As [`show_us`], for milliseconds.
pub fn show_ms(ms: u64) -> String {
    show_us(ms.saturating_mul(1000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_read_as_they_are_written() {
        for (text, ms) in [("250ms", 250), ("25s", 25_000), ("10m", 600_000), ("2h", 7_200_000), ("3", 3_000)]
        {
            assert_eq!(parse(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        assert_eq!(parse("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(parse("0"), Ok(Duration::ZERO));
    }

    #[test]
    fn what_is_no_length_is_named() {
        for text in
            ["", "s", "ms", "-1", "5 s", "1d", "1..5s", "inf", "nan", "0x10", "ten", "1e9", "99999999h"]
        {
            assert!(parse(text).is_err(), "{text}");
        }
        assert!(parse("soon").is_err_and(|e| e.contains("soon") && e.contains("25s")));
        assert!(parse_some("0s").is_err());
        assert_eq!(parse_wait("forever"), Ok(Duration::MAX));
        assert_eq!(parse_wait("1s"), Ok(Duration::from_secs(1)));
        assert!(parse_wait("ever").is_err() && parse("forever").is_err());
    }

    #[test]
    fn lengths_are_shown_with_two_or_three_digits() {
        let shown = [0, 612, 4_210, 812_000, 25_000_000, 725_000_000, 7_260_000_000].map(show_us);
        assert_eq!(shown, ["0us", "612us", "4.2ms", "812.0ms", "25.0s", "12m5s", "2h1m"]);
    }
}
