//! What init does in the guest; see `bin/vm-init.rs`.

use crate::{console::LOAD_CHECK, root, sh};

/// Tests divide their counts by this: 300 becomes 20.
const SCALE: u32 = 15;

/// Tests that change the machine for good: after all others.
const LAST: &str = "kernel::locked_down";

#[derive(Clone, Default)]
pub(crate) struct Plan {
    text: String,
    expected: Vec<String>,
}

impl Plan {
    /// The environment that the tests need, and nothing to do.
    pub(crate) fn new() -> Self {
        let mut plan = Self::default();
        let fixtures = sh::target().join("fixtures");
        for (name, value) in [
            ("PATH", "/usr/bin:/usr/sbin"),
            ("HOME", "/root"),
            ("LANG", "C.UTF-8"),
            // Init mounts it; /tmp may be where the checkout is.
            ("TMPDIR", "/vm/tmp"),
            ("VORTEX_AGENT", root::AGENT),
            ("VORTEX_PROGRAMS", root::COMPILED),
            ("VORTEX_TEST_DIR", &fixtures.to_string_lossy()),
            ("VORTEX_NO_SKIP", "1"),
            // Nobody else is on this machine, so a test may watch all of it.
            ("VORTEX_ALONE", "1"),
            ("VORTEX_SCALE", &SCALE.to_string()),
        ] {
            plan.env(name, value);
        }
        plan
    }

    /// Runs these, each once.
    pub(crate) fn of_tests(names: &[&str]) -> Self {
        let mut plan = Self::new();
        plan.expected = names.iter().map(|&name| name.to_owned()).collect();
        if names.contains(&LOAD_CHECK) {
            plan.run(LOAD_CHECK, 120, &[root::AGENT, LOAD_CHECK]);
        }
        let tests = names.iter().copied().filter(|name| *name != LOAD_CHECK);
        let (last, most): (Vec<_>, Vec<_>) = tests.partition(|name| name.starts_with(LAST));
        for (label, names) in [("e2e", most), ("last", last)] {
            if !names.is_empty() {
                plan.e2e(label, 840, &names);
            }
        }
        plan
    }

    pub(crate) fn env(&mut self, name: &str, value: &str) {
        self.text += &format!("env\t{name}={value}\n");
    }

    /// Another value than the one before.
    pub(crate) fn with_env(mut self, name: &str, value: &str) -> Self {
        let steps = std::mem::take(&mut self.text);
        for line in steps.lines() {
            let is_it = line.starts_with(&format!("env\t{name}="));
            self.text += &if is_it {
                format!("env\t{name}={value}\n")
            } else {
                format!("{line}\n")
            };
        }
        self
    }

    /// One more test must run.
    pub(crate) fn expect(&mut self, name: &str) {
        self.expected.push(name.to_owned());
    }

    /// A program with its arguments, ended after some seconds.
    pub(crate) fn run(&mut self, label: &str, seconds: u32, words: &[&str]) {
        let words = words.join("\t");
        self.text += &format!("run\t{label}\t{seconds}\t{words}\n");
    }

    fn e2e(&mut self, label: &str, seconds: u32, names: &[&str]) {
        let options = [
            "--test-threads=1",
            "--include-ignored",
            "--nocapture",
            "--exact",
        ];
        self.run(
            label,
            seconds,
            &[&[root::E2E], &options[..], names].concat(),
        );
    }

    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// The tests that must run, by name.
    pub(crate) fn expected(&self) -> Vec<&str> {
        self.expected.iter().map(String::as_str).collect()
    }
}
