//! Do the tests of preemption find what they are for? Agents with a deliberate mistake in their kernel programs
//! (`agent-ebpf/src/planted.rs`), on kernels that take the processor away at any time: the tests must fail.

use std::fs;

use anyhow::{Context as _, Result, ensure};

use crate::{
    console::LOAD_CHECK,
    kernel::Kernel,
    plan::Plan,
    sh::{self, MINUTE},
    test,
    vm::{Machine, Outcome, Rig},
};

const TEST: &str = "preemption::writers_are_not_mixed";

/// The kernels with full preemption that we have.
const KERNELS: &[&str] = &["6.12", "6.18", "7.2"];

/// A feature of the agent, and the kernels that must show it. Below 6.13 each program has a stack of its own.
const PLANTED: [(&str, &[&str]); 2] = [
    ("planted-scratch", KERNELS),
    ("planted-stack", &["6.18", "7.2"]),
];

pub(crate) fn run() -> Result<()> {
    // Without a mistake first: a test that fails there finds nothing.
    let right = boot(&Rig::build(false)?, "", KERNELS)?;
    let failed = right.iter().filter(|outcome| outcome.tally.failed > 0);
    let failed: Vec<_> = failed
        .inspect(|outcome| outcome.tell())
        .map(|outcome| outcome.machine.as_str())
        .collect();
    ensure!(
        failed.is_empty(),
        "failed without a mistake: {}",
        failed.join(", ")
    );

    let mut missed = Vec::new();
    for (feature, kernels) in PLANTED {
        let built = test::build_agent(&["--features", feature])?;
        // Where it was built the tests' own build puts another one, without the mistake.
        let agent = sh::target().join(format!("vortex-agent-{feature}"));
        fs::copy(&built, &agent)
            .with_context(|| format!("could not copy to {}", agent.display()))?;
        let rig = Rig::with_agent(&agent, false)?;
        for outcome in boot(&rig, &format!(" {feature}"), kernels)? {
            let verdict = match sign(&outcome)? {
                Some(sign) => format!("found: {sign}"),
                None => "NOT FOUND".to_owned(),
            };
            sh::say(&format!("PLANTED {}: {verdict}", outcome.machine));
            if verdict == "NOT FOUND" {
                outcome.tell();
                missed.push(outcome.machine);
            }
        }
    }
    ensure!(missed.is_empty(), "not found: {}", missed.join(", "));
    Ok(())
}

fn boot(rig: &Rig, suffix: &str, kernels: &[&str]) -> Result<Vec<Outcome>> {
    let mut machines = Vec::new();
    for kernel in kernels {
        let kernel = Kernel::named(kernel)?;
        let files = kernel.files(&rig.tools, false)?;
        machines.push(Machine {
            name: format!("{}+preempt=full{suffix}", kernel.version),
            files: files.with_context(|| format!("the archive has no {}", kernel.wanted()))?,
            plan: Plan::of_tests(&[LOAD_CHECK, TEST]),
            limit: 4 * MINUTE,
            is_quiet: false,
        });
    }
    Ok(rig.boot_all(machines, None))
}

/// By what the mistake shows itself: bytes came under another thread's name or at a place that is not theirs, our
/// program crashed the kernel, or the kernel stopped in mid-test, as it does when its stack is overwritten. `None` if
/// the test passed, or failed for another reason: because nothing was captured, say.
fn sign(outcome: &Outcome) -> Result<Option<&'static str>> {
    if outcome.tally.failed == 0 {
        return Ok(None);
    }
    let log = fs::read_to_string(outcome.log())?;
    let signs = [
        ("sent differs at", "bytes are mixed"),
        ("gap unknown of", "bytes are at a wrong place"),
        ("RIP: 0010:bpf_prog_", "the kernel crashed in our program"),
    ];
    let said = signs.iter().find(|(words, _)| log.contains(words));
    let stopped = || {
        let has_loaded = log.contains(&format!("VM-STEP {LOAD_CHECK} exit=0"));
        let is_over = log.contains("VM-STEP e2e exit");
        let has_begun = log.contains(&format!("test {TEST} ..."));
        (has_loaded && has_begun && !is_over).then_some("the kernel stopped")
    };
    Ok(said.map(|(_, sign)| *sign).or_else(stopped))
}
