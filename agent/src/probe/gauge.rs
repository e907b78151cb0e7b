//! What a hit of a probe costs here: functions of our own are probed as those of a library are, by the same programs and
//! kind of link, and called. Their calls carry nothing, so what a copy costs is not in it.

use std::{
    arch::naked_asm,
    hint::black_box,
    os::fd::OwnedFd,
    thread,
    time::{Duration, Instant},
};

use agent_ebpf::{DETAIL, Direction, Shape, cookie};
use anyhow::{Context as _, Result, anyhow};
use rustix::fs::{Mode, OFlags, open};

use super::{facts, link::Kernel};
use crate::half::{Costs, Site};

/// Takes a handle.
type Function = extern "C" fn(u64) -> u64;

/// Begins as functions do that are probed at their first instruction, which the kernel emulates.
#[unsafe(naked)]
extern "C" fn emulated(_: u64) -> u64 {
    naked_asm!("push rbp", "xor eax, eax", "pop rbp", "ret")
}

/// As Debian builds `SSL_read`: the kernel lets the instruction run elsewhere, for a single step.
#[unsafe(naked)]
extern "C" fn stepped(_: u64) -> u64 {
    naked_asm!("sub rsp, 8", "xor eax, eax", "add rsp, 8", "ret")
}

/// Its return is not probed. Without a handle the program behind the trap has nothing to do.
#[unsafe(naked)]
extern "C" fn entered(_: u64) -> u64 {
    naked_asm!("push rbx", "xor eax, eax", "pop rbx", "ret")
}

/// Calls whose time is taken at once, and how often: the fastest round counts, for others run, too, and a cost that is
/// taken for too high pauses who should be seen.
const CALLS: u32 = 32;
const ROUNDS: u32 = 15;

/// Before the pipeline is greeted: nobody has looked at the counters yet, and nobody is turned away.
///
/// # Errors
/// The probes can't be placed in our own file, or the calls did not meet them.
pub fn measure(kernel: &mut Kernel) -> Result<Costs> {
    let file = open(
        "/proc/self/exe",
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
    );
    let file: OwnedFd = file.context("open our own executable")?;
    let call = cookie(0, Direction::Sent, Shape::Returned);
    let freed = cookie(0, Direction::Received, Shape::Freed) | 1 << DETAIL;
    let mut sites = Vec::new();
    let functions: [(Function, u64); 3] = [(emulated, call), (stepped, call), (entered, freed)];
    for (function, cookie) in functions {
        sites.push(Site {
            offset: offset_of(function)?,
            cookie,
            bytes: [0; 16],
        });
    }
    let links = kernel
        .programs
        .attach(&file, &sites, &[std::process::id()])?;
    // In a thread of its own: what the kernel side keeps of it ends with it.
    let times = thread::spawn(|| [emulated, stepped, entered].map(time_of));
    let times = times.join().map_err(|_| anyhow!("the calls failed"))?;
    // That takes the kernel a while, and nobody else runs into them.
    thread::spawn(move || drop(links));
    let met = kernel.sum(agent_ebpf::counter::RETURNS)?;
    kernel.clear_counters()?;
    anyhow::ensure!(met > 0, "the calls did not meet the probes");
    let nanos = |time: Duration| u32::try_from(time.as_nanos()).unwrap_or(u32::MAX);
    let [emulated, stepped, entered] = times;
    Ok(Costs {
        entry: nanos(entered),
        step: nanos(stepped.saturating_sub(emulated)),
        exit: nanos(emulated.saturating_sub(entered)),
    })
}

/// Of one call.
fn time_of(function: Function) -> Duration {
    let round = |_| {
        let start = Instant::now();
        for _ in 0..CALLS {
            black_box(black_box(function)(0));
        }
        start.elapsed() / CALLS
    };
    (0..ROUNDS).map(round).min().unwrap_or_default()
}

/// In our own file.
fn offset_of(function: Function) -> Result<u64> {
    let address = function as usize as u64;
    let mut mappings = facts::mappings(std::process::id()).into_iter();
    let is_in = |start: u64, length: u64| address.wrapping_sub(start) < length;
    let mapping = mappings.find(|mapping| is_in(mapping.address, mapping.length));
    let mapping = mapping.context("our own code is in no file")?;
    Ok(address - mapping.address + mapping.offset)
}
