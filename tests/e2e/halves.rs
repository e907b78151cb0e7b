//! The two processes of the agent: what each may do, and what happens when one is killed.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::harness::{Agent, End, Lab, argv, bare, kill, random, seconds, skip, wait_for, which};
use crate::lifecycle::{Stream, no_breakpoint_within};
use crate::proc::{
    alive, breakpoints, half_of, running, state, status, stopped, tree, wait_for_running,
};

/// uid and gid of `nobody`, who exists everywhere.
pub(crate) const NOBODY: u32 = 65534;

fn lab(test: &'static str, programs: &[&str]) -> Option<Lab> {
    if bare() {
        return None;
    }
    Lab::with(test, programs)
}

/// The pipeline has nothing that it could misuse.
#[test]
fn pipeline_has_no_privileges() {
    let Some(lab) = lab("pipeline_has_no_privileges", &["cc"]) else {
        return;
    };
    let stream = Stream::new(&lab);
    let run = lab
        .agent()
        .env("LD_LIBRARY_PATH", lab.path("private"))
        .start(stream.command.clone());
    let client = wait_for_running(&lab.path("mix"));
    stream.flows(1000);
    let pipeline = run.process.pid();
    for field in ["CapEff", "CapPrm", "CapInh", "CapBnd", "CapAmb"] {
        assert_eq!(
            status(pipeline, field).as_deref(),
            Some("0000000000000000"),
            "{field}"
        );
    }
    assert_eq!(status(pipeline, "NoNewPrivs").as_deref(), Some("1"));
    assert_eq!(status(pipeline, "Seccomp").as_deref(), Some("2"));
    for thread in threads(pipeline) {
        assert_eq!(
            status(thread, "Seccomp").as_deref(),
            Some("2"),
            "thread {thread}"
        );
        assert_eq!(
            status(thread, "CapEff").as_deref(),
            Some("0000000000000000"),
            "thread {thread}"
        );
    }
    let half = half_of(pipeline).expect("a privileged half");
    assert_ne!(
        status(half, "CapEff").as_deref(),
        Some("0000000000000000"),
        "{half} is not the half"
    );
    // It has files opened by now, by threads of its own.
    let threads = threads(half);
    assert!(threads.len() > 1, "{threads:?}");
    for thread in threads {
        for (field, expected) in [("Seccomp", "2"), ("NoNewPrivs", "1")] {
            assert_eq!(
                status(thread, field).as_deref(),
                Some(expected),
                "{field} of the half's thread {thread}"
            );
        }
    }
    stream.stop(client);
    run.finish(seconds(10)).success();
}

fn threads(pid: u32) -> Vec<u32> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    threads
        .map(|thread| {
            thread
                .unwrap()
                .file_name()
                .to_str()
                .unwrap()
                .parse()
                .unwrap()
        })
        .collect()
}

/// What CMD can tell about how it was started: identity, signals, limits, environment, directory.
/// Under the agent it must be what it is without. By the shell alone: it blocks signals to fork.
const VIEW: &str = "
    while read -r name value; do
        case $name in
        Uid:|Gid:|Groups:|NoNewPrivs:|Seccomp*|Sig[BIC]*|Cap*|CoreDumping:) echo \"$name $value\" ;;
        esac
    done </proc/self/status
    cat /proc/self/limits /proc/self/cgroup /proc/self/oom_score_adj
    ls -l /proc/self/ns | sed 's/.*-> //'
    umask; pwd; env | sort
    echo args \"$@\"
";

/// Signals 32 and 33 are libc's own; whether a child has them ignored depends on how libc made it
/// (`posix_spawn` or `fork`), not on the agent.
fn without_libc_signals(view: &str) -> String {
    let line = |line: &str| match line.strip_prefix("SigIgn: ") {
        Some(mask) => {
            let mask = u64::from_str_radix(mask, 16).expect("a signal mask");
            format!("SigIgn: {:016x}\n", mask & !(0b11 << 31))
        }
        None => format!("{line}\n"),
    };
    view.lines().map(line).collect()
}

/// What CMD saw in both cases.
#[track_caller]
fn assert_same_view(alone: &str, watched: &str) {
    let (alone, watched) = (&without_libc_signals(alone), &without_libc_signals(watched));
    let zero = "0000000000000000";
    for line in [
        &format!("SigIgn: {zero}"),
        &format!("SigBlk: {zero}"),
        "NoNewPrivs: 0",
        "Seccomp: 0",
    ] {
        assert!(
            alone.lines().any(|other| other == line),
            "without the agent no {line}: {alone}"
        );
    }
    let only = |in_this: &str, not_in: &str| -> Vec<String> {
        let new = in_this
            .lines()
            .filter(|line| !not_in.lines().any(|other| other == *line));
        new.map(str::to_owned).collect()
    };
    let (more, less) = (only(watched, alone), only(alone, watched));
    assert!(
        alone == watched,
        "with the agent only: {more:#?}\nwithout it only: {less:#?}"
    );
}

#[test]
fn cmd_sees_nothing_of_the_agent() {
    let Some(lab) = lab("cmd_sees_nothing_of_the_agent", &[]) else {
        return;
    };
    let here = lab.path("here");
    fs::create_dir(&here).unwrap();
    let cmd = argv!["sh", "-c", VIEW, "sh", "a b", "", "--", "-o", "ü"];
    let mut command = lab.command(cmd.clone());
    command.current_dir(&here);
    let alone = lab.finish(command, "alone");
    let run = lab.agent().directory(&here).run(cmd);
    run.success();
    assert_same_view(&alone.out(), &run.process.out());
}

/// Whatever the agent was given, and whatever it opens: CMD has 0 to 2 only.
#[test]
fn cmd_has_three_descriptors() {
    let Some(lab) = lab("cmd_has_three_descriptors", &[]) else {
        return;
    };
    let script = "exec 7</dev/null 9</dev/null; exec \"$@\"";
    let run = lab
        .agent()
        .before(argv!["sh", "-c", script, "sh"])
        .run(argv!["sh", "-c", "ls /proc/$$/fd"]);
    run.success();
    assert_eq!(run.process.out(), "0\n1\n2\n");
}

/// Kills one of the two after some time; CMD must go on, no breakpoint may stay, nobody may be left
/// stopped, the agent says one thing at most and returns CMD's status.
#[track_caller]
fn kill_one(lab: &Lab, victim: Victim, after: Duration) {
    let stream = Stream::new(lab);
    let mix = lab.path("mix");
    let agent = lab
        .agent()
        .env("LD_LIBRARY_PATH", lab.path("private"))
        .env("E2E_PDEATHSIG", "0")
        .start(stream.command.clone());
    let pipeline = agent.process.pid();
    std::thread::sleep(after);
    let what = format!("{victim:?} after {after:?}");
    match victim {
        Victim::Pipeline => agent.process.signal(libc::SIGKILL),
        Victim::Half => {
            // Killed before it was there says nothing: wait for it.
            let half = wait_for("the half", seconds(5), || half_of(pipeline));
            kill(half as i32, libc::SIGKILL);
        }
    }
    std::thread::sleep(Duration::from_millis(50));
    // Was CMD started before the death of the half stopped it?
    let started = wait_for(
        &format!("{what}: CMD or the agent's end"),
        seconds(5),
        || match (running(&mix), agent.process.ended()) {
            (Some(client), _) => Some(Some(client)),
            (None, Some(_)) => Some(running(&mix)),
            (None, None) => None,
        },
    );
    let Some(client) = started else {
        let expected = if victim == Victim::Half {
            End::Code(125)
        } else {
            End::Signal(libc::SIGKILL)
        };
        assert_eq!(
            agent.process.wait(seconds(5)),
            expected,
            "{what}: {}",
            agent.process.err()
        );
        assert!(
            lab.truth("mix").is_empty(),
            "{what}: CMD ran though the agent said it did not"
        );
        println!("{what}: CMD was not started");
        return;
    };
    wait_for("the private libssl", seconds(5), || {
        crate::proc::has_mapped(client, &stream.library).then_some(())
    });
    no_breakpoint_within(Duration::from_millis(1500), client, &stream.library);
    stream.flows(100_000);
    assert!(
        breakpoints(client, &stream.library).is_empty(),
        "{what}: a breakpoint came back"
    );
    assert_ne!(state(client), Some('T'), "{what}: CMD was left stopped");
    stream.stop(client);
    if victim == Victim::Half {
        assert_eq!(
            agent.process.wait(seconds(5)),
            End::Code(0),
            "{what}: {}",
            agent.process.err()
        );
    }
    assert!(
        agent.process.out().contains("want_write"),
        "{what}: CMD did not end well"
    );
    println!("{what}: CMD went on");
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Half,
    Pipeline,
}

const MOMENTS: [u64; 9] = [0, 20, 40, 60, 80, 100, 130, 200, 500];

#[test]
fn killed_half() {
    for moment in MOMENTS {
        let Some(lab) = lab("killed_half", &["cc"]) else {
            return;
        };
        kill_one(&lab, Victim::Half, Duration::from_millis(moment));
    }
}

#[test]
fn killed_pipeline() {
    for moment in MOMENTS {
        let Some(lab) = lab("killed_pipeline", &["cc"]) else {
            return;
        };
        kill_one(&lab, Victim::Pipeline, Duration::from_millis(moment));
    }
}

/// A shell that starts curl: the library is held by SIGSTOP for the attach, and continued whatever
/// becomes of the agent.
#[test]
fn killed_while_holding() {
    for (moment, victim) in [70, 90, 110, 130]
        .into_iter()
        .flat_map(|m| [(m, Victim::Half), (m, Victim::Pipeline)])
    {
        let Some(lab) = lab("killed_while_holding", &["curl"]) else {
            return;
        };
        let server = lab.server(&[]);
        lab.private_libssl("private");
        let done = lab.path("done");
        // Ten processes, so that one of them is likely to be held when the death comes.
        let script = format!(
            "n=0; while [ $n -lt 10 ]; do curl -sk -o /dev/null {} || exit 1; n=$((n + 1)); done; : > {}",
            server.url("/bytes/1000"),
            done.display()
        );
        let agent = lab
            .agent()
            .env("LD_LIBRARY_PATH", lab.path("private"))
            .start(argv!["sh", "-c", script]);
        let pipeline = agent.process.pid();
        std::thread::sleep(Duration::from_millis(moment));
        let others: Vec<_> = tree(pipeline).into_iter().skip(1).collect();
        match (victim, half_of(pipeline)) {
            (Victim::Half, Some(half)) => kill(half as i32, libc::SIGKILL),
            _ => agent.process.signal(libc::SIGKILL),
        }
        // A hold lasts 6 s at most; the next one, if any, would have to last as long as ours.
        let what = format!("{victim:?} killed after {moment} ms");
        let start = Instant::now();
        while start.elapsed() < seconds(10) && !stopped(pipeline).is_empty() {
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(stopped(pipeline), [], "{what}: left stopped");
        let cmd_runs = || others.iter().any(|&pid| alive(pid));
        wait_for(&format!("the end of CMD, {what}"), seconds(20), || {
            (done.exists() || !cmd_runs()).then_some(())
        });
        if agent.process.ended().is_none() {
            agent.process.wait(seconds(10));
        }
        // It ran to its end, or never began because the agent died before.
        let begun =
            fs::read_to_string(lab.path("server.accepted")).is_ok_and(|lines| !lines.is_empty());
        assert_eq!(done.exists(), begun, "{what}: CMD was cut short");
    }
}

/// A half that no longer runs while a process waits for it: the pipeline continues that one by its own clock.
#[test]
fn stopped_while_holding() {
    let Some(lab) = lab("stopped_while_holding", &["curl"]) else {
        return;
    };
    const LIBRARIES: u32 = 60;
    for number in 0..LIBRARIES {
        lab.private_libssl(&format!("fresh-{number}"));
    }
    let server = lab.server(&[]);
    let script = format!(
        "n=0; while [ $n -lt {LIBRARIES} ]; do \
           LD_LIBRARY_PATH={}/fresh-$n curl -sk -o /dev/null {} || exit 1; n=$((n + 1)); done",
        lab.dir.display(),
        server.url("/bytes/1000"),
    );
    let agent = lab.agent().start(argv!["sh", "-c", script]);
    let pipeline = agent.process.pid();
    let half = wait_for("the half", seconds(10), || half_of(pipeline)) as i32;

    let waiting = || stopped(pipeline).first().map(|(pid, _)| *pid);
    let caught = wait_for(
        "a process that waits for a half that does not run",
        seconds(60),
        || {
            assert!(agent.process.ended().is_none(), "none was caught");
            let pid = waiting()?;
            kill(half, libc::SIGSTOP);
            // It may have been let go before.
            let still = wait_for("the half to stop", seconds(10), || {
                (state(half as u32) == Some('T'))
                    .then(|| stopped(pipeline).iter().any(|one| one.0 == pid))
            });
            if !still {
                kill(half, libc::SIGCONT);
            }
            still.then_some(pid)
        },
    );
    let start = Instant::now();
    while start.elapsed() < seconds(30) && waiting() == Some(caught) {
        std::thread::sleep(Duration::from_millis(20));
    }
    let waited = start.elapsed();
    let left = stopped(pipeline);
    kill(half, libc::SIGCONT);
    assert_eq!(left, [], "left stopped");
    println!("continued after {waited:?}");
    let ended = agent.process.wait(seconds(60));
    assert_eq!(ended, End::Code(0), "CMD was disturbed");
}

/// A copy of the agent that an ordinary user can start, and a directory for that user's output.
/// Both are below `/run`, where only root can make them again when they are gone.
pub(crate) struct UserLab {
    dir: PathBuf,
    sudoers: Option<PathBuf>,
}

impl UserLab {
    pub(crate) fn new(lab: &Lab) -> Self {
        let dir = Path::new("/run").join(lab.dir.file_name().unwrap());
        fs::create_dir(&dir).unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
        let this = Self { dir, sudoers: None };
        fs::copy(Agent::path(), this.agent()).unwrap();
        fs::set_permissions(this.agent(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(this.home()).unwrap();
        chown(this.home(), Some(NOBODY), Some(NOBODY)).unwrap();
        this
    }

    /// Lets `nobody` run this copy, and nothing else, as root without a password. The name in
    /// sudoers.d must not have a dot.
    pub(crate) fn with_sudo(mut self, defaults: &str) -> Self {
        let name = self
            .dir
            .file_name()
            .unwrap()
            .to_str()
            .unwrap()
            .replace('.', "-");
        let path = Path::new("/etc/sudoers.d").join(name);
        let agent = self.agent();
        let log = self.dir.join("log");
        let rule = format!(
            "{}nobody ALL=(root) NOPASSWD: {}\n",
            defaults.replace("LOG", log.to_str().unwrap()),
            agent.display()
        );
        self.sudoers = Some(path.clone());
        fs::write(&path, rule).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o440)).unwrap();
        self
    }

    pub(crate) fn agent(&self) -> PathBuf {
        self.dir.join("vortex-agent")
    }

    pub(crate) fn home(&self) -> PathBuf {
        self.dir.join("home")
    }

    pub(crate) fn run<'a>(&self, lab: &'a Lab) -> Agent<'a> {
        lab.agent()
            .before(as_nobody())
            .binary(&self.agent())
            .output(Some(self.home().join("records.ndjson")))
            .directory(&self.home())
    }
}

impl Drop for UserLab {
    fn drop(&mut self) {
        if let Some(path) = &self.sudoers {
            fs::remove_file(path).unwrap();
        }
        fs::remove_dir_all(&self.dir).unwrap();
    }
}

pub(crate) fn as_nobody() -> Vec<std::ffi::OsString> {
    let id = NOBODY.to_string();
    argv![
        "setpriv",
        "--reuid",
        &id,
        "--regid",
        &id,
        "--clear-groups",
        "--"
    ]
}

/// Rules for sudo are written on machines that are there for tests only.
pub(crate) fn may_write_sudoers(test: &str) -> bool {
    let told = ["CI", "VORTEX_NO_SKIP"]
        .iter()
        .any(|name| std::env::var_os(name).is_some());
    let container = ["/.dockerenv", "/run/.containerenv"]
        .iter()
        .any(|path| Path::new(path).exists());
    if which("sudo").is_none() || which("setpriv").is_none() {
        skip(test, "sudo or setpriv is not installed");
        return false;
    }
    if !(told || container) {
        skip(test, "would add a rule to /etc/sudoers.d; CI=1 allows it");
        return false;
    }
    true
}

/// An ordinary user, the half alone behind sudo: CMD is the user's, and each byte is there.
#[track_caller]
fn by_sudo(lab: &Lab, defaults: &str) {
    let user = UserLab::new(lab).with_sudo(defaults);
    let server = lab.server(&[]);
    let body = lab.file("body", random(200_000, 12));
    let script = format!(
        "{VIEW}\ncurl -sk --http1.1 -o \"$HOME/echo\" --data-binary @{} {}",
        body.display(),
        server.url("/echo")
    );
    let cmd = argv!["sh", "-c", script];
    let mut command = lab.command([as_nobody(), cmd.clone()].concat());
    command.env("HOME", user.home()).current_dir(user.home());
    let alone = lab.finish(command, "alone");
    let before = server.client_truth().len();
    let run = user.run(lab).env("HOME", user.home()).run(cmd);
    let truth = server.client_truth().split_off(before);
    assert_eq!(truth.len(), 1);
    run.assert_exact(&truth);
    assert_same_view(&alone.out(), &run.process.out());
    assert!(alone.out().contains("Uid: 65534"));
    assert!(fs::read(user.home().join("echo")).unwrap() == lab.read("body"));
    let metadata = fs::metadata(user.home().join("records.ndjson")).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&metadata), NOBODY);
    assert_eq!(metadata.permissions().mode() & 0o7777, 0o600);
}

#[test]
fn user_with_sudo() {
    let Some(lab) = lab("user_with_sudo", &["curl"]) else {
        return;
    };
    if may_write_sudoers("user_with_sudo") {
        by_sudo(&lab, "");
    }
}

#[test]
fn user_with_sudo_and_a_pty() {
    let Some(lab) = lab("user_with_sudo_and_a_pty", &["curl"]) else {
        return;
    };
    if may_write_sudoers("user_with_sudo_and_a_pty") {
        by_sudo(&lab, "Defaults:nobody use_pty\n");
    }
}

/// With I/O logging sudo puts a pipe in the place of the half's socket.
#[test]
fn user_with_sudo_that_logs_input() {
    let Some(lab) = lab("user_with_sudo_that_logs_input", &["curl"]) else {
        return;
    };
    if may_write_sudoers("user_with_sudo_that_logs_input") {
        by_sudo(
            &lab,
            "Defaults:nobody log_input, log_output, iolog_dir=LOG\n",
        );
    }
}

/// Neither root nor allowed to become it: one line, and CMD is not run.
#[test]
fn user_without_sudo() {
    let Some(lab) = lab("user_without_sudo", &["setpriv"]) else {
        return;
    };
    let user = UserLab::new(&lab);
    let ran = user.home().join("ran");
    let run = user.run(&lab).content("none").run(argv!["touch", &ran]);
    let said = run.process.err();
    assert_eq!(run.end, End::Code(125), "{said}");
    assert_eq!(said.lines().count(), 1, "one line: {said}");
    assert!(!ran.exists(), "CMD was run unobserved");

    let run = user
        .run(&lab)
        .content("none")
        .watch_without_coverage(std::process::id())
        .finish(seconds(10));
    let said = run.process.err();
    assert_eq!(run.end, End::Code(1), "{said}");
    assert_eq!(said.lines().count(), 1, "one line: {said}");
}

/// `no_new_privs` makes sudo impossible: that is said, not sudo's own riddle.
#[test]
fn user_with_no_new_privs() {
    let Some(lab) = lab("user_with_no_new_privs", &["setpriv"]) else {
        return;
    };
    let user = UserLab::new(&lab);
    let mut before = as_nobody();
    before.insert(1, "--no-new-privs".into());
    let run = user
        .run(&lab)
        .content("none")
        .before(before)
        .run(argv!["true"]);
    let said = run.process.err();
    assert_eq!(run.end, End::Code(125), "{said}");
    assert_eq!(said.lines().count(), 1, "one line: {said}");
    assert!(said.contains("no_new_privs"), "{said}");
}

/// Nobody but root commands the half: started by hand it refuses.
#[test]
fn half_alone_refuses() {
    let Some(lab) = lab("half_alone_refuses", &[]) else {
        return;
    };
    let mut command = Command::new(Agent::path());
    command.arg("attach").stdin(std::process::Stdio::null());
    let process = lab.spawn(command, "attach");
    let end = process.wait(seconds(10));
    assert!(matches!(end, End::Code(code) if code != 0), "{end:?}");
    assert_eq!(
        process.err().lines().count(),
        1,
        "one line: {}",
        process.err()
    );
}
