//! Does the alarm work? Machines with something wrong in them, each of which must be reported as failed, with
//! what was the matter, within its time.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::{
    kernel::Kernel,
    plan::Plan,
    sh::{self, SECOND},
    vm::{Machine, Outcome, Rig},
};

const KERNEL: &str = "6.1";

/// Needs little, and so takes little.
const TEST: &str = "cli::misuse_is_two";

struct Drill {
    name: &'static str,
    plan: Plan,
    /// For QEMU.
    limit: Duration,
    /// What the report must have in it; of a healthy machine there is none.
    says: &'static [&'static str],
}

/// With one healthy machine: else all could fail for another reason.
fn drills() -> [Drill; 6] {
    let then = |script: &str, seconds| {
        let mut plan = Plan::of_tests(&[TEST]);
        plan.run("drill", seconds, &["/usr/bin/sh", "-c", script]);
        plan
    };
    let failing = Plan::of_tests(&[TEST]).with_env("VORTEX_AGENT", "/usr/bin/true");
    let mut other = Plan::of_tests(&[TEST]);
    other.expect("cli::no_such_test");
    let drill = |name, plan, seconds: u32, says| Drill {
        name,
        plan,
        limit: seconds * SECOND,
        says,
    };
    [
        drill("healthy", Plan::of_tests(&[TEST]), 60, &[]),
        drill(
            "failing-test",
            failing,
            60,
            &["    cli::misuse_is_two", "1 failed"],
        ),
        drill(
            "missing-test",
            other,
            60,
            &["never ran", "cli::no_such_test"],
        ),
        drill(
            "panic",
            then("echo c > /proc/sysrq-trigger", 30),
            60,
            &["Kernel panic", "sysrq"],
        ),
        drill(
            "hanging-step",
            then("echo it hangs; sleep 1000", 3),
            60,
            &["it hangs", "3 s are over", "a step of the guest failed"],
        ),
        drill(
            "hanging-machine",
            then("echo it hangs; sleep 1000", 1000),
            30,
            &["it hangs", "no verdict", "not over within 30s"],
        ),
    ]
}

pub(crate) fn run(rig: &Rig) -> Result<()> {
    let kernel = Kernel::named(KERNEL)?;
    let files = kernel
        .files(&rig.tools, false)?
        .with_context(|| format!("the archive has no {}", kernel.wanted()))?;
    let drills = drills();
    // What is behind the + means nothing to the kernel.
    let name_of = |drill: &Drill| format!("{KERNEL}+drill={}", drill.name);
    let machines = drills.iter().map(|drill| Machine {
        name: name_of(drill),
        files: files.clone(),
        plan: drill.plan.clone(),
        limit: drill.limit,
        // Failures that are none would hide one that is.
        is_quiet: true,
    });
    let outcomes = rig.boot_all(machines.collect(), None);
    for drill in &drills {
        let name = name_of(drill);
        let outcome = outcomes.iter().find(|outcome| outcome.machine == name);
        let outcome = outcome.context("a drill has no outcome")?;
        drill.judge(outcome).inspect_err(|_| outcome.tell())?;
        sh::say(&format!("DRILL {}: reported as it should be", drill.name));
    }
    Ok(())
}

impl Drill {
    fn judge(&self, outcome: &Outcome) -> Result<()> {
        let is_healthy = self.says.is_empty();
        ensure!(
            is_healthy == (outcome.tally.failed == 0),
            "the drill {} was counted as {}",
            self.name,
            outcome.tally
        );
        // QEMU is asked to end, and has ten seconds for it.
        ensure!(
            outcome.took < self.limit + 15 * SECOND,
            "the drill {} took {:?}",
            self.name,
            outcome.took
        );
        let said = [&outcome.tail[..], &outcome.reasons].concat().join("\n");
        let missing: Vec<_> = self
            .says
            .iter()
            .filter(|word| !said.contains(**word))
            .collect();
        ensure!(
            missing.is_empty(),
            "the drill {} was reported without {missing:?}",
            self.name
        );
        Ok(())
    }
}
