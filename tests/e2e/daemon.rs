//! The daemon as its manager, its administrator and another agent see it. It watches one control group, named as a
//! container's, in which the test's own server is with a library of its own: nobody else on the machine is looked at.

use std::{
    cell::RefCell,
    fs,
    io::Write as _,
    os::unix::{
        fs::{MetadataExt as _, PermissionsExt as _},
        net::UnixDatagram,
    },
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use rustix::thread::CapabilitySet;
use serde_json::Value;
use vortex_agent::{obstacle::Obstacle, run::MISUSE};

use crate::{
    containers::Group,
    harness::{
        Agent, End, Lab, PYTHON, Proc, Run, Server, argv, bare, free_port, limit, scaled, seconds,
        skip, wait_for,
    },
    proc::{breakpoints, status, tree},
    records::{Records, compare, total},
};

/// A running daemon, and what its manager heard of it.
struct Daemon<'a> {
    lab: &'a Lab,
    process: Proc,
    manager: UnixDatagram,
    heard: RefCell<Vec<(Instant, String)>>,
}

/// What the manager waits for a sign of life.
const WATCHDOG: Duration = Duration::from_millis(800);

impl Daemon<'_> {
    /// With these settings besides those of each test.
    fn start<'a>(lab: &'a Lab, name: &str, group: &str, settings: &str) -> Daemon<'a> {
        write_settings(lab, group, settings);
        Daemon::start_as_it_is(lab, name)
    }

    /// With the settings that are there.
    fn start_as_it_is<'a>(lab: &'a Lab, name: &str) -> Daemon<'a> {
        let path = lab.path(&format!("{name}.notify"));
        let _ = fs::remove_file(&path);
        let manager = UnixDatagram::bind(&path).unwrap();
        manager.set_nonblocking(true).unwrap();
        let mut command = lab.command(argv![
            Agent::path(),
            "daemon",
            "--config",
            lab.path("config.toml")
        ]);
        command
            .env("NOTIFY_SOCKET", &path)
            .env("WATCHDOG_USEC", WATCHDOG.as_micros().to_string());
        Daemon {
            lab,
            process: lab.spawn(command, name),
            manager,
            heard: RefCell::default(),
        }
    }

    /// Takes in what has come.
    fn listen(&self) {
        let mut buffer = [0; 4096];
        while let Ok(length) = self.manager.recv(&mut buffer) {
            let said = String::from_utf8_lossy(&buffer[..length]).into_owned();
            self.heard.borrow_mut().push((Instant::now(), said));
        }
    }

    fn count(&self, word: &str) -> usize {
        self.listen();
        let heard = self.heard.borrow();
        let has = |said: &String| said.lines().any(|line| line == word);
        heard.iter().filter(|(_, said)| has(said)).count()
    }

    #[track_caller]
    fn wait_for(&self, word: &str, count: usize) {
        wait_for(&format!("{word} from the daemon"), seconds(30), || {
            if let Some(end) = self.process.ended() {
                panic!("the daemon ended: {end:?}\n{}", self.process.err());
            }
            (self.count(word) >= count).then_some(())
        });
    }

    /// The words since the manager began to listen, without those of the watchdog.
    fn words(&self) -> Vec<String> {
        self.listen();
        let heard = self.heard.borrow();
        let lines = heard.iter().flat_map(|(_, said)| said.lines());
        let words = lines.filter(|line| line.ends_with("=1") && *line != "WATCHDOG=1");
        words.map(str::to_owned).collect()
    }

    fn reload(&self) {
        self.process.signal(libc::SIGHUP);
    }

    /// `vortex-agent health`, how it ended and what it said.
    fn health(&self, options: &[&str]) -> (End, String, String) {
        health(self.lab, options)
    }

    /// Its status, if it is ready.
    #[track_caller]
    fn status(&self) -> Value {
        let (end, out, err) = self.health(&[]);
        assert_eq!(end, End::Code(0), "{out}{err}");
        assert_eq!(out.lines().count(), 1, "{out}");
        serde_json::from_str(&out).unwrap()
    }

    /// Ends it as its manager does, and gives what it wrote.
    #[track_caller]
    fn stop(self) -> Run {
        self.process.signal(libc::SIGTERM);
        let end = self.process.wait(seconds(30));
        self.listen();
        assert_eq!(self.words().last().unwrap(), "STOPPING=1");
        Run {
            end,
            text: fs::read_to_string(self.lab.path("records.ndjson")).unwrap(),
            process: self.process,
        }
    }
}

fn health(lab: &Lab, options: &[&str]) -> (End, String, String) {
    let mut words = argv![Agent::path(), "health", "--socket", socket(lab)];
    words.extend(options.iter().map(Into::into));
    let process = lab.spawn(lab.command(words), "health");
    let end = process.wait(seconds(10));
    (end, process.out(), process.err())
}

/// What the daemon says of who talks to whom.
fn map(lab: &Lab) -> Value {
    let words = argv![
        Agent::path(),
        "map",
        "--output",
        "json",
        "--socket",
        socket(lab)
    ];
    let process = lab.spawn(lab.command(words), "map");
    let end = process.wait(seconds(10));
    let (out, said) = (process.out(), process.err());
    assert_eq!(end, End::Code(0), "{said}");
    serde_json::from_str(&out).unwrap()
}

fn socket(lab: &Lab) -> PathBuf {
    lab.path("run/agent.sock")
}

/// As a package or an editor does: a new file in the place of the old one.
fn write_settings(lab: &Lab, group: &str, settings: &str) {
    write_settings_of(lab, &format!("container = [\"{group}\"]\n{settings}"));
}

/// Who is watched is in `settings`, too.
fn write_settings_of(lab: &Lab, settings: &str) {
    let text = format!(
        "output = \"json\"\noutput-file = \"{}\"\nstats-interval = \"500ms\"\n\
         content = \"full\"\n{settings}\n[daemon]\nsocket = \"{}\"\n",
        lab.path("records.ndjson").display(),
        socket(lab).display()
    );
    let new = lab.file("config.new", text);
    fs::rename(new, lab.path("config.toml")).unwrap();
}

const EMIT: &str = "emit = [\"data\", \"gap\", \"coverage\", \"stats\"]";

/// An id that no runtime gives, with which the control group is named.
fn container(number: u32) -> String {
    format!("{:08x}{number:08x}", std::process::id()).repeat(4)
}

fn group(test: &'static str, number: u32) -> Option<(Group, String)> {
    let id = container(number);
    let group = Group::of_container(&id);
    if group.is_none() {
        skip(test, "no writable control group hierarchy is mounted");
    }
    Some((group?, id))
}

/// A server in the group, which alone maps its copy of libssl.
fn server<'a>(lab: &'a Lab, name: &'static str, group: &Group) -> Server<'a> {
    let mut shell = Command::new("sh");
    let script = format!("{} exec {PYTHON} \"$@\"", group.enter());
    shell
        .args(["-c", &script, "sh"])
        .env("LD_LIBRARY_PATH", lab.private_libssl(name));
    lab.server_named(name, shell, &[])
}

#[track_caller]
fn wait_for_coverage(lab: &Lab, pid: u32) {
    wait_for("coverage of the server", seconds(20), || {
        let text = fs::read_to_string(lab.path("records.ndjson")).unwrap_or_default();
        let records = Records::parse(&text, false).unwrap();
        let mut coverage = records.kind("coverage");
        coverage
            // It began before the daemon did.
            .any(|record| record["process"]["pid"] == pid && record["status"] == "partly")
            .then_some(())
    });
}

/// Some megabytes both ways.
fn talk(lab: &Lab, server: &Server<'_>) -> Proc {
    let client = lab.program("http_client.py");
    let words = argv![PYTHON, client, "http.client", server.port.to_string()];
    lab.finish(lab.command(words), "client")
}

/// Each byte of the server's connections is there once, and no other.
#[track_caller]
fn assert_exact(run: &Run, server: &Server<'_>) {
    run.success();
    let truth = server.truth();
    let records = run.records();
    compare(&records.connections().unwrap(), &truth, &[]).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(records.check_ledger().unwrap(), total(&truth));
}

#[test]
fn daemon_from_its_start_to_its_end() {
    const TEST: &str = "daemon_from_its_start_to_its_end";
    let Some(lab) = Lab::new(TEST) else {
        return;
    };
    if bare() {
        return;
    }
    let Some((group, id)) = group(TEST, 1) else {
        return;
    };
    let server = server(&lab, "server", &group);
    let (end, _, said) = health(&lab, &["--live"]);
    assert_eq!(end, End::Code(1));
    assert!(said.contains("no daemon is running"), "{said}");

    let daemon = Daemon::start(&lab, "daemon", &id, EMIT);
    daemon.wait_for("READY=1", 1);
    // Ready means that what is mapped already is seen: nothing is waited for.
    talk(&lab, &server);
    wait_for_coverage(&lab, server.pid());
    let mode = fs::metadata(socket(&lab)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    // Idle, it lives all the same.
    let before = daemon.count("WATCHDOG=1");
    std::thread::sleep(4 * WATCHDOG);
    let lives = daemon.count("WATCHDOG=1") - before;
    assert!(
        (6..=9).contains(&lives),
        "{lives} signs of life in 4 intervals"
    );
    let status = daemon.status();
    assert_eq!(status["state"], "ready");
    assert_eq!(status["pid"], daemon.process.pid());
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(status["coverage"]["partly"], 1, "{status}");
    let bytes = &status["bytes"];
    assert_eq!(bytes["seen"], total(&server.truth()), "{status}");
    assert_eq!(bytes["delivered"], bytes["seen"], "{status}");

    // Whom it has heard of, each time again.
    for _ in 0..2 {
        let told = map(&lab);
        let programs = told["programs"].as_array().unwrap();
        let peers = &programs[0]["peers"];
        assert_eq!(programs.len(), 1, "{told}");
        assert_eq!(peers[0]["role"], "server", "{told}");
        assert_eq!(peers[0]["address"], "127.0.0.1", "{told}");
    }

    // A line that stands still says nothing, and nobody says it for it.
    daemon.process.signal(libc::SIGSTOP);
    let before = daemon.count("WATCHDOG=1");
    std::thread::sleep(2 * WATCHDOG);
    assert!(daemon.count("WATCHDOG=1") <= before + 1, "it is stopped");
    let (end, _, said) = daemon.health(&["--live"]);
    assert_eq!(end, End::Code(1));
    assert!(said.contains("does not answer"), "{said}");
    daemon.process.signal(libc::SIGCONT);
    wait_for("health", seconds(10), || {
        (daemon.health(&[]).0 == End::Code(0)).then_some(())
    });

    talk(&lab, &server);
    let run = daemon.stop();
    assert_exact(&run, &server);
    let (end, _, said) = health(&lab, &[]);
    assert_eq!(end, End::Code(1));
    assert!(said.contains("no daemon is running"), "{said}");
}

/// Filters and kinds change while traffic flows; who is wanted before and after is seen all the time.
#[test]
fn daemon_reloads_under_load() {
    const TEST: &str = "daemon_reloads_under_load";
    let Some(lab) = Lab::new(TEST) else {
        return;
    };
    if bare() {
        return;
    }
    let Some((group, id)) = group(TEST, 2) else {
        return;
    };
    let server = server(&lab, "server", &group);
    let comm = "comm = [\"python3\"]";
    let daemon = Daemon::start(&lab, "daemon", &id, &format!("{EMIT}\n{comm}"));
    daemon.wait_for("READY=1", 1);
    wait_for_coverage(&lab, server.pid());
    // The same process passes each of them, by another filter.
    let filters = [
        "uid = [0]",
        "",
        "comm = [\"other\", \"python3\"]\nuid = [\"root\"]",
        "uid = [0, 1]",
        comm,
        "comm = [\"another\", \"python3\"]\nuid = [1, 0]",
    ];
    let client = lab.program("http_client.py");
    let mut clients = Vec::new();
    let count = scaled("reloads", 18, 6) as usize;
    for (number, filter) in filters.iter().cycle().take(count).enumerate() {
        let words = argv![PYTHON, &client, "http.client", server.port.to_string()];
        clients.push(lab.spawn(lab.command(words), &format!("client-{number}")));
        let body = format!("body-limit = {}", number + 1);
        write_settings(&lab, &id, &format!("{EMIT}\n{filter}\n{body}"));
        // In turn because of the signal, and because of the file alone.
        if number % 2 == 0 {
            daemon.reload();
        }
        daemon.wait_for("READY=1", number + 2);
    }
    for client in clients {
        assert_eq!(client.wait(seconds(60)), End::Code(0), "{}", client.err());
    }
    let words = daemon.words();
    assert!(words.iter().any(|word| word == "RELOADING=1"), "{words:?}");
    let run = daemon.stop();
    assert_exact(&run, &server);
}

/// Who is wanted no more is not seen, and seen again later. The way in which the test above would fail.
#[test]
fn daemon_turns_away_and_takes_back() {
    const TEST: &str = "daemon_turns_away_and_takes_back";
    let Some(lab) = Lab::new(TEST) else {
        return;
    };
    if bare() {
        return;
    }
    let Some((group, id)) = group(TEST, 3) else {
        return;
    };
    let server = server(&lab, "server", &group);
    let daemon = Daemon::start(&lab, "daemon", &id, EMIT);
    daemon.wait_for("READY=1", 1);
    wait_for_coverage(&lab, server.pid());
    talk(&lab, &server);
    let seen = |daemon: &Daemon<'_>| daemon.status()["bytes"]["seen"].as_u64().unwrap();
    let first = seen(&daemon);
    assert_eq!(first, total(&server.truth()));

    write_settings(&lab, &id, &format!("{EMIT}\ncomm = [\"other\"]"));
    daemon.wait_for("READY=1", 2);
    talk(&lab, &server);
    assert_eq!(seen(&daemon), first, "it is wanted no more");

    write_settings(&lab, &id, &format!("{EMIT}\ncomm = [\"python3\"]"));
    daemon.wait_for("READY=1", 3);
    talk(&lab, &server);
    assert_eq!(seen(&daemon), 2 * first, "it is wanted again");
    let run = daemon.stop();
    run.success();
    let records = run.records();
    records.check_ledger().unwrap();
    let of_server = records
        .kind("coverage")
        .filter(|record| record["process"]["pid"] == server.pid());
    assert_eq!(
        of_server.count(),
        2,
        "once at the start, once when it is back"
    );
    let error = compare(&records.connections().unwrap(), &server.truth(), &[]);
    error.expect_err("a third of the connections was not to be seen");
}

/// Groups in the kernel's own words beside another filter, which changes.
#[test]
fn daemon_reloads_beside_a_control_group() {
    const TEST: &str = "daemon_reloads_beside_a_control_group";
    let Some(lab) = Lab::new(TEST) else {
        return;
    };
    if bare() {
        return;
    }
    let Some(group) = Group::new("cgroup2", TEST) else {
        return skip(TEST, "no writable cgroup v2 hierarchy is mounted");
    };
    let server = server(&lab, "server", &group);
    let settings = |comm: &str| {
        let directory = group.directory().display();
        format!("{EMIT}\ncgroup = [\"{directory}\"]\ncomm = [{comm}]")
    };
    write_settings_of(&lab, &settings("\"python3\""));
    let daemon = Daemon::start_as_it_is(&lab, "daemon");
    daemon.wait_for("READY=1", 1);
    wait_for_coverage(&lab, server.pid());
    for (ready, comm) in [(2, "\"python3\", \"other\""), (3, ""), (4, "\"python3\"")] {
        write_settings_of(&lab, &settings(comm));
        daemon.wait_for("READY=1", ready);
        talk(&lab, &server);
    }
    assert_exact(&daemon.stop(), &server);
}

/// The same process passes by one kind of filter after the other, while traffic flows: not a byte is missing.
#[test]
fn daemon_reloads_groups_under_load() {
    const TEST: &str = "daemon_reloads_groups_under_load";
    let Some(lab) = Lab::new(TEST) else {
        return;
    };
    if bare() {
        return;
    }
    let (Some((group, id)), Some((empty, other_id))) = (group(TEST, 10), group(TEST, 11)) else {
        return;
    };
    let server = server(&lab, "server", &group);
    let of_ids = format!("container = [\"{id}\"]");
    let of_group = format!("cgroup = [\"{}\"]", group.directory().display());
    let other = empty.directory().display();
    let filters = [
        of_ids.clone(),
        format!("container = [\"{other_id}\", \"{id}\"]"),
        format!("{of_ids}\nexe = [\"*/python3*\"]"),
        format!("{of_group}\n{of_ids}"),
        of_group.clone(),
        format!(
            "cgroup = [\"{other}\", \"{}\"]",
            group.directory().display()
        ),
        format!("{of_group}\nexe = [\"*/python3*\", \"/bin/other\"]\nuid = [0]"),
    ];
    write_settings_of(&lab, &format!("{EMIT}\n{of_ids}"));
    let daemon = Daemon::start_as_it_is(&lab, "daemon");
    daemon.wait_for("READY=1", 1);
    wait_for_coverage(&lab, server.pid());
    let client = lab.program("http_client.py");
    let mut clients = Vec::new();
    let count = scaled("reloads of groups", 21, 7) as usize;
    for (number, filter) in filters.iter().cycle().skip(1).take(count).enumerate() {
        let words = argv![PYTHON, &client, "http.client", server.port.to_string()];
        clients.push(lab.spawn(lab.command(words), &format!("client-{number}")));
        write_settings_of(&lab, &format!("{EMIT}\n{filter}"));
        daemon.wait_for("READY=1", number + 2);
    }
    for client in clients {
        assert_eq!(client.wait(seconds(60)), End::Code(0), "{}", client.err());
    }
    let run = daemon.stop();
    assert!(
        !run.process.err().contains("restart"),
        "{}",
        run.process.err()
    );
    assert_exact(&run, &server);
}

/// Another group is watched, whose library nobody has looked at so far: it is probed, and the one from before is let be.
/// By what runs there the same.
#[test]
fn daemon_watches_another_group() {
    const TEST: &str = "daemon_watches_another_group";
    let Some(lab) = Lab::new(TEST) else {
        return;
    };
    if bare() {
        return;
    }
    let (Some((group, id)), Some((other, other_id))) = (group(TEST, 12), group(TEST, 13)) else {
        return;
    };
    let first = server(&lab, "first", &group);
    let second = server(&lab, "second", &other);
    let of_ids = |id: &str| format!("container = [\"{id}\"]");
    let of_group = |group: &Group| format!("cgroup = [\"{}\"]", group.directory().display());
    let of_programs =
        |pattern: &str| format!("container = [\"{id}\", \"{other_id}\"]\nexe = [\"{pattern}\"]");
    write_settings_of(&lab, &format!("{EMIT}\n{}", of_ids(&id)));
    let daemon = Daemon::start_as_it_is(&lab, "daemon");
    daemon.wait_for("READY=1", 1);
    wait_for_coverage(&lab, first.pid());
    let delivered = || daemon.status()["bytes"]["delivered"].as_u64().unwrap();
    let covered = |pid: u32| {
        let text = fs::read_to_string(lab.path("records.ndjson")).unwrap();
        let records = Records::parse(&text, false).unwrap();
        let of_it = records
            .kind("coverage")
            .filter(|record| record["process"]["pid"] == pid && record["status"] == "partly");
        of_it.count()
    };
    let servers = [&first, &second];
    let mut is_seen = [true, false];
    let mut expected = 0;
    for (ready, filter, sees) in [
        (1, of_ids(&id), [true, false]),
        (2, of_ids(&other_id), [false, true]),
        (3, of_group(&group), [true, false]),
        (4, of_group(&other), [false, true]),
        (5, of_programs("/no/such"), [false, false]),
        (6, of_programs("*/python3*"), [true, true]),
        (7, of_ids(&id), [true, false]),
    ] {
        let before = servers.map(|server| covered(server.pid()));
        write_settings_of(&lab, &format!("{EMIT}\n{filter}"));
        daemon.wait_for("READY=1", ready);
        for (at, server) in servers.iter().enumerate() {
            if sees[at] && !is_seen[at] {
                wait_for("new coverage", seconds(20), || {
                    (covered(server.pid()) > before[at]).then_some(())
                });
            }
            let before = total(&server.truth());
            talk(&lab, server);
            expected += u64::from(sees[at]) * (total(&server.truth()) - before);
        }
        assert_eq!(delivered(), expected, "{filter}");
        // What only others map costs them nothing.
        if ready == 2 {
            let probed = |at: usize, name: &str| {
                let library = lab.path(name).join("libssl.so.3");
                !breakpoints(servers[at].pid(), &library).is_empty()
            };
            wait_for("the first one's library let go of", seconds(20), || {
                (!probed(0, "first")).then_some(())
            });
            assert!(probed(1, "second"));
        }
        is_seen = sees;
    }
    let run = daemon.stop();
    run.success();
    assert!(
        !run.process.err().contains("restart"),
        "{}",
        run.process.err()
    );
    let records = run.records();
    records.check_ledger().unwrap();
    assert_eq!(
        records.last_stats().unwrap()["ledger"]["bytes"]["lost"]["unknown"],
        0
    );
    let of_others = records.kind("coverage").filter(|record| {
        ![first.pid(), second.pid()].contains(&(record["process"]["pid"].as_u64().unwrap() as u32))
    });
    assert_eq!(of_others.count(), 0);
}

/// A control group that was removed and made again is another one, of which SIGHUP tells the daemon.
#[test]
fn daemon_finds_a_group_that_was_made_again() {
    const TEST: &str = "daemon_finds_a_group_that_was_made_again";
    let Some(lab) = Lab::new(TEST) else {
        return;
    };
    if bare() {
        return;
    }
    let id = container(14);
    let make = || Group::named("cgroup2", &format!("docker-{id}.scope"));
    let Some(group) = make() else {
        return skip(TEST, "no writable cgroup v2 hierarchy is mounted");
    };
    let first = server(&lab, "first", &group);
    let of_group = format!("cgroup = [\"{}\"]", group.directory().display());
    let daemon = Daemon::start(&lab, "daemon", &id, &format!("{EMIT}\n{of_group}"));
    daemon.wait_for("READY=1", 1);
    wait_for_coverage(&lab, first.pid());
    let delivered = || daemon.status()["bytes"]["delivered"].as_u64().unwrap();
    talk(&lab, &first);
    let of_first = total(&first.truth());
    assert_eq!(delivered(), of_first);
    drop(first);
    drop(group);
    let group = make().expect("it was made before");
    let second = server(&lab, "second", &group);
    talk(&lab, &second);
    assert_eq!(delivered(), of_first, "the one that was removed is watched");
    let unseen = total(&second.truth());
    daemon.reload();
    daemon.wait_for("READY=1", 2);
    talk(&lab, &second);
    let of_second = total(&second.truth()) - unseen;
    assert_eq!(delivered(), of_first + of_second);
    let run = daemon.stop();
    run.success();
    run.records().check_ledger().unwrap();
}

/// Another policy holds from then on: of a container that none told of, lengths, nothing, and lengths again. Then it
/// changes under load, and each byte is counted once.
#[test]
fn daemon_follows_another_policy() {
    const TEST: &str = "daemon_follows_another_policy";
    let Some(lab) = Lab::new(TEST) else {
        return;
    };
    if bare() {
        return;
    }
    let Some((group, id)) = group(TEST, 9) else {
        return;
    };
    let server = server(&lab, "server", &group);
    let policy = |capture: &str| format!("{EMIT}\n[policy]\ndefault = \"{capture}\"");
    let daemon = Daemon::start(&lab, "daemon", &id, &policy("metadata"));
    daemon.wait_for("READY=1", 1);
    wait_for_coverage(&lab, server.pid());
    let counted = |daemon: &Daemon<'_>| {
        let bytes = &daemon.status()["bytes"];
        ["delivered", "filtered"].map(|name| bytes[name].as_u64().unwrap())
    };
    talk(&lab, &server);
    let mut expected = [total(&server.truth()), 0];
    assert_eq!(counted(&daemon), expected);
    for (ready, capture, count) in [(2, "none", 1), (3, "metadata", 0)] {
        write_settings(&lab, &id, &policy(capture));
        daemon.wait_for("READY=1", ready);
        let before = total(&server.truth());
        talk(&lab, &server);
        expected[count] += total(&server.truth()) - before;
        assert_eq!(counted(&daemon), expected, "{capture}");
    }
    let [delivered, filtered] = expected;
    let told = |text: &str| -> u64 {
        let records = Records::parse(text, false).unwrap();
        let data = records.kind("data");
        data.map(|record| record["length"].as_u64().unwrap()).sum()
    };
    let text = || fs::read_to_string(lab.path("records.ndjson")).unwrap();
    wait_for("what is told", seconds(10), || {
        (told(&text()) == delivered).then_some(())
    });

    let client = lab.program("http_client.py");
    let mut clients = Vec::new();
    for (number, capture) in ["none", "metadata"].iter().cycle().take(6).enumerate() {
        let words = argv![PYTHON, &client, "http.client", server.port.to_string()];
        clients.push(lab.spawn(lab.command(words), &format!("client-{number}")));
        write_settings(&lab, &id, &policy(capture));
        daemon.wait_for("READY=1", number + 4);
    }
    for client in clients {
        assert_eq!(client.wait(seconds(60)), End::Code(0), "{}", client.err());
    }
    let run = daemon.stop();
    run.success();
    let records = run.records();
    assert_eq!(records.check_ledger().unwrap(), total(&server.truth()));
    let ledger = &records.last_stats().unwrap()["ledger"]["bytes"];
    assert_eq!(ledger["lost"]["unknown"], 0, "{ledger}");
    let now = ["delivered", "filtered"].map(|name| ledger[name].as_u64().unwrap());
    assert!(now[0] >= delivered && told(&run.text) <= now[0], "{ledger}");
    assert!(now[1] > filtered, "{ledger}");
    for record in records.kind("data") {
        assert!(
            record["text"].is_null() && record["base64"].is_null(),
            "{record}"
        );
    }
    let refused = records.kind("coverage");
    let mut refused = refused.filter(|record| record["status"] == "refused");
    assert!(refused.any(|record| record["process"]["pid"] == server.pid()));
}

/// The old settings stay, and what is wrong with the new ones is said in a line.
#[test]
fn daemon_refuses_a_broken_file_whole() {
    const TEST: &str = "daemon_refuses_a_broken_file_whole";
    let Some(lab) = Lab::new(TEST) else {
        return;
    };
    if bare() {
        return;
    }
    let Some((group, id)) = group(TEST, 4) else {
        return;
    };
    let server = server(&lab, "server", &group);
    let daemon = Daemon::start(&lab, "daemon", &id, EMIT);
    daemon.wait_for("READY=1", 1);
    wait_for_coverage(&lab, server.pid());
    for (number, (settings, words)) in [
        (
            "comm = [\"other\"]\nemti = [\"gap\"]",
            "line 7: unknown key `emti`, did you mean `emit`?",
        ),
        (
            "comm = [\"other\"]\nuid = [\"no-such-user-here\"]",
            "no-such-user-here",
        ),
        (
            &format!("{EMIT}\nring-size = \"1MiB\""),
            "ring-size stay as they were",
        ),
        (
            "comm = [\"other\"]\ncgroup = [\"/no/such/group\"]",
            "--cgroup /no/such/group: no control group has this path",
        ),
        (
            &format!("{EMIT}\npid = [1]"),
            "reload: pid stay as they were",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        write_settings(&lab, &id, settings);
        daemon.reload();
        daemon.wait_for("READY=1", number + 2);
        wait_for(words, seconds(10), || {
            daemon.process.err().contains(words).then_some(())
        });
    }
    talk(&lab, &server);
    let run = daemon.stop();
    assert_exact(&run, &server);
}

/// Half a file may be valid, and lack what keeps something back.
#[test]
fn daemon_waits_for_a_file_to_be_written() {
    const TEST: &str = "daemon_waits_for_a_file_to_be_written";
    let Some(lab) = Lab::new(TEST) else {
        return;
    };
    if bare() {
        return;
    }
    let Some((group, id)) = group(TEST, 9) else {
        return;
    };
    let server = server(&lab, "server", &group);
    let daemon = Daemon::start(&lab, "daemon", &id, EMIT);
    daemon.wait_for("READY=1", 1);
    wait_for_coverage(&lab, server.pid());
    let says = |words: &str| {
        wait_for(words, seconds(10), || {
            daemon.process.err().contains(words).then_some(())
        });
    };
    let path = lab.path("config.toml");
    let text = fs::read_to_string(&path).unwrap();
    let (first, rest) = text.split_at(text.find("[daemon]").unwrap());
    let mut file = fs::File::create(&path).unwrap();
    file.write_all(first.as_bytes()).unwrap();
    daemon.reload();
    says("is being written: it is read when that is closed");
    file.write_all(rest.as_bytes()).unwrap();
    drop(file);
    fs::write(&path, "").unwrap();
    says("it is empty");
    fs::write(&path, &text).unwrap();
    daemon.reload();
    daemon.wait_for("READY=1", 3);
    talk(&lab, &server);
    assert!(!daemon.process.err().contains("stay as they were"));
    let run = daemon.stop();
    assert_exact(&run, &server);
}

/// Of two daemons one runs; a run beside it says so. What a dead one left is in nobody's way.
#[test]
fn daemon_is_the_only_one() {
    const TEST: &str = "daemon_is_the_only_one";
    let Some(lab) = Lab::new(TEST) else {
        return;
    };
    if bare() {
        return;
    }
    let Some((group, id)) = group(TEST, 5) else {
        return;
    };
    let server = server(&lab, "server", &group);
    let daemon = Daemon::start(&lab, "daemon", &id, EMIT);
    daemon.wait_for("READY=1", 1);
    wait_for_coverage(&lab, server.pid());

    let pid = daemon.process.pid();
    let mut second = lab.command(argv![
        Agent::path(),
        "daemon",
        "--config",
        lab.path("config.toml")
    ]);
    // As under systemd, which takes a line's priority from its beginning.
    let stderr = fs::metadata(lab.file("second.err", "")).unwrap();
    let stderr = format!("{}:{}", stderr.dev(), stderr.ino());
    second.env("JOURNAL_STREAM", stderr);
    let second = lab.spawn(second, "second");
    assert_eq!(second.wait(seconds(10)), End::Code(1));
    let said = second.err();
    assert_eq!(said.lines().count(), 1, "{said}");
    let named = format!("<3>vortex-agent: another daemon (process {pid})");
    assert!(said.starts_with(&named), "{said}");

    let settings = lab.file(
        "run.toml",
        format!("[daemon]\nsocket = \"{}\"\n", socket(&lab).display()),
    );
    let options = argv!["--config", settings, "--container", &id];
    let beside = lab.agent().output(Some(lab.path("beside.ndjson")));
    let beside = beside.options(options).unfiltered();
    beside.wait_for_coverage(server.pid());
    talk(&lab, &server);
    beside.process.signal(libc::SIGTERM);
    let beside = beside.finish(seconds(30));
    let said = beside.process.err();
    assert!(
        said.contains(&format!("a daemon (process {pid}) watches")),
        "{said}"
    );
    // Each has all of it, once.
    assert_exact(&beside, &server);
    let seen = daemon.status()["bytes"]["seen"].clone();
    assert_eq!(seen, total(&server.truth()));

    daemon.process.signal(libc::SIGKILL);
    daemon.process.wait(seconds(10));
    assert!(socket(&lab).exists(), "nobody was there to remove it");
    let next = Daemon::start(&lab, "next", &id, EMIT);
    next.wait_for("READY=1", 1);
    assert_eq!(next.status()["pid"], next.process.pid());
    next.stop().success();
}

/// What no restart mends has a status of its own, after which the manager makes none; of a run it has not.
#[test]
fn daemon_ends_for_good() {
    const TEST: &str = "daemon_ends_for_good";
    let Some(lab) = Lab::new(TEST) else {
        return;
    };
    if bare() {
        return;
    }
    let ends = |command: &str, lacks: CapabilitySet, settings: &str, words: &str, status: i32| {
        write_settings(&lab, &container(6), settings);
        let config = lab.path("config.toml");
        let mut started = lab.command(argv![Agent::path(), command, "--config", config]);
        limit(&mut started, CapabilitySet::all() - lacks);
        let process = lab.spawn(started, command);
        let end = process.wait(seconds(30));
        let said = process.err();
        assert_eq!(end, End::Code(status), "{said}");
        assert!(said.contains(words), "{said}");
    };
    let none = CapabilitySet::empty();
    let unknown = "unknown key `emti`";
    ends("daemon", none, "emti = [\"gap\"]", unknown, 78);
    ends("run", none, "emti = [\"gap\"]", unknown, 2);
    // One that the half needs, and one that the pipeline needs to stop being root.
    for (lacks, words) in [
        (CapabilitySet::SYS_PTRACE, "has no CAP_SYS_PTRACE"),
        (CapabilitySet::SETPCAP, "no CAP_SETPCAP"),
    ] {
        ends("daemon", lacks, EMIT, words, 77);
        ends("run", lacks, EMIT, words, 1);
    }
    // What may be another time is tried another time.
    let gone = "cgroup = [\"/no-such-group.slice\"]";
    ends("daemon", none, gone, "no control group has this path", 1);
}

/// Each of its processes has a name of its own, for who looks at the machine.
#[test]
fn daemon_is_told_from_its_helpers() {
    const TEST: &str = "daemon_is_told_from_its_helpers";
    let Some(lab) = Lab::new(TEST) else {
        return;
    };
    if bare() {
        return;
    }
    let settings = format!(
        r#"
        container = ["{}"]
        [[sink]]
        type = "file"
        path = "{}"
        output = "json"
        rotate = {{ size = "1MiB" }}
        [[sink]]
        type = "prometheus"
        listen = "127.0.0.1:{}"
        [metadata]
        docker = ["{}"]
        [daemon]
        socket = "{}"
        "#,
        container(7),
        lab.path("records.ndjson").display(),
        free_port(),
        lab.path("no-runtime.sock").display(),
        socket(&lab).display(),
    );
    lab.file("config.toml", settings);
    let daemon = Daemon::start_as_it_is(&lab, "daemon");
    daemon.wait_for("READY=1", 1);
    let comm = |pid: &u32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap();
    let pids = tree(daemon.process.pid());
    let mut names: Vec<String> = pids.iter().map(comm).collect();
    names.sort_unstable();
    let expected = [
        "vortex-agent\n",
        "vortex-attach\n",
        "vortex-deliver\n",
        "vortex-keeper\n",
        "vortex-metadata\n",
        "vortex-reader\n",
        "vortex-starter\n",
    ];
    assert_eq!(names, expected);
    // Whatever each may do, it is locked in before it reads what others wrote.
    for pid in pids {
        for (field, expected) in [("Seccomp", "2"), ("NoNewPrivs", "1")] {
            let what = format!("{field} of {}", comm(&pid).trim_end());
            wait_for(&what, seconds(5), || {
                (status(pid, field)? == expected).then_some(())
            });
        }
    }
    daemon.stop().success();
}

/// The unit as it is in the package: without a word from systemd, and with no more rights than it had when this was
/// written.
#[test]
fn daemon_unit_is_valid() {
    const TEST: &str = "daemon_unit_is_valid";
    const BUDGET: f32 = 3.3;
    let Some(lab) = Lab::with(TEST, &["systemd-analyze"]) else {
        return;
    };
    let unit = include_str!("../../deploy/systemd/vortex-agent.service");
    let agent = Agent::path().display().to_string();
    let line = "RestartPreventExitStatus=";
    let statuses = unit.lines().find_map(|text| text.strip_prefix(line));
    let mut statuses = statuses.unwrap_or_default().split(' ');
    assert_eq!(statuses.next(), Some(MISUSE.to_string().as_str()));
    let obstacles = [Obstacle::Kernel, Obstacle::Rights, Obstacle::Configuration];
    let expected = obstacles.map(|obstacle| obstacle.status().to_string());
    assert!(statuses.eq(expected), "{line}");
    let unit = lab.file(
        "test.service",
        unit.replace("/usr/bin/vortex-agent", &agent),
    );
    let analyze = |words: &[&str], name: &str| {
        let mut command = Command::new("systemd-analyze");
        command.args(words).arg(&unit);
        let process = lab.finish(command, name);
        (process.out(), process.err())
    };
    let (out, err) = analyze(&["verify", "--man=no"], "verify");
    assert_eq!(out + &err, "", "what systemd does not understand");
    let (out, _) = analyze(&["security", "--offline=yes"], "security");
    let level = out.lines().find_map(|line| {
        let (_, level) = line.split_once("Overall exposure level for test.service: ")?;
        level.split(' ').next()?.parse::<f32>().ok()
    });
    let level = level.unwrap_or_else(|| panic!("{out}"));
    assert!(level <= BUDGET, "{level} is more than {BUDGET}\n{out}");
}

/// What packages are made with.
#[test]
fn daemon_comes_with_papers() {
    let Some(lab) = Lab::new("daemon_comes_with_papers") else {
        return;
    };
    let print = |words: &[&str]| {
        let mut command = Command::new(Agent::path());
        command.args(words);
        lab.finish(command, "print").out()
    };
    let page = print(&["man"]);
    for words in [
        ".TH vortex-agent 1",
        "VORTEX-AGENT DAEMON",
        "VORTEX-AGENT RUN",
        "\\-\\-emit",
    ] {
        assert!(page.contains(words), "{words} in {page}");
    }
    for hidden in ["ATTACH", "load\\-check", "TLS"] {
        let is_section = |line: &str| line.starts_with(".SH") && line.contains(hidden);
        assert!(!page.lines().any(is_section), "{hidden}");
    }
    for shell in ["bash", "zsh", "fish"] {
        let script = print(&["completions", shell]);
        assert!(script.contains("--stats-interval") || script.contains("stats-interval"));
    }
    let schema: Value = serde_json::from_str(&print(&["config", "--schema"])).unwrap();
    assert_eq!(schema["additionalProperties"], false);
    lab.file("config.toml", print(&["config"]));
    print(&[
        "config",
        "--check",
        lab.path("config.toml").to_str().unwrap(),
    ]);
}
