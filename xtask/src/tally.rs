//! How many tests passed, failed and were skipped, read off libtest's own lines.

use std::{fmt, ops::AddAssign};

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Tally {
    pub(crate) passed: u32,
    pub(crate) failed: u32,
    pub(crate) skipped: u32,
}

impl Tally {
    /// The counts of a line such as
    /// `test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out`.
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let (_, counts) = line.split_once("test result: ")?;
        let (_, counts) = counts.split_once(". ")?;
        let mut counts = counts.split("; ");
        let mut next = |what: &str| counts.next()?.strip_suffix(what)?.parse().ok();
        Some(Self {
            passed: next(" passed")?,
            failed: next(" failed")?,
            skipped: next(" ignored")?,
        })
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} passed, {} failed, {} skipped",
            self.passed, self.failed, self.skipped
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_result_line_and_nothing_else() {
        let check = |line: &str, want| assert_eq!(Tally::parse(line), want, "{line}");
        let tally = |passed, failed, skipped| {
            Some(Tally {
                passed,
                failed,
                skipped,
            })
        };
        let tail = "0 measured; 7 filtered out; finished in 0.00s";
        check(
            &format!("test result: ok. 3 passed; 0 failed; 1 ignored; {tail}"),
            tally(3, 0, 1),
        );
        check(
            &format!("test result: FAILED. 0 passed; 12 failed; 0 ignored; {tail}"),
            tally(0, 12, 0),
        );
        // What a firmware or a prefix leaves before the first line of a console.
        check(
            &format!("\x1b[2J.. test result: ok. 1 passed; 0 failed; 0 ignored; {tail}"),
            tally(1, 0, 0),
        );
        check("test result: ok", None);
        check("test curl_both_directions ... ok", None);
        check("running 3 tests", None);
    }
}
