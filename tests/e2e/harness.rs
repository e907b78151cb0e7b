//! What a test is made of: a [`Lab`] (a directory of its own), programs in it, and the agent.
//!
//! Every wait has a deadline, every process dies with the test. Environment:
//!
//! - `VORTEX_AGENT`: the agent to test, else the one that cargo built.
//! - `VORTEX_NO_SKIP=1`: a test that can't run fails.
//! - `VORTEX_SCALE=N`: counts and sizes are divided by N (a slow virtual machine).
//! - `VORTEX_SLOW=N`: deadlines are multiplied by N; by 5 where only the scale is set.
//! - `VORTEX_BARE=1`: clients run without the agent; checks the programs alone.
//! - `VORTEX_KEEP=1`: the directories of failed tests stay.
//! - `VORTEX_TEST_DIR`: where other versions of OpenSSL are, else `target/fixtures`.
//! - `VORTEX_ALONE=1`: nobody else is on this machine, so all of it may be watched. Set by
//!   `cargo xtask vm` inside its virtual machines, and by nobody else.
//! - `VORTEX_IMAGE`: the container image that `cargo xtask image` leaves.
//! - `VORTEX_PROGRAMS`: where our C programs lie compiled, on a machine without a compiler.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::net::Ipv4Addr;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, remove_capability_from_bounding_set,
    set_capabilities,
};
use serde_json::Value;

use crate::records::{Records, Truth, compare, total};

/// The arguments of a command, whatever string types they are.
macro_rules! argv {
    ($($arg:expr),* $(,)?) => { vec![$(std::ffi::OsString::from($arg)),*] };
}
pub(crate) use argv;

const PROGRAMS: &[(&str, &str)] = &[
    ("server.py", include_str!("../programs/server.py")),
    (
        "nonce_server.py",
        include_str!("../programs/nonce_server.py"),
    ),
    ("connections.py", include_str!("../programs/connections.py")),
    ("exchanges.mjs", include_str!("../programs/exchanges.mjs")),
    ("websocket.py", include_str!("../programs/websocket.py")),
    ("peers.py", include_str!("../programs/peers.py")),
    ("events.py", include_str!("../programs/events.py")),
    ("before.py", include_str!("../programs/before.py")),
    ("charsets.py", include_str!("../programs/charsets.py")),
    ("grpc_web.py", include_str!("../programs/grpc_web.py")),
    ("sockets.mjs", include_str!("../programs/sockets.mjs")),
    ("http2.mjs", include_str!("../programs/http2.mjs")),
    ("parallel.mjs", include_str!("../programs/parallel.mjs")),
    ("http_client.py", include_str!("../programs/http_client.py")),
    ("flood.py", include_str!("../programs/flood.py")),
    ("models.py", include_str!("../programs/models.py")),
    ("providers.py", include_str!("../programs/providers.py")),
    ("sdks.py", include_str!("../programs/sdks.py")),
    ("tools.py", include_str!("../programs/tools.py")),
    ("grpcio.py", include_str!("../programs/grpcio.py")),
    ("recorder.py", include_str!("../programs/recorder.py")),
    ("fetch.mjs", include_str!("../programs/fetch.mjs")),
    ("common.h", include_str!("../programs/common.h")),
    ("tls.h", include_str!("../programs/tls.h")),
    ("ends.h", include_str!("../programs/ends.h")),
    ("mbedtls.c", include_str!("../programs/mbedtls.c")),
    ("nss.c", include_str!("../programs/nss.c")),
    ("relay.py", include_str!("../programs/relay.py")),
    ("unknown.c", include_str!("../programs/unknown.c")),
    ("private.c", include_str!("../programs/private.c")),
    ("wire.c", include_str!("../programs/wire.c")),
    ("wolfssl.c", include_str!("../programs/wolfssl.c")),
    ("mix.c", include_str!("../programs/mix.c")),
    ("life.c", include_str!("../programs/life.c")),
    ("absent.c", include_str!("../programs/absent.c")),
    ("move.c", include_str!("../programs/move.c")),
    ("letters.c", include_str!("../programs/letters.c")),
    ("churn.c", include_str!("../programs/churn.c")),
    ("bio_connect.c", include_str!("../programs/bio_connect.c")),
    ("late.c", include_str!("../programs/late.c")),
    ("load.c", include_str!("../programs/load.c")),
    ("early.c", include_str!("../programs/early.c")),
    ("async_job.c", include_str!("../programs/async_job.c")),
    ("sealed.c", include_str!("../programs/sealed.c")),
    ("swap.c", include_str!("../programs/swap.c")),
    ("abandon.c", include_str!("../programs/abandon.c")),
    ("victim.c", include_str!("../programs/victim.c")),
    ("talker.c", include_str!("../programs/talker.c")),
    ("cri.py", include_str!("../programs/cri.py")),
    ("image.py", include_str!("../programs/image.py")),
    ("names.py", include_str!("../programs/names.py")),
    ("silent.c", include_str!("../programs/silent.c")),
    ("spin.c", include_str!("../programs/spin.c")),
    ("streams.c", include_str!("../programs/streams.c")),
    ("ahead.c", include_str!("../programs/ahead.c")),
    ("gnutls.c", include_str!("../programs/gnutls.c")),
    ("pause.c", include_str!("../programs/pause.c")),
    ("kubelet.py", include_str!("../programs/kubelet.py")),
    ("collector.py", include_str!("../programs/collector.py")),
    ("ways.py", include_str!("../programs/ways.py")),
];

/// The interpreter that has Debian's packages; there may be another one in `PATH`.
pub(crate) const PYTHON: &str = "/usr/bin/python3";

fn set(variable: &str) -> bool {
    std::env::var_os(variable).is_some_and(|value| value == "1")
}

fn factor(variable: &str, otherwise: u64) -> u64 {
    let Ok(value) = std::env::var(variable) else {
        return otherwise;
    };
    let value = value.parse().ok().filter(|&value| value > 0);
    value.unwrap_or_else(|| panic!("{variable} is not a positive number"))
}

/// Nobody else is on this machine.
pub(crate) fn is_alone() -> bool {
    set("VORTEX_ALONE")
}

/// Clients run alone, nothing is captured.
pub(crate) fn bare() -> bool {
    let bare = set("VORTEX_BARE");
    assert!(
        !(bare && set("VORTEX_NO_SKIP")),
        "VORTEX_BARE skips the agent, VORTEX_NO_SKIP forbids it"
    );
    bare
}

/// `count` divided by `VORTEX_SCALE`, at least `least`; printed if it is another number.
pub(crate) fn scaled(what: &str, count: u64, least: u64) -> u64 {
    let scaled = (count / factor("VORTEX_SCALE", 1)).max(least);
    if scaled != count {
        println!("SCALED {what}: {scaled} instead of {count}");
    }
    scaled
}

fn slowness() -> u64 {
    let slow_machine = std::env::var_os("VORTEX_SCALE").is_some();
    factor("VORTEX_SLOW", if slow_machine { 5 } else { 1 })
}

/// A deadline for something that takes far less.
pub(crate) fn seconds(count: u64) -> Duration {
    Duration::from_secs(count * slowness())
}

/// Looks every two milliseconds until `look` finds something.
#[track_caller]
pub(crate) fn wait_for<T>(
    what: &str,
    deadline: Duration,
    mut look: impl FnMut() -> Option<T>,
) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(
            start.elapsed() < deadline,
            "{what}: not within {deadline:?}"
        );
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Bytes that repeat nowhere, the same for the same seed.
pub(crate) fn random(size: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(size + 8);
    while bytes.len() < size {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(size);
    bytes
}

/// Root that starts a program has what its bounding set holds: these and no others.
pub(crate) fn limit(command: &mut Command, held: CapabilitySet) {
    // SAFETY: system calls and nothing else: all of it is async-signal-safe.
    unsafe {
        command.pre_exec(move || {
            for number in 0..64 {
                let one = CapabilitySet::from_bits_retain(1 << number);
                if held.contains(one) {
                    continue;
                }
                match remove_capability_from_bounding_set(one) {
                    Ok(()) => {}
                    // The first number that this kernel does not know.
                    Err(rustix::io::Errno::INVAL) => break,
                    Err(error) => return Err(error.into()),
                }
            }
            let sets = capabilities(None)?;
            let inheritable = CapabilitySet::empty();
            Ok(set_capabilities(
                None,
                CapabilitySets {
                    inheritable,
                    ..sets
                },
            )?)
        })
    };
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Code(i32),
    Signal(i32),
}

/// A process group of ours. It is killed and reaped on drop and not before, so that its number
/// can't become another's.
pub(crate) struct Proc {
    child: Child,
    pub(crate) what: String,
    out: PathBuf,
    err: PathBuf,
    /// Shown with the rest if the test fails.
    records: Option<PathBuf>,
}

impl Proc {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How it ended; it stays a zombie.
    pub(crate) fn ended(&self) -> Option<End> {
        // SAFETY: all zero is a valid siginfo_t.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
        // SAFETY: `info` outlives the call.
        let result = unsafe { libc::waitid(libc::P_PID, self.pid(), &mut info, flags) };
        assert_eq!(result, 0, "waitid: {}", io::Error::last_os_error());
        // SAFETY: waitid has filled it for a child, or left it zero.
        let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
        (pid != 0).then_some(match info.si_code {
            libc::CLD_EXITED => End::Code(status),
            _ => End::Signal(status),
        })
    }

    #[track_caller]
    pub(crate) fn wait(&self, deadline: Duration) -> End {
        wait_for(&format!("the end of {}", self.what), deadline, || {
            self.ended()
        })
    }

    pub(crate) fn signal(&self, signal: i32) {
        kill(self.pid() as i32, signal);
    }

    /// To the whole process group, as a terminal does.
    pub(crate) fn signal_group(&self, signal: i32) {
        kill(-(self.pid() as i32), signal);
    }

    pub(crate) fn out(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.out).unwrap_or_default()).into_owned()
    }

    pub(crate) fn err(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.err).unwrap_or_default()).into_owned()
    }
}

impl Drop for Proc {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- {}: {:?}", self.what, self.ended());
            eprintln!("stdout: {:.2000}\nstderr: {:.4000}", self.out(), self.err());
        }
        if let Some(records) = self.records.as_ref().filter(|_| std::thread::panicking()) {
            match Records::parse(&read_records(records), false) {
                Ok(records) => eprintln!("records:\n{}", records.digest()),
                Err(error) => eprintln!("records: {error}"),
            }
        }
        self.signal_group(libc::SIGKILL);
        let _ = self.child.wait();
    }
}

pub(crate) fn kill(pid: i32, signal: i32) {
    assert!(pid.unsigned_abs() > 1, "not a process of ours: {pid}");
    // SAFETY: no memory is passed. The caller owns the process and has not reaped it.
    unsafe { libc::kill(pid, signal) };
}

/// One test's directory, removed at its end.
pub(crate) struct Lab {
    pub(crate) dir: PathBuf,
    test: &'static str,
}

impl Lab {
    /// For tests that need the agent: root.
    pub(crate) fn new(test: &'static str) -> Option<Self> {
        Self::with(test, &[])
    }

    /// For tests that need more programs than every machine has.
    pub(crate) fn with(test: &'static str, programs: &[&str]) -> Option<Self> {
        // SAFETY: it has no arguments and can't fail.
        let root = unsafe { libc::geteuid() } == 0;
        if !root && !bare() {
            skip(test, "needs root");
            return None;
        }
        let is_compiled = std::env::var_os("VORTEX_PROGRAMS").is_some();
        let is_there = |program: &str| which(program).is_some() || (program == "cc" && is_compiled);
        if let Some(program) = programs.iter().find(|program| !is_there(program)) {
            skip(test, &format!("{program} is not installed"));
            return None;
        }
        Some(Self::make(test))
    }

    /// For tests that watch the whole machine, which must be nobody else's. They are marked as ignored,
    /// so that they are listed by name where they do not run.
    #[track_caller]
    pub(crate) fn alone(test: &'static str) -> Self {
        assert!(
            is_alone(),
            "{test} probes everybody's libraries: in a virtual machine only, by `cargo xtask vm -- {test}`"
        );
        assert!(!bare(), "VORTEX_BARE has nothing to check here");
        Self::make(test)
    }

    fn make(test: &'static str) -> Self {
        let dir = std::env::temp_dir().join(format!("vortex-e2e-{}-{test}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
        Self { dir, test }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// A file with this content.
    pub(crate) fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, content).unwrap();
        path
    }

    pub(crate) fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// One of `tests/programs`, as a file.
    pub(crate) fn program(&self, name: &str) -> PathBuf {
        let (_, source) = PROGRAMS
            .iter()
            .find(|(known, _)| *known == name)
            .expect("it is listed");
        let path = self.path(name);
        if !path.exists() {
            fs::write(&path, source).unwrap();
        }
        path
    }

    /// A C program of `tests/programs`, compiled.
    pub(crate) fn compiled(&self, name: &str) -> PathBuf {
        self.compiled_as(name, &[])
    }

    /// The same, to be preloaded.
    pub(crate) fn preload(&self, name: &str) -> PathBuf {
        self.compiled_as(name, &["-shared", "-fPIC"])
    }

    /// The same with all libraries inside, at fixed addresses, and without symbols.
    pub(crate) fn compiled_static(&self, name: &str) -> PathBuf {
        self.compiled_as(name, &["-static", "-no-pie", "-s"])
    }

    fn compiled_as(&self, name: &str, options: &[&str]) -> PathBuf {
        let binary = self.path(name);
        if binary.exists() {
            return binary;
        }
        if let Some(programs) = std::env::var_os("VORTEX_PROGRAMS") {
            fs::copy(Path::new(&programs).join(name), &binary).unwrap();
        } else {
            self.program("common.h");
            self.program("tls.h");
            self.program("ends.h");
            let source = self.program(&format!("{name}.c"));
            let mut cc = Command::new("cc");
            cc.args([
                "-O1",
                "-g",
                "-Wall",
                "-Wextra",
                "-Werror",
                "-Wno-deprecated-declarations",
                "-o",
            ]);
            cc.arg(&binary)
                .args(options)
                .arg(source)
                .args(["-lpthread", "-ldl"]);
            // Not both: the other library would be probed for nothing.
            cc.args(match name {
                "gnutls" => &["-lgnutls"][..],
                "mbedtls" => &["-lmbedtls", "-lmbedx509", "-lmbedcrypto"],
                "nss" => &[
                    "-I/usr/include/nss",
                    "-I/usr/include/nspr",
                    "-lssl3",
                    "-lnss3",
                    "-lnssutil3",
                    "-lnspr4",
                ],
                "private" => &["-static"],
                "unknown" => &["-static", "-s", "-lmbedtls", "-lmbedx509", "-lmbedcrypto"],
                "wolfssl" => &["-lwolfssl"],
                _ => &["-lssl", "-lcrypto"],
            });
            self.finish(cc, "cc");
        }
        binary
    }

    /// A certificate for localhost and its key.
    pub(crate) fn certificate(&self) -> (PathBuf, PathBuf) {
        let (cert, key) = (self.path("cert.pem"), self.path("key.pem"));
        if !cert.exists() {
            let config = self.file("openssl.cnf", "[req]\ndistinguished_name = name\n[name]\n");
            let mut openssl = Command::new("openssl");
            openssl.args([
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:prime256v1",
            ]);
            openssl
                .args(["-nodes", "-days", "30", "-subj", "/CN=localhost", "-config"])
                .arg(config);
            openssl.args([
                "-addext",
                "subjectAltName=DNS:localhost,IP:127.0.0.1,IP:::1",
            ]);
            openssl.arg("-keyout").arg(&key).arg("-out").arg(&cert);
            self.finish(openssl, "openssl");
        }
        (cert, key)
    }

    /// Starts a process that dies with this thread; its output goes to `NAME.out` and `NAME.err`.
    #[track_caller]
    pub(crate) fn spawn(&self, mut command: Command, name: &str) -> Proc {
        let (out, err) = (
            self.path(&format!("{name}.out")),
            self.path(&format!("{name}.err")),
        );
        command
            .stdout(File::create(&out).unwrap())
            .stderr(File::create(&err).unwrap());
        command.process_group(0);
        // SAFETY: prctl is async-signal-safe and the closure allocates nothing.
        unsafe {
            command.pre_exec(
                || match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
                    0 => Ok(()),
                    _ => Err(io::Error::last_os_error()),
                },
            )
        };
        let what = format!("{command:?}");
        let child = command
            .spawn()
            .unwrap_or_else(|error| panic!("{what}: {error}"));
        Proc {
            child,
            what,
            out,
            err,
            records: None,
        }
    }

    /// A command with the environment that our programs look at.
    pub(crate) fn command(&self, argv: Vec<OsString>) -> Command {
        let mut words = argv.into_iter();
        let mut command = Command::new(words.next().expect("a program"));
        command
            .args(words)
            .stdin(Stdio::null())
            .envs(self.environment());
        command
    }

    fn environment(&self) -> [(&'static str, OsString); 4] {
        let (cert, key) = self.certificate();
        let seconds = (60 * slowness()).to_string();
        [
            ("E2E_DIR", self.dir.clone().into()),
            ("E2E_CERT", cert.into()),
            ("E2E_KEY", key.into()),
            ("E2E_SECONDS", seconds.into()),
        ]
    }

    /// A directory with a libssl of its own: an inode that nobody else has mapped.
    pub(crate) fn private_libssl(&self, name: &str) -> PathBuf {
        let dir = self.path(name);
        fs::create_dir(&dir).unwrap();
        fs::copy(libssl(), dir.join("libssl.so.3")).unwrap();
        dir
    }

    /// A file of another version's tree, which `cargo xtask fetch` makes.
    pub(crate) fn fixture(&self, tree: &str, file: &str) -> Option<PathBuf> {
        let base = match std::env::var_os("VORTEX_TEST_DIR") {
            Some(dir) => PathBuf::from(dir),
            None => Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("fixtures"),
        };
        let path = base.join(tree).join(file);
        if path.exists() {
            return Some(path);
        }
        skip(
            self.test,
            &format!("{} is not there: cargo xtask fetch", path.display()),
        );
        None
    }

    /// Runs a helper to its successful end.
    #[track_caller]
    pub(crate) fn finish(&self, mut command: Command, name: &str) -> Proc {
        command.stdin(Stdio::null());
        let process = self.spawn(command, name);
        let end = process.wait(seconds(60));
        assert_eq!(
            end,
            End::Code(0),
            "{}\n{}{}",
            process.what,
            process.out(),
            process.err()
        );
        process
    }

    /// `server.py` with these arguments, listening.
    pub(crate) fn server(&self, args: &[&str]) -> Server<'_> {
        self.server_named("server", Command::new(PYTHON), args)
    }

    /// The same under another name, interpreter or environment.
    pub(crate) fn server_named(
        &self,
        name: &'static str,
        mut python: Command,
        args: &[&str],
    ) -> Server<'_> {
        python
            .arg(self.program("server.py"))
            .args(self.server_args(name))
            .args(args);
        python.stdin(Stdio::null());
        let process = self.spawn(python, name);
        let port = self.port(name, &process);
        Server {
            process,
            port,
            name,
            lab: self,
        }
    }

    pub(crate) fn server_args(&self, name: &str) -> Vec<OsString> {
        let (cert, key) = self.certificate();
        argv![
            "--dir", &self.dir, "--name", name, "--cert", cert, "--key", key
        ]
    }

    /// The port that a program wrote to `NAME.port`.
    #[track_caller]
    pub(crate) fn port(&self, name: &str, process: &Proc) -> u16 {
        let path = self.path(&format!("{name}.port"));
        wait_for(&format!("{name}.port"), seconds(20), || {
            if let Some(end) = process.ended() {
                panic!("{} ended: {end:?}\n{}", process.what, process.err());
            }
            fs::read_to_string(&path).ok()?.trim().parse().ok()
        })
    }

    /// What the program NAME wrote down: a `NAME-*.sent` and `.received` for each connection.
    pub(crate) fn truth(&self, name: &str) -> Vec<Truth> {
        let mut truth = Vec::new();
        for entry in fs::read_dir(&self.dir).unwrap() {
            let path = entry.unwrap().path();
            let file = path.file_name().unwrap().to_str().unwrap();
            let Some(stem) = file.strip_suffix(".sent") else {
                continue;
            };
            if stem
                .strip_prefix(name)
                .is_some_and(|rest| rest.starts_with('-'))
            {
                truth.push(Truth {
                    name: stem.to_owned(),
                    sent: self.read(file),
                    // The program may be about to make it.
                    received: fs::read(self.path(&format!("{stem}.received"))).unwrap_or_default(),
                });
            }
        }
        truth.sort_by(|a, b| a.name.cmp(&b.name));
        truth
    }

    /// The agent as a user starts it who wants to be told only what went wrong: `--content full`
    /// is logged.
    pub(crate) fn quiet_agent(&self) -> Agent<'_> {
        self.agent().content("none")
    }

    pub(crate) fn agent(&self) -> Agent<'_> {
        Agent {
            lab: self,
            binary: Agent::path(),
            output: Some(self.path("records.ndjson")),
            before: Vec::new(),
            options: Vec::new(),
            config: None,
            emit: Some("data,gap,coverage,stats"),
            content: "full",
            environment: Vec::new(),
            stdin: None,
            directory: None,
            capabilities: None,
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() && set("VORTEX_KEEP") {
            eprintln!("{}: see {}", self.test, self.dir.display());
        } else if let Err(error) = fs::remove_dir_all(&self.dir) {
            eprintln!("{}: {error}", self.dir.display());
        }
    }
}

/// A test that can't run here says so, or fails where that is not allowed.
pub(crate) fn skip(test: &str, reason: &str) {
    assert!(!set("VORTEX_NO_SKIP"), "SKIP {test}: {reason}");
    println!("SKIP {test}: {reason}");
}

/// The machine's own libssl.
pub(crate) fn libssl() -> PathBuf {
    let dirs = [
        "/usr/lib/x86_64-linux-gnu",
        "/lib/x86_64-linux-gnu",
        "/usr/lib64",
        "/usr/lib",
        "/lib",
    ];
    let mut paths = dirs.iter().map(|dir| Path::new(dir).join("libssl.so.3"));
    paths.find(|path| path.is_file()).expect("a libssl.so.3")
}

/// A port that is free now.
pub(crate) fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap().port()
}

/// A program of `PATH`, or of where Debian keeps servers.
pub(crate) fn which(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin")])
        .map(|dir| dir.join(program))
        .find(|path| path.is_file())
}

/// A running `server.py`.
pub(crate) struct Server<'a> {
    process: Proc,
    pub(crate) port: u16,
    name: &'static str,
    lab: &'a Lab,
}

impl Server<'_> {
    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("https://{}:{}{path}", Ipv4Addr::LOCALHOST, self.port)
    }

    /// What the server sent and received, once each of its connections is over.
    #[track_caller]
    pub(crate) fn truth(&self) -> Vec<Truth> {
        let count = |name: &str| {
            let path = self.lab.path(&format!("{}.{name}", self.name));
            fs::read_to_string(path).unwrap_or_default().lines().count()
        };
        wait_for("the end of the server's connections", seconds(20), || {
            (count("accepted") == count("closed")).then_some(())
        });
        self.lab.truth(self.name)
    }

    /// The same connections as their clients saw them.
    #[track_caller]
    pub(crate) fn client_truth(&self) -> Vec<Truth> {
        self.truth().into_iter().map(Truth::swapped).collect()
    }
}

/// How the agent is to be started. As little as possible is said twice: the defaults are those of
/// most tests.
pub(crate) struct Agent<'a> {
    lab: &'a Lab,
    binary: PathBuf,
    output: Option<PathBuf>,
    before: Vec<OsString>,
    options: Vec<OsString>,
    config: Option<PathBuf>,
    emit: Option<&'static str>,
    content: &'static str,
    environment: Vec<(OsString, OsString)>,
    stdin: Option<PathBuf>,
    directory: Option<PathBuf>,
    capabilities: Option<CapabilitySet>,
}

impl Agent<'_> {
    pub(crate) fn path() -> PathBuf {
        match std::env::var_os("VORTEX_AGENT") {
            Some(path) => path.into(),
            None => env!("CARGO_BIN_EXE_vortex-agent").into(),
        }
    }

    pub(crate) fn emit(mut self, kinds: &'static str) -> Self {
        self.emit = Some(kinds);
        self
    }

    pub(crate) fn content(mut self, policy: &'static str) -> Self {
        self.content = policy;
        self
    }

    /// Another output file, which need not be possible, or none.
    pub(crate) fn output(mut self, path: Option<PathBuf>) -> Self {
        self.output = path;
        self
    }

    /// Outputs as this text says, and no others.
    pub(crate) fn config(mut self, text: &str) -> Self {
        self.config = Some(self.lab.file("config.toml", text));
        self.output = None;
        self
    }

    /// A copy of the agent.
    pub(crate) fn binary(mut self, path: &Path) -> Self {
        self.binary = path.to_owned();
        self
    }

    /// Root with these and no others.
    pub(crate) fn capabilities(mut self, held: CapabilitySet) -> Self {
        self.capabilities = Some(held);
        self
    }

    pub(crate) fn directory(mut self, path: &Path) -> Self {
        self.directory = Some(path.to_owned());
        self
    }

    /// More options of `run`.
    pub(crate) fn options(mut self, options: Vec<OsString>) -> Self {
        self.options.extend(options);
        self
    }

    /// A command that starts the agent: `setpriv …`.
    pub(crate) fn before(mut self, command: Vec<OsString>) -> Self {
        self.before = command;
        self
    }

    /// For the agent and CMD.
    pub(crate) fn env(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    pub(crate) fn stdin(mut self, path: &Path) -> Self {
        self.stdin = Some(path.to_owned());
        self
    }

    fn command(&self, operands: Vec<OsString>, client: Vec<OsString>) -> Command {
        let words = if bare() {
            client
        } else {
            let mut words = self.before.clone();
            words.push(self.binary.clone().into());
            words.extend(argv!["run", "--content", self.content]);
            match &self.config {
                Some(path) => words.extend(argv!["--config", path]),
                None => {
                    words.extend(argv!["--output", "json"]);
                    let emit = self.emit.into_iter();
                    words.extend(emit.flat_map(|kinds| argv!["--emit", kinds]));
                    words.extend(self.output.iter().flat_map(|output| argv!["-o", output]));
                }
            }
            words.extend(self.options.iter().cloned());
            words.extend(operands);
            words
        };
        let mut command = self.lab.command(words);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        if let Some(path) = &self.stdin {
            command.stdin(File::open(path).unwrap());
        }
        if let Some(dir) = &self.directory {
            command.current_dir(dir);
        }
        if let Some(held) = self.capabilities {
            limit(&mut command, held);
        }
        command
    }

    fn launch(self, command: Command) -> Running {
        let mut process = self.lab.spawn(command, "agent");
        process.records.clone_from(&self.output);
        Running {
            process,
            output: self.output.unwrap_or_default(),
        }
    }

    /// Starts `run … -- CMD`.
    #[track_caller]
    pub(crate) fn start(self, cmd: Vec<OsString>) -> Running {
        let mut operands = argv!["--"];
        operands.extend(cmd.iter().cloned());
        let command = self.command(operands, cmd);
        self.launch(command)
    }

    /// Runs `run … -- CMD` to its end.
    #[track_caller]
    pub(crate) fn run(self, cmd: Vec<OsString>) -> Run {
        self.start(cmd).finish(seconds(60))
    }

    /// Starts `run --pid N` and waits until coverage says that it is watched.
    #[track_caller]
    pub(crate) fn watch(self, pid: u32) -> Running {
        let running = self.watch_without_coverage(pid);
        running.wait_for_coverage(pid);
        running
    }

    /// Starts `run` without any filter, and waits until it sees `pid`, which was there before.
    #[track_caller]
    pub(crate) fn watch_machine(self, pid: u32) -> Running {
        let running = self.unfiltered();
        running.wait_for_coverage(pid);
        running
    }

    /// Starts `run` without a command, with no filter but those of its options.
    #[track_caller]
    pub(crate) fn unfiltered(self) -> Running {
        let command = self.command(Vec::new(), Vec::new());
        self.launch(command)
    }

    /// Starts `run` with a filter by control group in which nobody is yet, and waits until it says so.
    #[track_caller]
    pub(crate) fn watch_group(self) -> Running {
        let running = self.unfiltered();
        wait_for("an agent that waits for a container", seconds(20), || {
            let said = running.process.err();
            said.contains("waiting for one").then_some(())
        });
        running
    }

    /// The same for a process without TLS.
    #[track_caller]
    pub(crate) fn watch_without_coverage(self, pid: u32) -> Running {
        let command = self.command(argv!["--pid", pid.to_string()], argv!["sleep", "60"]);
        self.launch(command)
    }
}

/// The output file, if that is what it is: a pipe would be waited for.
fn read_records(path: &Path) -> String {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_file() => fs::read_to_string(path).unwrap_or_default(),
        _ => String::new(),
    }
}

/// A running agent.
pub(crate) struct Running {
    pub(crate) process: Proc,
    output: PathBuf,
}

impl Running {
    /// The records so far.
    #[track_caller]
    pub(crate) fn records(&self) -> Records {
        let text = read_records(&self.output);
        Records::parse(&text, false).unwrap()
    }

    /// The ledger as it was said last. Read from the end: there may be much before it.
    pub(crate) fn last_ledger(&self) -> Option<Value> {
        const STATS: usize = 8192;
        let file = File::open(&self.output).ok()?;
        let start = file.metadata().ok()?.len().saturating_sub(STATS as u64);
        let mut end = vec![0; STATS];
        let read = file.read_at(&mut end, start).ok()?;
        let end = String::from_utf8_lossy(&end[..read]);
        let stats = end.lines().rev().filter(|line| line.contains("\"ledger\""));
        let mut stats = stats.filter_map(|line| serde_json::from_str::<Value>(line).ok());
        stats.next().map(|mut stats| stats["ledger"].take())
    }

    #[track_caller]
    pub(crate) fn wait_for_coverage(&self, pid: u32) {
        if bare() {
            return;
        }
        wait_for(
            &format!("coverage of {pid}: {}", self.process.what),
            seconds(10),
            || {
                if let Some(end) = self.process.ended() {
                    panic!(
                        "{} ended: {end:?}\n{}",
                        self.process.what,
                        self.process.err()
                    );
                }
                let records = self.records();
                let mut coverage = records.kind("coverage");
                let seen = |status: &str| status == "probed" || status == "partly";
                coverage
                    .any(|record| {
                        record["process"]["pid"] == pid
                            && record["status"].as_str().is_some_and(seen)
                    })
                    .then_some(())
            },
        );
    }

    #[track_caller]
    pub(crate) fn finish(self, deadline: Duration) -> Run {
        let end = self.process.wait(deadline);
        let text = read_records(&self.output);
        Run {
            end,
            text,
            process: self.process,
        }
    }
}

/// A run that is over.
pub(crate) struct Run {
    pub(crate) end: End,
    pub(crate) text: String,
    pub(crate) process: Proc,
}

impl Run {
    /// What the program says of what it did: its lines that are JSON.
    pub(crate) fn reports(&self) -> Vec<Value> {
        let out = self.process.out();
        let lines = out.lines();
        lines
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    }

    #[track_caller]
    pub(crate) fn success(&self) -> &Self {
        assert_eq!(
            self.end,
            End::Code(0),
            "{}{}",
            self.process.out(),
            self.process.err()
        );
        self
    }

    #[track_caller]
    pub(crate) fn records(&self) -> Records {
        Records::parse(&self.text, true).unwrap()
    }

    /// CMD was successful, each byte of the truth is there exactly once, no other is, and the
    /// ledger agrees.
    #[track_caller]
    pub(crate) fn assert_exact(&self, truth: &[Truth]) {
        self.assert_accounted(truth, &[]);
    }

    /// The same, but bytes may be missing for these reasons if a gap says so.
    #[track_caller]
    pub(crate) fn assert_accounted(&self, truth: &[Truth], causes: &[&str]) {
        self.success();
        assert!(total(truth) > 0, "the programs exchanged nothing");
        if bare() {
            return;
        }
        let records = self.records();
        compare(&records.connections().unwrap(), truth, causes)
            .unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(
            records.check_ledger().unwrap(),
            total(truth),
            "bytes.seen and what was sent"
        );
    }
}
