//! Time as the kernel counts it, whatever clock this process is shown.
//!
//! Records carry nanoseconds since boot from the kernel programs and from perf events. In a time namespace
//! `clock_gettime` gives another number; compared with theirs it would be days off.

use std::{fs, sync::OnceLock};

use rustix::time::{ClockId, clock_gettime};

/// What this process' namespace adds to the time since boot, in nanoseconds.
static SHIFT: OnceLock<i64> = OnceLock::new();

/// Nanoseconds since boot, suspend included. The first call reads a file: make it before the lock-in.
pub fn since_boot() -> u64 {
    let shift = *SHIFT.get_or_init(own_shift);
    nanoseconds(ClockId::Boottime).wrapping_sub(shift as u64)
}

/// What to add to [`since_boot`] for the wall clock. Changes when somebody sets that.
pub fn to_wall() -> u64 {
    nanoseconds(ClockId::Realtime).wrapping_sub(since_boot())
}

pub fn nanoseconds(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Kernels without time namespaces (before 5.6) have no such file.
fn own_shift() -> i64 {
    let offsets = fs::read_to_string("/proc/self/timens_offsets").unwrap_or_default();
    shift_of(&offsets)
}

/// `boottime  100000  0`: seconds and nanoseconds. Kernels before 5.7 write numbers for names.
fn shift_of(offsets: &str) -> i64 {
    let shift = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        if !matches!(words.next(), Some("boottime" | "7")) {
            return None;
        }
        let seconds: i64 = words.next()?.parse().ok()?;
        let nanoseconds: i64 = words.next()?.parse().ok()?;
        seconds.checked_mul(1_000_000_000)?.checked_add(nanoseconds)
    };
    offsets.lines().find_map(shift).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shifts() {
        // Linux 6.18 and 5.6.
        let now = "monotonic           0         0\nboottime       100000         7\n";
        assert_eq!(shift_of(now), 100_000_000_000_007);
        assert_eq!(shift_of("1 0 0\n7 -3 500000000\n"), -2_500_000_000);
        for broken in [
            "",
            "boottime",
            "boottime 1",
            "boottime x 0",
            "boottime 9223372036854775807 0",
        ] {
            assert_eq!(shift_of(broken), 0, "{broken}");
        }
    }

    #[test]
    fn both_clocks_agree() {
        let sum = since_boot().wrapping_add(to_wall());
        let apart = nanoseconds(ClockId::Realtime).abs_diff(sum);
        assert!(apart < 1_000_000_000, "{apart}");
    }
}
