//! When a batch that was not taken is tried again: after a time that doubles, with jitter, so that many agents don't
//! come back at once, and not for ever. No clock and no chance in here: both are arguments.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(250);
const LONGEST: Duration = Duration::from_secs(30);

/// The tries of one batch.
#[derive(Clone, Copy, Debug)]
pub struct Retry {
    /// For how long it is tried.
    limit: Duration,
    failures: u32,
}

impl Retry {
    pub fn new(limit: Duration) -> Self {
        Self { limit, failures: 0 }
    }

    /// How long to wait after one more failure, `since` after the first try; `None`: no longer. Who was asked to stay
    /// away stays away for so long at least. `chance` is any number.
    pub fn failed(
        &mut self,
        since: Duration,
        asked: Option<Duration>,
        chance: u32,
    ) -> Option<Duration> {
        let doubled = FIRST * 2_u32.saturating_pow(self.failures.min(16));
        self.failures += 1;
        // From one half to three halves.
        let share = 0.5 + f64::from(chance) / f64::from(u32::MAX);
        let wait = doubled.min(LONGEST).mul_f64(share);
        let wait = wait.max(asked.unwrap_or_default());
        (since.saturating_add(wait) <= self.limit).then_some(wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HALF: u32 = u32::MAX / 2;

    #[test]
    fn it_doubles_up_to_a_bound() {
        let mut retry = Retry::new(Duration::MAX);
        let waits: Vec<u64> = (0..9)
            .map(|_| retry.failed(Duration::ZERO, None, HALF).unwrap())
            .map(|wait| (wait.as_secs_f64() * 1000.0).round() as u64)
            .collect();
        let expected = [250, 500, 1000, 2000, 4000, 8000, 16000, 30000, 30000];
        assert_eq!(waits, expected);
        for _ in 0..100 {
            assert!(retry.failed(Duration::ZERO, None, u32::MAX).unwrap() <= LONGEST * 2);
        }
    }

    #[test]
    fn chance_spreads_it_between_one_half_and_three() {
        let first = |chance| Retry::new(Duration::MAX).failed(Duration::ZERO, None, chance);
        assert_eq!(first(0).unwrap(), FIRST / 2);
        assert_eq!(first(u32::MAX).unwrap(), FIRST * 3 / 2);
    }

    #[test]
    fn who_was_asked_to_stay_away_does() {
        let mut retry = Retry::new(Duration::from_secs(100));
        let asked = Some(Duration::from_secs(7));
        assert_eq!(retry.failed(Duration::ZERO, asked, 0), asked);
        // Not sooner than it would have come by itself.
        let asked = Some(Duration::from_millis(1));
        assert!(retry.failed(Duration::ZERO, asked, HALF).unwrap() > FIRST);
    }

    #[test]
    fn the_end_comes_before_the_limit_passes() {
        let mut retry = Retry::new(Duration::from_secs(10));
        let asked = Some(Duration::from_secs(4));
        assert!(retry.failed(Duration::from_secs(6), asked, 0).is_some());
        assert!(retry.failed(Duration::from_secs(7), asked, 0).is_none());
    }
}
