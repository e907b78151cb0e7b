//! What a virtual machine says on its console, and what that is worth.

use std::collections::{BTreeSet, VecDeque};

use anyhow::{Result, bail};

use crate::tally::Tally;

/// Loads each kernel program by itself, a line for each: `NAME: ok, …`.
pub(crate) const LOAD_CHECK: &str = "load-check";

/// What a kernel says when it is not well.
const TROUBLE: &[&str] = &[
    "Kernel panic",
    "Oops",
    "BUG: ",
    "soft lockup",
    "rcu: INFO",
    "rcu_sched self-detected",
    "rcu_preempt self-detected",
    "hung_task",
    "blocked for more than",
];

/// So many of the last lines are told of a machine that failed, each so long at most.
const TAIL: usize = 15;
const WIDTH: usize = 200;

#[derive(Default)]
pub(crate) struct Console {
    expected: BTreeSet<String>,
    ran: BTreeSet<String>,
    tally: Tally,
    /// Init has spoken: from then on the machine itself is to blame.
    pub(crate) has_started: bool,
    pub(crate) is_loading: bool,
    loaded: u32,
    has_loaded: bool,
    verdict: Option<u32>,
    trouble: Vec<String>,
    tail: VecDeque<String>,
}

impl Console {
    pub(crate) fn new(expected: &[&str]) -> Self {
        Self {
            expected: expected.iter().map(|&name| name.to_owned()).collect(),
            ..Self::default()
        }
    }

    /// Matches anywhere in a line: the firmware leaves its own before the first one.
    pub(crate) fn see(&mut self, line: &str) {
        self.remember(line);
        if TROUBLE.iter().any(|trouble| line.contains(trouble)) {
            self.trouble.push(cut(line));
        } else if let Some(tally) = Tally::parse(line) {
            self.tally += tally;
        } else if line.contains("VM-INIT kernel") {
            self.has_started = true;
        } else if line.contains("VM-STEP load-check start") {
            self.is_loading = true;
        } else if let Some((_, exit)) = line.split_once("VM-STEP load-check exit=") {
            self.is_loading = false;
            self.has_loaded = exit.starts_with("0 ");
        } else if let Some((_, count)) = line.split_once("VM-VERDICT ") {
            self.verdict = count.trim().parse().ok();
        } else if self.is_loading && line.contains(": ok, ") {
            self.loaded += 1;
        } else if let Some((_, test)) = line.split_once("test ")
            && let Some((name, _)) = test.split_once(" ... ")
        {
            self.ran.insert(name.to_owned());
        }
    }

    fn remember(&mut self, line: &str) {
        // What the verifier says of a refused program is thousands of lines.
        if line.trim().is_empty() || (self.is_loading && line.starts_with(' ')) {
            return;
        }
        if self.tail.len() == TAIL {
            self.tail.pop_front();
        }
        self.tail.push_back(cut(line));
    }

    /// The counts, and what is wrong beside them. An error is "no verdict": the line and the exit code don't
    /// agree that the run came to its end.
    pub(crate) fn judge(&self, code: i32) -> Result<(Tally, Vec<String>)> {
        if self.trouble.is_empty() {
            match (code, self.verdict) {
                (0x21, Some(0)) | (0x23, Some(1..)) => {}
                (_, verdict) => {
                    bail!("QEMU ended with {code}, and the guest's verdict is {verdict:?}")
                }
            }
        }
        let mut tally = self.tally;
        let mut reasons = self.trouble.clone();
        let mut ran = self.ran.clone();
        if self.expected.contains(LOAD_CHECK) && self.has_loaded && self.loaded > 0 {
            tally.passed += 1;
            ran.insert(LOAD_CHECK.to_owned());
        }
        let ran_of_tests = self.ran.len();
        if (tally_of(self.tally) as usize) != ran_of_tests {
            reasons.push(format!(
                "{ran_of_tests} tests have a line, libtest counts {}",
                self.tally
            ));
        }
        if self.tally.skipped > 0 {
            reasons.push(format!("libtest skipped {}", self.tally.skipped));
        }
        let never: Vec<_> = self.expected.difference(&ran).collect();
        if !never.is_empty() {
            reasons.push(format!("never ran, or not to the end: {never:?}"));
        }
        let unasked: Vec<_> = ran.difference(&self.expected).collect();
        if !unasked.is_empty() {
            reasons.push(format!("nobody asked for {unasked:?}"));
        }
        if self.verdict != Some(0) && tally.failed == 0 {
            reasons.push("a step of the guest failed".to_owned());
        }
        // What libtest doesn't know about counts as one failure.
        if !reasons.is_empty() && tally.failed == 0 {
            tally.failed = 1;
        }
        Ok((tally, reasons))
    }

    /// The last lines, for who has to find out why.
    pub(crate) fn tail(&self) -> impl Iterator<Item = &str> {
        self.tail.iter().map(String::as_str)
    }
}

fn tally_of(tally: Tally) -> u32 {
    tally.passed + tally.failed + tally.skipped
}

/// A line as it is shown: some are megabytes.
pub(crate) fn cut(line: &str) -> String {
    line.trim_end().chars().take(WIDTH).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &[&str] = &[
        "\x1b[2JBooting from ROM..VM-INIT kernel 5.10 after 3 s",
        "VM-STEP load-check start",
        "read_return: ok, 1200 instructions",
        "VM-STEP load-check exit=0 after 1.0 s",
        "test clients::curl ... ok",
        "test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 9 filtered out",
        "VM-VERDICT 0",
    ];

    fn judge(lines: &[&str], code: i32) -> Result<Tally> {
        let mut console = Console::new(&[LOAD_CHECK, "clients::curl"]);
        lines.iter().for_each(|line| console.see(line));
        console.judge(code).map(|(tally, _)| tally)
    }

    fn tally(passed: u32, failed: u32) -> Tally {
        Tally {
            passed,
            failed,
            skipped: 0,
        }
    }

    #[test]
    fn a_pass_needs_every_sign() {
        assert_eq!(judge(GOOD, 0x21).expect("a verdict"), tally(2, 0));
        // Each sign taken away, one at a time: never a clean pass.
        for (missing, sign) in GOOD.iter().enumerate().skip(1) {
            let lines: Vec<_> = GOOD
                .iter()
                .copied()
                .enumerate()
                .filter(|(n, _)| *n != missing)
                .map(|(_, line)| line)
                .collect();
            let failed = judge(&lines, 0x21).map_or(1, |tally| tally.failed);
            assert!(failed > 0, "without {sign:?}");
        }
        for code in [0, 1, 0x23] {
            assert!(judge(GOOD, code).is_err(), "exit code {code}");
        }
    }

    #[test]
    fn what_is_wrong_is_counted() {
        let panic = [GOOD, &["Kernel panic - not syncing"]].concat();
        assert_eq!(judge(&panic, 0).expect("a verdict"), tally(2, 1));
        let failed = [
            &GOOD[..5],
            &[
                "test result: FAILED. 0 passed; 1 failed; 0 ignored; 0",
                "VM-VERDICT 1",
            ],
        ]
        .concat();
        assert_eq!(judge(&failed, 0x23).expect("a verdict"), tally(1, 1));
    }

    /// The same number of tests, but another one; and one more than was asked for.
    #[test]
    fn other_tests_than_those_asked_for() {
        let other = GOOD.join("\n").replace("clients::curl", "clients::other");
        let other: Vec<_> = other.lines().collect();
        assert_eq!(judge(&other, 0x21).expect("a verdict").failed, 1);
        let more = GOOD.join("\n").replace(
            "test clients::curl ... ok\ntest result: ok. 1",
            "test clients::curl ... ok\ntest clients::more ... ok\ntest result: ok. 2",
        );
        let more: Vec<_> = more.lines().collect();
        assert_eq!(judge(&more, 0x21).expect("a verdict").failed, 1);
        let ignored = GOOD
            .join("\n")
            .replace("1 passed; 0 failed; 0", "0 passed; 0 failed; 1");
        let ignored: Vec<_> = ignored.lines().collect();
        assert_eq!(judge(&ignored, 0x21).expect("a verdict").failed, 1);
    }

    #[test]
    fn the_tail_is_short() {
        let mut console = Console::new(&[]);
        for n in 0..100 {
            console.see(&format!("line {n} {}", "x".repeat(10_000)));
        }
        assert_eq!(console.tail().count(), TAIL);
        assert!(console.tail().all(|line| line.len() == WIDTH));
        assert!(
            console
                .tail()
                .last()
                .is_some_and(|line| line.starts_with("line 99 "))
        );
    }
}
