//! Which end-to-end test runs in which virtual machine, as `tests/kernels.txt` has it.
//!
//! The file is both order and expectation: a machine is told to run these tests, and what it then says it ran
//! must be the same. A test of the binary that the file does not know is an error, so that none is left out in
//! silence.

use std::{collections::BTreeMap, fs};

use anyhow::{Context as _, Result, bail, ensure};

use crate::sh;

const FILE: &str = "tests/kernels.txt";
const RUNS: char = '+';

#[derive(Debug)]
pub(crate) struct Roster {
    machines: Vec<String>,
    reasons: BTreeMap<char, String>,
    /// A sign for each machine, and the test's name.
    tests: Vec<(Vec<char>, String)>,
}

impl Roster {
    pub(crate) fn read() -> Result<Self> {
        let text = fs::read_to_string(sh::root().join(FILE)).context(FILE)?;
        Self::parse(&text).context(FILE)
    }

    fn parse(text: &str) -> Result<Self> {
        let mut roster = Self {
            machines: Vec::new(),
            reasons: BTreeMap::new(),
            tests: Vec::new(),
        };
        for line in text.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            match *words {
                [] | ["#", ..] => {}
                ["machines", ref names @ ..] => {
                    roster.machines = names.iter().map(|&name| name.to_owned()).collect();
                }
                ["reason", sign, ref words @ ..] if sign.len() == 1 && !words.is_empty() => {
                    let sign = sign.chars().next().unwrap_or_default();
                    ensure!(sign != RUNS, "{RUNS} means that a test runs");
                    roster.reasons.insert(sign, words.join(" "));
                }
                [signs, name] => roster.add(signs, name)?,
                _ => bail!("not understood: {line}"),
            }
        }
        let used = |sign: &char| roster.tests.iter().any(|(signs, _)| signs.contains(sign));
        let unused = roster.reasons.keys().find(|sign| !used(sign));
        ensure!(unused.is_none(), "no test has the reason {unused:?}");
        Ok(roster)
    }

    fn add(&mut self, signs: &str, name: &str) -> Result<()> {
        let signs: Vec<char> = signs.chars().collect();
        ensure!(
            signs.len() == self.machines.len(),
            "{name} has {} signs for {} machines",
            signs.len(),
            self.machines.len()
        );
        let unknown = signs
            .iter()
            .find(|sign| **sign != RUNS && !self.reasons.contains_key(sign));
        ensure!(
            unknown.is_none(),
            "{name}: {unknown:?} is neither {RUNS} nor a reason"
        );
        ensure!(
            self.tests.iter().all(|(_, known)| known != name),
            "{name} is there twice"
        );
        self.tests.push((signs, name.to_owned()));
        Ok(())
    }

    /// All machines that CI boots, in the order of the file.
    pub(crate) fn machines(&self) -> Vec<&str> {
        self.machines.iter().map(String::as_str).collect()
    }

    /// What runs in a machine. One that is not listed, such as a kernel with other words on its command
    /// line, runs what that kernel runs without them.
    pub(crate) fn tests(&self, machine: &str, filter: Option<&str>) -> Result<Vec<&str>> {
        let column = self.column(machine)?;
        let here = self.tests.iter().filter(|(signs, name)| {
            signs[column] == RUNS && filter.is_none_or(|filter| name.contains(filter))
        });
        Ok(here.map(|(_, name)| name.as_str()).collect())
    }

    /// Does any machine run a test with that in its name?
    pub(crate) fn knows(&self, filter: Option<&str>) -> bool {
        let runs = |signs: &[char]| signs.contains(&RUNS);
        let mut tests = self.tests.iter();
        tests.any(|(signs, name)| runs(signs) && filter.is_none_or(|filter| name.contains(filter)))
    }

    /// How many tests do not run in a machine, by reason.
    pub(crate) fn missing(&self, machine: &str) -> Result<Vec<(usize, &str)>> {
        let column = self.column(machine)?;
        let count = |sign: char| {
            let tests = self.tests.iter().filter(|(signs, _)| signs[column] == sign);
            tests.count()
        };
        let reasons = self
            .reasons
            .iter()
            .map(|(sign, reason)| (count(*sign), reason.as_str()));
        Ok(reasons.filter(|(count, _)| *count > 0).collect())
    }

    fn column(&self, machine: &str) -> Result<usize> {
        let kernel = machine.split('+').next().unwrap_or(machine);
        let find = |wanted: &str| self.machines.iter().position(|name| name == wanted);
        find(machine)
            .or_else(|| find(kernel))
            .with_context(|| format!("{FILE} has no machine {machine}"))
    }

    /// The file knows the tests that the binary has, and no other.
    pub(crate) fn check(&self, listed: &[String], others: &[&str]) -> Result<()> {
        let known = |name: &&String| self.tests.iter().any(|(_, known)| known == *name);
        let new: Vec<_> = listed.iter().filter(|name| !known(name)).collect();
        ensure!(new.is_empty(), "{FILE} does not know these tests: {new:?}");
        let there = |name: &&str| others.contains(name) || listed.iter().any(|test| test == name);
        let names = self.tests.iter().map(|(_, name)| name.as_str());
        let gone: Vec<_> = names.filter(|name| !there(name)).collect();
        ensure!(gone.is_empty(), "{FILE} has tests that are gone: {gone:?}");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# A comment\nmachines 5.10 7.2 7.2+preempt=full\nreason k no kTLS there\n\
                        reason p other machines run it\n\n+++ mixed\nk+p life::sent\n";

    #[test]
    fn what_runs_and_what_does_not() {
        let roster = Roster::parse(TEXT).expect("it is well-formed");
        let tests = |machine, filter| roster.tests(machine, filter).expect("it is listed");
        assert_eq!(tests("5.10", None), ["mixed"]);
        assert_eq!(tests("7.2", None), ["mixed", "life::sent"]);
        assert_eq!(tests("7.2", Some("life")), ["life::sent"]);
        assert_eq!(tests("7.2+preempt=full", None), ["mixed"]);
        assert_eq!(tests("7.2+preempt=lazy", None), ["mixed", "life::sent"]);
        assert!(roster.tests("6.1", None).is_err());
        let missing = roster.missing("5.10").expect("it is listed");
        assert_eq!(missing, [(1, "no kTLS there")]);
    }

    #[test]
    fn a_test_is_neither_new_nor_gone() {
        let roster = Roster::parse(TEXT).expect("it is well-formed");
        let names =
            |names: &[&str]| -> Vec<String> { names.iter().map(|&name| name.to_owned()).collect() };
        assert!(roster.check(&names(&["life::sent"]), &["mixed"]).is_ok());
        let new = roster.check(&names(&["life::sent", "life::new"]), &["mixed"]);
        assert!(format!("{:#}", new.expect_err("new")).contains("life::new"));
        let gone = roster.check(&names(&["mixed"]), &[]);
        assert!(format!("{:#}", gone.expect_err("gone")).contains("life::sent"));
    }

    #[test]
    fn what_is_not_well_formed_is_refused() {
        for (from, to) in [
            ("k+p life", "k+ life"),
            ("k+p life", "x+p life"),
            ("life::sent", "mixed"),
            ("life::sent", "life::sent because"),
            ("reason k", "reason +"),
            ("k+p", "++p"),
        ] {
            let text = TEXT.replace(from, to);
            assert!(Roster::parse(&text).is_err(), "{text}");
        }
    }
}
