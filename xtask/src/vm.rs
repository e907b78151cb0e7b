//! The end-to-end tests on other kernels: QEMU, one root in memory, the same test binary.
//!
//! Always emulated (`-accel tcg`): a nested KVM may accept a guest and never start it. One thread
//! for all virtual processors, because the kernels patch their own code all the time, which several
//! threads have been seen to get wrong.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    apt,
    console::{self, Console},
    cpio::Cpio,
    drill, fetch,
    kernel::{Files, Kernel},
    panics::Panics,
    plan::Plan,
    planted, root,
    roster::Roster,
    sh::{self, MINUTE},
    systemd,
    tally::Tally,
    test,
};

pub(crate) struct Outcome {
    pub(crate) machine: String,
    pub(crate) tally: Tally,
    /// Why it is not well, or why it was skipped.
    pub(crate) reasons: Vec<String>,
    /// Where tests of it panicked.
    pub(crate) panics: Panics,
    /// The last lines of the console of one that is not well.
    pub(crate) tail: Vec<String>,
    pub(crate) took: Duration,
}

/// A kernel with what it is to do.
pub(crate) struct Machine {
    /// The kernel's version; what is behind a `+` goes onto the kernel's command line.
    pub(crate) name: String,
    pub(crate) files: Files,
    pub(crate) plan: Plan,
    /// From its start to its end.
    pub(crate) limit: Duration,
    /// What it says goes to its log alone.
    pub(crate) is_quiet: bool,
}

/// What all machines have in common.
pub(crate) struct Rig {
    pub(crate) tools: PathBuf,
    root: PathBuf,
}

pub(crate) fn command(args: &[&str]) -> Result<()> {
    let mut kernels = None;
    let mut jobs = None;
    let mut update = false;
    let mut filter = None;
    let (mut is_drill, mut is_planted, mut is_systemd) = (false, false, false);
    let mut args = args.iter();
    while let Some(&arg) = args.next() {
        let mut value = || {
            args.next()
                .copied()
                .with_context(|| format!("{arg} needs a value"))
        };
        match arg {
            "--kernel" => kernels = Some(value()?.split(',').collect::<Vec<_>>()),
            "--jobs" => jobs = Some(value()?.parse().context("--jobs needs a number")?),
            "--update" => update = true,
            "--drill" => is_drill = true,
            "--planted" => is_planted = true,
            "--systemd" => is_systemd = true,
            "--" => filter = Some(value()?),
            _ => bail!("not understood: {arg}; see `cargo xtask --help`"),
        }
    }
    if is_systemd {
        return all_well(&systemd::run(update)?);
    }
    crate::setup::everything()?;
    if is_drill {
        return drill::run(&Rig::build(update)?);
    }
    if is_planted {
        return planted::run();
    }
    all_well(&run(kernels.as_deref(), jobs, update, filter)?)
}

fn all_well(outcomes: &[Outcome]) -> Result<()> {
    ensure!(
        outcomes.iter().all(|outcome| outcome.tally.failed == 0),
        "not every kernel passed"
    );
    Ok(())
}

/// Boots each kernel, and prints a line for each at the end.
pub(crate) fn run(
    kernels: Option<&[&str]>,
    jobs: Option<usize>,
    update: bool,
    filter: Option<&str>,
) -> Result<Vec<Outcome>> {
    let roster = Roster::read()?;
    let names = kernels.map_or_else(|| roster.machines(), <[_]>::to_vec);
    let rig = Rig::build(update)?;
    roster.check(
        &test::names(&test::build_e2e()?, &[])?,
        &[console::LOAD_CHECK],
    )?;

    let mut outcomes = Vec::new();
    let mut machines = Vec::new();
    for &name in &names {
        let kernel = Kernel::named(words_of(name).0)?;
        let tests = roster.tests(name, filter)?;
        if tests.is_empty() {
            continue;
        }
        for (count, reason) in roster
            .missing(name)?
            .into_iter()
            .filter(|_| filter.is_none())
        {
            sh::say(&format!("[{name}] {count} tests do not run: {reason}"));
        }
        match kernel.files(&rig.tools, update)? {
            Some(files) => machines.push(Machine {
                name: name.to_owned(),
                files,
                plan: Plan::of_tests(&tests),
                limit: 14 * MINUTE,
                is_quiet: false,
            }),
            None => outcomes.push(Outcome {
                machine: name.to_owned(),
                tally: Tally {
                    skipped: u32::try_from(tests.len())?,
                    ..Tally::default()
                },
                reasons: vec![format!(
                    "SKIPPED: the archive has no package {} any more",
                    kernel.wanted()
                )],
                panics: Panics::default(),
                tail: Vec::new(),
                took: Duration::ZERO,
            }),
        }
    }
    ensure!(
        !(machines.is_empty() && outcomes.is_empty()),
        "no test of these machines has that in its name: see tests/kernels.txt"
    );
    // The longest first, so that none of them is left alone at the end.
    machines.sort_by_key(|machine| std::cmp::Reverse(machine.plan.expected().len()));
    outcomes.extend(rig.boot_all(machines, jobs));
    outcomes.sort_by_key(|outcome| names.iter().position(|&name| name == outcome.machine));
    for outcome in &outcomes {
        outcome.tell();
    }
    for Outcome { machine, tally, .. } in &outcomes {
        sh::say(&format!("KERNEL {machine}: {tally}"));
    }
    Ok(outcomes)
}

fn log_of(machine: &str) -> PathBuf {
    sh::target().join(format!("vm/log/{machine}.log"))
}

impl Outcome {
    pub(crate) fn log(&self) -> PathBuf {
        log_of(&self.machine)
    }

    /// All that is known of one that failed.
    pub(crate) fn why(&self) -> String {
        let mut lines = vec![format!("{}: {}", self.machine, self.tally)];
        lines.extend_from_slice(&self.reasons);
        // Where nothing panicked, the console's last words are all there is.
        match self.panics.lines() {
            [] => lines.extend_from_slice(&self.tail),
            panics => lines.extend_from_slice(panics),
        }
        lines.join("\n  ")
    }

    pub(crate) fn tell(&self) {
        for line in &self.tail {
            sh::say(&format!("[{}] | {line}", self.machine));
        }
        for reason in &self.reasons {
            sh::say(&format!("[{}] {reason}", self.machine));
        }
    }
}

impl Rig {
    pub(crate) fn build(update: bool) -> Result<Self> {
        Self::with_agent(&test::build_agent(&[])?, update)
    }

    pub(crate) fn with_agent(agent: &Path, update: bool) -> Result<Self> {
        let tools = tools(update)?;
        let fixtures = fetch::fixtures(update)?;
        let archive = root::build(&tools, &fixtures, agent, &test::build_e2e()?)?;
        Self::with_root("root", &archive, tools)
    }

    pub(crate) fn with_root(name: &str, archive: &[u8], tools: PathBuf) -> Result<Self> {
        let root = sh::target().join(format!("vm/{name}.cpio"));
        sh::say(&format!("  the root has {} MB", archive.len() >> 20));
        fs::write(&root, archive).context("could not write the root of the VMs")?;
        Ok(Self { tools, root })
    }

    /// Some at a time, in the order given.
    pub(crate) fn boot_all(&self, machines: Vec<Machine>, jobs: Option<usize>) -> Vec<Outcome> {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        // A machine takes one core. On more than two, one stays free for everything else.
        let usual = if cores > 2 { (cores - 1).min(3) } else { cores };
        let jobs = jobs.unwrap_or(usual).clamp(1, machines.len().max(1));
        let queue = Mutex::new(machines.into_iter());
        let next = || queue.lock().expect("no panic with the lock").next();
        let done = Mutex::new(Vec::new());
        thread::scope(|scope| {
            for _ in 0..jobs {
                scope.spawn(|| {
                    while let Some(machine) = next() {
                        let outcome = self.boot(&machine);
                        done.lock().expect("no panic with the lock").push(outcome);
                    }
                });
            }
        });
        done.into_inner().expect("no panic with the lock")
    }

    fn boot(&self, machine: &Machine) -> Outcome {
        let mut reasons = Vec::new();
        loop {
            let start = Instant::now();
            let mut console = Console::new(&machine.plan.expected());
            let mut panics = Panics::default();
            let result = self.qemu(machine, &mut console, &mut panics);
            sh::say(&format!(
                "[{}] ended after {:.0} s",
                machine.name,
                start.elapsed().as_secs_f32()
            ));
            let tally = match result.and_then(|code| console.judge(code)) {
                Ok((tally, more)) => {
                    reasons.extend(more);
                    tally
                }
                // An emulator under load may stop in mid-boot: said, tried once more, never a pass.
                Err(error) if !console.has_started && reasons.is_empty() => {
                    reasons.push(format!("it did not start: {error:#}; tried once more"));
                    continue;
                }
                Err(error) => {
                    reasons.push(format!("no verdict: {error:#}"));
                    Tally {
                        failed: 1,
                        ..Tally::default()
                    }
                }
            };
            let tail = console.tail().filter(|_| tally.failed > 0);
            return Outcome {
                machine: machine.name.clone(),
                tally,
                panics,
                tail: tail.map(str::to_owned).collect(),
                took: start.elapsed(),
                reasons,
            };
        }
    }

    /// Runs one VM to its end; returns QEMU's exit code.
    fn qemu(&self, machine: &Machine, console: &mut Console, panics: &mut Panics) -> Result<i32> {
        let name = &machine.name;
        let file = log_of(name);
        fs::create_dir_all(file.parent().context("the log has no directory")?)?;
        let mut log = fs::File::create(file)?;
        let share = |dir: &str| self.tools.join("usr/share").join(dir);
        let mut qemu = sh::command(self.tools.join("usr/bin/qemu-system-x86_64"));
        qemu.envs(apt::environment(&self.tools));
        qemu.arg("-L").arg(share("qemu"));
        qemu.arg("-L").arg(share("seabios"));
        qemu.args(["-machine", "q35", "-nodefaults", "-no-user-config"]);
        qemu.args(["-display", "none", "-serial", "stdio", "-no-reboot"]);
        // Five levels of page tables would only be one more to walk by software.
        qemu.args(["-accel", "tcg,thread=single", "-cpu", "max,la57=off"]);
        qemu.args(["-smp", "2", "-m", "3G"]);
        qemu.args(["-device", "isa-debug-exit,iobase=0xf4,iosize=0x4"]);
        let root = self.own_root(machine)?;
        qemu.arg("-kernel").arg(&machine.files.image);
        qemu.arg("-initrd").arg(&root);
        let (_, more) = words_of(name);
        qemu.args([
            "-append",
            &format!("console=ttyS0 panic=-1 quiet mitigations=off {more}"),
        ]);
        let start = Instant::now();
        let status = sh::lines(&mut qemu, machine.limit, |line| {
            let at = start.elapsed().as_secs_f32();
            let _ = writeln!(log, "{at:6.1} {line}");
            // What the verifier says of a refused program is thousands of lines: they are in the log.
            if !(machine.is_quiet || console.is_loading && line.starts_with(' ')) {
                sh::say(&format!("[{name}] {at:6.1} {}", console::cut(line)));
            }
            console.see(line);
            panics.see(line);
        });
        fs::remove_file(root)?;
        status?.code().context("QEMU was killed")
    }

    /// The root, and behind it an archive with what is this machine's own.
    fn own_root(&self, machine: &Machine) -> Result<PathBuf> {
        let own = sh::target().join(format!("vm/root-{}.cpio", machine.name));
        let mut more = Cpio::default();
        for module in fs::read_dir(&machine.files.modules)? {
            let module = module?;
            let name = module.file_name();
            more.file(&format!("vm/modules/{}", name.display()), &module.path())?;
        }
        more.bytes("vm/plan", 0o644, machine.plan.text().as_bytes());
        fs::copy(&self.root, &own)?;
        fs::OpenOptions::new()
            .append(true)
            .open(&own)?
            .write_all(&more.finish())?;
        Ok(own)
    }
}

/// QEMU, a static busybox and what unpacks a kernel, as private copies: the machine's own packages
/// stay as they are, and every machine tests with the same QEMU.
pub(crate) fn tools(update: bool) -> Result<PathBuf> {
    let _lock = apt::lock()?;
    let dir = sh::target().join("vm/tools");
    let packages = ["qemu-system-x86", "busybox-static", "zstd", "lz4"];
    fetch::tree(&dir, "trixie", &packages, update, |_| Ok(()))?;
    Ok(dir.join("root"))
}

/// A kernel's version, and what goes onto its command line.
fn words_of(machine: &str) -> (&str, &str) {
    machine.split_once('+').unwrap_or((machine, ""))
}
