//! Each half as the other one's attacker: what is no message, or a message that should not be, is refused
//! or the end, and nothing is attached by it.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, send, socketpair};
use vortex_agent::half::{
    self, Choice, Features, Files, Filter, Hello, Link, Mapped, OWN_FILE, Order, Received, Report,
    Site, Sockets,
};
use vortex_agent::locate::{Pread, locate};

use crate::halves::{UserLab, may_write_sudoers};
use crate::harness::{Agent, End, Lab, PYTHON, Proc, argv, bare, random, seconds, wait_for};
use crate::proc::{breakpoints, has_mapped};

fn lab(test: &'static str, programs: &[&str]) -> Option<Lab> {
    if bare() {
        return None;
    }
    Lab::with(test, programs)
}

/// A privileged half, and we are its pipeline.
struct Half {
    socket: Option<OwnedFd>,
    process: Proc,
}

impl Half {
    fn start(lab: &Lab) -> Self {
        let (socket, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        let mut command = Command::new(Agent::path());
        command.arg("attach").stdin(Stdio::from(theirs));
        let process = lab.spawn(command, "half");
        let half = Self {
            socket: Some(socket),
            process,
        };
        let Report::Hello(_) = half.report() else {
            panic!("no greeting");
        };
        half
    }

    fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_ref().expect("it is open").as_fd()
    }

    fn report(&self) -> Report {
        wait_for(
            "a report of the half",
            seconds(20),
            || match half::receive(self.socket()).unwrap() {
                Received::Message(report, _) => Some(report),
                Received::Nothing => None,
                Received::End => panic!("the half ended: {}", self.process.err()),
            },
        )
    }

    fn order(&self, order: &Order, fds: &[BorrowedFd<'_>]) {
        half::send(self.socket(), order, fds).unwrap();
    }

    /// It ends by itself, though we are still there.
    #[track_caller]
    fn ends(self, what: &str) {
        self.is_clean(what, End::Code(1));
    }

    /// It is still there, and ends when we go.
    #[track_caller]
    fn goes_on(mut self, what: &str) {
        self.order(&Order::Survey { pending: true }, &[]);
        while !matches!(self.report(), Report::Survey(_)) {}
        self.socket = None;
        self.is_clean(what, End::Code(0));
    }

    #[track_caller]
    fn is_clean(&self, what: &str, end: End) {
        let said = self.process.err();
        assert_eq!(self.process.wait(seconds(20)), end, "{what}: {said}");
        assert_eq!(self.process.err(), "", "{what}");
    }
}

fn survey() -> Order {
    Order::Survey { pending: false }
}

/// What is no message.
#[test]
fn half_is_sent_rubbish() {
    let Some(lab) = lab("half_is_sent_rubbish", &[]) else {
        return;
    };
    let filter = postcard::to_stdvec(&Order::Filter(Filter {
        choice: Choice {
            comms: vec!["x".repeat(15); 9],
            ..Choice::default()
        },
        ..Filter::default()
    }))
    .unwrap();
    let mut packets: Vec<(String, Vec<u8>)> = [1, filter.len() / 2, filter.len() - 1]
        .map(|cut| (format!("{cut} bytes of a filter"), filter[..cut].to_vec()))
        .into();
    for length in [2, 100, 60_000] {
        let mut bytes = random(length, length as u64);
        bytes[0] |= 0x40;
        packets.push((format!("{length} random bytes"), bytes));
    }
    packets.push(("an oversized message".to_owned(), vec![0; 100_000]));
    packets.push(("an unknown tag".to_owned(), vec![7]));
    packets.push((
        "a length that is a lie".to_owned(),
        vec![2, 1, 0xff, 0xff, 0xff, 0xff, 0x0f],
    ));
    for (what, packet) in packets {
        let half = Half::start(&lab);
        send(half.socket(), &packet, SendFlags::NOSIGNAL).unwrap();
        half.ends(&what);
    }
}

/// Messages that it knows, at the wrong time or with the wrong descriptors.
#[test]
fn half_is_sent_what_should_not_be() {
    let Some(lab) = lab("half_is_sent_what_should_not_be", &[]) else {
        return;
    };
    let null = File::open("/dev/null").unwrap();
    let (one, two) = (&[null.as_fd()][..], &[null.as_fd(), null.as_fd()][..]);
    let filter = || Order::Filter(Filter::default());
    let changeable = || {
        Order::Filter(Filter {
            may_change: true,
            ..Filter::default()
        })
    };
    let change = || Order::Change(Choice::default());
    let attach = |file| Order::Attach {
        file,
        points: vec![],
    };
    let why = "why".to_owned();
    let refuse = Order::Refuse { file: 1, why };
    let pause = |file| Order::Pause { file, seconds: 10 };
    for (what, orders) in [
        ("a filter with a descriptor", vec![(filter(), one)]),
        (
            "a second filter",
            vec![(filter(), &[][..]), (filter(), &[])],
        ),
        (
            "a change of what may not",
            vec![(filter(), &[][..]), (change(), &[])],
        ),
        (
            "a change in the middle of another",
            vec![(changeable(), &[][..]), (change(), &[]), (change(), &[])],
        ),
        (
            "the end of no change",
            vec![(changeable(), &[][..]), (Order::Changed, &[])],
        ),
        ("a cgroup without one", vec![(Order::Cgroup, &[])]),
        ("a cgroup that is none", vec![(Order::Cgroup, one)]),
        ("a file that it never sent", vec![(attach(1), &[])]),
        ("the same with a descriptor", vec![(attach(1), one)]),
        ("a refusal of such a file", vec![(refuse, &[])]),
        ("a pause of such a file", vec![(pause(1), &[])]),
        ("a pause with a descriptor", vec![(pause(OWN_FILE), one)]),
        ("an own file without it", vec![(attach(OWN_FILE | 1), &[])]),
        ("an own file twice", vec![(attach(OWN_FILE | 1), two)]),
        ("a device", vec![(attach(OWN_FILE | 1), one)]),
        ("a survey with a descriptor", vec![(survey(), one)]),
        ("a stop with a descriptor", vec![(Order::Stop, one)]),
    ] {
        let half = Half::start(&lab);
        for (order, fds) in orders {
            half.order(&order, fds);
        }
        half.ends(what);
    }
}

/// A process that has mapped the file as code.
fn mapper(lab: &Lab, file: &Path) -> Proc {
    let script = "import mmap, os, sys, time
file = os.open(sys.argv[1], os.O_RDONLY)
code = mmap.mmap(file, os.fstat(file).st_size, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC)
time.sleep(100)";
    let mut command = Command::new(PYTHON);
    command.args(argv!["-c", script, file]);
    let process = lab.spawn(command, "mapper");
    wait_for("the mapping", seconds(10), || {
        has_mapped(process.pid(), file).then_some(())
    });
    process
}

/// Points that are not what the file says are refused, and no breakpoint is placed; right ones are placed.
#[test]
fn half_is_sent_wrong_points() {
    let Some(lab) = lab("half_is_sent_wrong_points", &[]) else {
        return;
    };
    let path = lab.private_libssl("private").join("libssl.so.3");
    let file = File::open(&path).unwrap();
    let size = file.metadata().unwrap().len();
    let point = locate(&Pread(file.as_fd())).unwrap().points.remove(0);
    let right = Site {
        offset: point.offset,
        cookie: 0,
        bytes: point.bytes,
    };
    let mut other = right.bytes;
    other[15] ^= 1;
    let mapper = mapper(&lab, &path);
    let half = Half::start(&lab);
    let attach = |id, points| {
        half.order(
            &Order::Attach {
                file: OWN_FILE | id,
                points,
            },
            &[file.as_fd()],
        );
        half.report()
    };
    for (id, (what, points)) in (1..).zip([
        ("too many", vec![right; 65]),
        (
            "behind the end",
            vec![Site {
                offset: size,
                ..right
            }],
        ),
        (
            "across the end",
            vec![Site {
                offset: size - 8,
                ..right
            }],
        ),
        (
            "nowhere",
            vec![Site {
                offset: u64::MAX - 7,
                ..right
            }],
        ),
        (
            "other bytes",
            vec![Site {
                bytes: other,
                ..right
            }],
        ),
        (
            "one right, one wrong",
            vec![
                right,
                Site {
                    offset: right.offset + 1,
                    ..right
                },
            ],
        ),
    ]) {
        // Each through a copy: a file is refused once.
        let copy = path.with_file_name(format!("copy{id}"));
        fs::copy(&path, &copy).unwrap();
        let copied = File::open(&copy).unwrap();
        half.order(
            &Order::Attach {
                file: OWN_FILE | id,
                points,
            },
            &[copied.as_fd()],
        );
        let report = half.report();
        assert!(
            matches!(report, Report::Refused { .. }),
            "{what}: {report:?}"
        );
    }
    assert_eq!(breakpoints(mapper.pid(), &path), []);
    let report = attach(100, vec![right]);
    assert!(matches!(report, Report::Attached(_)), "{report:?}");
    assert_ne!(breakpoints(mapper.pid(), &path), [], "the test can't fail");
    // As it is when CMD maps a file sooner than what was found in it is sent.
    let report = attach(101, vec![right]);
    let (twice, known) = (OWN_FILE | 101, OWN_FILE | 100);
    assert!(
        matches!(report, Report::Same { file, known: first } if (file, first) == (twice, known)),
        "twice: {report:?}"
    );
    half.goes_on("wrong points");
    assert_eq!(breakpoints(mapper.pid(), &path), []);
}

/// Probes that go and come without end would be work for everybody who calls through them: the half knows how short a
/// pause may be.
#[test]
fn half_is_asked_for_a_pause() {
    let Some(lab) = lab("half_is_asked_for_a_pause", &[]) else {
        return;
    };
    let path = lab.private_libssl("private").join("libssl.so.3");
    let file = File::open(&path).unwrap();
    let point = locate(&Pread(file.as_fd())).unwrap().points.remove(0);
    let site = Site {
        offset: point.offset,
        cookie: 0,
        bytes: point.bytes,
    };
    let mapper = mapper(&lab, &path);
    let half = Half::start(&lab);
    let id = OWN_FILE | 1;
    let points = vec![site];
    half.order(&Order::Attach { file: id, points }, &[file.as_fd()]);
    let report = half.report();
    assert!(matches!(report, Report::Attached(_)), "{report:?}");
    let placed = breakpoints(mapper.pid(), &path);
    assert_ne!(placed, []);
    let start = Instant::now();
    let pause = Order::Pause {
        file: id,
        seconds: 0,
    };
    half.order(&pause, &[]);
    let report = half.report();
    assert!(
        matches!(report, Report::Paused { file } if file == id),
        "{report:?}"
    );
    // There is nothing to take out any more.
    half.order(&pause, &[]);
    wait_for("the probes to go", seconds(5), || {
        breakpoints(mapper.pid(), &path).is_empty().then_some(())
    });
    let report = half.report();
    assert!(
        matches!(&report, Report::Attached(attached) if attached.file == id),
        "{report:?}"
    );
    assert!(start.elapsed() >= seconds(10), "{:?}", start.elapsed());
    assert_eq!(breakpoints(mapper.pid(), &path), placed);
    half.goes_on("a pause");
}

/// A pipeline that gives orders without end and reads no answer: the half stops reading, and is there.
#[test]
fn half_is_flooded() {
    let Some(lab) = lab("half_is_flooded", &[]) else {
        return;
    };
    let half = Half::start(&lab);
    let mut sent = 0;
    let is_full = || {
        // Full for a while, not for a moment.
        for _ in 0..100 {
            match half::send(half.socket(), &survey(), &[]) {
                Ok(()) => return false,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    std::thread::sleep(std::time::Duration::from_millis(5));
                }
                Err(error) => panic!("{error}"),
            }
        }
        true
    };
    while !is_full() {
        sent += 1;
        assert!(sent < 1_000_000, "it takes orders without end");
    }
    println!("{sent} orders");
    let mut answers = 0;
    wait_for("an answer to each", seconds(60), || {
        while let Received::Message(report, _) = half::receive(half.socket()).unwrap() {
            answers += u64::from(matches!(report, Report::Survey(_)));
        }
        (answers == sent).then_some(())
    });
    half.goes_on("a flood");
}

/// In the place of sudo. In `packets` is what it says to the pipeline: packets, each with as many descriptors
/// of /dev/zero as stated. `late`: after the real half, behind the real sudo, has said that the filter is
/// set, and CMD runs.
const IMPOSTOR: &str = "
import array, os, select, socket, subprocess, sys, time
pipeline = socket.socket(fileno=0)
words = open('packets').read().split()
if words[0] == 'late':
    half, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    subprocess.Popen(['/usr/bin/sudo'] + sys.argv[1:], stdin=theirs)
    theirs.close()
    until = time.monotonic() + 20
    while time.monotonic() < until:
        for source in select.select([half, pipeline], [], [], 0.1)[0]:
            data, rights, _, _ = source.recvmsg(1 << 17, 1024)
            (pipeline if source is half else half).sendmsg([data], [right[:3] for right in rights])
            if source is half and data == b'\\x02':
                until = time.monotonic() + 0.3
for word in words[words[0] == 'late':]:
    hexadecimal, count = word.split(':')
    zeros = array.array('i', [os.open('/dev/zero', os.O_RDWR) for _ in range(int(count))])
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, zeros)] if zeros else []
    pipeline.sendmsg([bytes.fromhex(hexadecimal)], rights)
time.sleep(1)
";

fn hello(ring_bytes: u64) -> Report {
    Report::Hello(Hello {
        ring_bytes,
        cpus: 1,
        features: Features {
            link: Link::Multi,
            scopes_processes: false,
            sockets: Sockets::Unseen,
            roles: false,
            hellos: false,
            files: Files::Numbers,
            follows: false,
            comms: false,
        },
        limits: vec![],
        costs: None,
    })
}

/// The pipeline does not trust the half's words either. CMD is not run unobserved; if it runs, it goes on.
#[test]
fn pipeline_is_sent_rubbish() {
    let test = "pipeline_is_sent_rubbish";
    let Some(lab) = lab(test, &["setpriv"]) else {
        return;
    };
    let may_be_late = may_write_sudoers(test);
    let user = match may_be_late {
        true => UserLab::new(&lab).with_sudo(""),
        false => UserLab::new(&lab),
    };
    let sudo = user.home().join("sudo");
    fs::write(&sudo, format!("#!{PYTHON}{IMPOSTOR}")).unwrap();
    fs::set_permissions(&sudo, fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:/usr/bin:/bin", user.home().display());

    let bytes = |report: &Report| postcard::to_stdvec(report).unwrap();
    let hex = |bytes: &[u8], count: usize| {
        let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{digits}:{count}")
    };
    let mapped = Report::Mapped(Mapped {
        file: 1,
        pid: u32::MAX,
        at: None,
        held: Some(u32::MAX),
    });
    let opened = Report::Opened {
        file: 1,
        path: "/x".to_owned(),
    };
    let random = random(3000, 9);
    let rubbish = [
        ("random bytes", hex(&[&[0x40], &random[..]].concat(), 0)),
        ("an unknown tag", hex(&[99], 0)),
        ("half a greeting", hex(&bytes(&hello(1 << 20))[..2], 0)),
        ("an oversized message", hex(&vec![0; 100_000][..], 0)),
        (
            "a greeting without descriptors",
            hex(&bytes(&hello(1 << 20)), 0),
        ),
        ("too many descriptors", hex(&bytes(&hello(1 << 20)), 9)),
        ("a file without it", hex(&bytes(&opened), 0)),
    ];
    for (what, packet) in &rubbish {
        for is_late in [false, true] {
            let packets = match is_late {
                true if !may_be_late => continue,
                true => format!("late {} {packet}", hex(&bytes(&mapped), 0)),
                false => packet.clone(),
            };
            fs::write(user.home().join("packets"), packets).unwrap();
            let ran = user.home().join("ran");
            let script = format!("sleep 1; touch {}", ran.display());
            let run = user
                .run(&lab)
                .content("none")
                .env("PATH", &path)
                .run(argv!["sh", "-c", script]);
            let said = run.process.err();
            let end = if is_late {
                End::Code(0)
            } else {
                End::Code(125)
            };
            assert_eq!(run.end, end, "{what}, late: {is_late}: {said}");
            assert_eq!(ran.exists(), is_late, "{what}: {said}");
            assert!(!said.contains("panicked"), "{what}: {said}");
            assert!((1..=2).contains(&said.lines().count()), "{what}: {said}");
            let _ = fs::remove_file(ran);
        }
    }
    for size in [0, 1, 4097, 1 << 40, 1 << 63] {
        let packets = hex(&bytes(&hello(size)), 4);
        fs::write(user.home().join("packets"), packets).unwrap();
        let run = user
            .run(&lab)
            .content("none")
            .env("PATH", &path)
            .run(argv!["true"]);
        assert_eq!(run.end, End::Code(125), "{size}: {}", run.process.err());
    }
}
