//! The README's examples, run as a reader would type them.
//!
//! A fenced `sh` block below `<!-- tested -->` runs in a directory of its own, with the built agent
//! first in `PATH`; each of its lines must succeed. Below `<!-- tested: root -->` it needs root: without
//! it is skipped, and `VORTEX_NO_SKIP=1` makes a skip a failure. `VORTEX_AGENT` names another agent.

use std::{
    env, fs,
    os::unix::{fs::symlink, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

const README: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md");
const LIMIT: Duration = Duration::from_secs(60);

#[derive(Debug, PartialEq, Eq)]
struct Example {
    /// Of the fence, counted from 1.
    line: usize,
    needs_root: bool,
    script: String,
}

/// # Errors
/// A mark without a block of `sh` right below it, or a block without an end: it would not be run, and
/// nobody would notice.
fn examples(text: &str) -> Result<Vec<Example>, String> {
    let mut examples = Vec::new();
    let mut lines = (1..).zip(text.lines());
    while let Some((at, line)) = lines.next() {
        let needs_root = match line.trim() {
            "<!-- tested -->" => false,
            "<!-- tested: root -->" => true,
            mark if mark.starts_with("<!-- tested") => {
                return Err(format!("line {at}: unknown mark {mark}"));
            }
            _ => continue,
        };
        let Some((line, "```sh")) = lines.next() else {
            return Err(format!("line {at}: no block of sh below the mark"));
        };
        let mut script = String::new();
        loop {
            match lines.next() {
                Some((_, "```")) => break,
                Some((_, text)) => script.extend([text, "\n"]),
                None => return Err(format!("line {line}: the block has no end")),
            }
        }
        examples.push(Example {
            line,
            needs_root,
            script,
        });
    }
    Ok(examples)
}

/// A directory of one example, gone at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let dir = env::temp_dir().join(format!("vortex-readme-{}-{name}", std::process::id()));
        fs::create_dir_all(dir.join("bin")).unwrap();
        Self(dir)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Runs a script with `agent` as `vortex-agent`.
///
/// # Errors
/// What it said, if one of its lines failed or it took too long.
fn play(name: &str, script: &str, agent: &Path) -> Result<(), String> {
    let scratch = Scratch::new(name);
    let (bin, work) = (scratch.0.join("bin"), scratch.0.join("work"));
    fs::create_dir(&work).unwrap();
    symlink(agent, bin.join("vortex-agent")).unwrap();
    let mut path = bin.into_os_string();
    path.push(":");
    path.push(env::var_os("PATH").unwrap_or_default());
    let said = scratch.0.join("said");
    let file = fs::File::create(&said).unwrap();
    let mut shell = Command::new("sh")
        .args(["-eu", "-c", script])
        .current_dir(&work)
        .env("PATH", path)
        .stdin(Stdio::null())
        .stdout(file.try_clone().unwrap())
        .stderr(file)
        .process_group(0)
        .spawn()
        .unwrap();
    let until = Instant::now() + LIMIT;
    let ended = loop {
        if let Some(status) = shell.try_wait().unwrap() {
            break status.to_string();
        }
        if Instant::now() >= until {
            // The group is the shell's own: nobody else is in it.
            let group = i32::try_from(shell.id()).unwrap();
            // SAFETY: takes two integers; the shell is not reaped yet, so the number is still its.
            unsafe { libc::kill(-group, libc::SIGKILL) };
            shell.wait().unwrap();
            break format!("not done after {LIMIT:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    if ended == "exit status: 0" {
        return Ok(());
    }
    let said = fs::read_to_string(said).unwrap_or_default();
    Err(format!("{ended}\n{script}--- said:\n{said}"))
}

fn agent() -> PathBuf {
    let built = env!("CARGO_BIN_EXE_vortex-agent").into();
    env::var_os("VORTEX_AGENT").map_or(built, PathBuf::from)
}

#[test]
fn examples_work() {
    let text = fs::read_to_string(README).unwrap();
    let examples = examples(&text).unwrap();
    assert!(
        examples.iter().any(|example| example.needs_root)
            && examples.iter().any(|example| !example.needs_root),
        "the README has lost its tested examples"
    );
    // SAFETY: takes nothing and can't fail.
    let is_root = unsafe { libc::geteuid() } == 0;
    let mut failures = Vec::new();
    for example in examples {
        let line = example.line;
        if example.needs_root && !is_root {
            let no_skip = env::var_os("VORTEX_NO_SKIP").is_some_and(|value| value == "1");
            assert!(!no_skip, "SKIP README.md:{line}: not root");
            println!("SKIP README.md:{line}: not root");
            continue;
        }
        if let Err(why) = play(&format!("line{line}"), &example.script, &agent()) {
            failures.push(format!("README.md:{line}: {why}"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn blocks_are_found() {
    let text = "a\n```sh\nnot marked\n```\n<!-- tested -->\n```sh\none\ntwo\n```\n\
                <!-- tested: root -->\n```sh\nthree\n```\n";
    let example = |line, needs_root, script: &str| Example {
        line,
        needs_root,
        script: script.into(),
    };
    assert_eq!(
        examples(text).unwrap(),
        [
            example(6, false, "one\ntwo\n"),
            example(11, true, "three\n")
        ]
    );
    for broken in [
        "<!-- tested -->\ntext\n```sh\na\n```\n",
        "<!-- tested -->\n```console\na\n```\n",
        "<!-- tested -->\n```sh\na\n",
        "<!-- tested: rot -->\n```sh\na\n```\n",
        "<!-- tested -->",
    ] {
        assert!(examples(broken).is_err(), "{broken:?}");
    }
}

/// Every line counts, not the last one alone, and `vortex-agent` is the agent we name.
#[test]
fn a_failing_line_is_a_failure() {
    let agent = Path::new("/bin/false");
    play("good", "true\ntest -z \"$(ls)\"\n", agent).unwrap();
    for (name, script) in [
        ("early", "false\ntrue\n"),
        ("late", "true\nfalse\n"),
        ("agent", "vortex-agent --help\ntrue\n"),
        ("unset", "echo $NOT_SET_ANYWHERE\n"),
    ] {
        assert!(play(name, script, agent).is_err(), "{name}");
    }
}
