//! The Container Runtime Interface of Kubernetes, version 1: gRPC over a socket. containerd and CRI-O speak it.
//!
//! Its messages with the fields that are used, by their numbers in `cri-api/pkg/apis/runtime/v1/api.proto`.

use std::{collections::HashMap, io, path::PathBuf};

use bytes::BytesMut;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{
    Request, Response,
    body::{Bytes, Incoming},
    client::conn::http2::{SendRequest, handshake},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tokio::{net::UnixStream, sync::Mutex};

use super::{
    Container, Pod,
    body::{ANSWER_MAX, Body},
    kept, name,
    recent::Made,
};

const CRI: &str = "runtime.v1.RuntimeService";
const SUBSCRIBE: &str = "containerd.services.events.v1.Events/Subscribe";
/// A container that CRI knows is about to run. When containerd makes a container CRI does not know it yet.
const TASK_CREATE: &str = "/tasks/create";
/// The status of a method that is not there.
const UNIMPLEMENTED: &[u8] = b"12";

/// A runtime, and the connection to it: one for all questions.
pub struct Runtime {
    path: PathBuf,
    connection: Mutex<Option<SendRequest<Full<Bytes>>>>,
}

impl Runtime {
    pub fn new(path: PathBuf) -> Runtime {
        let connection = Mutex::new(None);
        Runtime { path, connection }
    }

    /// The container of this id.
    pub async fn find(&self, id: &str) -> io::Result<Option<Container>> {
        let filter = Filter { id: id.to_owned() };
        let asked = Filtered {
            filter: Some(filter),
        };
        let found: ListContainersResponse = self.call("ListContainers", &asked).await?;
        let Some(found) = found.containers.into_iter().find(|one| one.id == id) else {
            return Ok(None);
        };
        let filter = Filter {
            id: found.pod_sandbox_id.clone(),
        };
        let asked = Filtered {
            filter: Some(filter),
        };
        let pods: ListPodSandboxResponse = self.call("ListPodSandbox", &asked).await?;
        let pod = pods
            .items
            .into_iter()
            .find(|pod| pod.id == found.pod_sandbox_id);
        let mut image = found.image.unwrap_or_default();
        if image.name().starts_with("sha256:") {
            // Kubelet asks for images by digest, once it has them.
            let asked = ContainerStatusRequest {
                container_id: id.to_owned(),
            };
            let status: ContainerStatusResponse = self.call("ContainerStatus", &asked).await?;
            image = status
                .status
                .and_then(|status| status.image)
                .unwrap_or(image);
        }
        let called = name(found.metadata.unwrap_or_default().name);
        Ok(Some(Container {
            image: name(image.name().to_owned()),
            labels: kept(found.labels),
            pod: pod.and_then(|pod| pod.tell(called.clone())),
            name: called,
        }))
    }

    async fn call<A: Message + Default>(
        &self,
        method: &str,
        question: &impl Message,
    ) -> io::Result<A> {
        let response = self.send(&format!("{CRI}/{method}"), question).await?;
        let status = response.headers().get("grpc-status").cloned();
        let body = Limited::new(response.into_body(), ANSWER_MAX).collect();
        let body = body.await.map_err(io::Error::other)?;
        let status = body
            .trailers()
            .and_then(|trailers| trailers.get("grpc-status").cloned())
            .or(status);
        match status.as_ref().map(|status| status.as_bytes()) {
            Some(b"0") => unframed(&body.to_bytes()),
            // Gone since it was listed.
            Some(b"5") => Ok(A::default()),
            _ => Err(io::Error::other(format!(
                "{method} failed with status {status:?}"
            ))),
        }
    }

    /// Containers as they are made. The first word of an answer may come with the first of them, whenever that is.
    ///
    /// containerd is asked by its own interface, where all who ask are told. By CRI's it tells each event to one of them
    /// alone (1.7), and the kubelet is who needs it.
    pub async fn events(&self) -> io::Result<Events> {
        let asked = SubscribeRequest {
            filters: vec![format!("namespace==k8s.io,topic==\"{TASK_CREATE}\"")],
        };
        let response = self.send(SUBSCRIBE, &asked).await?;
        if grpc_status(&response) != Some(UNIMPLEMENTED) {
            return Events::of::<Envelope>(response);
        }
        // Since version 1.26 of the interface.
        let method = format!("{CRI}/GetContainerEvents");
        let response = self.send(&method, &GetEventsRequest {}).await?;
        Events::of::<ContainerEvent>(response)
    }

    async fn send(&self, method: &str, question: &impl Message) -> io::Result<Response<Incoming>> {
        let request = Request::post(format!("http://localhost/{method}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(Full::from(framed(question)))
            .map_err(io::Error::other)?;
        let mut sender = self.sender().await?;
        let response = sender.send_request(request).await;
        response.map_err(io::Error::other)
    }

    async fn sender(&self) -> io::Result<SendRequest<Full<Bytes>>> {
        let mut connection = self.connection.lock().await;
        if let Some(sender) = connection.as_ref().filter(|sender| !sender.is_closed()) {
            return Ok(sender.clone());
        }
        let stream = UnixStream::connect(&self.path).await?;
        let shaken = handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
        let (sender, driven) = shaken.map_err(io::Error::other)?;
        // Ends with the connection, whose end the next question notices.
        tokio::spawn(driven);
        *connection = Some(sender.clone());
        Ok(sender)
    }

    /// The next question opens another connection: this one does not answer.
    pub async fn hang_up(&self) {
        *self.connection.lock().await = None;
    }
}

/// What an answer without a body says: there is nothing more.
fn grpc_status(response: &Response<Incoming>) -> Option<&[u8]> {
    let status = response.headers().get("grpc-status");
    status.map(|status| status.as_bytes())
}

/// Events as they come: messages one behind the other.
pub struct Events {
    body: Body,
    first: fn(&mut BytesMut) -> io::Result<Option<Option<Made>>>,
}

impl Events {
    fn of<E: Event>(response: Response<Incoming>) -> io::Result<Events> {
        if let Some(status) = grpc_status(&response) {
            let status = status.escape_ascii();
            return Err(io::Error::other(format!("no events: status {status}")));
        }
        Ok(Events {
            body: Body::new(response.into_body()),
            first: |read| Ok(first::<E>(read)?.map(E::tell)),
        })
    }

    /// The next container that is made. `None`: the runtime has ended.
    pub async fn next(&mut self) -> io::Result<Option<Made>> {
        loop {
            while let Some(event) = (self.first)(&mut self.body.read)? {
                if let Some(made) = event {
                    return Ok(Some(made));
                }
            }
            if !self.body.more().await? {
                return Ok(None);
            }
        }
    }
}

/// The first of several messages, if all of it is there.
fn first<A: Message + Default>(read: &mut BytesMut) -> io::Result<Option<A>> {
    const HEAD: usize = 5;
    let Some([_, length @ ..]) = read.first_chunk::<HEAD>() else {
        return Ok(None);
    };
    let end = HEAD + u32::from_be_bytes(*length) as usize;
    if end > ANSWER_MAX {
        return Err(io::Error::other("an event that is too large"));
    }
    match read.len() < end {
        true => Ok(None),
        false => unframed(&read.split_to(end)).map(Some),
    }
}

/// A message as gRPC sends it: not compressed, its length, itself.
fn framed(message: &impl Message) -> Bytes {
    let mut bytes = vec![0];
    bytes.extend((message.encoded_len() as u32).to_be_bytes());
    bytes.extend(message.encode_to_vec());
    bytes.into()
}

fn unframed<A: Message + Default>(bytes: &[u8]) -> io::Result<A> {
    let wrong = || io::Error::new(io::ErrorKind::InvalidData, "not one message");
    let (head, message) = bytes.split_first_chunk::<5>().ok_or_else(wrong)?;
    let [compressed, length @ ..] = *head;
    if compressed != 0 || u32::from_be_bytes(length) as usize != message.len() {
        return Err(wrong());
    }
    A::decode(message).map_err(io::Error::other)
}

/// What else it says of a container is asked for, as always.
trait Event: Message + Default {
    /// The container, if that is what has been made.
    fn tell(self) -> Option<Made>;
}

fn made(id: String) -> Made {
    let container = None;
    Made { id, container }
}

#[derive(Clone, PartialEq, Message)]
struct GetEventsRequest {}

/// `ContainerEventResponse`
#[derive(Clone, PartialEq, Message)]
struct ContainerEvent {
    #[prost(string, tag = "1")]
    container_id: String,
    /// `ContainerEventType`: 0 was created, 1 started.
    #[prost(int32, tag = "2")]
    kind: i32,
}

impl Event for ContainerEvent {
    fn tell(self) -> Option<Made> {
        (0..=1)
            .contains(&self.kind)
            .then(|| made(self.container_id))
    }
}

/// The events of containerd, by `api/services/events/v1/events.proto`, `api/types/event.proto` and
/// `api/events/task.proto` there.
#[derive(Clone, PartialEq, Message)]
struct SubscribeRequest {
    #[prost(string, repeated, tag = "1")]
    filters: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
struct Envelope {
    #[prost(string, tag = "3")]
    topic: String,
    #[prost(message, optional, tag = "4")]
    event: Option<Any>,
}

#[derive(Clone, PartialEq, Message)]
struct Any {
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct TaskCreate {
    #[prost(string, tag = "1")]
    container_id: String,
}

impl Event for Envelope {
    fn tell(self) -> Option<Made> {
        let event = self.event.filter(|_| self.topic == TASK_CREATE)?;
        let task = TaskCreate::decode(&*event.value).ok()?;
        Some(made(task.container_id))
    }
}

/// `ListContainersRequest` and `ListPodSandboxRequest`.
#[derive(Clone, PartialEq, Message)]
struct Filtered {
    #[prost(message, optional, tag = "1")]
    filter: Option<Filter>,
}

#[derive(Clone, PartialEq, Message)]
struct Filter {
    #[prost(string, tag = "1")]
    id: String,
}

#[derive(Clone, PartialEq, Message)]
struct ListContainersResponse {
    #[prost(message, repeated, tag = "1")]
    containers: Vec<Listed>,
}

/// `Container`
#[derive(Clone, PartialEq, Message)]
struct Listed {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(string, tag = "2")]
    pod_sandbox_id: String,
    #[prost(message, optional, tag = "3")]
    metadata: Option<ContainerMetadata>,
    #[prost(message, optional, tag = "4")]
    image: Option<ImageSpec>,
    #[prost(map = "string, string", tag = "8")]
    labels: HashMap<String, String>,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerMetadata {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, Message)]
struct ImageSpec {
    #[prost(string, tag = "1")]
    image: String,
    #[prost(string, tag = "18")]
    user_specified_image: String,
}

impl ImageSpec {
    /// As somebody wrote it, if the runtime knows.
    fn name(&self) -> &str {
        match &*self.user_specified_image {
            "" => &self.image,
            written => written,
        }
    }
}

#[derive(Clone, PartialEq, Message)]
struct ContainerStatusRequest {
    #[prost(string, tag = "1")]
    container_id: String,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerStatusResponse {
    #[prost(message, optional, tag = "1")]
    status: Option<ContainerStatus>,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerStatus {
    #[prost(message, optional, tag = "8")]
    image: Option<ImageSpec>,
}

#[derive(Clone, PartialEq, Message)]
struct ListPodSandboxResponse {
    #[prost(message, repeated, tag = "1")]
    items: Vec<PodSandbox>,
}

#[derive(Clone, PartialEq, Message)]
struct PodSandbox {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(message, optional, tag = "2")]
    metadata: Option<PodSandboxMetadata>,
    #[prost(map = "string, string", tag = "5")]
    labels: HashMap<String, String>,
    #[prost(map = "string, string", tag = "6")]
    annotations: HashMap<String, String>,
}

#[derive(Clone, PartialEq, Message)]
struct PodSandboxMetadata {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    uid: String,
    #[prost(string, tag = "3")]
    namespace: String,
}

impl PodSandbox {
    fn tell(self, container: Option<String>) -> Option<Pod> {
        let metadata = self.metadata?;
        Some(Pod {
            namespace: name(metadata.namespace)?,
            name: name(metadata.name)?,
            uid: name(metadata.uid).unwrap_or_default(),
            container,
            labels: kept(self.labels),
            annotations: kept(self.annotations),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Field numbers and wire types as the interface has them, byte by byte.
    #[test]
    fn messages_on_the_wire() {
        let filter = Filter { id: "ab".into() };
        let asked = framed(&Filtered {
            filter: Some(filter),
        });
        assert_eq!(&asked[..], b"\0\0\0\0\x06\x0a\x04\x0a\x02ab");
        let container = b"\x0a\x02ab\x12\x01s\x1a\x05\x0a\x03web\x22\x04\x0a\x02im\
                          \x30\x01\x42\x06\x0a\x01k\x12\x01v";
        let mut answer = vec![
            0,
            0,
            0,
            0,
            container.len() as u8 + 2,
            0x0a,
            container.len() as u8,
        ];
        answer.extend(container);
        let told: ListContainersResponse = unframed(&answer).unwrap();
        let [one] = &told.containers[..] else {
            panic!()
        };
        assert_eq!((&*one.id, &*one.pod_sandbox_id), ("ab", "s"));
        assert_eq!(one.metadata.as_ref().unwrap().name, "web");
        assert_eq!(one.image.as_ref().unwrap().name(), "im");
        assert_eq!(one.labels["k"], "v");
        let pod = b"\x0a\x01s\x12\x0c\x0a\x01p\x12\x01u\x1a\x02ns\x20\x01\
                    \x2a\x06\x0a\x01l\x12\x01m\x32\x06\x0a\x01a\x12\x01b";
        let pod = PodSandbox::decode(&pod[..])
            .unwrap()
            .tell(Some("web".into()))
            .unwrap();
        assert_eq!((&*pod.name, &*pod.uid, &*pod.namespace), ("p", "u", "ns"));
        assert_eq!((&*pod.labels["l"], &*pod.annotations["a"]), ("m", "b"));
        let image = ImageSpec {
            image: "sha256:1".into(),
            user_specified_image: "nginx:1".into(),
        };
        assert_eq!(image.encode_to_vec()[10..], *b"\x92\x01\x07nginx:1");
        assert_eq!(image.name(), "nginx:1");
    }

    #[test]
    fn half_an_answer_is_none() {
        let whole = framed(&Filter { id: "ab".into() });
        for end in 0..whole.len() {
            assert!(unframed::<Filter>(&whole[..end]).is_err(), "cut at {end}");
        }
        assert_eq!(unframed::<Filter>(&whole).unwrap().id, "ab");
        let mut more = whole.to_vec();
        more.push(0);
        assert!(unframed::<Filter>(&more).is_err());
        let mut compressed = whole.to_vec();
        compressed[0] = 1;
        assert!(unframed::<Filter>(&compressed).is_err());
    }

    /// However they are cut into frames.
    #[test]
    fn events_on_the_wire() {
        let mut wire = BytesMut::new();
        for event in [
            &b"\x0a\x01a"[..],
            b"\x0a\x01b\x10\x01\x18\x07",
            b"\x0a\x01c\x10\x02",
            b"\x0a\x01d\x10\x03",
        ] {
            wire.extend([0, 0, 0, 0, event.len() as u8]);
            wire.extend(event);
        }
        for cut in 0..=wire.len() {
            let mut read = BytesMut::new();
            let mut made = Vec::new();
            for part in [&wire[..cut], &wire[cut..]] {
                read.extend_from_slice(part);
                while let Some(event) = first::<ContainerEvent>(&mut read).unwrap() {
                    made.extend(event.tell().map(|made| made.id));
                }
            }
            assert_eq!(made, ["a", "b"], "cut at {cut}");
            assert!(read.is_empty());
        }
        let mut endless = BytesMut::from(&b"\0\xff\xff\xff\xff"[..]);
        assert!(first::<ContainerEvent>(&mut endless).is_err());
    }

    /// When, whose, what, and a message of the type that goes with that.
    #[test]
    fn events_of_containerd_on_the_wire() {
        let tell = |wire: &[u8]| Envelope::decode(wire).unwrap().tell().map(|made| made.id);
        let created = b"\x0a\x02\x08\x01\x12\x06k8s.io\x1a\x0d/tasks/create\
                        \"\x0b\x0a\x01t\x12\x06\x0a\x01a\x12\x01b";
        assert_eq!(tell(created).as_deref(), Some("a"));
        let started = b"\x1a\x0c/tasks/start\"\x05\x12\x03\x0a\x01a";
        assert_eq!(tell(started), None);
    }
}
