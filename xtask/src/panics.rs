//! Why tests failed, picked out of what they print, to be told again where everybody looks: at the end.

use crate::console;

/// So many lines are kept of each panic, and of all of them.
const EACH: usize = 4;
const ALL: usize = 60;

#[derive(Default)]
pub(crate) struct Panics {
    lines: Vec<String>,
    /// How many more lines belong to the last one.
    left: usize,
}

impl Panics {
    /// Libtest shows what a failed test printed, after its end or (`--nocapture`) at once.
    pub(crate) fn see(&mut self, line: &str) {
        if line.contains("thread '") && line.contains("panicked at ") {
            self.left = EACH;
        }
        if self.left == 0 || self.lines.len() == ALL || line.trim().is_empty() {
            return;
        }
        self.left -= 1;
        self.lines.push(console::cut(line));
    }

    pub(crate) fn lines(&self) -> &[String] {
        &self.lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_each_with_its_first_lines() {
        let mut panics = Panics::default();
        let said = "running 2 tests\n\nthread 'a::b' (97) panicked at tests/a.rs:9:1:\nassertion failed:\n\n  \
                    left: 1\n right: 2\nmuch more\ntest a::b ... FAILED";
        said.lines().for_each(|line| panics.see(line));
        let first = "thread 'a::b' (97) panicked at tests/a.rs:9:1:";
        assert_eq!(
            panics.lines(),
            [first, "assertion failed:", "  left: 1", " right: 2"]
        );
        for _ in 0..100 {
            panics.see(first);
        }
        assert_eq!(panics.lines().len(), ALL);
    }
}
