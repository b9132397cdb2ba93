//! The clocks, and the name of the boot that gives the monotonic one its meaning.

use std::fs;
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};
use nix::unistd::{SysconfVar, sysconf};

/// Returns the wall clock in milliseconds since 1970, or 0 when it is set to before that.
#[must_use]
pub fn wall_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Returns `CLOCK_MONOTONIC` in microseconds: the same clock in every process of one boot, see clock_gettime(2).
#[must_use]
pub fn monotonic_us() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC)
        .expect("clock_gettime(2) fails only for clocks that do not exist");
    let micros = now.tv_sec() * 1_000_000 + now.tv_nsec() / 1_000;
    u64::try_from(micros).expect("the monotonic clock starts at zero")
}

/// Returns the wall-clock time, in milliseconds since 1970, of a moment of this boot in clock ticks: of a process's start
/// (field 22 of proc_pid_stat(5)), to a tick.
#[must_use]
pub fn wall_ms_of_ticks(ticks: u64) -> u64 {
    let since_boot = clock_gettime(ClockId::CLOCK_BOOTTIME)
        .map_or(0, |now| u64::try_from(now.tv_sec() * 1_000 + now.tv_nsec() / 1_000_000).unwrap_or_default());
    let a_second = sysconf(SysconfVar::CLK_TCK).ok().flatten().and_then(|n| u64::try_from(n).ok());
    let started = ticks.saturating_mul(1_000) / a_second.filter(|n| *n > 0).unwrap_or(100);
    wall_ms().saturating_sub(since_boot.saturating_sub(started))
}

/// Returns the id of this boot (`/proc/sys/kernel/random/boot_id`, see random(4)), or an empty string without /proc.
#[must_use]
pub fn boot_id() -> &'static str {
    static BOOT_ID: OnceLock<String> = OnceLock::new();
    BOOT_ID.get_or_init(|| {
        let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        text.trim().to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_monotonic_clock_never_goes_back() {
        let first = monotonic_us();
        assert!(first > 0 && monotonic_us() >= first);
    }

    #[test]
    fn the_wall_clock_is_in_milliseconds_of_this_century() {
        let in_2020 = 1_577_836_800_000;
        assert!(wall_ms() > in_2020 && wall_ms() < 100 * in_2020);
    }

    #[test]
    fn this_process_started_a_moment_ago() {
        let stat = fs::read_to_string("/proc/self/stat").expect("there is a /proc");
        let ticks = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(19)?.parse().ok());
        let started = wall_ms_of_ticks(ticks.expect("field 22 is a number"));
        // Ticks are of 10 ms, and a test program may run for long before this test has its turn.
        assert!(started <= wall_ms() + 10 && started > wall_ms() - 3_600_000, "{started}");
    }
}
