//! Loads every program of the object by itself, whatever this machine would use, and says how much the
//! verifier had to do for it. For tests on many kernels.

use anyhow::{Context as _, Result};
use aya::sys::{UProbeMultiFeature, is_perf_link_supported, is_uprobe_multi_supported};
use aya_obj::{
    ProgramSection,
    generated::{bpf_attach_type, bpf_prog_type},
};

use super::{
    identity,
    kernel::Layout,
    link::{HELLOS, PLAINS, SESSIONS, SOCKET_END, SOCKET_USES, open, possible_cpus},
    raw::{Bound, Kind},
    session,
};

/// What came of loading one program.
pub enum Loaded {
    Yes(Walked),
    /// Its kind does not exist on this kernel; another program does its work, or nobody.
    NotHere(&'static str),
    No(String),
}

/// What the verifier says of a program that it lets pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Walked {
    pub instructions: u32,
    /// In bytes, that of callbacks included.
    pub stack: u32,
}

/// What this kernel has, as far as programs are concerned.
struct Here {
    has_multi: bool,
    has_sessions: bool,
    has_cookies: bool,
    finds_mappings: bool,
    layout: Option<Layout>,
}

/// By name, in the order of the names.
pub fn check_all() -> Result<Vec<(String, Loaded)>> {
    let layout = Layout::read().ok();
    let offsets = layout.unwrap_or_default().offsets;
    super::raise_memory_limit();
    let ebpf = open(agent_ebpf::RING_BYTES, possible_cpus()?, &offsets)?;
    let object = Bound::to(&ebpf)?;
    let multi = is_uprobe_multi_supported(UProbeMultiFeature::LinkCreation);
    let here = Here {
        has_multi: multi.unwrap_or(false),
        has_sessions: session::is_supported(),
        has_cookies: is_perf_link_supported().unwrap_or(false),
        finds_mappings: identity::is_possible(),
        layout,
    };
    let mut results = Vec::new();
    for (name, section) in object.programs() {
        let loaded = match here.kind(name, section)? {
            Ok(kind) => load(&object, name, kind),
            Err(why) => Loaded::NotHere(why),
        };
        results.push((name.to_owned(), loaded));
    }
    results.sort_by(|(a, _), (b, _)| a.cmp(b));
    accept_alternatives(&mut results);
    Ok(results)
}

impl Here {
    /// What the kernel is to take the program for, or why it has nothing like it.
    fn kind(&self, name: &str, section: &ProgramSection) -> Result<Result<Kind, &'static str>> {
        let tracing = |attach, hook: &str, without| {
            let layout = self.layout.as_ref().ok_or("no BTF")?;
            Ok(Kind::tracing(attach, layout.hook(hook).ok_or(without)?))
        };
        let plain = |program| Kind {
            program,
            attach: 0,
            hook: 0,
        };
        Ok(match section {
            _ if SESSIONS.contains(&name) => self
                .has_sessions
                .then_some(Kind::SESSION)
                .ok_or("no session links"),
            ProgramSection::UProbe { multi: true, .. }
            | ProgramSection::URetProbe { multi: true, .. } => self
                .has_multi
                .then_some(Kind::MULTI)
                .ok_or("no uprobe_multi links"),
            ProgramSection::UProbe { .. } | ProgramSection::URetProbe { .. } => {
                let is_possible = !name.ends_with("_cookie") || self.has_cookies;
                is_possible.then_some(Kind::UPROBE).ok_or("no cookies")
            }
            ProgramSection::RawTracePoint => {
                let is_possible = name != "file_identity" || self.finds_mappings;
                is_possible
                    .then_some(plain(bpf_prog_type::BPF_PROG_TYPE_RAW_TRACEPOINT))
                    .ok_or("no bpf_find_vma")
            }
            ProgramSection::Iter { .. } if name == "mapping_identity" && !self.finds_mappings => {
                Err("no bpf_find_vma")
            }
            ProgramSection::Iter { .. } => tracing(
                bpf_attach_type::BPF_TRACE_ITER,
                "bpf_iter_task",
                "no iterator over tasks",
            ),
            ProgramSection::TracePoint => {
                let has_events = self.layout.is_some_and(|layout| layout.known.events);
                has_events
                    .then_some(Kind::EVENT)
                    .ok_or("no such perf event")
            }
            ProgramSection::BtfTracePoint => tracing(
                bpf_attach_type::BPF_TRACE_RAW_TP,
                &format!("btf_trace_{}", hook(name)?),
                "no such tracepoint",
            ),
            ProgramSection::FExit { .. } => tracing(
                bpf_attach_type::BPF_TRACE_FEXIT,
                hook(name)?,
                "no such function",
            ),
            other => anyhow::bail!("{name}: a program of an unexpected type: {other:?}"),
        })
    }
}

/// What of the kernel a program hangs on.
fn hook(name: &str) -> Result<&'static str> {
    let uses = SOCKET_USES.iter().flat_map(|uses| uses.pair.iter());
    let plains = PLAINS.iter().flatten();
    let mut hooks = uses.chain(&HELLOS).chain(plains).chain([&SOCKET_END]);
    let (_, hook) = hooks
        .find(|(known, _)| *known == name)
        .with_context(|| format!("{name}: no hook is known"))?;
    Ok(hook)
}

fn load(object: &Bound, name: &str, kind: Kind) -> Loaded {
    let said = match object.statistics(name, kind) {
        Ok(said) => said,
        Err(error) => return Loaded::No(tail(&format!("{error:#}"))),
    };
    match walked(&said) {
        Some(walked) => Loaded::Yes(walked),
        None => Loaded::No(format!("not understood: {said}")),
    }
}

/// `stack depth 40`, or `40+8` with functions of its own, from 7.2 with more words behind it; and
/// `processed 1234 insns (limit …`.
fn walked(said: &str) -> Option<Walked> {
    let after = |words| said.lines().find_map(|line| line.strip_prefix(words));
    let depths = after("stack depth ")?.split(' ').next()?;
    let (instructions, _) = after("processed ")?.split_once(" insns")?;
    let depths = depths.split('+').map(|depth| depth.parse::<u32>().ok());
    Some(Walked {
        instructions: instructions.parse().ok()?,
        stack: depths.sum::<Option<u32>>()?,
    })
}

/// One pair of the programs that see sockets is enough, and one of those that see how connections begin.
fn accept_alternatives(results: &mut [(String, Loaded)]) {
    let pairs = SOCKET_USES
        .iter()
        .map(|uses| uses.pair.map(|(name, _)| name));
    accept(
        results,
        &pairs.collect::<Vec<_>>(),
        "another pair sees sockets",
    );
    let plains = PLAINS.map(|pair| pair.map(|(name, _)| name));
    accept(results, &plains, "another pair sees plain connections");
    let hellos = HELLOS.map(|(name, _)| [name]);
    accept(results, &hellos, "another one sees how connections begin");
}

fn accept<const N: usize>(
    results: &mut [(String, Loaded)],
    groups: &[[&str; N]],
    why: &'static str,
) {
    let is_loaded = |wanted: &&str| {
        let mut results = results.iter();
        results.any(|(name, loaded)| name == wanted && matches!(loaded, Loaded::Yes(_)))
    };
    if !groups.iter().any(|group| group.iter().all(is_loaded)) {
        return;
    }
    for (name, loaded) in results {
        if groups.as_flattened().contains(&name.as_str()) && matches!(loaded, Loaded::No(_)) {
            *loaded = Loaded::NotHere(why);
        }
    }
}

/// Why the verifier refused is at the end of what it says.
fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_the_verifier() {
        let said = "verification time 85 usec\nstack depth 40+8\nprocessed 1234 insns (limit 1000000) max\n";
        let expected = Walked {
            instructions: 1234,
            stack: 48,
        };
        assert_eq!(walked(said), Some(expected));
        let newer = said.replace("40+8\n", "40+8 max 56\ninsns processed 1234\n");
        assert_eq!(walked(&newer), Some(expected));
        for cut in [
            "stack depth 40\n",
            "processed 12 insns (limit",
            "",
            "stack depth x\nprocessed 1 insns",
        ] {
            assert_eq!(walked(cut), None, "{cut:?}");
        }
    }
}
