//! `vortex-agent metadata`: the process that asks runtimes. Started by the agent, of no use by itself.
//!
//! It waits for runtimes so that nobody else has to. One that is being restarted is asked again; one that never
//! answers holds the questions that no other can answer, and nothing else.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    process::ExitCode,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rustix::{
    fs::{Mode, OFlags, open},
    io::fcntl_dupfd_cloexec,
    net::sockopt::socket_type,
    stdio::{dup2_stdin, stdin},
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{
    Answer, CONTAINERS_MAX, Container, Question, cri, docker,
    recent::{Made, Recent},
};
use crate::{
    cli,
    complain::complain,
    confine::{self, harden, lock_in_asking},
    half::{self, Received},
    helper::call_ourselves,
};

/// The whole command; returns the exit status.
pub fn metadata(arguments: &cli::Metadata) -> ExitCode {
    call_ourselves(c"vortex-metadata");
    match answer(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(format!("ask container runtimes: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn answer(arguments: &cli::Metadata) -> anyhow::Result<()> {
    harden()?;
    let socket = inherit()?;
    let cri = arguments.cri.iter().cloned().map(cri::Runtime::new);
    let docker = arguments.docker.iter().cloned().map(docker::Runtime::new);
    let cri = cri.map(Interface::Cri);
    let interfaces = cri.chain(docker.map(Interface::Docker));
    let runtimes: Arc<[Runtime]> = interfaces.map(Runtime::new).collect();
    lock_in_asking(confine::Mode::Enforce)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    Ok(runtime.block_on(serve(socket, runtimes))?)
}

/// The socket to the pipeline, which is our stdin.
fn inherit() -> io::Result<OwnedFd> {
    socket_type(stdin()).map_err(|_| io::Error::other("stdin is no socket of an agent"))?;
    let socket = fcntl_dupfd_cloexec(stdin(), 3)?;
    dup2_stdin(open(
        "/dev/null",
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )?)?;
    Ok(socket)
}

struct Runtime {
    interface: Interface,
    recent: Mutex<Recent>,
}

enum Interface {
    Cri(cri::Runtime),
    Docker(docker::Runtime),
}

enum Events {
    Cri(cri::Events),
    Docker(docker::Events),
}

/// How long one question may take, and the pauses before it is asked again: runtimes are restarted.
const PATIENCE: Duration = Duration::from_secs(2);
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

impl Runtime {
    fn new(interface: Interface) -> Runtime {
        let recent = Mutex::default();
        Runtime { interface, recent }
    }

    /// Asks until there is an answer.
    async fn find(&self, id: &str) -> Option<Container> {
        let mut pause = FIRST_PAUSE;
        loop {
            match timeout(PATIENCE, self.interface.find(id)).await {
                Ok(Ok(Some(found))) => return Some(found),
                // It may have been there.
                Ok(Ok(None)) => return self.recent().get(id).cloned(),
                Ok(Err(_)) => {}
                Err(_) => self.interface.hang_up().await,
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    fn recent(&self) -> MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps what containers are called from when they are made: who asks may come when they are removed. Of a runtime
    /// that has no events nothing is kept.
    async fn watch(&self) {
        loop {
            // Without a deadline: some say nothing at all before the first event. Nobody waits for this.
            if let Ok(events) = self.interface.events().await {
                self.follow(events).await;
            }
            sleep(LONGEST_PAUSE).await;
        }
    }

    async fn follow(&self, mut events: Events) {
        while let Ok(Some(Made { id, container })) = events.next().await {
            let container = match container {
                Some(container) => Some(container),
                None => {
                    let found = timeout(PATIENCE, self.interface.find(&id)).await;
                    found.ok().and_then(Result::ok).flatten()
                }
            };
            if let Some(container) = container {
                self.recent().remember(id, container);
            }
        }
    }
}

impl Interface {
    async fn find(&self, id: &str) -> io::Result<Option<Container>> {
        match self {
            Interface::Cri(runtime) => runtime.find(id).await,
            Interface::Docker(runtime) => runtime.find(id).await,
        }
    }

    async fn events(&self) -> io::Result<Events> {
        match self {
            Interface::Cri(runtime) => runtime.events().await.map(Events::Cri),
            Interface::Docker(runtime) => runtime.events().await.map(Events::Docker),
        }
    }

    async fn hang_up(&self) {
        if let Interface::Cri(runtime) = self {
            runtime.hang_up().await;
        }
    }
}

impl Events {
    async fn next(&mut self) -> io::Result<Option<Made>> {
        match self {
            Events::Cri(events) => events.next().await,
            Events::Docker(events) => events.next().await,
        }
    }
}

/// Answers questions until nobody asks any more.
async fn serve(socket: OwnedFd, runtimes: Arc<[Runtime]>) -> io::Result<()> {
    let interest = Interest::READABLE | Interest::WRITABLE;
    // SAFETY: the event loop owns the descriptor and closes it after it has forgotten it.
    let socket = unsafe { AsyncFd::register_with_interest(socket, interest) }?;
    // Ends with the questions.
    let mut watching = JoinSet::new();
    for number in 0..runtimes.len() {
        let runtimes = runtimes.clone();
        watching.spawn(async move { runtimes[number].watch().await });
    }
    let mut open = JoinSet::new();
    loop {
        tokio::select! {
            ready = socket.readable(), if open.len() < CONTAINERS_MAX => {
                let mut ready = ready?;
                match half::receive::<Question>(socket.as_fd())? {
                    Received::Message(question, _) if is_id(&question.id) => {
                        open.spawn(look_up(runtimes.clone(), question.id));
                    }
                    Received::Message(..) => return Err(io::Error::other("not an id")),
                    Received::Nothing => ready.clear_ready(),
                    Received::End => return Ok(()),
                }
            }
            Some(found) = open.join_next() => {
                if let Ok(answer) = found {
                    send(&socket, &answer).await?;
                }
            }
        }
    }
}

/// It becomes part of a path.
fn is_id(text: &str) -> bool {
    let is_part = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f' | b'-');
    (1..=128).contains(&text.len()) && text.bytes().all(is_part)
}

/// Asks all runtimes at once: the first that knows it has it.
async fn look_up(runtimes: Arc<[Runtime]>, id: String) -> Answer {
    let mut asked = JoinSet::new();
    for number in 0..runtimes.len() {
        let (runtimes, id) = (runtimes.clone(), id.clone());
        asked.spawn(async move { runtimes[number].find(&id).await });
    }
    let mut container = None;
    while container.is_none()
        && let Some(found) = asked.join_next().await
    {
        container = found.ok().flatten();
    }
    Answer { id, container }
}

/// Waits while the pipeline does not read: it asks for nothing more meanwhile.
async fn send(socket: &AsyncFd<OwnedFd>, answer: &Answer) -> io::Result<()> {
    loop {
        let mut ready = socket.writable().await?;
        match half::send(socket.as_fd(), answer, &[]) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
            // Nobody asks any more, which the next look finds out.
            Err(error) if error.raw_os_error() == Some(libc::EPIPE) => return Ok(()),
            sent => return sent,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::net::UnixListener, path::PathBuf, time::Instant};

    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;

    const ID: &str = "c0ffee";

    fn socket_path(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("vortex-{}-{name}.sock", std::process::id()))
    }

    /// A Docker that answers each connection with the same.
    fn docker(name: &str, status: &'static str, body: &'static str) -> PathBuf {
        use std::io::{Read as _, Write as _};
        let path = socket_path(name);
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        std::thread::spawn(move || {
            for connection in listener.incoming().flatten().take(100) {
                let mut connection = connection;
                let _ = connection.read(&mut [0; 4096]);
                let length = body.len();
                let _ = write!(
                    connection,
                    "HTTP/1.1 {status}\r\ncontent-length: {length}\r\n\r\n{body}"
                );
            }
        });
        path
    }

    fn of_docker(path: PathBuf) -> Runtime {
        Runtime::new(Interface::Docker(docker::Runtime::new(path)))
    }

    fn of_cri(path: PathBuf) -> Runtime {
        Runtime::new(Interface::Cri(cri::Runtime::new(path)))
    }

    /// Asks for [`ID`] and waits so long.
    fn ask(runtimes: Vec<Runtime>, patience: Duration) -> Option<Answer> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let flags = SocketFlags::CLOEXEC;
        let pair = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None);
        let (ours, theirs) = pair.unwrap();
        half::send(&ours, &Question { id: ID.into() }, &[]).unwrap();
        runtime.block_on(async {
            let _ = timeout(patience, async {
                tokio::select! {
                    served = serve(theirs, runtimes.into()) => panic!("{served:?}"),
                    () = async {
                        while !has_message(&ours) {
                            sleep(Duration::from_millis(1)).await;
                        }
                    } => {}
                }
            })
            .await;
        });
        match half::receive(&ours).unwrap() {
            Received::Message(answer, _) => Some(answer),
            _ => None,
        }
    }

    fn has_message(socket: &OwnedFd) -> bool {
        use rustix::net::{RecvFlags, recv};
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        recv(socket, &mut [0; 1], flags).is_ok_and(|(_, length)| length > 0)
    }

    const LONG: Duration = Duration::from_secs(20);

    const WEB: &str = r#"{"Id":"c0ffee","Name":"/web","Config":{"Image":"i","Labels":null}}"#;

    #[test]
    fn the_runtime_that_knows_it_answers() {
        let none = docker("none", "404 Not Found", "{}");
        let web = docker("web", "200 OK", WEB);
        // Accepts, and never answers.
        let silent = socket_path("silent");
        let _ = std::fs::remove_file(&silent);
        let _listener = UnixListener::bind(&silent).unwrap();
        let runtimes = || {
            vec![
                of_docker(none.clone()),
                of_cri(silent.clone()),
                of_docker(web.clone()),
            ]
        };
        let began = Instant::now();
        let answer = ask(runtimes(), LONG).unwrap();
        assert_eq!(answer.container.unwrap().name.as_deref(), Some("web"));
        assert!(
            began.elapsed() < PATIENCE,
            "nobody waits for the silent one"
        );
        // One that may know it has not answered yet.
        let two = runtimes().into_iter().take(2).collect();
        assert!(ask(two, Duration::from_millis(200)).is_none());
        let one = runtimes().into_iter().take(1).collect();
        assert_eq!(ask(one, LONG).unwrap().container, None);
        for path in [none, web, silent] {
            std::fs::remove_file(path).unwrap();
        }
    }

    #[test]
    fn a_runtime_that_comes_back_is_asked_again() {
        let path = socket_path("back");
        let _ = std::fs::remove_file(&path);
        std::thread::spawn(|| {
            std::thread::sleep(Duration::from_millis(100));
            docker("back", "200 OK", WEB)
        });
        let runtimes = vec![of_docker(path.clone())];
        let answer = ask(runtimes, LONG).unwrap();
        assert_eq!(answer.container.unwrap().name.as_deref(), Some("web"));
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn ids_are_no_paths() {
        assert!(is_id(ID) && is_id("cd189a933e5849daa93386466019ab50-2495160603"));
        for text in [
            "",
            "../images",
            "a/b",
            "a?b",
            "A",
            "a b",
            "a\r\nb",
            &"a".repeat(129),
        ] {
            assert!(!is_id(text), "{text:?}");
        }
    }
}
