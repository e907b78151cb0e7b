//! Files that keep whoever reads them waiting: on a file system that does not answer, or huge. Nobody
//! else may notice.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use crate::harness::{Lab, PYTHON, Proc, argv, bare, libssl, seconds, skip, wait_for};
use crate::proc::stopped;
use crate::records::total;

/// A mounted `silent`, in a mount namespace of its own. Unmounted by its end.
fn silent(lab: &Lab, mode: &str) -> Proc {
    let dir = lab.path("mounted");
    fs::create_dir(&dir).unwrap();
    let mut command = Command::new(lab.compiled("silent"));
    command.args(argv!["serve", dir, libssl(), mode]);
    let server = lab.spawn(command, "silent");
    wait_for("the mount", seconds(10), || {
        assert_eq!(server.ended(), None, "{}", server.err());
        server.out().contains("mounted").then_some(())
    });
    server
}

/// One child maps a libssl that nobody can read; another one, a moment later, uses TLS through a libssl
/// that has to be found, held and probed.
fn beside_a_silent_file(test: &'static str, mode: &str) {
    if !Path::new("/dev/fuse").exists() {
        skip(test, "no /dev/fuse");
        return;
    }
    let Some(lab) = Lab::with(test, &["cc", "curl"]) else {
        return;
    };
    let file_system = silent(&lab, mode);
    let server = lab.server(&[]);
    lab.private_libssl("private");
    let script = format!(
        "{silent} map {pid} {file} 4000 > {pause} &
        sleep 0.3
        LD_LIBRARY_PATH={private} curl -sk --http1.1 -o /dev/null {url} || exit 1
        date +%s%N > {answered}
        wait $!",
        silent = lab.path("silent").display(),
        pid = file_system.pid(),
        file = lab.path("mounted/libssl.so.3").display(),
        pause = lab.path("pause").display(),
        private = lab.path("private").display(),
        url = server.url("/bytes/300000"),
        answered = lab.path("answered").display(),
    );
    let start = Instant::now();
    let run = lab.agent().run(argv!["sh", "-c", script]);
    assert!(start.elapsed() < seconds(40), "{:?}", start.elapsed());
    run.assert_exact(&server.client_truth());
    assert_eq!(stopped(run.process.pid()), []);

    let pause: u64 = String::from_utf8(lab.read("pause"))
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    assert!(pause < 1000, "the process stood still for {pause} ms");
    if bare() {
        return;
    }
    let records = run.records();
    let refused = |record: &&serde_json::Value| {
        let path = record["library"]["path"].as_str().unwrap_or_default();
        record["status"] == "refused" && path.ends_with("mounted/libssl.so.3")
    };
    let coverage = records.kind("coverage").find(refused);
    let reason = coverage.map(|record| record["reason"].to_string());
    assert_eq!(
        reason.as_deref(),
        Some("\"its file system does not answer\""),
        "{}",
        run.process.err()
    );
    // Not seen too late either.
    let all_seen = |record: &&serde_json::Value| {
        record["status"] == "probed" && record["library"]["name"] == "OpenSSL"
    };
    assert_eq!(records.kind("coverage").filter(all_seen).count(), 1);
    assert_eq!(file_system.ended(), None, "it was silent to the end");
}

#[test]
fn a_file_system_that_answers_no_read() {
    beside_a_silent_file("a_file_system_that_answers_no_read", "reads");
}

#[test]
fn a_file_system_that_answers_nothing() {
    beside_a_silent_file("a_file_system_that_answers_nothing", "all");
}

/// Who maps a file of a file system that was silent for a while is not forgotten.
#[test]
fn a_file_system_that_answers_later() {
    let test = "a_file_system_that_answers_later";
    if !Path::new("/dev/fuse").exists() {
        skip(test, "no /dev/fuse");
        return;
    }
    let Some(lab) = Lab::with(test, &["cc"]) else {
        return;
    };
    if bare() {
        return;
    }
    let file_system = silent(&lab, "reads");
    let mapped = lab.path("mounted/libssl.so.3");
    let running = lab.agent().start(argv![
        lab.path("silent"),
        "map",
        file_system.pid().to_string(),
        &mapped,
        "30000"
    ]);
    let covered = |status: &str| {
        let records = running.records();
        let is_it = |record: &serde_json::Value| {
            record["status"] == status && record["library"]["path"].as_str() == mapped.to_str()
        };
        records.kind("coverage").any(is_it).then_some(())
    };
    wait_for("its refusal", seconds(10), || covered("refused"));
    file_system.signal(libc::SIGUSR1);
    // Not from its start.
    wait_for("its probes", seconds(10), || covered("partly"));
    running.process.signal(libc::SIGTERM);
    running.finish(seconds(20));
}

/// The machine's libssl with a symbol table of 300 MB at its end, in which every wanted name's place has
/// to be looked for.
fn huge(lab: &Lab) {
    const SYMBOLS: u64 = 300 << 20;
    let path = lab.path("huge.so");
    let mut bytes = fs::read(libssl()).unwrap();
    let sections = bytes.len().next_multiple_of(8);
    let strings = sections + 3 * 64;
    let symbols = (strings + 64).next_multiple_of(4096);
    bytes.resize(symbols, 0);
    bytes[0x28..0x30].copy_from_slice(&(sections as u64).to_le_bytes());
    bytes[0x3c..0x3e].copy_from_slice(&3_u16.to_le_bytes());
    bytes[0x3e..0x40].copy_from_slice(&0_u16.to_le_bytes());
    let mut section = |number: usize, kind: u32, offset: u64, size: u64, link: u32| {
        let at = sections + number * 64;
        bytes[at..at + 64].fill(0);
        bytes[at + 4..at + 8].copy_from_slice(&kind.to_le_bytes());
        bytes[at + 24..at + 32].copy_from_slice(&offset.to_le_bytes());
        bytes[at + 32..at + 40].copy_from_slice(&size.to_le_bytes());
        bytes[at + 40..at + 44].copy_from_slice(&link.to_le_bytes());
    };
    section(0, 0, 0, 0, 0);
    section(1, 2, symbols as u64, SYMBOLS, 2);
    section(2, 3, strings as u64, 64, 0);
    bytes[strings..strings + 10].copy_from_slice(b"\0SSL_read\0");
    let file = File::create(path).unwrap();
    file.write_all_at(&bytes, 0).unwrap();
    file.set_len(symbols as u64 + SYMBOLS).unwrap();
}

/// The reader of the ring goes on while a file is searched, for half a second: meanwhile passes more than the ring holds.
#[test]
fn a_huge_file_beside_a_fast_stream() {
    let Some(lab) = Lab::with("a_huge_file_beside_a_fast_stream", &["curl"]) else {
        return;
    };
    huge(&lab);
    let server = lab.server(&[]);
    let program = lab.file(
        "map.py",
        "
import mmap, os, sys, time
file = os.open(sys.argv[1], os.O_RDONLY)
code = mmap.mmap(file, 1 << 16, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC)
time.sleep(2)
",
    );
    let script = format!(
        "curl -sk --http1.1 -o {} {} & curl=$!
        until [ -s {0} ]; do sleep 0.01; done
        {PYTHON} {} {}
        wait $curl",
        lab.path("body").display(),
        server.url("/bytes/100000000"),
        program.display(),
        lab.path("huge.so").display(),
    );
    // Room for a busy machine; half a second of the stream is more.
    let run = lab
        .quiet_agent()
        .options(argv!["--ring-size", (32 << 20).to_string()])
        .run(argv!["sh", "-c", script]);
    run.success();
    if bare() {
        return;
    }
    let records = run.records();
    assert_eq!(
        records.check_ledger().unwrap(),
        total(&server.client_truth())
    );
    assert_eq!(records.kind("gap").count(), 0);
    let mut coverage = records.kind("coverage");
    assert!(
        coverage.any(|record| record["library"]["path"].to_string().contains("huge.so")),
        "it was not searched: {}",
        run.process.err()
    );
}
