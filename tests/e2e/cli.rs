//! Exit statuses, messages, output files.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;

use crate::harness::{End, Lab, Run, argv, bare, seconds, wait_for};
use crate::proc::state;
use crate::records::Records;

/// A lab for tests that say nothing without the agent.
fn lab(test: &'static str) -> Option<Lab> {
    if bare() {
        return None;
    }
    Lab::new(test)
}

/// The run ended so, and said one line about it that names this.
#[track_caller]
fn refused(run: &Run, status: i32, name: &str) {
    let said = run.process.err();
    assert_eq!(run.end, End::Code(status), "{said}");
    assert_eq!(said.lines().count(), 1, "not one line: {said}");
    assert!(said.contains(name), "{name} is not named: {said}");
}

#[test]
fn exit_status_of_cmd_passes_through() {
    let Some(lab) = lab("exit_status_of_cmd_passes_through") else {
        return;
    };
    for status in [0, 1, 2, 7, 125, 126, 127, 255] {
        let run = lab.agent().run(argv!["sh", "-c", format!("exit {status}")]);
        assert_eq!(run.end, End::Code(status), "{}", run.process.err());
    }
    for signal in [
        libc::SIGKILL,
        libc::SIGTERM,
        libc::SIGHUP,
        libc::SIGSEGV,
        libc::SIGINT,
    ] {
        let run = lab
            .agent()
            .run(argv!["sh", "-c", format!("ulimit -c 0; kill -{signal} $$")]);
        assert_eq!(run.end, End::Code(128 + signal), "{}", run.process.err());
    }
}

#[test]
fn cmd_that_cannot_be_run() {
    let Some(lab) = lab("cmd_that_cannot_be_run") else {
        return;
    };
    refused(
        &lab.agent().run(argv!["no-such-command"]),
        127,
        "no-such-command",
    );
    let missing = lab.path("missing");
    refused(&lab.quiet_agent().run(argv![&missing]), 127, "missing");
    let plain = lab.file("plain", "#!/bin/sh\n");
    refused(&lab.quiet_agent().run(argv![&plain]), 126, "plain");
    refused(
        &lab.agent().run(argv![&lab.dir]),
        126,
        lab.dir.to_str().unwrap(),
    );
}

#[test]
fn misuse_is_two() {
    let Some(lab) = lab("misuse_is_two") else {
        return;
    };
    let ran = lab.path("ran");
    for options in [
        argv!["--emit", "bytes"],
        argv!["--emit", "data,bytes"],
        argv!["--content", "some"],
        argv!["--output", "xml"],
        argv!["--no-such-option"],
    ] {
        for cmd in [argv![], argv!["--", "touch", &ran]] {
            let mut command = lab.command(argv![crate::harness::Agent::path(), "run"]);
            command.args(&options).args(cmd);
            let process = lab.spawn(command, "misuse");
            let said = || process.err();
            assert_eq!(
                process.wait(seconds(10)),
                End::Code(2),
                "{options:?}: {}",
                said()
            );
            assert!(!said().is_empty());
            assert!(!ran.exists(), "CMD ran in spite of {options:?}");
        }
    }
}

/// Every kind of the contract is accepted, whoever produces it.
#[test]
fn every_kind_is_accepted() {
    let Some(lab) = lab("every_kind_is_accepted") else {
        return;
    };
    let kinds = "data,http,websocket,sse,grpc,llm,mcp,finding,coverage,gap,stats";
    lab.agent().emit(kinds).run(argv!["true"]).success();
}

#[test]
fn output_file_is_private() {
    let Some(lab) = lab("output_file_is_private") else {
        return;
    };
    let output = lab.path("records.ndjson");
    let script = "umask 0; exec \"$@\"";
    let run = lab
        .agent()
        .before(argv!["sh", "-c", script, "sh"])
        .run(argv!["true"]);
    run.success();
    let mode = fs::metadata(&output).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o600, "{mode:o}");

    // An existing file of ours is cut and written again.
    fs::write(&output, "x".repeat(1 << 20)).unwrap();
    let inode = fs::metadata(&output).unwrap().ino();
    let run = lab.agent().run(argv!["true"]);
    run.success().records().last_stats().unwrap();
    assert_eq!(fs::metadata(&output).unwrap().ino(), inode);
}

/// Links, pipes, other users' files and impossible places are refused before CMD starts.
#[test]
fn output_that_is_refused() {
    let Some(lab) = lab("output_that_is_refused") else {
        return;
    };
    let ran = lab.path("ran");
    let target = lab.file("target", "precious");
    let link = lab.path("link");
    symlink(&target, &link).unwrap();
    let dangling = lab.path("dangling");
    symlink(lab.path("nothing"), &dangling).unwrap();
    let pipe = lab.path("pipe");
    lab.finish(lab.command(argv!["mkfifo", &pipe]), "mkfifo");
    let foreign = lab.file("foreign", "precious");
    std::os::unix::fs::chown(&foreign, Some(65534), None).unwrap();
    let nowhere = lab.path("no/such/dir");

    for path in [&link, &dangling, &pipe, &foreign, &nowhere, &lab.dir] {
        let name = path.file_name().unwrap().to_str().unwrap();
        let run = lab
            .agent()
            .output(Some(path.clone()))
            .run(argv!["touch", &ran]);
        refused(&run, 125, name);
        assert!(!ran.exists(), "CMD ran without {name}");
        let pid = std::process::id();
        let run = lab
            .agent()
            .output(Some(path.clone()))
            .watch_without_coverage(pid)
            .finish(seconds(10));
        refused(&run, 1, name);
    }
    assert_eq!(lab.read("target"), b"precious");
    assert_eq!(lab.read("foreign"), b"precious");
    assert!(!lab.path("nothing").exists());
}

/// Without `-o` records go to stderr, as strace does; CMD's own stdout stays clean.
#[test]
fn records_go_to_stderr() {
    let Some(lab) = lab("records_go_to_stderr") else {
        return;
    };
    let run = lab.agent().output(None).run(argv!["echo", "hello"]);
    run.success();
    assert_eq!(run.process.out(), "hello\n");
    let said = run.process.err();
    let lines = said.lines().filter(|line| line.starts_with('{'));
    let text: String = lines.map(|line| format!("{line}\n")).collect();
    Records::parse(&text, true).unwrap().last_stats().unwrap();
}

/// Nothing was captured: the last line says why.
#[test]
fn nothing_captured_is_explained() {
    let Some(lab) = lab("nothing_captured_is_explained") else {
        return;
    };
    let run = lab.agent().run(argv!["true"]);
    run.success();
    let said = run.process.err();
    let last = said.lines().last().unwrap_or_default();
    assert!(
        last.contains("TLS"),
        "the last line does not say why nothing was captured: {said:?}"
    );
}

/// A reader that goes away, or a full disk, is not CMD's concern.
#[test]
fn full_disk_is_counted() {
    let Some(lab) = Lab::with("full_disk_is_counted", &["curl"]) else {
        return;
    };
    if bare() {
        return;
    }
    let server = lab.server(&[]);
    let copy = lab.path("copy");
    // A file size limit of the agent would be CMD's, too: a small file system instead.
    let script = "mount -t tmpfs -o size=16k none \"$1\" && shift && exec \"$@\"";
    let small = lab.path("small");
    fs::create_dir(&small).unwrap();
    let run = lab
        .quiet_agent()
        .before(argv!["unshare", "-m", "sh", "-c", script, "sh", &small])
        .output(Some(small.join("records.ndjson")))
        .run(argv![
            "curl",
            "-sk",
            "--http1.1",
            "-o",
            &copy,
            server.url("/bytes/700000")
        ]);
    run.success();
    assert_eq!(fs::metadata(&copy).unwrap().len(), 700_000);
    assert_eq!(
        run.process.err().lines().count(),
        1,
        "one line: {}",
        run.process.err()
    );
}

/// Signals of a terminal are CMD's: the agent waits for it.
#[test]
fn interrupt_is_for_cmd() {
    let Some(lab) = lab("interrupt_is_for_cmd") else {
        return;
    };
    for signal in [libc::SIGINT, libc::SIGQUIT] {
        let ready = lab.path("ready");
        let script = "trap 'exit 3' INT QUIT; : > $1; while :; do sleep 0.02; done";
        let running = lab.agent().start(argv!["sh", "-c", script, "sh", &ready]);
        wait_for("CMD", seconds(10), || ready.exists().then_some(()));
        running.process.signal_group(signal);
        let run = running.finish(seconds(10));
        assert_eq!(run.end, End::Code(3), "{}", run.process.err());
        run.records().last_stats().unwrap();
        fs::remove_file(ready).unwrap();
    }
}

/// SIGTERM and SIGHUP are passed on; what CMD makes of them is its own.
#[test]
fn termination_is_passed_on() {
    let Some(lab) = lab("termination_is_passed_on") else {
        return;
    };
    for (signal, name) in [(libc::SIGTERM, "TERM"), (libc::SIGHUP, "HUP")] {
        for (trap, expected) in [
            (format!("trap 'exit 9' {name};"), 9),
            (String::new(), 128 + signal),
        ] {
            let ready = lab.path("ready");
            let script = format!("{trap} : > $1; while :; do sleep 0.02; done");
            let running = lab.agent().start(argv!["sh", "-c", script, "sh", &ready]);
            wait_for("CMD", seconds(10), || ready.exists().then_some(()));
            running.process.signal(signal);
            let run = running.finish(seconds(10));
            assert_eq!(
                run.end,
                End::Code(expected),
                "{name}: {}",
                run.process.err()
            );
            run.records().last_stats().unwrap();
            fs::remove_file(ready).unwrap();
        }
    }
}

/// The second SIGTERM ends the agent though CMD ignores them.
#[test]
fn second_termination_ends_the_agent() {
    let Some(lab) = lab("second_termination_ends_the_agent") else {
        return;
    };
    let ready = lab.path("ready");
    let script =
        "trap '' TERM; : > $1; n=0; while [ $n -lt 500 ]; do sleep 0.02; n=$((n + 1)); done";
    let running = lab.agent().start(argv!["sh", "-c", script, "sh", &ready]);
    wait_for("CMD", seconds(10), || ready.exists().then_some(()));
    running.process.signal(libc::SIGTERM);
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert_eq!(running.process.ended(), None, "the first one is for CMD");
    running.process.signal(libc::SIGTERM);
    running.process.wait(seconds(3));
}

/// Ctrl-Z stops both, `fg` continues both.
#[test]
fn stop_and_continue() {
    let Some(lab) = lab("stop_and_continue") else {
        return;
    };
    let ready = lab.path("ready");
    let go = lab.path("go");
    // A shell that waits for a child may be in the middle of vfork, which does not stop.
    lab.finish(lab.command(argv!["mkfifo", &go]), "mkfifo");
    let script = "echo $$ > $1.new; mv $1.new $1; read line < $2; exit 5";
    let running = lab
        .agent()
        .start(argv!["sh", "-c", script, "sh", &ready, &go]);
    wait_for("CMD", seconds(10), || ready.exists().then_some(()));
    let cmd: u32 = fs::read_to_string(&ready).unwrap().trim().parse().unwrap();
    let both = [running.process.pid(), cmd];
    running.process.signal_group(libc::SIGTSTP);
    let stopped = || {
        both.iter()
            .all(|&pid| state(pid) == Some('T'))
            .then_some(())
    };
    wait_for("both to stop", seconds(5), stopped);
    running.process.signal_group(libc::SIGCONT);
    let goes_on = || {
        both.iter()
            .all(|&pid| state(pid) != Some('T'))
            .then_some(())
    };
    wait_for("both to go on", seconds(5), goes_on);
    let mut pipe = fs::File::options()
        .read(true)
        .write(true)
        .open(&go)
        .unwrap();
    pipe.write_all(b"go\n").unwrap();
    assert_eq!(running.finish(seconds(10)).end, End::Code(5));
}

/// `--pid` of nobody is an error that names the number.
#[test]
fn pid_that_does_not_exist() {
    let Some(lab) = lab("pid_that_does_not_exist") else {
        return;
    };
    let gone = {
        let process = lab.spawn(lab.command(argv!["true"]), "true");
        process.wait(seconds(5));
        process.pid()
    };
    assert!(!Path::new(&format!("/proc/{gone}")).exists());
    let run = lab
        .quiet_agent()
        .watch_without_coverage(gone)
        .finish(seconds(10));
    refused(&run, 1, &gone.to_string());
}
