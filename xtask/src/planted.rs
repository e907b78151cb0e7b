//! Do the tests of preemption find what they are for? Agents with a deliberate mistake in their kernel programs
//! (`agent-ebpf/src/planted.rs`), on kernels that take the processor away at any time: the tests must fail.

use std::fs;

use anyhow::{Context as _, Result, ensure};

use crate::{
    kernel::Kernel,
    plan::Plan,
    sh::{self, MINUTE},
    test,
    vm::{Machine, Outcome, Rig},
};

const TEST: &str = "preemption::writers_are_not_mixed";

/// A feature of the agent, and the kernels that must show it. Below 6.13 each program has a stack of its own.
const PLANTED: [(&str, &[&str]); 2] = [
    ("planted-scratch", &["6.12", "6.18", "7.2"]),
    ("planted-stack", &["6.18", "7.2"]),
];

pub(crate) fn run() -> Result<()> {
    let mut missed = Vec::new();
    for (feature, kernels) in PLANTED {
        let built = test::build_agent(&["--features", feature])?;
        // Where it was built the tests' own build puts another one, without the mistake.
        let agent = sh::target().join(format!("vortex-agent-{feature}"));
        fs::copy(&built, &agent)
            .with_context(|| format!("could not copy to {}", agent.display()))?;
        let rig = Rig::with_agent(&agent, false)?;
        let mut machines = Vec::new();
        for kernel in kernels {
            let kernel = Kernel::named(kernel)?;
            let files = kernel.files(&rig.tools, false)?;
            machines.push(Machine {
                name: format!("{}+preempt=full {feature}", kernel.version),
                files: files.with_context(|| format!("the archive has no {}", kernel.wanted()))?,
                plan: Plan::of_tests(&[TEST]),
                limit: 5 * MINUTE,
            });
        }
        for outcome in rig.boot_all(machines, None) {
            let is_found = is_found(&outcome)?;
            let verdict = if is_found { "found" } else { "NOT FOUND" };
            sh::say(&format!("PLANTED {}: {verdict}", outcome.machine));
            if !is_found {
                outcome.tell();
                missed.push(outcome.machine);
            }
        }
    }
    ensure!(missed.is_empty(), "not found: {}", missed.join(", "));
    Ok(())
}

/// The test failed, and because bytes came under another thread's name, or at a place that is not theirs, or because
/// our program crashed the kernel, which a stack that is not its own does as well: not because nothing was captured.
fn is_found(outcome: &Outcome) -> Result<bool> {
    let log = fs::read_to_string(outcome.log())?;
    let signs = ["sent differs at", "gap unknown of", "RIP: 0010:bpf_prog_"];
    let is_mixed = signs.iter().any(|sign| log.contains(sign));
    Ok(outcome.tally.failed > 0 && is_mixed)
}
