//! Child processes: each has a time limit, and none outlives the command that started it.

use std::{
    env,
    ffi::OsStr,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        OnceLock,
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

pub(crate) const SECOND: Duration = Duration::from_secs(1);
pub(crate) const MINUTE: Duration = Duration::from_secs(60);

/// The checkout.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask lies in the checkout")
}

/// Cargo's target directory; everything xtask makes lies in it.
pub(crate) fn target() -> &'static Path {
    static TARGET: OnceLock<PathBuf> = OnceLock::new();
    TARGET.get_or_init(|| match env::var_os("CARGO_TARGET_DIR") {
        Some(path) => root().join(path),
        None => root().join("target"),
    })
}

/// A command that runs in the checkout, reads nothing, and dies with xtask.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.current_dir(root()).stdin(Stdio::null());
    // SAFETY: between fork and exec only prctl is called, which is async-signal-safe.
    unsafe {
        command.pre_exec(|| {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM);
            Ok(())
        });
    }
    command
}

/// Ends by signals as from a terminal: `nohup`, and `&` in a script, have them ignored, and so would be what tests
/// start.
pub(crate) fn with_default_signals(command: &mut Command) -> &mut Command {
    // SAFETY: between fork and exec only signal is called, which is async-signal-safe.
    unsafe {
        command.pre_exec(|| {
            for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT] {
                libc::signal(signal, libc::SIG_DFL);
            }
            Ok(())
        })
    }
}

/// `program` as root: itself when we are, else through sudo with `env` kept. sudo may ask for the
/// password on a terminal and must not without one.
pub(crate) fn as_root(program: impl AsRef<OsStr>, env: &[(&str, String)]) -> Command {
    if is_root() {
        let mut command = command(program);
        command.envs(env.iter().map(|(key, value)| (key, value)));
        return command;
    }
    let mut sudo = command("sudo");
    // SAFETY: isatty only looks at a descriptor.
    if unsafe { libc::isatty(0) } == 1 {
        sudo.stdin(Stdio::inherit());
    } else {
        sudo.arg("-n");
    }
    sudo.args(["--", "env"])
        .args(env.iter().map(|(key, value)| format!("{key}={value}")));
    sudo.arg(program);
    sudo
}

pub(crate) fn is_root() -> bool {
    // SAFETY: geteuid has no preconditions.
    unsafe { libc::geteuid() == 0 }
}

/// Asked before work of minutes that ends in something only root can do.
pub(crate) fn ensure_root_is_reachable() -> Result<()> {
    ensure!(
        is_root() || which("sudo").is_some(),
        "probes need root, and there is no sudo here: install sudo, or run this as root"
    );
    Ok(())
}

/// Runs to the end; a failure is an error.
pub(crate) fn run(command: &mut Command, limit: Duration) -> Result<()> {
    let mut child = command
        .spawn()
        .with_context(|| format!("could not start {}", line(command)))?;
    let status = wait(&mut child, limit).with_context(|| line(command))?;
    if !status.success() {
        bail!("{} failed: {status}", line(command));
    }
    Ok(())
}

/// What a command prints. Its stderr goes where ours goes.
pub(crate) fn output(command: &mut Command, limit: Duration) -> Result<String> {
    let mut text = String::new();
    let status = lines(command, limit, |line| {
        text.push_str(line);
        text.push('\n');
    })?;
    if !status.success() {
        bail!("{} failed: {status}", line(command));
    }
    Ok(text)
}

/// Gives each line of a command's output to `see` as it comes.
pub(crate) fn lines(
    command: &mut Command,
    limit: Duration,
    mut see: impl FnMut(&str),
) -> Result<ExitStatus> {
    let start = Instant::now();
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("could not start {}", line(command)))?;
    let mut out = BufReader::new(child.stdout.take().context("no stdout")?);
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut raw = Vec::new();
        while out.read_until(b'\n', &mut raw).is_ok_and(|n| n > 0) {
            let line = String::from_utf8_lossy(&raw);
            if sender
                .send(line.trim_end_matches(['\n', '\r']).to_owned())
                .is_err()
            {
                break;
            }
            raw.clear();
        }
    });
    // A grandchild can hold the pipe open: it gets five seconds more than the child.
    let mut ended = None;
    while start.elapsed() < limit && ended.is_none_or(|end: Instant| end.elapsed() < 5 * SECOND) {
        match receiver.recv_timeout(SECOND / 50) {
            Ok(line) => see(&line),
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) if ended.is_none() && child.try_wait()?.is_some() => {
                ended = Some(Instant::now());
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
    let status = wait(&mut child, limit.saturating_sub(start.elapsed()))
        .with_context(|| format!("not over within {limit:?}"));
    receiver.try_iter().for_each(|line| see(&line));
    status.with_context(|| line(command))
}

/// Waits for a child; past the limit it is asked to end, then made to.
pub(crate) fn wait(child: &mut Child, limit: Duration) -> Result<ExitStatus> {
    let start = Instant::now();
    let mut pause = Duration::from_millis(1);
    let mut asked = false;
    loop {
        if let Some(status) = child.try_wait()? {
            if asked {
                bail!("ended by xtask after {limit:?}");
            }
            return Ok(status);
        }
        if start.elapsed() > limit + 10 * SECOND {
            child.kill()?;
            child.wait()?;
            bail!("killed by xtask after {limit:?}");
        }
        if start.elapsed() > limit && !asked {
            asked = true;
            // SAFETY: the child is ours and has not been waited for, so its pid is its own.
            unsafe { libc::kill(child.id().cast_signed(), libc::SIGTERM) };
        }
        thread::sleep(pause);
        pause = (pause * 2).min(SECOND / 20);
    }
}

/// Where a program is, or nothing.
pub(crate) fn which(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}

pub(crate) fn say(what: &str) {
    println!("{what}");
    let _ = std::io::stdout().flush();
}

/// A command as one would type it, for messages.
fn line(command: &Command) -> String {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for arg in command.get_args() {
        line.push(' ');
        line.push_str(&arg.to_string_lossy());
    }
    line
}
