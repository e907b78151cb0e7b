//! One finding speaks for those like it: of a rule, a program and a peer there is one in a window, and of a rule only
//! so many. What is not told is counted, and the next one says how much that was.

use std::collections::BTreeMap;

use super::Rule;

/// Subjects that are remembered, and findings of one rule in a window.
const SUBJECTS: usize = 4096;
const MOST: u64 = 100;

#[derive(Default)]
pub struct Quiet {
    /// By rule and a hash of the subject.
    told: BTreeMap<(Rule, [u8; 16]), Last>,
    rules: [Window; Rule::COUNT],
}

#[derive(Clone, Copy)]
struct Last {
    time: u64,
    suppressed: u64,
}

#[derive(Clone, Copy, Default)]
struct Window {
    began: u64,
    told: u64,
    suppressed: u64,
}

impl Quiet {
    /// How many like it were not told since the last one; `None`: this one isn't either.
    pub fn tell(
        &mut self,
        rule: Rule,
        (program, peer): (&str, &str),
        now: u64,
        window: u64,
    ) -> Option<u64> {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&(program.len() as u64).to_le_bytes());
        hasher.update(program.as_bytes()).update(peer.as_bytes());
        let mut key = [0; 16];
        key.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        let is_over = |since: u64| now.saturating_sub(since) >= window;
        let last = self.told.get_mut(&(rule, key));
        if let Some(last) = last.filter(|last| !is_over(last.time)) {
            last.suppressed += 1;
            return None;
        }
        let all = &mut self.rules[rule as usize];
        if is_over(all.began) || all.told == 0 {
            (all.began, all.told) = (now, 0);
        }
        if all.told == MOST {
            all.suppressed += 1;
            return None;
        }
        all.told += 1;
        let others = std::mem::take(&mut all.suppressed);
        if self.told.len() == SUBJECTS {
            self.told.retain(|_, last| !is_over(last.time));
        }
        let last = Last {
            time: now,
            suppressed: 0,
        };
        let before = match self.told.len() < SUBJECTS {
            true => self.told.insert((rule, key), last),
            // It is told, and may be again.
            false => None,
        };
        Some(others + before.map_or(0, |before| before.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_in_a_window() {
        let mut quiet = Quiet::default();
        let mut tell = |subject, now| quiet.tell(Rule::LargeUpload, subject, now, 100);
        assert_eq!(tell(("a", "b"), 10), Some(0));
        assert_eq!(tell(("a", "b"), 20), None);
        assert_eq!(tell(("a", "b"), 109), None);
        // Other subjects, and one that only reads the same.
        assert_eq!(tell(("a", "c"), 30), Some(0));
        assert_eq!(tell(("", "ab"), 30), Some(0));
        assert_eq!(tell(("ab", ""), 30), Some(0));
        assert_eq!(tell(("a", "b"), 110), Some(2));
        assert_eq!(tell(("a", "b"), 210), Some(0));
        assert_eq!(quiet.tell(Rule::EncodedData, ("a", "b"), 211, 100), Some(0));
    }

    #[test]
    fn a_flood_is_bounded() {
        let mut quiet = Quiet::default();
        let mut tell = |subject: u64, now| {
            quiet.tell(Rule::SecretLeaving, ("a", &subject.to_string()), now, 100)
        };
        let told = (0..10_000)
            .filter(|subject| tell(*subject, 5).is_some())
            .count();
        assert_eq!(told as u64, MOST);
        assert_eq!(tell(20_000, 105), Some(10_000 - MOST));
        for window in 2..200 {
            for subject in 0..MOST {
                tell(window * MOST + subject, window * 100 + 5);
            }
        }
        assert!(quiet.told.len() <= SUBJECTS);
    }
}
