//! The end-to-end tests on other kernels: QEMU, one root in memory, the same test binary.
//!
//! Always emulated (`-accel tcg`): a nested KVM may accept a guest and never start it. One thread
//! for all virtual processors, because the kernels patch their own code all the time, which several
//! threads have been seen to get wrong.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    sync::Mutex,
    thread,
    time::Instant,
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    apt,
    cpio::Cpio,
    fetch,
    kernel::{Files, Kernel},
    sh::{self, MINUTE},
    tally::Tally,
    test,
};

/// What CI runs: the oldest kernel we promise and the newest, the latter also with full preemption, which
/// takes the processor away in the middle of our programs. What is behind a `+` goes onto the kernel's
/// command line.
pub(crate) const DEFAULT: &[&str] = &["5.10", "7.2", "7.2+preempt=full"];

/// The end-to-end tests that need nothing but what the root holds.
const TESTS: &[&str] = &[
    "curl_both_directions",
    "python_http_client",
    "openssl_s_client",
    "writers_are_not_mixed",
    "attribution_of_asyncio",
    "attribution_of_threads",
    "addresses_of_ipv6",
    "four_connections_of_one_handle",
    "a_handle_has_two_owners",
    "sent_from_a_file",
    "a_fork_in_our_pid_namespace",
];

/// Those that watch the whole machine or load a kernel module, and so run here only.
pub(crate) const ALONE: &[&str] = &[
    "strangers_short_lived",
    "strangers_gone_before_a_look",
    "machine_wide",
    "sent_from_a_file_by_the_kernel",
];

/// C programs of `tests/programs` that the tests start. There is no compiler in the guest.
const PROGRAMS: &[&str] = &["letters", "life", "mix"];

/// Loads each kernel program by itself, a line for each: `NAME: ok, …`.
const LOAD_CHECK: &str = "load-check";

/// Tests divide their counts by this: 300 becomes 20.
const SCALE: u32 = 15;

/// What a kernel says when it is not well.
const TROUBLE: &[&str] = &[
    "Kernel panic",
    "Oops",
    "BUG: ",
    "soft lockup",
    "rcu: INFO",
    "rcu_sched self-detected",
    "hung_task",
];

pub(crate) struct Outcome {
    pub(crate) version: String,
    pub(crate) tally: Tally,
    /// Why it is not well, or why it was skipped.
    pub(crate) reasons: Vec<String>,
}

pub(crate) fn command(args: &[&str]) -> Result<()> {
    let mut kernels = DEFAULT.to_vec();
    let mut jobs = None;
    let mut update = false;
    let mut filter = None;
    let mut args = args.iter();
    while let Some(&arg) = args.next() {
        let mut value = || {
            args.next()
                .copied()
                .with_context(|| format!("{arg} needs a value"))
        };
        match arg {
            "--kernel" => kernels = value()?.split(',').collect(),
            "--jobs" => jobs = Some(value()?.parse().context("--jobs needs a number")?),
            "--update" => update = true,
            "--" => filter = Some(value()?),
            _ => bail!("not understood: {arg}; see `cargo xtask --help`"),
        }
    }
    crate::setup::everything()?;
    let outcomes = run(&kernels, jobs, update, filter)?;
    ensure!(
        outcomes.iter().all(|outcome| outcome.tally.failed == 0),
        "not every kernel passed"
    );
    Ok(())
}

/// The tests a filter leaves; without a filter also the load check.
pub(crate) fn tests(filter: Option<&str>) -> Vec<&'static str> {
    let all = [LOAD_CHECK].iter().chain(TESTS).chain(ALONE);
    all.copied()
        .filter(|name| filter.is_none_or(|filter| name.contains(filter)))
        .collect()
}

/// Boots each kernel, and prints a line for each at the end.
pub(crate) fn run(
    kernels: &[&str],
    jobs: Option<usize>,
    update: bool,
    filter: Option<&str>,
) -> Result<Vec<Outcome>> {
    let machines: Vec<(&str, &Kernel)> = kernels
        .iter()
        .map(|&version| Ok((version, Kernel::named(words_of(version).0)?)))
        .collect::<Result<_>>()?;
    let tests = tests(filter);
    ensure!(
        !tests.is_empty(),
        "no test of the VMs has that in its name: {}",
        self::tests(None).join(", ")
    );
    let tools = tools(update)?;
    let root = sh::target().join("vm/root.cpio");
    fs::write(&root, build_root(&tools, &tests)?).context("could not write the root of the VMs")?;

    let cores = thread::available_parallelism().map_or(1, usize::from);
    let jobs = jobs.unwrap_or(cores.min(2)).clamp(1, kernels.len());
    let mut outcomes = Vec::new();
    let mut ready = Vec::new();
    for (version, kernel) in machines {
        match kernel.files(&tools, update)? {
            Some(files) => ready.push((version, files)),
            None => outcomes.push(Outcome {
                version: version.to_owned(),
                tally: Tally {
                    skipped: u32::try_from(tests.len())?,
                    ..Tally::default()
                },
                reasons: vec![format!(
                    "SKIPPED: the archive has no package {} any more",
                    kernel.wanted()
                )],
            }),
        }
    }
    let queue = Mutex::new(ready.into_iter());
    let next = || queue.lock().expect("no panic with the lock").next();
    let done = Mutex::new(outcomes);
    thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while let Some((version, files)) = next() {
                    let outcome = test_kernel(version, &files, &root, &tools, &tests);
                    done.lock().expect("no panic with the lock").push(outcome);
                }
            });
        }
    });
    let mut outcomes = done.into_inner().expect("no panic with the lock");
    outcomes.sort_by_key(|outcome| {
        kernels
            .iter()
            .position(|&version| version == outcome.version)
    });
    for outcome in &outcomes {
        for reason in &outcome.reasons {
            sh::say(&format!("[{}] {reason}", outcome.version));
        }
    }
    for outcome in &outcomes {
        sh::say(&format!("KERNEL {}: {}", outcome.version, outcome.tally));
    }
    Ok(outcomes)
}

/// QEMU, a static busybox and what unpacks a kernel, as private copies: the machine's own packages
/// stay as they are, and every machine tests with the same QEMU.
fn tools(update: bool) -> Result<PathBuf> {
    let _lock = apt::lock()?;
    let dir = sh::target().join("vm/tools");
    let packages = ["qemu-system-x86", "busybox-static", "zstd", "lz4"];
    fetch::tree(&dir, "trixie", &packages, update, |_| Ok(()))?;
    Ok(dir.join("root"))
}

/// One root for all kernels: the programs with their libraries, the agent, the test binary.
fn build_root(tools: &Path, tests: &[&str]) -> Result<Vec<u8>> {
    let init = build_init()?;
    let agent = test::build_agent()?;
    let mut root = Cpio::default();
    for dir in [
        "dev",
        "proc",
        "sys",
        "run",
        "tmp",
        "root",
        "usr/bin",
        "usr/sbin",
        "usr/lib",
        "usr/lib64",
    ] {
        root.directory(dir);
    }
    for dir in ["bin", "sbin", "lib", "lib64"] {
        root.link(dir, &format!("usr/{dir}"));
    }
    // The kernel opens it for init before anything is mounted.
    root.device("dev/console", 5, 1);
    root.file("init", &init)?;

    let mut programs = vec![("vm/vortex-agent".to_owned(), agent)];
    let filters: Vec<&str> = tests
        .iter()
        .copied()
        .filter(|name| *name != LOAD_CHECK)
        .collect();
    if !filters.is_empty() {
        programs.push(("vm/e2e".to_owned(), test::build_e2e()?));
        for name in PROGRAMS {
            programs.push((format!("vm/programs/{name}"), compile(name)?));
        }
    }
    for name in ["curl", "openssl", "python3"] {
        let system = Path::new("/usr/bin").join(name);
        ensure!(
            system.exists(),
            "{} is missing: run `cargo xtask setup`",
            system.display()
        );
        programs.push((format!("usr/bin/{name}"), system));
    }
    let mut binaries = Vec::new();
    for (name, file) in programs {
        root.file(&name, &file)?;
        binaries.push(file);
    }
    python(&mut root, &mut binaries)?;
    for library in libraries(&binaries)? {
        // /lib is a link here and there: the file goes where the link leads.
        let parent = library
            .parent()
            .context("a library lies somewhere")?
            .canonicalize()?;
        let name = parent.join(library.file_name().context("a library has a name")?);
        root.file(&name.to_string_lossy(), &library)?;
    }
    root.file("usr/lib/ssl/openssl.cnf", Path::new("/etc/ssl/openssl.cnf"))?;
    root.bytes(
        "etc/passwd",
        0o644,
        b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n",
    );
    root.bytes("etc/group", 0o644, b"root:x:0:\nnogroup:x:65534:\n");
    root.bytes("etc/hosts", 0o644, b"127.0.0.1 localhost\n::1 localhost\n");
    root.bytes("etc/nsswitch.conf", 0o644, b"hosts: files\n");
    // The test binary knows these by the path it was built at, some through `agent/..`.
    root.directory(&sh::root().join("agent").to_string_lossy());
    let sources = sh::root().join("tests/programs");
    if sources.exists() {
        directory(&mut root, &sources, &mut |_| true)?;
    }
    busybox(&mut root, tools)?;
    root.bytes("vm/plan", 0o644, plan(tests, &filters)?.as_bytes());
    Ok(root.finish())
}

/// What init does in the guest; see `bin/vm-init.rs`.
fn plan(tests: &[&str], filters: &[&str]) -> Result<String> {
    let mut plan =
        String::from("env\tPATH=/usr/bin:/usr/sbin\nenv\tHOME=/root\nenv\tLANG=C.UTF-8\n");
    writeln!(
        plan,
        "env\tVORTEX_AGENT=/vm/vortex-agent\nenv\tVORTEX_NO_SKIP=1\nenv\tVORTEX_SCALE={SCALE}"
    )?;
    // Nobody else is on this machine, so a test may watch all of it.
    plan += "env\tVORTEX_ALONE=1\nenv\tVORTEX_PROGRAMS=/vm/programs\n";
    if tests.contains(&LOAD_CHECK) {
        writeln!(plan, "run\t{LOAD_CHECK}\t120\t/vm/vortex-agent\tload-check")?;
    }
    if !filters.is_empty() {
        writeln!(
            plan,
            "run\te2e\t420\t/vm/e2e\t--test-threads=1\t--include-ignored\t--nocapture\t{}",
            filters.join("\t")
        )?;
    }
    Ok(plan)
}

/// A C program of the tests, as `Lab::compiled` makes it.
fn compile(name: &str) -> Result<PathBuf> {
    let dir = sh::target().join("vm/programs");
    fs::create_dir_all(&dir)?;
    let binary = dir.join(name);
    let source = sh::root().join(format!("tests/programs/{name}.c"));
    let mut cc = sh::command("cc");
    cc.args(["-O1", "-g", "-Wno-deprecated-declarations", "-o"])
        .args([&binary, &source])
        .args(["-lssl", "-lcrypto", "-lpthread", "-ldl"]);
    sh::run(&mut cc, MINUTE)?;
    Ok(binary)
}

/// Init is static, so it can still speak when a library is missing.
fn build_init() -> Result<PathBuf> {
    const TARGET: &str = "x86_64-unknown-linux-gnu";
    let mut cargo = sh::command("cargo");
    cargo.args([
        "build",
        "--quiet",
        "--release",
        "--package",
        "xtask",
        "--bin",
        "vm-init",
        "--target",
        TARGET,
    ]);
    sh::run(
        cargo.env("RUSTFLAGS", "-C target-feature=+crt-static"),
        10 * MINUTE,
    )?;
    Ok(sh::target().join(TARGET).join("release/vm-init"))
}

/// The system's standard library, with its compiled form.
fn python(root: &mut Cpio, binaries: &mut Vec<PathBuf>) -> Result<()> {
    let mut ask = sh::command("/usr/bin/python3");
    ask.args([
        "-I",
        "-c",
        "import sysconfig; print(sysconfig.get_path('stdlib'))",
    ]);
    let library = PathBuf::from(sh::output(&mut ask, MINUTE)?.trim());
    let big = [
        "test",
        "idlelib",
        "lib2to3",
        "ensurepip",
        "pydoc_data",
        "tkinter",
        "turtledemo",
        "dist-packages",
    ];
    directory(root, &library, &mut |path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.ends_with(".so") {
            binaries.push(path.to_owned());
        }
        !big.contains(&&*name) && !name.starts_with("config-")
    })
}

/// Copies a directory to the same place, but for what `want` refuses.
fn directory(root: &mut Cpio, from: &Path, want: &mut dyn FnMut(&Path) -> bool) -> Result<()> {
    for entry in fs::read_dir(from).with_context(|| format!("could not read {}", from.display()))? {
        let path = entry?.path();
        if !want(&path) {
            continue;
        }
        if path.is_dir() {
            directory(root, &path, want)?;
        } else if path.is_file() {
            root.file(&path.to_string_lossy(), &path)?;
        }
    }
    Ok(())
}

/// All libraries the binaries are linked to, by the names the loader looks for.
fn libraries(binaries: &[PathBuf]) -> Result<BTreeSet<PathBuf>> {
    // A module that needs a library this machine lacks makes ldd fail; only that module would miss it.
    let text = sh::command("ldd")
        .args(binaries)
        .stderr(std::process::Stdio::null())
        .output()?
        .stdout;
    let text = String::from_utf8_lossy(&text);
    let words = text
        .split_whitespace()
        .filter(|word| word.starts_with('/') && !word.ends_with(':'));
    let found: BTreeSet<_> = words.map(PathBuf::from).collect();
    ensure!(!found.is_empty(), "ldd found no library of the agent");
    Ok(found)
}

/// Busybox for all small commands that are not there as themselves.
fn busybox(root: &mut Cpio, tools: &Path) -> Result<()> {
    let binary = tools.join("usr/bin/busybox");
    root.file("usr/bin/busybox", &binary)?;
    for applet in sh::output(sh::command(&binary).arg("--list"), MINUTE)?.lines() {
        let name = format!("usr/bin/{applet}");
        if !root.has(&name) {
            root.link(&name, "busybox");
        }
    }
    Ok(())
}

/// A kernel's version, and what goes onto its command line.
fn words_of(version: &str) -> (&str, &str) {
    version.split_once('+').unwrap_or((version, ""))
}

fn test_kernel(version: &str, files: &Files, root: &Path, tools: &Path, tests: &[&str]) -> Outcome {
    let mut notes = Vec::new();
    for retry in [false, true] {
        let start = Instant::now();
        let mut watch = Watch::new(version, tests);
        let result = boot(version, files, root, tools, &mut watch);
        sh::say(&format!(
            "[{version}] ended after {:.0} s",
            start.elapsed().as_secs_f32()
        ));
        match result.and_then(|code| watch.judge(code)) {
            Ok(mut outcome) => {
                outcome.reasons.splice(0..0, notes);
                return outcome;
            }
            // An emulator under load may stop in mid-boot; said, tried once more, never a pass.
            Err(error) => {
                let note = format!(
                    "no verdict: {error:#}{}",
                    if retry { "" } else { "; trying once more" }
                );
                sh::say(&format!("[{version}] {note}"));
                notes.push(note);
            }
        }
    }
    Outcome {
        version: version.to_owned(),
        tally: Tally {
            failed: 1,
            ..Tally::default()
        },
        reasons: notes,
    }
}

/// Runs one VM to its end; returns QEMU's exit code.
fn boot(version: &str, files: &Files, root: &Path, tools: &Path, watch: &mut Watch) -> Result<i32> {
    let file = log_file(version);
    fs::create_dir_all(file.parent().context("the log has no directory")?)?;
    let mut log = fs::File::create(file)?;
    let share = |dir: &str| tools.join("usr/share").join(dir);
    let mut qemu = sh::command(tools.join("usr/bin/qemu-system-x86_64"));
    qemu.envs(apt::environment(tools));
    qemu.arg("-L")
        .arg(share("qemu"))
        .arg("-L")
        .arg(share("seabios"));
    qemu.args([
        "-machine",
        "q35",
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
    ]);
    qemu.args([
        "-serial",
        "stdio",
        "-no-reboot",
        "-accel",
        "tcg,thread=single",
        "-cpu",
        "max",
    ]);
    qemu.args([
        "-smp",
        "2",
        "-m",
        "1G",
        "-device",
        "isa-debug-exit,iobase=0xf4,iosize=0x4",
    ]);
    let root = own_root(version, root, &files.modules)?;
    qemu.arg("-kernel")
        .arg(&files.image)
        .arg("-initrd")
        .arg(&root);
    let (_, more) = words_of(version);
    qemu.args(["-append", &format!("console=ttyS0 panic=-1 quiet {more}")]);
    let status = sh::lines(&mut qemu, 9 * MINUTE, |line| {
        let _ = writeln!(log, "{line}");
        // What the verifier says of a refused program is thousands of lines: they are in the log.
        if !(watch.loading && line.starts_with(' ')) {
            sh::say(&format!("[{version}] {line}"));
        }
        watch.see(line);
    })?;
    status.code().with_context(|| format!("QEMU: {status}"))
}

/// The root, and behind it an archive with what is this kernel's own.
fn own_root(version: &str, root: &Path, modules: &Path) -> Result<PathBuf> {
    let own = sh::target().join(format!("vm/root-{version}.cpio"));
    let mut more = Cpio::default();
    for module in fs::read_dir(modules)? {
        let module = module?;
        let name = module.file_name();
        more.file(&format!("vm/modules/{}", name.display()), &module.path())?;
    }
    fs::copy(root, &own)?;
    fs::OpenOptions::new()
        .append(true)
        .open(&own)?
        .write_all(&more.finish())?;
    Ok(own)
}

fn log_file(version: &str) -> PathBuf {
    sh::target().join(format!("vm/log/{version}.log"))
}

/// What the console says, as it comes.
struct Watch {
    version: String,
    tests: Vec<(String, bool)>,
    tally: Tally,
    loading: bool,
    loaded: u32,
    load_exit: Option<bool>,
    verdict: Option<u32>,
    trouble: Vec<String>,
}

impl Watch {
    fn new(version: &str, tests: &[&str]) -> Self {
        let tests = tests.iter().map(|&name| (name.to_owned(), false)).collect();
        let (tally, trouble) = Default::default();
        Self {
            version: version.to_owned(),
            tests,
            tally,
            loading: false,
            loaded: 0,
            load_exit: None,
            verdict: None,
            trouble,
        }
    }

    /// Matches anywhere in a line: the firmware leaves its own before the first one.
    fn see(&mut self, line: &str) {
        if TROUBLE.iter().any(|trouble| line.contains(trouble)) {
            self.trouble.push(line.trim().to_owned());
        } else if let Some(tally) = Tally::parse(line) {
            self.tally += tally;
        } else if line.contains("VM-STEP load-check start") {
            self.loading = true;
        } else if let Some((_, exit)) = line.split_once("VM-STEP load-check exit=") {
            self.loading = false;
            self.load_exit = Some(exit.starts_with("0 "));
        } else if let Some((_, count)) = line.split_once("VM-VERDICT ") {
            self.verdict = count.trim().parse().ok();
        } else if self.loading && line.contains(": ok, ") {
            self.loaded += 1;
        } else if line.contains("test ") && line.contains(" ... ") {
            for (name, seen) in &mut self.tests {
                *seen |= line.contains(name.as_str());
            }
        }
    }

    /// An error is "no verdict": the line and the exit code don't agree that the run came to its end.
    fn judge(mut self, code: i32) -> Result<Outcome> {
        if self.trouble.is_empty() {
            match (code, self.verdict) {
                (0x21, Some(0)) | (0x23, Some(1..)) => {}
                (_, verdict) => {
                    bail!("QEMU ended with {code}, and the guest's verdict is {verdict:?}")
                }
            }
        }
        let mut reasons = self.trouble;
        let named = self
            .tests
            .iter()
            .filter(|(name, _)| name != LOAD_CHECK)
            .count();
        if (self.tally.passed + self.tally.failed + self.tally.skipped) < u32::try_from(named)? {
            reasons.push(format!(
                "{named} tests were named, libtest counts {}",
                self.tally
            ));
        }
        for (name, seen) in &self.tests {
            if name == LOAD_CHECK {
                let passed = self.load_exit == Some(true) && self.loaded > 0;
                self.tally += Tally {
                    passed: passed.into(),
                    failed: (!passed).into(),
                    skipped: 0,
                };
                if !passed {
                    reasons.push(format!(
                        "load-check failed, {} programs loaded; see {}",
                        self.loaded,
                        log_file(&self.version).display()
                    ));
                }
            } else if !seen {
                reasons.push(format!("the test {name} never ran"));
            }
        }
        if self.verdict != Some(0) && self.tally.failed == 0 {
            reasons.push("a step of the guest failed".to_owned());
        }
        // What libtest doesn't know about counts as one failure.
        if !reasons.is_empty() && self.tally.failed == 0 {
            self.tally.failed = 1;
        }
        Ok(Outcome {
            version: self.version,
            tally: self.tally,
            reasons,
        })
    }
}

#[cfg(test)]
mod tests_of_the_verdict {
    use super::*;

    const GOOD: &[&str] = &[
        "\x1b[2JBooting from ROM..VM-INIT kernel 5.10 after 3 s",
        "VM-STEP load-check start",
        "read_return: ok, 1200 instructions",
        "VM-STEP load-check exit=0 after 1.0 s",
        "test clients::curl ... ok",
        "test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 9 filtered out",
        "VM-VERDICT 0",
    ];

    fn judge(lines: &[&str], code: i32) -> Result<Tally> {
        let mut watch = Watch::new("5.10", &[LOAD_CHECK, "curl"]);
        lines.iter().for_each(|line| watch.see(line));
        watch.judge(code).map(|outcome| outcome.tally)
    }

    #[test]
    fn a_pass_needs_every_sign() {
        let tally = |passed, failed| Tally {
            passed,
            failed,
            skipped: 0,
        };
        assert_eq!(judge(GOOD, 0x21).expect("a verdict"), tally(2, 0));
        // Each sign taken away, one at a time: never a clean pass.
        for (missing, sign) in GOOD.iter().enumerate().skip(1) {
            let lines: Vec<_> = GOOD
                .iter()
                .copied()
                .enumerate()
                .filter(|(n, _)| *n != missing)
                .map(|(_, line)| line)
                .collect();
            let failed = judge(&lines, 0x21).map_or(1, |tally| tally.failed);
            assert!(failed > 0, "without {sign:?}");
        }
        for code in [0, 1, 0x23] {
            assert!(judge(GOOD, code).is_err(), "exit code {code}");
        }
        let panic = [GOOD, &["Kernel panic - not syncing"]].concat();
        assert_eq!(judge(&panic, 0).expect("a verdict"), tally(2, 1));
        let failed = [
            &GOOD[..5],
            &[
                "test result: FAILED. 0 passed; 1 failed; 0 ignored; 0",
                "VM-VERDICT 1",
            ],
        ]
        .concat();
        assert_eq!(judge(&failed, 0x23).expect("a verdict"), tally(1, 1));
    }
}
