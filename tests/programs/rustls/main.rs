//! usage: rustls-client requests PORT BYTES      by reqwest, HTTP/1: posts so many and takes them back, thrice,
//!                                               and gets chunks in between
//!        rustls-client frames PORT VERSION      by rustls alone, blocking, on two connections in turn at one
//!                                               address: frames of the test server, up to 16 MiB
//!        rustls-client get CONNECTIONS REQUESTS URL...
//!        rustls-client post CONNECTIONS REQUESTS URL...
//!                                               by reqwest: connection C asks URL[C % URLs] for /nonce-C-R;
//!                                               one after the other, or eight at once with a body

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    sync::Arc,
    time::Duration,
};

use reqwest::{Client, Url};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, Error, SignatureScheme, StreamOwned,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::CryptoProvider,
    pki_types::{CertificateDer, ServerName, UnixTime},
    version::{TLS12, TLS13},
};

#[cfg(feature = "ring")]
use rustls::crypto::ring as provider;

#[cfg(not(feature = "ring"))]
use rustls::crypto::aws_lc_rs as provider;

fn main() {
    std::thread::spawn(|| {
        std::thread::sleep(Duration::from_secs(60));
        std::process::exit(99);
    });
    provider::default_provider().install_default().unwrap();
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let tokio = tokio::runtime::Runtime::new().unwrap();
    match words[..] {
        ["requests", port, bytes] => tokio.block_on(requests(port, bytes.parse().unwrap())),
        ["frames", port, version] => frames(port.parse().unwrap(), version),
        [how @ ("get" | "post"), connections, requests, ref urls @ ..] => {
            let urls: Vec<Url> = urls.iter().map(|url| url.parse().unwrap()).collect();
            let requests = requests.parse().unwrap();
            tokio.block_on(async {
                let clients = (0..connections.parse().unwrap()).map(|number: usize| {
                    let url = urls[number % urls.len()].clone();
                    tokio::spawn(nonces(how == "post", number, requests, url))
                });
                for client in clients.collect::<Vec<_>>() {
                    client.await.unwrap();
                }
            });
        }
        _ => panic!("not understood: {words:?}"),
    }
}

fn client() -> Client {
    let client = Client::builder().danger_accept_invalid_certs(true);
    client.build().unwrap()
}

fn noise(size: usize) -> Vec<u8> {
    let byte = |at: usize| (at.wrapping_mul(2_654_435_761) >> 13) as u8;
    (0..size).map(byte).collect()
}

async fn requests(port: &str, bytes: usize) {
    let client = client();
    let body = noise(bytes);
    for _ in 0..3 {
        let url = format!("https://127.0.0.1:{port}/echo");
        let echo = client.post(url).body(body.clone()).send().await.unwrap();
        assert!(echo.bytes().await.unwrap() == body);
        let url = format!("https://127.0.0.1:{port}/chunked/150001");
        let mut chunked = client.get(url).send().await.unwrap();
        let mut size = 0;
        while let Some(chunk) = chunked.chunk().await.unwrap() {
            size += chunk.len();
        }
        assert_eq!(size, 150_001);
    }
}

async fn nonces(is_post: bool, connection: usize, requests: usize, url: Url) {
    let client = client();
    let workers = if is_post { 8 } else { 1 };
    // The others share its connection.
    ask(&client, is_post, connection, 0, &url).await;
    let workers = (0..workers).map(|worker| {
        let (client, url) = (client.clone(), url.clone());
        tokio::spawn(async move {
            for request in (1 + worker..requests).step_by(workers) {
                ask(&client, is_post, connection, request, &url).await;
            }
        })
    });
    for worker in workers.collect::<Vec<_>>() {
        worker.await.unwrap();
    }
}

async fn ask(client: &Client, is_post: bool, connection: usize, request: usize, url: &Url) {
    let path = format!("/nonce-{connection:04}-{request:04}");
    let url = url.join(&path).unwrap();
    let pad = "p".repeat(1 + (connection * 7919 + request * 104_729) % 1500);
    let request = match is_post {
        true => client.post(url).body(path.clone() + &pad),
        false => client.get(url).header("pad", pad),
    };
    let answer = request.send().await.unwrap().text().await.unwrap();
    assert!(answer.contains(&path), "{answer}");
}

fn frames(port: u16, version: &str) {
    let version = match version {
        "1.2" => &TLS12,
        "1.3" => &TLS13,
        _ => panic!("no version {version}"),
    };
    let config = ClientConfig::builder_with_protocol_versions(&[version])
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody))
        .with_no_client_auth();
    let config = Arc::new(config);
    for (up, down) in [(40_001, 50_003), (16 << 20, 16 << 20)] {
        let name = ServerName::try_from("localhost").unwrap();
        let connection = ClientConnection::new(config.clone(), name).unwrap();
        let socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let mut stream = StreamOwned::new(connection, socket);
        let mut back = vec![0; down];
        for _ in 0..2 {
            let head = [up, down].map(|size| (size as u64).to_be_bytes()).concat();
            stream.write_all(&head).unwrap();
            stream.write_all(&noise(up)).unwrap();
            stream.flush().unwrap();
            stream.read_exact(&mut back).unwrap();
        }
        stream.conn.send_close_notify();
        stream.flush().unwrap();
    }
}

/// The server's certificate is its own.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let provider = CryptoProvider::get_default().unwrap();
        provider.signature_verification_algorithms.supported_schemes()
    }
}
